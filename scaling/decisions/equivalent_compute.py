"""Equivalent compute: what a better shape is worth as a factor of training compute."""

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from shapelaw.scaling.fitting.compute_optimal import has_trade_off
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import LEVEL
from shapelaw.scaling.laws.terms import Program
from shapelaw.scaling.runs.columns import D, N

NOT_REACHABLE = "not reachable"
MAX_LOG_FACTOR = float(np.log(1e9))  # of compute, up and down
FACTORS = 161  # grid points of the factor of compute
SIZES = 121  # grid points of the size at each compute
MAX_LOG_SIZE = float(np.log(1e5))  # of N around the size of the first shape
DRAWS = 200  # draws of the interval: the grid is solved for each
NAMES = ("equivalent_compute", "equivalent_compute_low", "equivalent_compute_high")


def equivalent_compute(
    fitted: Fit, shapes: pd.DataFrame, draws: np.ndarray, *, relative: bool = False
) -> pd.DataFrame:
    """Compute the factor of compute with which the first shape reaches the loss of each shape.

    The factor is the c that solves min over N of L(N, cC/(6N); ratios of the first shape) =
    L(shape), where C = 6ND of the first shape. The first shape's own factor is 1 if its N and D
    are compute-optimal, and less if they are not.

    Parameters
    ----------
    fitted
        Fit of a law of N and D.
    shapes
        One row per shape with the columns of the law, (n,) rows.
    draws
        Joint draws of ln loss of the shapes, (S, n).
    relative
        Divide by the first shape's own factor, which is then 1: what a change of shape alone is
        worth, at any ratio of tokens to parameters.

    Returns
    -------
    pandas.DataFrame
        Factor and its 95 % interval, one row per shape: numbers, ``not reachable`` where the loss
        is below what any compute up to a billion times C reaches, and NaN where the law has no
        trade-off between size and tokens.
    """
    if not has_trade_off(fitted):
        return pd.DataFrame(np.nan, index=shapes.index, columns=list(NAMES))
    columns = fitted.columns(shapes)
    program = fitted.law.program(columns, fitted.reference)
    factors = np.linspace(-MAX_LOG_FACTOR, MAX_LOG_FACTOR, FACTORS)
    chosen = np.linspace(0, len(draws) - 1, min(DRAWS, len(draws))).astype(int)
    thetas = np.vstack([fitted.theta, fitted.spread[chosen]])
    targets = np.vstack([np.log(fitted.expected(shapes)), draws[chosen]])
    # The deviation of the first shape from the law is kept along its path.
    targets -= (targets - program.log_loss(thetas))[:, :1]
    grid = _grid_of_sizes(fitted, columns, factors)
    solved = np.array(
        [
            _solve(factors, _lowest_log_loss(grid, theta), target)
            for theta, target in zip(thetas, targets, strict=True)
        ]
    )
    if relative:
        solved = np.where(
            np.isinf(solved), np.inf, solved - np.minimum(solved[:, :1], MAX_LOG_FACTOR)
        )
        solved[:, 0] = 0.0
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(solved[1:], [tail, 100 - tail], axis=0, method="nearest")
    table = {name: np.exp(part) for name, part in zip(NAMES, (solved[0], low, high), strict=True)}
    frame = pd.DataFrame(table, index=shapes.index)
    unreachable = np.isinf(frame)
    return (
        frame.astype(object).mask(unreachable, NOT_REACHABLE)
        if unreachable.any(axis=None)
        else frame
    )


def _grid_of_sizes(fitted: Fit, columns: dict[str, np.ndarray], factors: np.ndarray) -> Program:
    """Return the law of the first shape on all sizes at every factor of its compute."""
    sizes = np.log(columns[N][0]) + np.linspace(-MAX_LOG_SIZE, MAX_LOG_SIZE, SIZES)
    compute = np.log(columns[N][0]) + np.log(columns[D][0]) + factors
    size = np.tile(sizes, len(factors))
    at = {name: np.full(len(size), values[0]) for name, values in columns.items()}
    at |= {N: np.exp(size), D: np.exp(np.repeat(compute, SIZES) - size)}
    return fitted.law.program(at, fitted.reference)


def _lowest_log_loss(grid: Program, theta: np.ndarray) -> np.ndarray:
    """Return the lowest ln loss over N at every factor of compute, (k,)."""
    logs = grid.log_loss(theta[None])[0].reshape(-1, SIZES)
    logs = np.where(np.isfinite(logs), logs, np.inf)
    place = np.clip(logs.argmin(axis=1), 1, SIZES - 2)
    rows = np.arange(len(logs))
    left, middle, right = (logs[rows, place + step] for step in (-1, 0, 1))
    curvature = left - 2 * middle + right
    with np.errstate(invalid="ignore", divide="ignore"):
        parabola = middle - (left - right) ** 2 / (8 * curvature)
    smooth = np.isfinite(parabola) & (curvature > 0)
    return np.asarray(np.where(smooth, parabola, logs.min(axis=1)))


def _solve(factors: np.ndarray, lowest: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Invert the falling curve of the lowest ln loss at the targets; infinite beyond its end."""
    falling = np.minimum.accumulate(lowest)
    keep = np.concatenate([[True], np.diff(falling) < 0])
    if keep.sum() < 2:
        return np.full(len(targets), np.inf)
    inverse = PchipInterpolator(falling[keep][::-1], factors[keep][::-1], extrapolate=False)
    solved = inverse(targets)
    solved = np.where(targets < falling[-1], np.inf, solved)
    return np.where(targets > falling[0], factors[0], solved)
