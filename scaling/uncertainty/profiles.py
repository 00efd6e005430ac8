"""Profile intervals of parameters and of any quantity that depends on them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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

BEYOND = 1e9  # a rise where no parameters inside their bounds give the value
STRIDE = 0.3  # standard errors
SLACK, OTHERS = 0.1, 8  # share of the limit that needs no second look; solves of a second look
WALK = 8  # short steps in place of a long one
OPEN = 4.0  # standard errors that a curve goes on where its interval is open
STEPS, REWEIGHTED = 120, 8  # of a solve; the first ones reweight least squares
FIRST_DAMPING, LARGEST_DAMPING = 1e-4, 1e12
SETTLED = 1e-9  # share of the objective that a last step promises
LONGEST = 0.3  # step of an internal parameter: a curve is followed, another valley not looked for
METRIC = 1e-4  # damping of the way back to the constraint: it must not run along a flat valley


@dataclass(frozen=True, kw_only=True)
class ProfileCurve:
    """How far the objective rises as a quantity is moved off its best value.

    ``rise`` (m,) is the rise at each of ``places`` (m,) as a share of what chance allows: the
    interval ends where it is 1. ``parabola`` (m,) is what it would be if the objective were
    quadratic, with the sandwich standard error.
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
    """Profile interval of a quantity.

    Its ends are where the objective, minimised at a fixed value of the quantity, has risen by what
    chance allows. The rise is measured in units of the quantity's sandwich variance over its
    curvature variance, so that a robust loss, uneven noise and clusters count (the adjustment of
    Chandler & Bate, 2007). An end that the data do not fix within ``reach`` standard errors is
    infinite, one that only a parameter's bound stops is where the bound is. Held parameters stay:
    a quantity of those alone has an interval without width.
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
    """The curve behind a profile interval, from beyond its one end to beyond the other.

    Where an end is open the curve goes on for four standard errors.
    """
    rise = _Rise(problem, best, quantity, level, clusters)
    interval = rise.interval(12.0)
    ends = [
        1.3 * (end - rise.value) / rise.step if np.isfinite(end) else sign * OPEN
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
    """How far the objective lies above its limit, by distance from the best value.

    Distances are in sandwich standard errors (``step``), the rise in units of the limit's F.
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
        own = gradient[problem.free]
        self.free = bool(own.any())
        curvature = float(own @ bread(problem, best.theta) @ own)
        self.unit = max(variance / max(curvature, 1e-300), 1e-300) / 2
        self.lowest = best.cost
        self.path = _Path(problem, best, quantity, SLACK * self.limit * self.unit)

    def __call__(self, distance: float) -> float:
        cost = self.path.cost(self.value + distance * self.step)
        return min((cost - self.lowest) / self.unit, BEYOND) - self.limit

    def interval(self, reach: float) -> Interval:
        """Where the rise crosses its limit."""
        if not self.free:
            one = self.value
            return Interval(value=one, low=one, high=one, method="profile", level=self.level)
        ends = [
            self.value + sign * self.step * _crossing(self, sign, reach) for sign in (-1.0, 1.0)
        ]
        low, high = ends
        return Interval(value=self.value, low=low, high=high, method="profile", level=self.level)


