"""Profile likelihood intervals of parameters and of functions of parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
from scipy.optimize import brentq
from scipy.stats import f as fisher

from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.intervals import Interval
from shapelaw.scaling.uncertainty.robust_covariance import (
    Quantity,
    bread,
    numeric_gradient,
    sandwich,
)

UNREACHABLE = 1e9  # rise at values that no parameters within their bounds give
STRIDE = 0.3  # first step of the search for an end, in standard errors
SLACK = 0.1  # share of the limit by which the objective may exceed a parabola without a new solve
MAX_RESTARTS = 8  # other solutions from which a suspicious value is solved again
WALK_STEPS = 8  # short steps that replace a long one
OPEN_REACH = 4.0  # standard errors that a curve extends where its interval is open
STEPS, REWEIGHTED = 120, 8  # steps of a solve, of which the first ones are reweighted
FIRST_DAMPING, LARGEST_DAMPING = 1e-4, 1e12
TOLERANCE = 1e-9  # share of the objective; a solve stops when a step promises less
MAX_STEP = 0.3  # of an internal parameter, so that a solve stays in its valley
METRIC_DAMPING = 1e-4  # of the return to the constraint, against steps along a flat valley


@dataclass(frozen=True, kw_only=True)
class ProfileCurve:
    """The profile of the objective along a quantity.

    Attributes
    ----------
    interval
        The profile interval.
    places
        Values of the quantity, (m,).
    rise
        Rise of the objective at each value over the threshold of the interval, (m,); the interval
        ends where the rise is 1.
    parabola
        The rise of a quadratic objective with the sandwich standard error, (m,).
    """

    interval: Interval
    places: np.ndarray
    rise: np.ndarray
    parabola: np.ndarray


def profile(
    problem: Problem,
    best: Solution,
    quantity: Quantity,
    *,
    level: float = 95.0,
    clusters: np.ndarray | None = None,
    reach: float = 12.0,
) -> Interval:
    """Compute the profile interval of a quantity.

    The interval ends where the objective, minimised at a fixed value of the quantity, has risen to
    the threshold of the confidence level. The rise is measured in units of the sandwich variance of
    the quantity over its curvature variance, which accounts for a robust loss, heteroscedastic
    noise and clusters (the adjustment of Chandler & Bate, 2007).

    Parameters
    ----------
    problem, best
        The fitted problem and its optimum.
    quantity
        Function of internal parameters, (S, p) -> (S,).
    level
        Confidence level in per cent.
    clusters
        Cluster of each row, (n,), or None.
    reach
        Distance in standard errors to which the ends are searched.

    Returns
    -------
    The interval. An end is infinite if the data do not bound the quantity within ``reach``, and
    lies at the bound of a parameter if only that bound limits the quantity. Held parameters stay
    fixed: a quantity of held parameters alone has an interval without width.
    """
    rise = _Rise(problem, best, quantity, level, clusters)
    return rise.interval(reach)


def profile_curve(
    problem: Problem,
    best: Solution,
    quantity: Quantity,
    *,
    level: float = 95.0,
    clusters: np.ndarray | None = None,
    points: int = 25,
) -> ProfileCurve:
    """Compute the profile of a quantity from below its interval to above it.

    Where an end of the interval is open, the curve extends for four standard errors.

    Parameters
    ----------
    problem, best, quantity, level, clusters
        As for :func:`profile`.
    points
        Number of points of the curve.
    """
    rise = _Rise(problem, best, quantity, level, clusters)
    interval = rise.interval(12.0)
    ends = [
        1.3 * (end - rise.value) / rise.step if np.isfinite(end) else sign * OPEN_REACH
        for sign, end in ((-1.0, interval.low), (1.0, interval.high))
    ]
    distances = np.linspace(ends[0], ends[1], points)
    above = np.empty(points)
    # From the best value outwards: each solve starts at its solved neighbour.
    for place in np.argsort(np.abs(distances), kind="stable"):
        above[place] = rise(float(distances[place])) if rise.free else 0.0
    return ProfileCurve(
        interval=interval,
        places=rise.value + distances * rise.step,
        rise=1 + above / rise.limit,
        parabola=distances**2 / rise.limit,
    )


class _Rise:
    """The rise of the objective above the threshold, by distance from the optimum.

    Distances are in sandwich standard errors (``step``); the rise is in units of the F statistic of
    the threshold (``limit``).
    """

    def __init__(
        self,
        problem: Problem,
        best: Solution,
        quantity: Quantity,
        level: float,
        clusters: np.ndarray | None,
    ) -> None:
        rows, free = len(problem.log_loss), int(problem.free.sum())
        degrees = rows - free if clusters is None else len(np.unique(clusters)) - 1
        self.limit = float(fisher.ppf(level / 100, 1, max(degrees, 1)))
        self.level = level
        self.value = float(quantity(best.theta[None])[0])
        gradient = numeric_gradient(quantity, best.theta)
        variance = float(gradient @ sandwich(problem, best.theta, clusters) @ gradient)
        self.step = float(np.sqrt(max(variance, 1e-300)))
        free_gradient = gradient[problem.free]
        self.free = bool(free_gradient.any())
        curvature = float(free_gradient @ bread(problem, best.theta) @ free_gradient)
        self.unit = max(variance / max(curvature, 1e-300), 1e-300) / 2
        self.lowest = best.cost
        self.path = _Path(problem, best, quantity, SLACK * self.limit * self.unit)

    def __call__(self, distance: float) -> float:
        cost = self.path.cost(self.value + distance * self.step)
        return min((cost - self.lowest) / self.unit, UNREACHABLE) - self.limit

    def interval(self, reach: float) -> Interval:
        """Find the ends of the interval, where the rise crosses the threshold."""
        if not self.free:
            value = self.value
            return Interval(value=value, low=value, high=value, method="profile", level=self.level)
        ends = [
            self.value + sign * self.step * _crossing(self, sign, reach) for sign in (-1.0, 1.0)
        ]
        low, high = ends
        return Interval(value=self.value, low=low, high=high, method="profile", level=self.level)


def _crossing(rise: Callable[[float], float], sign: float, reach: float) -> float:
    """Find the distance at which the rise crosses zero; infinity if there is none."""
    inside, outside = 0.0, STRIDE
    while outside <= reach and rise(sign * outside) < 0:
        # Strides are short, because a solve with a distant start may end in another valley.
        inside, outside = outside, outside + max(STRIDE, outside / 6)
    if outside > reach:
        return float("inf")
    if rise(sign * max(inside, 1e-9)) >= 0:
        return inside
    signed = partial(_signed, rise, sign)
    return float(brentq(signed, max(inside, 1e-9), outside, xtol=1e-3))


def _signed(rise: Callable[[float], float], sign: float, distance: float) -> float:
    return rise(sign * distance)


class _Path:
    """Minima of the objective at fixed values of a quantity, each started from a neighbour."""

    def __init__(self, problem: Problem, best: Solution, quantity: Quantity, slack: float) -> None:
        self.problem, self.quantity = problem, quantity
        self.lowest, self.slack = best.cost, slack
        value = float(quantity(best.theta[None])[0])
        self.solutions: dict[float, tuple[float, np.ndarray]] = {value: (best.cost, best.theta)}
        self.origin = value

    def cost(self, value: float) -> float:
        """Return the lowest objective at a value of the quantity."""
        if value not in self.solutions:
            near = min(self.solutions, key=lambda other: abs(other - value))
            candidates = [self._solve(value, self.solutions[near][1])]
            if self._rises_suddenly(value, near, candidates[0][0]):
                # The step was too long, or the neighbour is in another valley or at a bound.
                candidates.append(self._walk(near, value))
                places = sorted(self.solutions)[:: 1 + len(self.solutions) // MAX_RESTARTS]
                candidates += [
                    self._solve(value, self.solutions[place][1])
                    for place in dict.fromkeys((self.origin, *places))
                ]
            self.solutions[value] = min(candidates, key=itemgetter(0))
        return self.solutions[value][0]

    def _walk(self, near: float, value: float) -> tuple[float, np.ndarray]:
        """Solve at a value in short steps from a neighbour."""
        solution = self.solutions[near]
        for place in np.linspace(near, value, WALK_STEPS + 1)[1:]:
            solution = self._solve(float(place), solution[1])
        return solution

    def _rises_suddenly(self, value: float, near: float, cost: float) -> bool:
        """Return True if the objective rises faster than a parabola through the neighbour."""
        ratio = abs(value - self.origin) / max(abs(near - self.origin), 1e-300)
        expected = (self.solutions[near][0] - self.lowest) * min(ratio, 10.0) ** 2
        return cost - self.lowest > 1.5 * expected + self.slack

    def _solve(self, value: float, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Minimise at a value by damped Newton steps; a rejected step raises the damping."""
        start, damping = theta, FIRST_DAMPING
        theta = self._onto(value, start)
        if not self._holds(value, theta):
            return np.inf, start  # no parameters inside their bounds give this value
        cost, slope, hessian = self._moments(theta, newton=False)
        for count in range(STEPS):
            newton = count >= REWEIGHTED
            if count == REWEIGHTED:
                damping = FIRST_DAMPING
                cost, slope, hessian = self._moments(theta, newton=True)
            move = self._move(theta, slope, hessian, damping)
            move *= min(1.0, MAX_STEP / max(float(np.abs(move).max()), 1e-300))
            promised = -float(slope @ move)
            if newton and promised <= TOLERANCE * abs(cost):
                break
            trial = self._onto(value, self.problem.bounds.clip(theta + move))
            moments = self._moments(trial, newton=newton)
            if moments[0] <= cost and self._holds(value, trial):
                theta, (cost, slope, hessian) = trial, moments
                damping = max(damping * 0.1, 1e-14)
            else:
                damping *= 8
            if damping > LARGEST_DAMPING:
                break
        return cost, theta

    def _moments(self, theta: np.ndarray, *, newton: bool) -> tuple[float, np.ndarray, np.ndarray]:
        cost, slope, hessian = self.problem.data.moments(theta[None], newton=newton)
        return float(cost[0]), slope[0], hessian[0]

    def _holds(self, value: float, theta: np.ndarray) -> bool:
        missing = value - float(self.quantity(theta[None])[0])
        return abs(missing) <= 1e-7 * max(abs(value), 1e-6)

    def _move(
        self, theta: np.ndarray, slope: np.ndarray, hessian: np.ndarray, damping: float
    ) -> np.ndarray:
        """Compute the step that lowers the objective and, to first order, keeps the quantity.

        A parameter at its bound that would leave the box stays, and the others are solved again.
        """
        normal = numeric_gradient(self.quantity, theta)
        scale = np.abs(np.diag(hessian))
        scale = np.maximum(scale, 1e-12 * scale.max() + 1e-280)
        matrix = hessian + damping * np.diag(scale)
        working = self.problem.free
        while working.any():
            move = np.zeros_like(theta)
            part, along = matrix[np.ix_(working, working)], normal[working]
            solved = _solve_linear(part, np.stack([slope[working], along], axis=1))
            across = along @ solved[:, 1]
            share = (along @ solved[:, 0]) / across if across else 0.0
            move[working] = share * solved[:, 1] - solved[:, 0]
            leaving = self._leaving(theta, move)
            if not leaving.any():
                return move
            working = working & ~leaving
        return np.zeros_like(theta)

    def _onto(self, value: float, theta: np.ndarray) -> np.ndarray:
        """Move in the metric of the curvature to parameters with the value of the quantity."""
        bounds = self.problem.bounds
        hessian = self._moments(theta, newton=False)[2]
        hessian = hessian + METRIC_DAMPING * np.diag(np.diag(hessian) + 1e-280)
        for _ in range(30):
            missing = value - float(self.quantity(theta[None])[0])
            if abs(missing) <= 1e-10 * max(abs(value), 1e-6):
                break
            normal = numeric_gradient(self.quantity, theta)
            theta = bounds.clip(theta + self._towards(theta, missing, normal, hessian))
        return theta

    def _towards(
        self, theta: np.ndarray, missing: float, normal: np.ndarray, hessian: np.ndarray
    ) -> np.ndarray:
        """Compute the shortest step inside the box that changes the quantity by ``missing``."""
        working = self.problem.free
        while working.any():
            move = np.zeros_like(theta)
            along = _solve_linear(hessian[np.ix_(working, working)], normal[working])
            across = normal[working] @ along
            move[working] = missing * along / across if across else 0.0
            leaving = self._leaving(theta, move)
            if not leaving.any():
                return move
            working = working & ~leaving
        return np.zeros_like(theta)

    def _leaving(self, theta: np.ndarray, move: np.ndarray) -> np.ndarray:
        """Return the mask of the parameters at a bound that a step would cross, (p,)."""
        bounds = self.problem.bounds
        low = (theta <= bounds.lower) & (move < 0)
        return np.asarray(low | ((theta >= bounds.upper) & (move > 0)))


def _solve_linear(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a linear system, by least squares where the matrix is singular."""
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])
