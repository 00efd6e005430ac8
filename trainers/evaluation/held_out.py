"""Loss of a model on held-out tokens, also by window, for paired comparisons of two runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from shapelaw.scaling.display.tables import counted
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.recipe import Recipe

MAX_TOKENS = 262_144  # evaluated, evenly spread over the held-out text
# Evaluated tokens of each named validation set. All sets together must cost little beside a run.
MAX_SET_TOKENS = 32_768
WINDOWS_PER_PASS = 32
OBJECTIVE_SEED = 0  # of the objective's random draws: every model is evaluated with the same masks
MIN_DOCUMENTS = 10  # for a standard error clustered by document; texts with fewer get blocks
BLOCKS = 20  # of consecutive windows of a text with too few documents


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
    clusters
        Number and kind of the clusters of the standard errors: ``412 documents``, or ``20 blocks``
        of consecutive windows if the text has too few documents.
    """

    loss: float
    loss_se: float
    bits_per_byte: float
    bits_per_byte_se: float
    windows: np.ndarray
    clusters: str


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
        Positions of the first tokens of the documents, ascending, (documents,). The evaluated
        tokens of a document form one cluster of the standard error. Without ``starts``, or with
        fewer than ten evaluated documents, the clusters are 20 blocks of consecutive windows. They
        do not show how documents differ from each other.
    most
        Largest number of tokens to evaluate.

    Returns
    -------
    Evaluation
        Loss, standard errors, and the clusters on which these are based.
    """
    length = recipe.context_length
    available = (len(tokens) - 1) // length
    count = max(1, min(available, most // length))
    begins = np.linspace(0, max(available - 1, 0), count).round().astype(int) * length
    device = model.embed_tokens.weight.device
    objective = objective_of(recipe)
    generator = torch.Generator(device).manual_seed(OBJECTIVE_SEED)
    parts = []
    with torch.inference_mode():
        for rows in np.array_split(begins, math.ceil(count / WINDOWS_PER_PASS)):
            batch = np.stack([tokens[start : start + length + 1] for start in rows])
            on_device = Batch(torch.from_numpy(batch.astype(np.int64)).to(device))
            batch_losses, counts = objective.held_out_losses(model, on_device, generator)
            means = batch_losses.sum(dim=1) / counts.sum(dim=1).clamp(min=1)
            part = (means.double(), batch_losses.double(), counts.double())
            parts.append([values.cpu().numpy() for values in part])
    windows, losses, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    loss = float(windows.mean())
    members, clusters = _clusters(begins, losses.shape[1], starts)
    error = _standard_error(losses, weights, members)
    bits_per_nat = 1 / math.log(2) / bytes_per_token
    return Evaluation(
        loss=loss,
        loss_se=error,
        bits_per_byte=loss * bits_per_nat,
        bits_per_byte_se=error * bits_per_nat,
        windows=windows,
        clusters=clusters,
    )


def _clusters(begins: np.ndarray, length: int, starts: np.ndarray | None) -> tuple[np.ndarray, str]:
    """Assign each evaluated token to a cluster; return these, (windows, length), and their kind.

    A window that crosses a boundary between documents belongs to both. A separator belongs to the
    document before it.
    """
    count = len(begins)
    if starts is not None:
        targets = begins[:, None] + 1 + np.arange(length)
        documents, members = np.unique(
            np.searchsorted(starts, targets, side="right"), return_inverse=True
        )
        if len(documents) >= MIN_DOCUMENTS:
            return members.reshape(targets.shape), f"{len(documents)} documents"
    blocks = min(BLOCKS, count)
    members = np.repeat(np.arange(count) * blocks // count, length).reshape(count, length)
    return members, counted(blocks, "block")


def _standard_error(losses: np.ndarray, weights: np.ndarray, members: np.ndarray) -> float:
    """Estimate the standard error of the mean loss of a token, clustered.

    The mean is a ratio over clusters, the sum of their losses over the sum of their tokens. Its
    linearised variance is G / (G - 1) · Σ (loss_g - mean · tokens_g)² / tokens² (Cochran 1977,
    equation 6.9; Liang and Zeger 1986). One cluster alone has no error estimate, and gives 0.
    """
    sums, tokens = (np.bincount(members.ravel(), weights=values.ravel())
                    for values in (losses, weights))  # fmt: skip
    if len(sums) < 2:
        return 0.0
    total = tokens.sum()
    deviations = sums - sums.sum() / total * tokens
    return math.sqrt(float((deviations**2).sum()) * len(sums) / (len(sums) - 1)) / float(total)


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
