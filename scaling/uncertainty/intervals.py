"""Intervals from resamples or a normal approximation: percentile, BCa, jackknife."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.resampling import minimise_resamples
from shapelaw.scaling.uncertainty.robust_covariance import (
    Quantity,
    cluster_numbers,
    numeric_gradient,
    sandwich,
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval at ``level`` per cent and how it was made."""

    value: float
    low: float
    high: float
    method: str
    level: float = 95.0


def percentile(quantity: Quantity, best: Solution, draws: np.ndarray, level: float) -> Interval:
    """Percentiles of a quantity over resamples."""
    low, high = np.percentile(quantity(draws), [50 - level / 2, 50 + level / 2])
    value = float(quantity(best.theta[None])[0])
    return Interval(
        value=value, low=float(low), high=float(high), method="percentile bootstrap", level=level
    )


def bca(
    problem: Problem,
    best: Solution,
    quantity: Quantity,
    draws: np.ndarray,
    *,
    level: float = 95.0,
    clusters: np.ndarray | None = None,
) -> Interval:
    """Bias-corrected and accelerated interval; leaving rows out one by one gives the latter."""
    value = float(quantity(best.theta[None])[0])
    drawn = quantity(draws)
    below = np.clip((drawn < value).mean(), 0.5 / len(drawn), 1 - 0.5 / len(drawn))
    bias = norm.ppf(below)
    left_out = quantity(jackknife(problem, best, clusters))
    apart = left_out.mean() - left_out
    acceleration = (apart**3).sum() / max(6 * (apart**2).sum() ** 1.5, 1e-300)
    ends = []
    for tail in (0.5 - level / 200, 0.5 + level / 200):
        moved = bias + norm.ppf(tail)
        ends.append(norm.cdf(bias + moved / (1 - acceleration * moved)))
    low, high = np.quantile(drawn, ends)
    return Interval(value=value, low=float(low), high=float(high), method="BCa", level=level)


def jackknife(problem: Problem, best: Solution, clusters: np.ndarray | None = None) -> np.ndarray:
    """Parameters with each row, or each cluster, left out: (rows or clusters, p)."""
    number = cluster_numbers(clusters, len(problem.log_loss))
    keep = (number != np.arange(number.max() + 1)[:, None]).astype(float)
    keep = keep if problem.weights is None else keep * problem.weights
    theta = np.repeat(best.theta[None], len(keep), axis=0)
    return minimise_resamples(problem.but(weights=keep), theta, best)


def normal_interval(
    problem: Problem,
    best: Solution,
    quantity: Quantity,
    *,
    level: float = 95.0,
    clusters: np.ndarray | None = None,
) -> Interval:
    """The quantity ± t times its sandwich standard error (delta method)."""
    value = float(quantity(best.theta[None])[0])
    gradient = numeric_gradient(quantity, best.theta)
    error = float(np.sqrt(max(gradient @ sandwich(problem, best.theta, clusters) @ gradient, 0.0)))
    groups = len(problem.log_loss) if clusters is None else len(np.unique(clusters)) - 1
    degrees = max(groups - (int(problem.free.sum()) if clusters is None else 0), 1)
    half = float(student.ppf(0.5 + level / 200, degrees)) * error
    return Interval(
        value=value, low=value - half, high=value + half, method="sandwich", level=level
    )
