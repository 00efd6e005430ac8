"""Sandwich covariances of a fit that hold under heteroscedastic or clustered residuals."""

from collections.abc import Callable, Iterator

import numpy as np

from shapelaw.scaling.solver.multistart import residual_scale
from shapelaw.scaling.solver.problem import Problem

MIN_CURVATURE = 1e-10  # eigenvalue of a scaled Hessian below which a direction is flat
WINDOW = 1.84  # half-width of the rectangular kernel in residual scales, for one row

Quantity = Callable[[np.ndarray], np.ndarray]  # internal parameters (S, p) -> (S,)


def cluster_numbers(clusters: np.ndarray | None, rows: int) -> np.ndarray:
    """Assign a cluster number to each row, (n,); without clusters, every row is a cluster."""
    if clusters is None:
        return np.arange(rows)
    return np.asarray(np.unique(clusters, return_inverse=True)[1])


def leverage(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Compute the diagonal of the hat matrix, (n,): the weight of a row in its fitted value."""
    jacobian = problem.jacobian(theta[problem.free]) * np.sqrt(_weights(problem))[:, None]
    basis, _ = np.linalg.qr(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))
    return np.asarray((basis**2).sum(axis=1))


def pseudo_variance(problem: Problem, theta: np.ndarray) -> float:
    """Compute E ψ² / E ψ' with n - p degrees of freedom, the unit of objective differences."""
    weights = _weights(problem)
    residuals = problem.residuals(theta[problem.free])
    _, slope, curve = problem.objective.rho(residuals)
    rows, free = len(residuals), int(problem.free.sum())
    information = max(float((weights * curve).mean()), float(weights.mean()) / rows)
    return float(((weights * slope) ** 2).mean() / information) * rows / max(rows - free, 1)


def _weights(problem: Problem) -> np.ndarray:
    """Return the weights of the rows, (n,), which are ones for a problem without weights."""
    return np.ones(len(problem.log_loss)) if problem.weights is None else problem.weights


def sandwich(problem: Problem, theta: np.ndarray, clusters: np.ndarray | None = None) -> np.ndarray:
    """Compute the sandwich covariance of the internal parameters.

    The bread is the inverse Hessian of the objective and the meat the sum of outer products of
    scores, so that the covariance holds under heteroscedastic noise. Scores are divided by
    1 - leverage (HC3), or summed within clusters (CR1).

    Parameters
    ----------
    problem
        The fitted problem.
    theta
        Internal parameters at the optimum, (p,).
    clusters
        Cluster of each row, (n,), or None.

    Returns
    -------
    Covariance, (p, p), with zeros for held parameters.
    """
    free = problem.free
    covariance = np.zeros((len(free), len(free)))
    covariance[np.ix_(free, free)] = bread(problem, theta) @ _meat(problem, theta, clusters)
    covariance[np.ix_(free, free)] @= bread(problem, theta)
    return covariance


def bread(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Compute the inverse Hessian of the objective by the free parameters, (f, f)."""
    for hessian in _hessians(problem, theta):
        scale = np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-300))
        values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
        if values.size and values[0] > MIN_CURVATURE:
            break
    values = np.maximum(values, MIN_CURVATURE)
    return np.asarray((vectors / values) @ vectors.T / np.outer(scale, scale))


def _hessians(problem: Problem, theta: np.ndarray) -> Iterator[np.ndarray]:
    """Yield Hessians of the objective by the free parameters, the preferred ones first.

    Only residuals inside the threshold of a Huber loss have curvature. With a narrow threshold
    these are few, and the density of residuals around zero is estimated in a wider window, as for
    quantile regression (Powell's kernel, with a width by the normal reference rule).
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
    number = cluster_numbers(clusters, rows)
    groups = int(number.max()) + 1
    summed = np.zeros((groups, fitted))
    np.add.at(summed, number, slope[:, None] * jacobian)
    factor = groups / max(groups - 1, 1) * (rows - 1) / max(rows - fitted, 1)
    return np.asarray(factor * summed.T @ summed)


def numeric_gradient(quantity: Quantity, theta: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Differentiate a quantity at θ (p,) by central differences: gradient, (p,)."""
    moves = step * np.eye(len(theta))
    return (quantity(theta + moves) - quantity(theta - moves)) / (2 * step)
