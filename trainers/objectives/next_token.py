"""Next-token prediction: the cross-entropy of every token."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.chunked_loss import chunked_cross_entropy
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.optimizers.recipe import Recipe

MAX_LOGITS = 2**28  # of a step, computed at once; with their gradient they take 2 GiB in fp32


def token_losses(model: Transformer, tokens: Tensor, recipe: Recipe) -> Tensor:
    """Compute the cross-entropy of every next token, (S, T), of sequences (S, T + 1)."""
    with _precision(tokens, recipe):
        logits = model.logits(model(tokens[:, :-1]))
    targets = tokens[:, 1:].flatten()
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
    return losses.view(tokens.shape[0], -1)


@dataclass(frozen=True)
class NextToken:
    """Mean over tokens of -ln p(token | the tokens before it).

    A large number of logits is computed in chunks; see
    :mod:`shapelaw.trainers.objectives.chunked_loss`. The objective uses no random numbers.
    """

    recipe: Recipe

    def loss(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the mean loss and the number of predicted tokens."""
        targets = batch.tokens[:, 1:]
        if batch.mask is not None:
            losses = token_losses(model, batch.tokens, self.recipe)
            count = batch.mask.sum().float()
            return (losses * batch.mask).sum() / count.clamp(min=1), count
        count = torch.full((), targets.numel(), dtype=torch.float32, device=targets.device)
        if targets.numel() * model.vocab_size <= MAX_LOGITS:
            return token_losses(model, batch.tokens, self.recipe).mean(), count
        with _precision(targets, self.recipe):
            hidden = model(batch.tokens[:, :-1])
            return chunked_cross_entropy(hidden, model.lm_head.weight, targets), count

    def held_out_losses(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of each next token; masked tokens do not count."""
        losses = token_losses(model, batch.tokens, self.recipe)
        counted = torch.ones_like(losses) if batch.mask is None else batch.mask.to(losses)
        return losses * counted, counted


def _precision(tokens: Tensor, recipe: Recipe) -> torch.autocast:
    """Compute in the recipe's number format on the device of the tokens."""
    lower = recipe.dtype == "bfloat16"
    return torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=lower)