def _crossing(rise: Callable[[float], float], sign: float, reach: float) -> float:
    """The distance at which the rise crosses zero, or infinity."""
    inside, outside = 0.0, STRIDE
    while outside <= reach and rise(sign * outside) < 0:
        # Short strides: a solve that starts far off may end in another valley.
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
    """The objective minimised along fixed values of a quantity, each from its neighbour."""

    def __init__(self, problem: Problem, best: Solution, quantity: Quantity, slack: float) -> None:
        self.problem, self.quantity = problem, quantity
        self.lowest, self.slack = best.cost, slack
        value = float(quantity(best.theta[None])[0])
        self.known: dict[float, tuple[float, np.ndarray]] = {value: (best.cost, best.theta)}
        self.origin = value

    def cost(self, value: float) -> float:
        """The lowest objective at a value of the quantity."""
        if value not in self.known:
            near = min(self.known, key=lambda other: abs(other - value))
            found = self._solve(value, self.known[near][1])
            if self._sudden(value, near, found[0]):
                # The step was too long, or the neighbour sits in another valley or at a bound.
                found = min(found, self._walk(near, value), key=lambda one: one[0])
                places = sorted(self.known)[:: 1 + len(self.known) // OTHERS]
                for place in dict.fromkeys((self.origin, *places)):
                    found = min(
                        found, self._solve(value, self.known[place][1]), key=lambda one: one[0]
                    )
            self.known[value] = found
        return self.known[value][0]

    def _walk(self, near: float, value: float) -> tuple[float, np.ndarray]:
        """The same in short steps from the neighbour."""
        found = self.known[near]
        for place in np.linspace(near, value, WALK + 1)[1:]:
            found = self._solve(float(place), found[1])
        return found

    def _sudden(self, value: float, near: float, cost: float) -> bool:
        """Whether the objective rises faster than a parabola through the neighbour would."""
        apart = abs(value - self.origin) / max(abs(near - self.origin), 1e-300)
        expected = (self.known[near][0] - self.lowest) * min(apart, 10.0) ** 2
        return cost - self.lowest > 1.5 * expected + self.slack

    def _solve(self, value: float, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Damped Newton steps along the constraint; one that does not help is shortened."""
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
            move *= min(1.0, LONGEST / max(float(np.abs(move).max()), 1e-300))
            promised = -float(slope @ move)
            if newton and promised <= SETTLED * abs(cost):
                break
            trial = self._onto(value, self.problem.bounds.clip(theta + move))
            found = self._moments(trial, newton=newton)
            if found[0] <= cost and self._holds(value, trial):
                theta, (cost, slope, hessian) = trial, found
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
        """The step that lowers the objective and leaves the quantity, to first order.

        A parameter at its bound that would leave the box stays, and the others are solved again.
        """
        normal = numeric_gradient(self.quantity, theta)
        scale = np.abs(np.diag(hessian))
        scale = np.maximum(scale, 1e-12 * scale.max() + 1e-280)
        matrix = hessian + damping * np.diag(scale)
        working = self.problem.free
        while working.any():
            move = np.zeros_like(theta)
            own, along = matrix[np.ix_(working, working)], normal[working]
            solved = _solved(own, np.stack([slope[working], along], axis=1))
            across = along @ solved[:, 1]
            share = (along @ solved[:, 0]) / across if across else 0.0
            move[working] = share * solved[:, 1] - solved[:, 0]
            leaving = self._leaving(theta, move)
            if not leaving.any():
                return move
            working = working & ~leaving
        return np.zeros_like(theta)

    def _onto(self, value: float, theta: np.ndarray) -> np.ndarray:
        """Move in the metric of the curvature to where the quantity has its value."""
        bounds = self.problem.bounds
        hessian = self._moments(theta, newton=False)[2]
        hessian = hessian + METRIC * np.diag(np.diag(hessian) + 1e-280)
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
        """The shortest step that changes the quantity by what is missing, inside the box."""
        working = self.problem.free
        while working.any():
            move = np.zeros_like(theta)
            along = _solved(hessian[np.ix_(working, working)], normal[working])
            across = normal[working] @ along
            move[working] = missing * along / across if across else 0.0
            leaving = self._leaving(theta, move)
            if not leaving.any():
                return move
            working = working & ~leaving
        return np.zeros_like(theta)

    def _leaving(self, theta: np.ndarray, move: np.ndarray) -> np.ndarray:
        """Parameters at a bound that a step would cross, (p,)."""
        bounds = self.problem.bounds
        low = (theta <= bounds.lower) & (move < 0)
        return np.asarray(low | ((theta >= bounds.upper) & (move > 0)))


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of a linear system, of least squares where the matrix is singular."""
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=None)[0])
