"""Interface of a training objective, and the batch on which it is computed."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.recipe import Recipe


class Batch(NamedTuple):
    """Sequences of one step.

    ``tokens`` (S, T + 1) are sequences with their next token; ``mask`` (S, T) is true where the
    next token is to be predicted, for example not for padding or for the first token of a document.
    With None, all of them are predicted. ``documents`` (S, T + 1) are the documents of the tokens,
    which are invisible to each other; padding is one of its own. ``noise`` are the draws of
    :meth:`Objective.draw`, one row per sequence, where they are made before the loss.
    """

    tokens: Tensor
    mask: Tensor | None = None
    documents: Tensor | None = None
    noise: Tensor | None = None

    def rows(self, rows: slice) -> Self:
        """Return some of the sequences."""
        return type(self)(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Self:
        """Return the same sequences on a device."""
        return type(self)(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


class Objective(Protocol):
    """Objective that training minimises, with one implementation for every training loop.

    The single loop calls :meth:`loss` directly, the stacked loop maps it over models with
    :func:`torch.func.vmap`, and the distributed loop combines the losses of its processes by their
    token counts. An implementation must therefore work only on tensors and never wait for a device.
    """

    def loss(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the training loss of a batch.

        Parameters
        ----------
        generator
            Source of every random draw, such as masks or noise levels; seeded for each step.

        Returns
        -------
        loss
            Mean in nats per token, a scalar that can be differentiated.
        token_count
            Number of tokens of the mean, a scalar in float32. The loss of several parts of a batch
            is the mean of their losses weighted by these numbers.
        """

    def draw(self, sequences: int, length: int, generator: torch.Generator) -> Tensor | None:
        """Draw the noise of a whole batch before its loss, one row per sequence; None without.

        A loop that computes parts of a batch, or several models at once, draws here, so that its
        numbers are those of one model alone. Else :meth:`loss` draws the same by itself.

        Parameters
        ----------
        sequences, length
            Sequences S of the batch and tokens T of each.
        generator
            Source of the draws; seeded for each step.
        """

    def held_out_losses(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of each next token, for the evaluation of held-out text.

        Returns
        -------
        losses
            Loss of each next token in nats, (S, T); 0 where the token does not count.
        counted
            1 where the token counts, else 0, (S, T).
        """


SEED_STRIDE = 0x9E3779B97F4A7C15  # between the states of two seeds, larger than any number of steps
# The signature of :meth:`Objective.loss`.
LossFunction = Callable[[Transformer, Batch, torch.Generator], tuple[Tensor, Tensor]]


class LossModule(nn.Module):
    """Model with its objective as one module, to map over models or distribute over GPUs."""

    def __init__(self, model: Transformer, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Compute :meth:`Objective.loss` of the model."""
        return self.objective.loss(self.model, batch, generator)


def precision(tokens: Tensor, recipe: Recipe) -> torch.autocast:
    """Compute in the recipe's number format on the device of the tokens."""
    lower = recipe.dtype == "bfloat16"
    return torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=lower)


def reseed(generator: torch.Generator, seed: int, step: int) -> torch.Generator:
    """Seed a generator by (seed, step), as the batch of a step is, and return it.

    The same generator is used in all steps, because compiled code and CUDA graphs refer to it.
    """
    return generator.manual_seed((seed * SEED_STRIDE + step) % 2**63)
