"""Intervals: which resamples to draw and how to read them, and sandwich errors.

Every resample of a bootstrap is one row of a batch that starts at the optimum, so thousands are
solved at once. Sources: Efron & Tibshirani (1993) for pairs and BCa; Cameron, Gelbach & Miller
(2008) for the wild cluster bootstrap with Webb's six points; Huber & Ronchetti (2009), chapter 13,
for tests with a robust loss.
"""

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.scaling.solver.levenberg_marquardt import minimise
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.robust_covariance import cluster_numbers, leverage

METHODS = ("rows", "cluster", "residuals", "wild", "wild-cluster")
ROWS_PER_PARAMETER = 8
WEBB = np.sqrt([1.5, 1.0, 0.5])
RIVALS, RIVAL_COST = 3, 1.2  # other basins that a resample may prefer


def method_for(rows: int, free: int, clusters: np.ndarray | None) -> str:
    """How to resample a table.

    Checkpoints of one run are one cluster. Tables with at least eight rows per free parameter are
    resampled by rows (iid pairs); small designed tables would lose whole cells of the design that
    way: there residuals are resampled around the fitted values at the same design. With few
    clusters all methods are too narrow, the wild ones most (LOG.md).
    """
    if clusters is not None and len(np.unique(clusters)) < len(clusters):
        return "cluster"
    return "rows" if rows >= ROWS_PER_PARAMETER * free else "residuals"


def bootstrap(
    problem: Problem,
    best: Solution,
    *,
    method: str,
    resamples: int,
    seed: int,
    clusters: np.ndarray | None = None,
) -> np.ndarray:
    """Refit resamples of a table; held parameters are drawn anew from their ranges each time.

    Parameters
    ----------
    method
        ``rows`` (iid pairs), ``cluster`` (whole clusters of rows), ``residuals`` (at the same
        design, inflated by √(n/(n - p)) and to the width of Student's t), ``wild`` (each residual
        with a random sign), ``wild-cluster`` (a random factor for each cluster's residuals).
    clusters
        The cluster of each row, (n,), for the two methods that have them.

    Returns
    -------
    Internal parameters of each resample, (resamples, p).

    Raises
    ------
    InputError
        There is no such method, or it lacks clusters.
    """
    if method not in METHODS:
        raise InputError(f"`method` must be one of {', '.join(METHODS)}, but got {method!r}")
    if "cluster" in method and clusters is None:
        raise InputError(f"the {method} bootstrap needs `clusters`: name the column that has them")
    if resamples == 0:
        return np.empty((0, len(problem.law.names)))
    generator = np.random.default_rng(seed)
    theta = np.repeat(best.theta[None], resamples, axis=0)
    for place, name in enumerate(problem.law.names):
        if name in problem.held:
            theta[:, place] = _varied(problem.held[name], generator, resamples)
    if method in ("rows", "cluster"):
        counts = _counts(generator, len(problem.log_loss), resamples, clusters, method)
        counts = counts if problem.weights is None else counts * problem.weights
        resampled = problem.but(weights=counts)
    else:
        resampled = problem.but(
            log_loss=_responses(problem, best, method, generator, resamples, clusters)
        )
    return minimise_resamples(resampled, theta, best)


def minimise_resamples(problem: Problem, theta: np.ndarray, best: Solution) -> np.ndarray:
    """Minimise a batch of problems from the optimum, and from its rivals where there are some."""
    found = minimise(problem.data, theta, problem.bounds, reweighted=0)
    answers, costs = found.theta, found.cost
    rivals = [other for place, other in enumerate(best.others[:RIVALS]) if _near(best, place)]
    for rival in rivals:
        starts = theta.copy()
        starts[:, problem.free] = rival[problem.free]
        again = minimise(problem.data, starts, problem.bounds, reweighted=0)
        better = again.cost < costs
        answers, costs = (
            np.where(better[:, None], again.theta, answers),
            np.minimum(costs, again.cost),
        )
    return answers


def _near(best: Solution, place: int) -> bool:
    """Whether another basin is so close in objective that a resample may prefer it."""
    costs = [basin["objective"] for basin in best.basins]
    return 0 < place < len(costs) and costs[place] <= RIVAL_COST * costs[0]


def _varied(held: Held, generator: np.random.Generator, count: int) -> np.ndarray:
    if held.low == held.high:
        return np.full(count, held.value)
    return generator.uniform(held.low, held.high, count)


def _counts(
    generator: np.random.Generator,
    rows: int,
    resamples: int,
    clusters: np.ndarray | None,
    method: str,
) -> np.ndarray:
    """How often each row stands in each resample, (resamples, n)."""
    number = cluster_numbers(clusters if method == "cluster" else None, rows)
    groups = int(number.max()) + 1
    drawn = generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return np.asarray(drawn[:, number], dtype=float)


def _responses(
    problem: Problem,
    best: Solution,
    method: str,
    generator: np.random.Generator,
    resamples: int,
    clusters: np.ndarray | None,
) -> np.ndarray:
    """Ln losses at the same design with other noise, (resamples, n)."""
    residuals = -problem.log_residuals(best.theta)
    fitted = problem.log_loss - residuals
    rows, free = len(residuals), int(problem.free.sum())
    if method == "residuals":
        if rows > free:
            residuals = (residuals - residuals.mean()) * _inflation(rows, free)
        return np.asarray(fitted + residuals[generator.integers(rows, size=(resamples, rows))])
    if method == "wild":
        residuals = residuals / np.sqrt(np.maximum(1 - leverage(problem, best.theta), 0.05))
        residuals = residuals * _inflation(rows, free) / np.sqrt(rows / max(rows - free, 1))
        signs = generator.choice([-1.0, 1.0], size=(resamples, rows))
        return np.asarray(fitted + residuals * signs)
    number = cluster_numbers(clusters, rows)
    groups = int(number.max()) + 1
    residuals = residuals * np.sqrt(groups / max(groups - 1, 1) * rows / max(rows - free, 1))
    factors = generator.choice(np.concatenate([-WEBB, WEBB]), size=(resamples, groups))
    return np.asarray(fitted + residuals * factors[:, number])


def _inflation(rows: int, free: int) -> float:
    """√(n/(n - p)), times what Student's t is wider than the normal that percentiles give."""
    wider = student.ppf(0.975, max(rows - free, 1)) / norm.ppf(0.975)
    return float(wider * np.sqrt(rows / max(rows - free, 1)))
