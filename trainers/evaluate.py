"""Loss of a model on held-out tokens, by window, so that two runs can be compared in pairs."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from trainers.model import Transformer
from trainers.optim import Recipe

TOKENS = 262_144  # of the held-out text, evenly spread over it
ROWS = 32  # windows per forward pass


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out loss: nats per token with its standard error over windows, and bits per byte.

    ``windows`` holds the mean loss of each window, in the order of the text.
    """

    loss: float
    loss_se: float
    bits_per_byte: float
    windows: np.ndarray


def evaluate(
    model: Transformer, tokens: np.ndarray, recipe: Recipe, *, bytes_per_token: float
) -> Evaluation:
    """Mean next-token loss over windows spread evenly over the held-out tokens.

    The windows depend on the tokens and the context length only: all runs of a table see the same.
    """
    length = recipe.context_length
    available = (len(tokens) - 1) // length
    count = max(1, min(available, TOKENS // length))
    starts = np.linspace(0, max(available - 1, 0), count).round().astype(int) * length
    losses = []
    with torch.inference_mode():
        for rows in np.array_split(starts, math.ceil(count / ROWS)):
            batch = np.stack([tokens[start : start + length + 1] for start in rows])
            per_token = token_losses(model, torch.from_numpy(batch.astype(np.int64)), recipe)
            losses.append(per_token.mean(dim=1).double().numpy())
    windows = np.concatenate(losses)
    spread = float(windows.std(ddof=1)) if count > 1 else 0.0
    loss = float(windows.mean())
    return Evaluation(
        loss=loss,
        loss_se=spread / math.sqrt(count),
        bits_per_byte=loss / math.log(2) / bytes_per_token,
        windows=windows,
    )


def token_losses(model: Transformer, batch: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Cross-entropy of every next token, (B, T), of sequences with their next token (B, T + 1)."""
    lower = recipe.dtype == "bfloat16"
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=lower):
        logits = model.logits(model(batch[:, :-1]))
    losses = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return losses.view(batch.shape[0], -1)
