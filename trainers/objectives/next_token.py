"""Next-token prediction: the cross-entropy of every token."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.chunked_loss import chunked_cross_entropy
from shapelaw.trainers.objectives.objective import Batch, precision
from shapelaw.trainers.optimizers.recipe import Recipe

MAX_LOGITS = 2**28  # of a step, computed at once; with their gradient they take 2 GiB in fp32


def token_losses(
    model: Transformer, tokens: Tensor, recipe: Recipe, documents: Tensor | None = None
) -> Tensor:
    """Compute the cross-entropy of every next token, (S, T), of sequences (S, T + 1)."""
    with precision(tokens, recipe):
        logits = model.logits(_hidden(model, tokens, documents))
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

    def draw(self, sequences: int, length: int, generator: torch.Generator) -> None:
        """Draw nothing: the objective has no noise."""

    def loss(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the mean loss and the number of predicted tokens."""
        targets = batch.tokens[:, 1:]
        if batch.mask is not None:
            losses = token_losses(model, batch.tokens, self.recipe, batch.documents)
            count = batch.mask.sum().float()
            return (losses * batch.mask).sum() / count.clamp(min=1), count
        count = torch.full((), targets.numel(), dtype=torch.float32, device=targets.device)
        if targets.numel() * model.vocab_size <= MAX_LOGITS:
            return token_losses(model, batch.tokens, self.recipe, batch.documents).mean(), count
        with precision(targets, self.recipe):
            hidden = _hidden(model, batch.tokens, batch.documents)
            return chunked_cross_entropy(hidden, model.lm_head.weight, targets), count

    def held_out_losses(
        self, model: Transformer, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of each next token; masked tokens do not count."""
        losses = token_losses(model, batch.tokens, self.recipe, batch.documents)
        counted = torch.ones_like(losses) if batch.mask is None else batch.mask.to(losses)
        return losses * counted, counted


def _hidden(model: Transformer, tokens: Tensor, documents: Tensor | None) -> Tensor:
    """Compute the hidden states that predict the next tokens of (S, T + 1) -> (S, T, d).

    In training, their gradient may include that of a loss of further tokens.
    """
    seen = None if documents is None else documents[:, :-1]
    hidden: Tensor = model(tokens[:, :-1], documents=seen)
    further = model.next_predictions
    return hidden if further is None else further.add_to(model, hidden, tokens, seen)
