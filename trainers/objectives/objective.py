"""The interface of a training objective, and the batch that it is computed on."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from shapelaw.trainers.models.transformer import Transformer


class Batch(NamedTuple):
    """Sequences of one step.

    ``tokens`` (S, T + 1) are sequences with their next token; ``mask`` (S, T) is true where the
    next token is to be predicted, and None where all of them are: padding, or the first token of
    a document, can be left out.
    """

    tokens: Tensor
    mask: Tensor | None = None

    def rows(self, rows: slice) -> Self:
        """Return some of the sequences."""
        return self._replace(
            tokens=self.tokens[rows], mask=None if self.mask is None else self.mask[rows]
        )

    def to(self, device: torch.device) -> Self:
        """Return the same sequences on a device."""
        return self._replace(
            tokens=self.tokens.to(device), mask=None if self.mask is None else self.mask.to(device)
        )


class Objective(Protocol):
    """What training minimises; one implementation serves every training loop.

    The single loop calls :meth:`loss` as it is, the stacked loop maps it over models with
    :func:`torch.func.vmap`, and the distributed loop combines the losses of its processes by their
    token counts. An implementation therefore works on tensors alone and never waits for a device.
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
            Tokens that the mean is over, a scalar in float32. The loss of several parts of a batch
            is the mean of their losses with these as weights.
        """

    def sequence_losses(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Compute the mean loss of each sequence, (S,): what held-out text is evaluated by."""


STEPS_APART = 0x9E3779B97F4A7C15  # between the states of two seeds: far more than any run takes
# The signature of :meth:`Objective.loss`.
LossFunction = Callable[[Transformer, Batch, torch.Generator], tuple[Tensor, Tensor]]


class LossModule(nn.Module):
    """A model with its objective as one module: what is mapped over models, or spread over GPUs."""

    def __init__(self, model: Transformer, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Compute :meth:`Objective.loss` of the model."""
        return self.objective.loss(self.model, batch, generator)


def reseed(generator: torch.Generator, seed: int, step: int) -> torch.Generator:
    """Make the draws of a step a function of (seed, step), as its batch is; returns the generator.

    One generator serves all steps, so that compiled code and CUDA graphs keep theirs.
    """
    return generator.manual_seed((seed * STEPS_APART + step) % 2**63)
