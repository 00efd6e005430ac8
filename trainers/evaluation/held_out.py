"""Loss of a model on held-out tokens, by window, so that two runs can be compared in pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.recipe import Recipe

TOKENS = 262_144  # of the held-out text, evenly spread over it
SET_TOKENS = 32_768  # of each named validation set: all of them must cost little beside a run
ROWS = 32  # windows per forward pass
DRAWS_SEED = 0  # of what an objective draws: every model is evaluated with the same masks
FEWEST_DOCUMENTS = 10  # with fewer, their scatter says little: windows are taken as independent


class HeldOutTokens(Protocol):
    """A validation set: tokens of a held-out text and how many bytes one of them stands for.

    It may also have ``starts``, where its documents begin, (documents,) in tokens.
    """

    @property
    def tokens(self) -> np.ndarray:
        """Tokens, one after the other."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out loss in nats per token and in bits per byte, each with its standard error.

    ``windows`` holds the mean loss of each window, in the order of the text. The standard errors
    say how far another text of the kind would be: they are no noise between runs on this one.
    """

    loss: float
    loss_se: float
    bits_per_byte: float
    bits_per_byte_se: float
    windows: np.ndarray


def evaluate_tokens(
    model: Transformer,
    tokens: np.ndarray,
    recipe: Recipe,
    *,
    bytes_per_token: float,
    starts: np.ndarray | None = None,
    most: int = TOKENS,
) -> Evaluation:
    """Mean next-token loss over windows spread evenly over the held-out tokens.

    The windows depend on the tokens and the context length only: all runs of a table see the same.

    Parameters
    ----------
    tokens
        Held-out tokens, (count,).
    bytes_per_token
        Of this text, taken as exact: bits per byte = nats per token / ln 2 / bytes per token.
    starts
        Where documents begin, ascending. Windows that begin in one document are then one cluster
        of the standard error; without, or with fewer than ten clusters, each is its own.
    most
        Tokens that are looked at.
    """
    length = recipe.context_length
    available = (len(tokens) - 1) // length
    count = max(1, min(available, most // length))
    begins = np.linspace(0, max(available - 1, 0), count).round().astype(int) * length
    device = model.embed_tokens.weight.device
    objective, draws = objective_of(recipe), torch.Generator(device).manual_seed(DRAWS_SEED)
    losses = []
    with torch.inference_mode():
        for rows in np.array_split(begins, math.ceil(count / ROWS)):
            batch = np.stack([tokens[start : start + length + 1] for start in rows])
            on_device = Batch(torch.from_numpy(batch.astype(np.int64)).to(device))
            of_windows = objective.sequence_losses(model, on_device, draws)
            losses.append(of_windows.double().cpu().numpy())
    windows = np.concatenate(losses)
    loss = float(windows.mean())
    error = _standard_error(windows, begins, starts)
    in_bits = 1 / math.log(2) / bytes_per_token
    return Evaluation(
        loss=loss,
        loss_se=error,
        bits_per_byte=loss * in_bits,
        bits_per_byte_se=error * in_bits,
        windows=windows,
    )


def _standard_error(windows: np.ndarray, begins: np.ndarray, starts: np.ndarray | None) -> float:
    """Of the mean over windows; those of one document vary together (Liang and Zeger 1986)."""
    clusters = np.arange(len(windows))
    if starts is not None:
        documents = np.searchsorted(starts, begins, side="right")
        if len(np.unique(documents)) >= FEWEST_DOCUMENTS:
            clusters = documents
    _, members = np.unique(clusters, return_inverse=True)
    sums = np.bincount(members, weights=windows - windows.mean())
    if len(sums) < 2:
        return 0.0
    return math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1)) / len(windows)


def evaluate_sets(
    model: Transformer, sets: Mapping[str, HeldOutTokens], recipe: Recipe
) -> dict[str, Evaluation]:
    """Evaluate on named validation sets, each on few tokens; see :func:`evaluate_tokens`."""
    return {
        name: evaluate_tokens(
            model,
            held_out.tokens,
            recipe,
            bytes_per_token=held_out.bytes_per_token,
            starts=getattr(held_out, "starts", None),
            most=SET_TOKENS,
        )
        for name, held_out in sets.items()
    }


def loss_columns(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Columns of the run table for named validation sets, as a link from loss reads them.

    ``loss_NAME`` in nats per token and ``bits_per_byte_NAME``, each with its ``_se``.
    """
    columns = {}
    for name, found in evaluations.items():
        columns[f"loss_{name}"] = found.loss
        columns[f"loss_{name}_se"] = found.loss_se
        columns[f"bits_per_byte_{name}"] = found.bits_per_byte
        columns[f"bits_per_byte_{name}_se"] = found.bits_per_byte_se
    return columns
