"""Confidence intervals from resamples or a normal approximation: percentile, BCa, sandwich."""

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
    """A confidence interval with its level in per cent and the method that computed it."""

    value: float
    low: float
    high: float
    method: str
    level: float = 95.0


def percentile(quantity: Quantity, best: Solution, draws: np.ndarray, level: float) -> Interval:
    """Compute the percentile interval of a quantity over resamples.

    Parameters
    ----------
    quantity
        Function of internal parameters, (S, p) -> (S,).
    best
        The optimum, at which the quantity has its estimate.
    draws
        Internal parameters of the resamples, (S, p).
    level
        Confidence level in per cent.
    """
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
    """Compute the bias-corrected and accelerated interval (Efron & Tibshirani, 1993, chapter 14).

    The acceleration is estimated with the jackknife.

    Parameters
    ----------
    problem, best
        The fitted problem and its optimum.
    quantity
        Function of internal parameters, (S, p) -> (S,).
    draws
        Internal parameters of the resamples, (S, p).
    level
        Confidence level in per cent.
    clusters
        Cluster of each row, (n,), which the jackknife leaves out whole; None for single rows.
    """
    value = float(quantity(best.theta[None])[0])
    drawn = quantity(draws)
    below = np.clip((drawn < value).mean(), 0.5 / len(drawn), 1 - 0.5 / len(drawn))
    bias = norm.ppf(below)
    left_out = quantity(jackknife(problem, best, clusters))
    centred = left_out.mean() - left_out
    acceleration = (centred**3).sum() / max(6 * (centred**2).sum() ** 1.5, 1e-300)
    ends = []
    for tail in (0.5 - level / 200, 0.5 + level / 200):
        shifted = bias + norm.ppf(tail)
        ends.append(norm.cdf(bias + shifted / (1 - acceleration * shifted)))
    low, high = np.quantile(drawn, ends)
    return Interval(value=value, low=float(low), high=float(high), method="BCa", level=level)


def jackknife(problem: Problem, best: Solution, clusters: np.ndarray | None = None) -> np.ndarray:
    """Refit with each row or cluster left out: internal parameters, (rows or clusters, p)."""
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
    """Compute the interval quantity ± t · its sandwich standard error (delta method).

    Parameters
    ----------
    problem, best
        The fitted problem and its optimum.
    quantity
        Function of internal parameters, (S, p) -> (S,).
    level
        Confidence level in per cent.
    clusters
        Cluster of each row, (n,), for a clustered covariance; None without clusters.
    """
    value = float(quantity(best.theta[None])[0])
    gradient = numeric_gradient(quantity, best.theta)
    error = float(np.sqrt(max(gradient @ sandwich(problem, best.theta, clusters) @ gradient, 0.0)))
    groups = len(problem.log_loss) if clusters is None else len(np.unique(clusters)) - 1
    degrees = max(groups - (int(problem.free.sum()) if clusters is None else 0), 1)
    half = float(student.ppf(0.5 + level / 200, degrees)) * error
    return Interval(
        value=value, low=value - half, high=value + half, method="sandwich", level=level
    )
