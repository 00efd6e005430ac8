"""Asymmetric distillation of discrete diffusion forcing (D2F, arXiv 2508.09192).

The student sees only the tokens of its own and of earlier blocks, all of them noisy. The teacher is
the same model without the student's adapters; it sees the whole noisy sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shapelaw.trainers.models.lora import adapter_dropout, adapters_off
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import FULL, Visibility
from shapelaw.trainers.objectives.diffusion import Diffusion
from shapelaw.trainers.objectives.objective import Batch, precision
from shapelaw.trainers.optimizers.noise import VARIANTS
from shapelaw.trainers.optimizers.recipe import Recipe


@dataclass(frozen=True)
class Distillation:
    """Mean over masked tokens of CE(student, softmax of the teacher)/p, with p the rate of a block.

    The rates grow over the blocks (variant ``d2f`` of the noise). The loss contains the entropy of
    the teacher, so that it does not fall to 0. Dropout of the adapters is drawn from the generator
    of the step. The held-out loss is the bound of block diffusion with the same blocks.

    Parameters
    ----------
    recipe
        Recipe of the run, for the number format.
    block
        Tokens of a block.
    """

    recipe: Recipe
    block: int

    @property
    def diffusion(self) -> Diffusion:
        """Block diffusion with the same noise."""
        return Diffusion(self.recipe, self.block, VARIANTS["d2f"])

    def draw(self, sequences: int, length: int, generator: torch.Generator) -> Tensor:
        """Draw the noise of a batch, as block diffusion does."""
        return self.diffusion.draw(sequences, length, generator)

    def loss(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the mean loss of the masked tokens and their number."""
        clean, mask_token = batch.tokens[:, 1:], model.mask_token
        assert mask_token is not None
        sequences, length = clean.shape
        drawn = batch.noise
        if drawn is None:
            drawn = self.draw(sequences, length, generator).to(clean.device)
        rates = drawn[:, length:].repeat_interleave(self.block, dim=1)
        masked = drawn[:, :length] < rates
        if batch.mask is not None:
            masked = masked & batch.mask
        noisy = clean.masked_fill(masked, mask_token)
        documents = None if batch.documents is None else batch.documents[:, 1:]
        with torch.no_grad(), adapters_off(model):
            teacher = self._log_probabilities(model, noisy, documents, FULL)
        with adapter_dropout(model, generator):
            seen = Visibility("block", self.block)
            student = self._log_probabilities(model, noisy, documents, seen)
        products = teacher.exp() * student
        products[..., mask_token] = 0.0  # instead of 0 · -∞
        losses = -products.sum(dim=-1) / rates
        count = masked.sum().float()
        return (losses * masked).sum() / count.clamp(min=1), count

    def _log_probabilities(
        self, model: Transformer, tokens: Tensor, documents: Tensor | None, visibility: Visibility
    ) -> Tensor:
        """Compute log-probabilities of the tokens at their own positions, (S, T, V)."""
        with precision(tokens, self.recipe):
            logits = model.logits(model(tokens, visibility=visibility, documents=documents))
        return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    def held_out_losses(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the bound of block diffusion."""
        return self.diffusion.held_out_losses(model, batch, generator)
