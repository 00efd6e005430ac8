"""Size and tokens of the least cost of training and serving at a target loss.

A model that serves many tokens is cheapest over its life when it is smaller than the
compute-optimal one and is trained on more tokens (arXiv 2401.00448).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import (
    MAX_SIZE_EXTRAPOLATION,
    Range,
    best_ratios,
    minimum_by_parabola,
    trade_off_gap,
    value_with_interval,
)
from shapelaw.scaling.fitting.result import Fit, as_fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.units import format_count, short_unit

TRAINING, SERVING = 6, 2  # FLOPs per parameter and token
POINTS = 101  # sizes on each grid
ZOOMS = 3  # grids, each between the neighbours of the best size on the one before; for draws fewer
MAX_LOG_TOKENS = float(np.log(1e30))
BISECTIONS = 50  # of ln D: to 1e-13
DRAWS = 100  # draws of the interval: the law is solved for each


@dataclass(frozen=True, kw_only=True, repr=False)
class LifetimeOptimum(Result):
    """N and D that reach a loss at the least cost of training and serving.

    Each quantity has the keys value, low and high (its 95 % interval), None where unknown.

    Parameters
    ----------
    loss
        Target, in ``unit``.
    unit
        Unit of the losses of the law.
    served_tokens
        Tokens that the model serves over its life.
    n
        Parameters, by the size convention of the fit.
    tokens
        Training tokens.
    tokens_per_n
        Tokens per parameter.
    training_flops, serving_flops
        6ND, and 2N for each served token.
    unreached
        Share of the draws of the fit in which no size near the runs has the least cost at the loss,
        as their irreducible loss is higher; above 2.5 % the intervals are unknown.
    """

    loss: float
    unit: str
    served_tokens: float
    n: Range
    tokens: Range
    tokens_per_n: Range
    training_flops: Range
    serving_flops: Range
    unreached: float = 0.0

    @property
    def total_flops(self) -> float:
        """FLOPs of training and serving together."""
        return float((self.training_flops["value"] or 0) + (self.serving_flops["value"] or 0))

    def frame(self) -> pd.DataFrame:
        """Return one row per quantity."""
        quantities = {
            "N* (parameters)": self.n,
            "D* (tokens)": self.tokens,
            "D*/N*": self.tokens_per_n,
            "training (FLOPs)": self.training_flops,
            "serving (FLOPs)": self.serving_flops,
        }
        return pd.DataFrame([{"quantity": name, **ends} for name, ends in quantities.items()])

    def view(self) -> View:
        """Return N and D with their intervals."""
        size, tokens = self.n["value"] or 0.0, self.tokens["value"] or 0.0
        served = f"{format_count(self.served_tokens)} served tokens"
        title = (
            f"loss {self.loss:g} {short_unit(self.unit)} at the least cost with {served}: "
            f"N {size:.3g}, D {tokens:.3g}"
        )
        return View(title=title, tables={"least total cost, 95 % interval": self.frame()})


def life_flops(n: Any, tokens: Any, served_tokens: float) -> Any:
    """Compute 6ND + 2N for each served token; (n,) for several sizes with their tokens."""
    return n * (TRAINING * tokens + SERVING * served_tokens)


def lifetime_optimum(
    fit: Fit | str | Path,
    loss: float,
    served_tokens: float = 0.0,
    *,
    shape: Mapping[str, float] | None = None,
) -> LifetimeOptimum:
    """Find the N and D of the least cost of training and serving at a target loss.

    Minimises C(N) = 6 N D(N) + 2 N S, where D(N) solves L(N, D) = loss and S counts the tokens that
    the model reads and writes over its life (arXiv 2401.00448, section 2). S = 0 gives the model of
    least training compute; a larger S gives a smaller N and a larger D. N is searched on ever finer
    grids, as the problem has no closed form.

    Parameters
    ----------
    fit
        Fit of a law in N and D, or the path of one.
    loss
        Loss to reach, in the unit of the fit.
    served_tokens
        S, prompts and outputs together.
    shape
        Ratios that are held while N varies; by default every ratio is at the optimum of each N.

    Returns
    -------
    LifetimeOptimum
        N and D with 95 % intervals from the draws of the fit.

    Raises
    ------
    InputError
        The law has no trade-off of N and D, or does not reach the loss within a factor of 1000 of
        the fitted sizes, or a number is out of range.

    Examples
    --------
    >>> import shapelaw
    >>> law = shapelaw.loss_basis().fit
    >>> trained, served = (shapelaw.lifetime_optimum(law, 2.4, s) for s in (0, 1e9))
    >>> served.n["value"] < trained.n["value"], served.tokens["value"] > trained.tokens["value"]
    (True, True)
    """
    fitted = as_fit(fit)
    _check_target(fitted, loss, served_tokens, shape)
    chosen = np.linspace(0, len(fitted.draws) - 1, min(DRAWS, len(fitted.draws))).astype(int)
    thetas = np.vstack([fitted.theta[None], fitted.draws[chosen]])
    found = np.array(
        [
            _cheapest(fitted, theta, loss, served_tokens, shape, ZOOMS - (row > 0))
            for row, theta in enumerate(thetas)
        ]
    )
    sizes, tokens = found.T
    if not np.isfinite(sizes[0]):
        low, high = _searched(fitted)
        raise InputError(
            f"no size from {format_count(low)} to {format_count(high)}, 1000 times beyond the "
            f"runs, has the least cost at a loss of {loss:g}; give a loss nearer those of the runs"
        )
    return LifetimeOptimum(
        loss=loss,
        unit=fitted.loss_unit,
        served_tokens=served_tokens,
        n=value_with_interval(sizes),
        tokens=value_with_interval(tokens),
        tokens_per_n=value_with_interval(tokens / sizes),
        training_flops=value_with_interval(TRAINING * sizes * tokens),
        serving_flops=value_with_interval(SERVING * sizes * served_tokens),
        unreached=float(np.isnan(sizes[1:]).mean()) if len(sizes) > 1 else 0.0,
    )


def tokens_at_loss(
    fitted: Fit,
    theta: np.ndarray,
    sizes: np.ndarray,
    loss: float,
    held: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Solve a law for the training tokens at which each size reaches a loss, by bisection of ln D.

    Parameters
    ----------
    fitted
        Fit that gives the law and its reference.
    theta
        Internal parameters, (p,).
    sizes
        N in parameters, (n,).
    loss
        Loss to reach, in the unit of the fit.
    held
        Ratios that are held; every other one is as in :func:`best_ratios` at each size.

    Returns
    -------
    Tokens, (n,); infinite where the law does not reach the loss with any number of tokens, or does
    not hold.
    """
    law, at = fitted.law, fitted.reference
    columns = best_ratios(fitted, sizes, held, theta) | {N: sizes}
    target = np.log(loss)

    def is_above(log_tokens: np.ndarray) -> np.ndarray:
        program = law.program(columns | {D: np.exp(log_tokens)}, at)
        return np.asarray(program.log_loss(theta[None])[0] > target)

    low, high = np.zeros(len(sizes)), np.full(len(sizes), MAX_LOG_TOKENS)
    reached = ~is_above(high) & law.base.valid_sizes(theta, sizes, at, law.index)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = is_above(middle)
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(reached, np.exp(high), np.inf)


