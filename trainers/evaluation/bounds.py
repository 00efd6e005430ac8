"""Log-probabilities of texts under diffusion models, from below, for downstream tasks.

The bound on -ln p of a continuation is the exact-l bound of its tokens after the visible context:
the mean over draws of masks of (L/l)·Σ CE. Requests of one number have the same draws, so that the
difference of two sentences varies less than either of them.

Shape letters: n requests, K draws of masks, T tokens of a text.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json
from shapelaw.trainers.evaluation.loglikelihood import (
    Likelihoods,
    LogLikelihoodRequest,
    RequestPart,
    likelihoods,
    parts_of,
    require_finite,
)
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.diffusion import Diffusion, mask_exactly
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.optimizers.noise import BLOCK, MASKED, NEXT_TOKEN, parse_objective
from shapelaw.trainers.optimizers.recipe import Recipe

DRAWS = 16  # of masks of each text, with l in equal parts of 1 to L; even, for their error
ROWS = "rows.json"  # in the folder of a run: its rows of the run table


def trained_objective(run: Path, model: Transformer) -> str:
    """Return the objective that a model in a folder was trained by: from its rows, or its config.

    Raises
    ------
    InputError
        A model with a mask token has neither rows nor a block length.
    """
    if model.mask_token is None:
        return NEXT_TOKEN
    if (run / ROWS).exists():
        rows = read_json(run / ROWS).get("rows") or [{}]
        return str(rows[-1].get("objective") or MASKED)
    length = model.architecture.block_length
    if length == 1:
        raise InputError(
            f"`{ROWS}` of {run.name} must name the objective of a model with a mask token, but "
            "there is no such file; give the whole folder of the run, not only its weights"
        )
    return MASKED if length is None else f"{BLOCK}:{length}"


def log_probabilities(
    model: Transformer,
    requests: Sequence[LogLikelihoodRequest],
    objective: str = NEXT_TOKEN,
    *,
    draws: int = DRAWS,
) -> Likelihoods:
    """Score requests by next tokens, or by the bound of a diffusion model.

    Parameters
    ----------
    model
        Model to score with.
    requests
        Contexts and continuations.
    objective
        Objective that the model was trained by.
    draws
        Number of masks of each text, even.

    Returns
    -------
    Likelihoods
        Log-probabilities; those of a bound are too low on average, and have ``draws``.
    """
    name = parse_objective(objective)
    if not name.is_diffusion:
        return likelihoods(model, requests)
    assert name.noise is not None
    recipe = Recipe(objective=objective, context_length=model.context_length)
    diffusion = Diffusion(recipe, name.block, name.noise)
    count = draws if name.loss_kind == "bound" else 2  # of equal ones, where one is exact
    sums = np.zeros((len(requests), count))
    truncated = 0
    for index, request in enumerate(requests):
        pieces = list(parts_of(index, request, model.context_length - 1))
        truncated += len(request.context) + len(request.continuation) > model.context_length
        for number, piece in enumerate(pieces):
            sums[index] -= _bounds(model, diffusion, piece, (request.masks, number), count)
    require_finite(sums)
    return Likelihoods(
        log_probability=sums.mean(axis=1), greedy=None, truncated=truncated, draws=sums
    )


def difference_error(differences: np.ndarray) -> np.ndarray:
    """Estimate the standard error of the mean of stratified draws, (n, K) -> (n,).

    Neighbouring strata form pairs, whose squared differences bound the variance within them from
    above (collapsed strata; Cochran 1977, section 5A.12).
    """
    pairs = differences.reshape(len(differences), -1, 2)
    return np.sqrt(((pairs[..., 0] - pairs[..., 1]) ** 2).sum(axis=1)) / differences.shape[1]


def _bounds(
    model: Transformer, diffusion: Diffusion, piece: RequestPart, seed: tuple[int, int], draws: int
) -> np.ndarray:
    """Compute the bound on -ln p of the scored tokens of a piece with each draw of masks, (K,)."""
    length = len(piece.tokens)
    size = diffusion.block or length
    width = math.ceil(length / size) * size
    device = model.embed_tokens.weight.device
    tokens = torch.zeros((1, 1 + width), dtype=torch.int64)  # the first is given, not read
    tokens[0, 1 : 1 + length] = torch.from_numpy(piece.tokens)
    scored = torch.zeros((1, width), dtype=torch.bool)
    scored[0, piece.first : length] = True
    documents = torch.zeros((1, 1 + width), dtype=torch.int64)
    documents[0, 1 + length :] = -1
    several = [part.expand(draws, -1).to(device) for part in (tokens, scored, documents)]
    batch = Batch(several[0], several[1], several[2] if width > length else None)
    numbers, quantiles = _draw(seed, width, width // size, draws)
    masked, weights = mask_exactly(numbers.to(device), several[1], quantiles.to(device))
    with torch.inference_mode():
        losses = diffusion.token_losses(model, batch, masked) * weights
        return losses.sum(dim=1, dtype=torch.float64).cpu().numpy()


def _draw(seed: tuple[int, int], width: int, blocks: int, draws: int) -> tuple[Tensor, Tensor]:
    """Draw numbers of tokens, (K, T), and of blocks, (K, blocks); longer texts add to them."""
    tokens, masks = (np.random.default_rng((*seed, kind)) for kind in (0, 1))
    numbers = tokens.random((width, draws)).T
    quantiles = (masks.random((blocks, draws)) + np.arange(draws)).T / draws
    return torch.from_numpy(numbers), torch.from_numpy(quantiles)
