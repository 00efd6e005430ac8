"""Bootstrap resamples of a fit: rows, clusters, residuals, wild and wild cluster bootstrap.

Every resample of a bootstrap is one row of a batch that starts at the optimum, so the solver fits
thousands of resamples in one batch. Sources: Efron & Tibshirani (1993) for pairs and BCa; Cameron,
Gelbach & Miller (2008) for the wild cluster bootstrap with Webb's six points; Huber & Ronchetti
(2009), chapter 13, for tests with a robust loss.
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
WEBB = np.sqrt([1.5, 1.0, 0.5])  # positive points of Webb's six-point distribution
MAX_RIVALS, MAX_RIVAL_COST = 3, 1.2  # other basins to try, and their objective over the lowest one


def method_for(rows: int, free: int, clusters: np.ndarray | None) -> str:
    """Choose the bootstrap method of a table.

    Checkpoints of one run form one cluster. Tables with at least eight rows per free parameter are
    resampled by rows (iid pairs). Resamples of rows would lose whole cells of a small designed
    table, so residuals are resampled around the fitted values at the same design. With few clusters
    the intervals of all methods are too narrow, those of the wild bootstraps most (LOG.md).

    Parameters
    ----------
    rows, free
        Numbers of rows and of free parameters.
    clusters
        Cluster of each row, (n,), or None.

    Returns
    -------
    ``cluster``, ``rows`` or ``residuals``.
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
    """Refit a law on resamples of a run table; each resample draws the held parameters anew.

    Parameters
    ----------
    problem, best
        The fitted problem and its optimum.
    method
        ``rows`` (iid pairs), ``cluster`` (whole clusters of rows), ``residuals`` (at the same
        design, inflated by √(n/(n - p)) and to the width of Student's t), ``wild`` (each residual
        with a random sign), ``wild-cluster`` (a random factor for the residuals of each cluster).
    resamples
        Number of resamples.
    seed
        Seed of the resamples.
    clusters
        The cluster of each row, (n,), for ``cluster`` and ``wild-cluster``.

    Returns
    -------
    Internal parameters of each resample, (resamples, p).

    Raises
    ------
    InputError
        The method is unknown, or needs clusters that are not given.
    """
    if method not in METHODS:
        raise InputError(f"`method` must be one of {', '.join(METHODS)}, but got {method!r}")
    if "cluster" in method and clusters is None:
        raise InputError(
            f"the {method} bootstrap needs `clusters`; name the column of the clusters"
        )
    if resamples == 0:
        return np.empty((0, len(problem.law.names)))
    generator = np.random.default_rng(seed)
    theta = np.repeat(best.theta[None], resamples, axis=0)
    for place, name in enumerate(problem.law.names):
        if name in problem.held:
            theta[:, place] = _draw_held(problem.held[name], generator, resamples)
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
    """Minimise a batch of resampled problems from the optimum and from similar basins.

    Parameters
    ----------
    problem
        The problem with weights or log losses of the resamples, (S, n).
    theta
        Starts: the optimum with the held parameters of each resample, (S, p).
    best
        The solution on the whole table, with its basins.

    Returns
    -------
    Internal parameters of each resample, (S, p).
    """
    minima = minimise(problem.data, theta, problem.bounds, reweighted=0)
    lowest, costs = minima.theta, minima.cost
    rivals = [
        other for place, other in enumerate(best.others[:MAX_RIVALS]) if _is_rival(best, place)
    ]
    for rival in rivals:
        starts = theta.copy()
        starts[:, problem.free] = rival[problem.free]
        again = minimise(problem.data, starts, problem.bounds, reweighted=0)
        better = again.cost < costs
        lowest = np.where(better[:, None], again.theta, lowest)
        costs = np.minimum(costs, again.cost)
    return lowest


def _is_rival(best: Solution, place: int) -> bool:
    """Return True if the objective of another basin is so similar that a resample may prefer it."""
    costs = [basin["objective"] for basin in best.basins]
    return 0 < place < len(costs) and costs[place] <= MAX_RIVAL_COST * costs[0]


def _draw_held(held: Held, generator: np.random.Generator, count: int) -> np.ndarray:
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
    """Draw the number of times that each row occurs in each resample, (resamples, n)."""
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
    """Draw ln losses at the same design with resampled residuals, (resamples, n)."""
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
    """Return √(n/(n - p)) times the ratio of the 97.5 % quantiles of Student's t and the normal."""
    wider = student.ppf(0.975, max(rows - free, 1)) / norm.ppf(0.975)
    return float(wider * np.sqrt(rows / max(rows - free, 1)))
