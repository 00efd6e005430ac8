"""Curves from loss to accuracy, one class each, and their least-squares fit.

A curve maps one column to another: a loss to an accuracy, or a loss to a task's loss. ``value``
gives the curve, its gradient by the internal parameters and its slope by the loss, all in closed
form, so that errors of coefficients and of losses propagate exactly to first order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Protocol, Self

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from shapelaw.scaling.errors import InputError

# Values (n,), gradient by internal parameters (n, p), slope by the input (n,).
Values = tuple[np.ndarray, np.ndarray, np.ndarray]
# Names, values (q,) and their gradient by internal parameters (q, p).
Public = tuple[tuple[str, ...], np.ndarray, np.ndarray]
Bounds = list[tuple[float, float]]

FINISHED_STARTS = 3  # number of starts, the best of all, that are solved to the end
MAX_COST_DIFFERENCE = 1e-6  # relative; two starts with closer costs found the same optimum
TOLERANCE = 1e-14
LARGEST_EXPONENT = 50.0  # far outside of any data; the square of its exponential is still finite
# Floors for the singular values and column norms of the scaled Jacobian. The data do not determine
# a direction below them, and its variance must come out large, not small.
SMALLEST_SINGULAR = 1e-9
SMALLEST_COLUMN = 1e-12


class Curve(Protocol):
    """An equation between two columns."""

    name: ClassVar[str]
    equation: ClassVar[str]

    def settled(self, x: np.ndarray, chance: float) -> Self:
        """Return the curve with the constants that the task and the data determine."""

    def starts(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, ...]]:
        """List internal parameters to start the least squares from."""

    def bounds(self, x: np.ndarray) -> Bounds:
        """List the lower and the upper bound of each internal parameter."""

    def value(self, theta: np.ndarray, x: np.ndarray) -> Values:
        """Evaluate the curve at x (n,), its gradient (n, p) and its slope (n,)."""

    def public(self, theta: np.ndarray) -> Public:
        """Convert to coefficients of the equation, with their gradient by internal parameters."""


@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """accuracy = chance + (ceiling - chance) / (1 + exp(-k (L0 - L))).

    L is a loss in nats per token or, in the second of two steps, a task's loss in bits per byte;
    L0 has the unit of L, k the inverse unit. Accuracy rises as the loss falls, from the chance
    level of the task, which is known, to a ceiling, which is fitted unless given. The internal
    parameters are L0, ln k and the ceiling. Source: arXiv 2412.04403, equation 2, with a known
    lower asymptote.
    """

    name: ClassVar[str] = "sigmoid"
    equation: ClassVar[str] = "accuracy = chance + (ceiling - chance) / (1 + exp(-k (L0 - L)))"
    chance: float = 0.0
    ceiling: float | None = None

    def settled(self, x: np.ndarray, chance: float) -> "Sigmoid":
        """Return the curve with the chance level of the task."""
        if self.ceiling is not None and not chance < self.ceiling <= 1:
            raise InputError(
                f"`chance < ceiling <= 1` must hold, but got {chance:.4g} and {self.ceiling}; "
                "leave the ceiling out to fit it"
            )
        return replace(self, chance=chance)

    def starts(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, ...]]:
        """Combine midpoints in and below the observed losses, slopes, and ceilings up to 1."""
        low, span = float(x.min()), float(np.ptp(x))
        middles = np.linspace(low - 1.5 * span, float(x.max()), 8)
        slopes = [float(np.log(slope / span)) for slope in (1, 2, 4, 8, 16)]
        if self.ceiling is not None:
            return list(product(middles, slopes))
        top = min(float(y.max()) + 0.02, 1.0)
        return list(product(middles, slopes, (top, (1 + top) / 2, 1.0)))

    def bounds(self, x: np.ndarray) -> Bounds:
        """Bound the midpoint to five observed ranges, and the ceiling to chance and 1."""
        low, high, span = float(x.min()), float(x.max()), float(np.ptp(x))
        bounds = [(low - 5 * span, high + 3 * span)]
        bounds += [(float(np.log(0.02 / span)), float(np.log(500 / span)))]
        return bounds if self.ceiling is not None else [*bounds, (self.chance + 0.01, 1.0)]

    def value(self, theta: np.ndarray, x: np.ndarray) -> Values:
        """Evaluate the accuracy; its slope by the loss is negative."""
        slope = np.exp(theta[1])
        ceiling = theta[2] if self.ceiling is None else self.ceiling
        height = ceiling - self.chance
        scaled = slope * (theta[0] - x)
        share = expit(scaled)
        steepness = height * share * (1 - share)
        columns = [steepness * slope, steepness * scaled]
        columns += [share] if self.ceiling is None else []
        return self.chance + height * share, np.stack(columns, axis=-1), -steepness * slope

    def public(self, theta: np.ndarray) -> Public:
        """Convert to L0, k and, where it was fitted, the ceiling."""
        names = ("L0", "k", "ceiling")[: len(theta)]
        slope = float(np.exp(theta[1]))
        values = np.array([theta[0], slope, *theta[2:]])
        return names, values, np.diag([1.0, slope, 1.0][: len(theta)])


@dataclass(frozen=True, kw_only=True)
class ExponentialError:
    """error = epsilon - k exp(-gamma L).

    L is a loss in nats per token, error = 1 - accuracy, epsilon the error at high loss and gamma
    in the inverse unit of the loss. The curve has no ceiling: far below the fitted losses the
    accuracy exceeds 1. The internal parameters are epsilon, ln(k exp(-gamma at)) and ln gamma, with
    ``at`` the mean of the fitted losses, which removes the correlation of k and gamma. Source:
    arXiv 2403.08540.
    """

    name: ClassVar[str] = "exponential-error"
    equation: ClassVar[str] = "1 - accuracy = epsilon - k exp(-gamma L)"
    at: float = 0.0

    def settled(self, x: np.ndarray, chance: float) -> "ExponentialError":
        """Centre the curve at the mean of the losses."""
        return replace(self, at=float(x.mean()))

    def starts(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, ...]]:
        """Combine errors at high loss, from the largest observed to 1, and rates by the range."""
        largest = 1 - float(y.min())
        epsilons = (min(largest + 0.01, 1.0), (largest + 1) / 2, 1.0)
        rates = [rate / float(np.ptp(x)) for rate in (0.5, 1, 2, 4, 8)]
        gain = float(y.mean()) - 1
        return [
            (epsilon, float(np.log(max(epsilon + gain, 1e-3))), float(np.log(rate)))
            for epsilon, rate in product(epsilons, rates)
        ]

    def bounds(self, x: np.ndarray) -> Bounds:
        """Bound the error to at most 1, and the rate from a flat curve to a step."""
        span = float(np.ptp(x))
        rates = (float(np.log(0.01 / span)), float(np.log(100 / span)))
        return [(0.0, 1.0), (-20.0, 5.0), rates]

    def value(self, theta: np.ndarray, x: np.ndarray) -> Values:
        """Evaluate the accuracy, 1 - error."""
        rate = np.exp(theta[2])
        centred = x - self.at
        gain = np.exp(np.clip(theta[1] - rate * centred, None, LARGEST_EXPONENT))
        gradient = np.stack((-np.ones_like(x), gain, -rate * centred * gain), axis=-1)
        return 1 - theta[0] + gain, gradient, -rate * gain

    def public(self, theta: np.ndarray) -> Public:
        """Convert to epsilon, k and gamma."""
        rate = float(np.exp(theta[2]))
        scale = float(np.exp(min(theta[1] + rate * self.at, LARGEST_EXPONENT)))
        gradient = np.array([[1.0, 0, 0], [0, scale, scale * rate * self.at], [0, 0, rate]])
        return ("epsilon", "k", "gamma"), np.array([theta[0], scale, rate]), gradient


@dataclass(frozen=True, kw_only=True)
class Line:
    """task loss = a + b (L - at).

    L is a loss in nats per token and ``at`` the mean of the fitted losses; the task loss is in
    bits per byte of the correct answers. The line replaces the first step of arXiv 2412.04403,
    which predicts the task loss from the size and the tokens of a model instead of its loss.
    """

    name: ClassVar[str] = "line"
    equation: ClassVar[str] = "task loss = a + b (L - at)"
    at: float = 0.0

    def settled(self, x: np.ndarray, chance: float) -> "Line":
        """Centre the curve at the mean of the losses."""
        return replace(self, at=float(x.mean()))

    def starts(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, ...]]:
        """Solve the linear least squares; the only start is the solution."""
        slope, height = np.polyfit(x - self.at, y, 1)
        return [(float(height), float(slope))]

    def bounds(self, x: np.ndarray) -> Bounds:
        """Leave both parameters unbounded."""
        return [(-np.inf, np.inf)] * 2

    def value(self, theta: np.ndarray, x: np.ndarray) -> Values:
        """Evaluate the task loss."""
        centred = x - self.at
        gradient = np.stack((np.ones_like(x), centred), axis=-1)
        return theta[0] + theta[1] * centred, gradient, np.full_like(x, theta[1])

    def public(self, theta: np.ndarray) -> Public:
        """Convert to the height a at the mean loss, and the slope b."""
        return ("a", "b"), np.array(theta), np.eye(2)


@dataclass(frozen=True, kw_only=True)
class PowerCurve:
    """task loss = a (L / at)^b.

    L is a loss in nats per token and ``at`` the geometric mean of the fitted losses; the task loss
    is in bits per byte of the correct answers. The internal parameters are ln a and b. The curve
    replaces the first step of arXiv 2412.04403, which predicts the task loss from the size and the
    tokens of a model instead of its loss.
    """

    name: ClassVar[str] = "power-law"
    equation: ClassVar[str] = "task loss = a (L / at)^b"
    at: float = 1.0

    def settled(self, x: np.ndarray, chance: float) -> "PowerCurve":
        """Centre the curve at the geometric mean of the losses."""
        return replace(self, at=float(np.exp(np.log(x).mean())))

    def starts(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, ...]]:
        """Solve for the line through the logarithms."""
        power, height = np.polyfit(np.log(x / self.at), np.log(y), 1)
        return [(float(height), float(power))]

    def bounds(self, x: np.ndarray) -> Bounds:
        """Leave both parameters unbounded."""
        return [(-np.inf, np.inf)] * 2

    def value(self, theta: np.ndarray, x: np.ndarray) -> Values:
        """Evaluate the task loss."""
        centred = np.log(x / self.at)
        value = np.exp(theta[0] + theta[1] * centred)
        return value, np.stack((value, centred * value), axis=-1), theta[1] * value / x

    def public(self, theta: np.ndarray) -> Public:
        """Convert to the scale a at the mean loss, and the power b."""
        scale = float(np.exp(theta[0]))
        return ("a", "b"), np.array([scale, theta[1]]), np.diag([scale, 1.0])


@dataclass(frozen=True, kw_only=True)
class TwoStep:
    """task loss = first(L), accuracy = second(task loss).

    L is a loss in nats per token, the task loss is in bits per byte of the correct answers. Each
    step is fitted to observed values: the second to the observed task losses, not to those that
    the first predicts. Source: arXiv 2412.04403, equations 1 and 2, whose first step has N and D
    instead of L. For a first step in N and D, fit a law to the task loss and link that loss to the
    accuracy by a `Sigmoid`.
    """

    first: Line | PowerCurve = PowerCurve()
    second: Sigmoid = Sigmoid()

    @property
    def name(self) -> str:
        """Name of both steps."""
        return f"two-step ({self.first.name}, {self.second.name})"


Form = Sigmoid | ExponentialError | TwoStep
FORMS: dict[str, Form] = {
    "sigmoid": Sigmoid(),
    "exponential-error": ExponentialError(),
    "two-step": TwoStep(),
    "two-step-line": TwoStep(first=Line()),
}
CURVES: dict[str, Callable[..., Curve]] = {
    curve.name: curve for curve in (Sigmoid, ExponentialError, Line, PowerCurve)
}


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A least-squares solution of a curve.

    ``residuals`` (n,) are observed minus fitted values. ``influence`` (p, n) maps errors of the
    observations to errors of the internal parameters: their covariance is ``influence`` times its
    transpose times the variance of the noise. ``agreeing`` of the ``finished`` starts reached the
    optimum.
    """

    curve: Curve
    theta: np.ndarray
    residuals: np.ndarray
    influence: np.ndarray
    at_bound: tuple[str, ...]
    converged: bool
    agreeing: int
    finished: int

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the residual variance."""
        return len(self.residuals) - len(self.theta)


def solve(curve: Curve, x: np.ndarray, y: np.ndarray) -> Solved:
    """Fit a curve by least squares, from the best of many starts.

    Parameters
    ----------
    curve
        A curve whose constants are settled.
    x, y
        Observations, (n,) each, more of them than parameters.

    Returns
    -------
    The solution of the lowest cost among the finished starts.
    """
    low, high = np.array(curve.bounds(x)).T

    def residuals(theta: np.ndarray) -> np.ndarray:
        predicted, _, _ = curve.value(theta, x)
        return np.asarray(predicted - y)

    def jacobian(theta: np.ndarray) -> np.ndarray:
        return curve.value(theta, x)[1]

    starts = [np.clip(start, low, high) for start in curve.starts(x, y)]
    starts.sort(key=lambda start: float((residuals(start) ** 2).sum()))
    solutions = [
        least_squares(
            residuals,
            start,
            jac=jacobian,
            bounds=(low, high),
            x_scale="jac",
            xtol=TOLERANCE,
            ftol=TOLERANCE,
            gtol=TOLERANCE,
        )
        for start in starts[:FINISHED_STARTS]
    ]
    best = min(solutions, key=lambda solution: solution.cost)
    highest_cost = best.cost * (1 + MAX_COST_DIFFERENCE) + 1e-300
    names = curve.public(best.x)[0]
    near = 1e-6 * np.maximum(np.abs(best.x), 1)
    touched = (best.x - low < near) | (high - best.x < near)
    return Solved(
        curve=curve,
        theta=best.x,
        residuals=-residuals(best.x),
        influence=_influence(jacobian(best.x)),
        at_bound=tuple(name for name, hit in zip(names, touched, strict=True) if hit),
        converged=bool(best.success),
        agreeing=sum(solution.cost <= highest_cost for solution in solutions),
        finished=len(solutions),
    )


def _influence(jacobian: np.ndarray) -> np.ndarray:
    """Compute the pseudo-inverse of the Jacobian.

    Directions that the data do not determine get a large variance. Parameters at a bound keep
    their column, so that their uncertainty stays in the intervals.
    """
    scale = np.linalg.norm(jacobian, axis=0)
    scale = np.maximum(scale, max(SMALLEST_SINGULAR * scale.max(), SMALLEST_COLUMN))
    left, singular, right = np.linalg.svd(jacobian / scale, full_matrices=False)
    floor = np.maximum(singular, SMALLEST_SINGULAR)
    influence: np.ndarray = (right.T / floor) @ left.T / scale[:, None]
    return influence


def joint_covariance(solved: Sequence[Solved]) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the joint covariance of curves that were fitted to the same models.

    Accuracies of one model on several tasks share random errors, and so do the two steps of a
    task. The noise is therefore taken as independent between models, and as correlated between
    curves as their residuals are.

    Parameters
    ----------
    solved
        k curves with p internal parameters in all, fitted to the same rows.

    Returns
    -------
    The covariance of all internal parameters, (p, p), and of the noise, (k, k).
    """
    scaled = np.stack([curve.residuals / np.sqrt(curve.degrees) for curve in solved])
    noise = scaled @ scaled.T
    blocks = [
        [left.influence @ right.influence.T * noise[i, j] for j, right in enumerate(solved)]
        for i, left in enumerate(solved)
    ]
    return np.block(blocks), noise
