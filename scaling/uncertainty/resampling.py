"""Intervals: which resamples to draw and how to read them, and sandwich errors.

Every resample of a bootstrap is one row of a batch that starts at the optimum, so thousands are
solved at once. Sources: Efron & Tibshirani (1993) for pairs and BCa; Cameron, Gelbach & Miller
(2008) for the wild cluster bootstrap with Webb's six points; Huber & Ronchetti (2009), chapter 13,
for tests with a robust loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.scaling.solver.levenberg_marquardt import minimise
from shapelaw.scaling.solver.multistart import Problem, Solution, residual_scale

METHODS = ("rows", "cluster", "residuals", "wild", "wild-cluster")
ROWS_PER_PARAMETER = 8
FLAT = 1e-10  # curvature, of a scaled Hessian, below which a direction is flat
WEBB = np.sqrt([1.5, 1.0, 0.5])
WINDOW = 1.84  # residual scales, of a rectangular window on one row
RIVALS, RIVAL_COST = 3, 1.2  # other basins that a resample may prefer
Quantity = Callable[[np.ndarray], np.ndarray]  # internal parameters (S, p) -> (S,)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An interval at ``level`` per cent and how it was made."""

    value: float
    low: float
    high: float
    method: str
    level: float = 95.0


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
    return refit(resampled, theta, best)


def refit(problem: Problem, theta: np.ndarray, best: Solution) -> np.ndarray:
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
    number = _numbered(clusters if method == "cluster" else None, rows)
    groups = int(number.max()) + 1
    drawn = generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return np.asarray(drawn[:, number], dtype=float)


def _numbered(clusters: np.ndarray | None, rows: int) -> np.ndarray:
    """The number of each row's cluster, (n,); every row is its own where there are none."""
    if clusters is None:
        return np.arange(rows)
    return np.asarray(np.unique(clusters, return_inverse=True)[1])


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
    number = _numbered(clusters, rows)
    groups = int(number.max()) + 1
    residuals = residuals * np.sqrt(groups / max(groups - 1, 1) * rows / max(rows - free, 1))
    factors = generator.choice(np.concatenate([-WEBB, WEBB]), size=(resamples, groups))
    return np.asarray(fitted + residuals * factors[:, number])


def _inflation(rows: int, free: int) -> float:
    """√(n/(n - p)), times what Student's t is wider than the normal that percentiles give."""
    wider = student.ppf(0.975, max(rows - free, 1)) / norm.ppf(0.975)
    return float(wider * np.sqrt(rows / max(rows - free, 1)))


def leverage(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Diagonal of the hat matrix, (n,): the share of each row in its own fitted value."""
    jacobian = problem.jacobian(theta[problem.free]) * np.sqrt(_weights(problem))[:, None]
    basis, _ = np.linalg.qr(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))
    return np.asarray((basis**2).sum(axis=1))


def pseudo_variance(problem: Problem, theta: np.ndarray) -> float:
    """E ψ² / E ψ' with n - p degrees: what the objective's differences are measured in."""
    weights = _weights(problem)
    residuals = problem.residuals(theta[problem.free])
    _, slope, curve = problem.objective.rho(residuals)
    rows, free = len(residuals), int(problem.free.sum())
    information = max(float((weights * curve).mean()), float(weights.mean()) / rows)
    return float(((weights * slope) ** 2).mean() / information) * rows / max(rows - free, 1)


def _weights(problem: Problem) -> np.ndarray:
    """The weights of the rows, ones where none were asked for, (n,)."""
    return np.ones(len(problem.log_loss)) if problem.weights is None else problem.weights


def sandwich(problem: Problem, theta: np.ndarray, clusters: np.ndarray | None = None) -> np.ndarray:
    """Covariance of the internal parameters, (p, p): bread of curvatures, meat of scores.

    The bread is the Hessian of the objective, so that noise that differs from row to row counts;
    scores are divided by 1 - leverage (HC3), and summed within clusters where there are some (CR1).
    Held parameters have zeros.
    """
    free = problem.free
    covariance = np.zeros((len(free), len(free)))
    covariance[np.ix_(free, free)] = bread(problem, theta) @ _meat(problem, theta, clusters)
    covariance[np.ix_(free, free)] @= bread(problem, theta)
    return covariance


def bread(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Inverse Hessian of the objective by the free parameters, (f, f)."""
    for hessian in _hessians(problem, theta):
        scale = np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
        values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
        if values.size and values[0] > FLAT:
            break
    values = np.maximum(values, FLAT)
    return np.asarray((vectors / values) @ vectors.T / np.outer(scale, scale))


def _hessians(problem: Problem, theta: np.ndarray) -> Iterator[np.ndarray]:
    """Hessians of the objective by the free parameters, better ones first.

    Only residuals inside the threshold of a Huber loss have curvature. Where it is narrow these are
    few, and the density of residuals around zero is estimated in a wider window, as for quantile
    regression (Powell's kernel, its width by the normal reference rule).
    """
    objective, free = problem.objective, problem.free
    if objective.kind in ("huber", "asymmetric"):
        residuals = problem.residuals(theta[free])
        window = WINDOW * residual_scale(residuals, int(free.sum())) / len(residuals) ** 0.2
        if window > objective.delta:
            inside = (np.abs(residuals) <= window) * (objective.delta / window)
            jacobian = problem.jacobian(theta[free])
            yield jacobian.T @ ((_weights(problem) * inside)[:, None] * jacobian)
    for newton in (True, False):
        yield problem.data.moments(theta[None], newton=newton)[2][0][np.ix_(free, free)]


def _meat(problem: Problem, theta: np.ndarray, clusters: np.ndarray | None) -> np.ndarray:
    free = problem.free
    jacobian = problem.jacobian(theta[free])
    _, slope, _ = problem.objective.rho(problem.residuals(theta[free]))
    slope = slope * _weights(problem)
    rows, fitted = jacobian.shape
    if clusters is None:
        scores = (slope / np.maximum(1 - leverage(problem, theta), 0.05))[:, None] * jacobian
        return np.asarray(scores.T @ scores)
    number = _numbered(clusters, rows)
    groups = int(number.max()) + 1
    summed = np.zeros((groups, fitted))
    np.add.at(summed, number, slope[:, None] * jacobian)
    factor = groups / max(groups - 1, 1) * (rows - 1) / max(rows - fitted, 1)
    return np.asarray(factor * summed.T @ summed)


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
    number = _numbered(clusters, len(problem.log_loss))
    keep = (number != np.arange(number.max() + 1)[:, None]).astype(float)
    keep = keep if problem.weights is None else keep * problem.weights
    theta = np.repeat(best.theta[None], len(keep), axis=0)
    return refit(problem.but(weights=keep), theta, best)


def numeric_gradient(quantity: Quantity, theta: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Gradient of a quantity at θ (p,) by central differences."""
    moves = step * np.eye(len(theta))
    return (quantity(theta + moves) - quantity(theta - moves)) / (2 * step)


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
