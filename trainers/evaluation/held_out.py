"""Loss of a model on held-out tokens, also by window, for paired comparisons of two runs."""

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

MAX_TOKENS = 262_144  # evaluated, evenly spread over the held-out text
# Evaluated tokens of each named validation set. All sets together must cost little beside a run.
MAX_SET_TOKENS = 32_768
WINDOWS_PER_PASS = 32
OBJECTIVE_SEED = 0  # of the objective's random draws: every model is evaluated with the same masks
MIN_CLUSTERS = 10  # documents; with fewer, windows count as independent in the standard error


class HeldOutTokens(Protocol):
    """Validation set: tokens of a held-out text and the mean number of bytes per token.

    A set may also have ``starts``, the positions of its documents' first tokens, (documents,).
    """

    @property
    def tokens(self) -> np.ndarray:
        """Token ids of the text, (count,)."""

    @property
    def bytes_per_token(self) -> float:
        """Mean number of bytes of text per token."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Held-out loss in nats per token and in bits per byte, each with its standard error.

    The standard errors measure the variation between texts of this kind. They do not measure the
    variation between runs on one text.

    Attributes
    ----------
    loss, loss_se
        Mean loss and its standard error, nats per token.
    bits_per_byte, bits_per_byte_se
        The same in bits per byte.
    windows
        Mean loss of each window in the order of the text, (windows,), nats per token.
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
    most: int = MAX_TOKENS,
) -> Evaluation:
    """Evaluate the mean loss over windows spread evenly over the held-out tokens.

    The windows depend only on the tokens and the context length, so that all runs of a table are
    evaluated on the same windows.

    Parameters
    ----------
    model
        Model to evaluate.
    tokens
        Held-out tokens, (count,).
    recipe
        Recipe of the run; gives the context length and the objective.
    bytes_per_token
        Mean number of bytes per token of this text, treated as exact: bits per byte = nats per
        token / ln 2 / bytes per token.
    starts
        Positions of the first tokens of the documents, ascending, (documents,). Windows that begin
        in the same document form one cluster of the standard error. Without ``starts``, or with
        fewer than ten clusters, every window is a cluster of its own.
    most
        Largest number of tokens to evaluate.
    """
    length = recipe.context_length
    available = (len(tokens) - 1) // length
    count = max(1, min(available, most // length))
    begins = np.linspace(0, max(available - 1, 0), count).round().astype(int) * length
    device = model.embed_tokens.weight.device
    objective = objective_of(recipe)
    generator = torch.Generator(device).manual_seed(OBJECTIVE_SEED)
    losses = []
    with torch.inference_mode():
        for rows in np.array_split(begins, math.ceil(count / WINDOWS_PER_PASS)):
            batch = np.stack([tokens[start : start + length + 1] for start in rows])
            on_device = Batch(torch.from_numpy(batch.astype(np.int64)).to(device))
            batch_losses = objective.sequence_losses(model, on_device, generator)
            losses.append(batch_losses.double().cpu().numpy())
    windows = np.concatenate(losses)
    loss = float(windows.mean())
    error = _standard_error(windows, begins, starts)
    bits_per_nat = 1 / math.log(2) / bytes_per_token
    return Evaluation(
        loss=loss,
        loss_se=error,
        bits_per_byte=loss * bits_per_nat,
        bits_per_byte_se=error * bits_per_nat,
        windows=windows,
    )


def _standard_error(windows: np.ndarray, begins: np.ndarray, starts: np.ndarray | None) -> float:
    """Estimate the cluster-robust standard error of the mean over windows (Liang and Zeger 1986).

    The windows of one document are correlated and therefore form one cluster.
    """
    clusters = np.arange(len(windows))
    if starts is not None:
        documents = np.searchsorted(starts, begins, side="right")
        if len(np.unique(documents)) >= MIN_CLUSTERS:
            clusters = documents
    _, members = np.unique(clusters, return_inverse=True)
    sums = np.bincount(members, weights=windows - windows.mean())
    if len(sums) < 2:
        return 0.0
    return math.sqrt(float((sums**2).sum()) * len(sums) / (len(sums) - 1)) / len(windows)


def evaluate_sets(
    model: Transformer, sets: Mapping[str, HeldOutTokens], recipe: Recipe
) -> dict[str, Evaluation]:
    """Evaluate a model on several named validation sets, each on few tokens.

    Parameters
    ----------
    model
        Model to evaluate.
    sets
        Validation sets by name.
    recipe
        Recipe of the run, as in :func:`evaluate_tokens`.
    """
    return {
        name: evaluate_tokens(
            model,
            held_out.tokens,
            recipe,
            bytes_per_token=held_out.bytes_per_token,
            starts=getattr(held_out, "starts", None),
            most=MAX_SET_TOKENS,
        )
        for name, held_out in sets.items()
    }


def loss_columns(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Return the columns of the run table for named validation sets.

    The columns are ``loss_NAME`` in nats per token and ``bits_per_byte_NAME``, each with its
    standard error ``_se``. A link from loss to accuracy is fitted to them.
    """
    columns = {}
    for name, evaluation in evaluations.items():
        columns[f"loss_{name}"] = evaluation.loss
        columns[f"loss_{name}_se"] = evaluation.loss_se
        columns[f"bits_per_byte_{name}"] = evaluation.bits_per_byte
        columns[f"bits_per_byte_{name}_se"] = evaluation.bits_per_byte_se
    return columns
