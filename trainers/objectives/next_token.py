"""Next-token prediction: the cross-entropy of every token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.chunked_loss import chunked_cross_entropy
from shapelaw.trainers.optimizers.recipe import Recipe

LOGITS = 2**28  # of a step: in fp32 with their gradient these take 2 GiB


def token_losses(model: Transformer, batch: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Cross-entropy of every next token, (B, T), of sequences with their next token (B, T + 1)."""
    lower = recipe.dtype == "bfloat16"
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=lower):
        logits = model.logits(model(batch[:, :-1]))
    losses = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return losses.view(batch.shape[0], -1)


class MeanLoss(nn.Module):
    """Mean training loss of one model as a module: what is mapped over replicas, or sharded.

    Where the logits would be large they are never whole: see
    :mod:`shapelaw.trainers.objectives.chunked_loss`.
    """

    def __init__(self, model: Transformer, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: Tensor) -> Tensor:
        """Mean loss of (S, T + 1) tokens."""
        targets = batch[:, 1:]
        if targets.numel() * self.model.shape.vocab_size <= LOGITS:
            return token_losses(self.model, batch, self.recipe).mean()
        lower = self.recipe.dtype == "bfloat16"
        with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=lower):
            hidden = self.model(batch[:, :-1])
            return chunked_cross_entropy(hidden, self.model.lm_head.weight, targets)