def _searched(fitted: Fit) -> tuple[float, float]:
    """Return the smallest and the largest N that are searched."""
    low, high = fitted.ranges[N]
    return low / MAX_SIZE_EXTRAPOLATION, high * MAX_SIZE_EXTRAPOLATION


def _check_target(
    fitted: Fit, loss: float, served: float, held: Mapping[str, float] | None
) -> None:
    """Refuse a loss that the law does not reach at the largest size with unlimited tokens."""
    if not 0 < loss < np.inf or not 0 <= served < np.inf:
        raise InputError(
            "`target loss > 0` and `served tokens >= 0`, both finite, must hold, but got "
            f"{loss:g} and {served:g}"
        )
    if gap := trade_off_gap(fitted):
        raise InputError(
            f"a target loss needs a law in which N and D trade off, but {gap}; choose another law"
        )
    size = np.array([_searched(fitted)[1]])
    columns = best_ratios(fitted, size, held) | {N: size, D: np.exp([MAX_LOG_TOKENS])}
    lowest = float(fitted.law.predict(fitted.theta, columns, fitted.reference)[0])
    if loss > lowest:
        return
    floor = fitted.law.public(fitted.theta, fitted.reference).get("E")
    irreducible = "" if floor is None else f" (its irreducible loss E is {floor:.4g})"
    ratios = " in these proportions" if held else ""
    raise InputError(
        f"`target loss > {lowest:.4g}` must hold: the law comes no lower with "
        f"{format_count(size[0])} parameters and unlimited tokens{ratios}{irreducible}, but got "
        f"{loss:g}; give a higher loss"
    )


def _cheapest(
    fitted: Fit,
    theta: np.ndarray,
    loss: float,
    served: float,
    held: Mapping[str, float] | None,
    zooms: int,
) -> tuple[float, float]:
    """Return N and D of the least cost, NaN if the search has none between its ends."""
    ends = _searched(fitted)
    for zoom in range(zooms):
        sizes = np.geomspace(*ends, POINTS)
        tokens = tokens_at_loss(fitted, theta, sizes, loss, held)
        costs = np.log(life_flops(sizes, tokens, served))
        best = int(np.argmin(costs))
        if zoom == 0 and (best in (0, POINTS - 1) or not np.isfinite(costs[best])):
            return np.nan, np.nan
        ends = (sizes[max(best - 1, 0)], sizes[min(best + 1, POINTS - 1)])
    middle = minimum_by_parabola(np.log(sizes), costs)
    size = np.exp(middle) if np.isfinite(middle) else sizes[best]
    return float(size), float(tokens_at_loss(fitted, theta, size[None], loss, held)[0])
