"""Batched Levenberg-Marquardt: minimisation of one objective from many starts at once.

All starts (or all resamples) are rows of one array. The first steps are iteratively reweighted
Gauss-Newton steps, which are safe far from an optimum. Later steps use the true Hessian, which
converges quadratically. Converged rows leave the batch. Bounds hold by projection: a parameter at
its bound is frozen for a step if the step would leave the box.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.laws.terms import Moments, Program
from shapelaw.scaling.solver.objectives import FitObjective

CHUNK_SIZE = 12_000  # numbers in one (S, n) array, so that all arrays of a chunk fit in the cache
FIRST_DAMPING = 1e-3
SMALLEST_PIVOT = 1e-12
ROUNDING = 1e-15  # rounding error of ln loss
MIN_GAIN_PER_CYCLE = 1e-7  # share of the objective; a start that gains less in a cycle stops
CYCLE = 30  # steps after which starts that have not converged are reweighted again


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Data of a batch: one table for all rows of the batch, or one table for each.

    ``observed`` is ln loss and ``weights`` multiply the cost of each row of the table, each (n,) or
    (S, n). Weights are ones if ``weights`` is None.
    """

    program: Program
    observed: np.ndarray
    objective: FitObjective
    weights: np.ndarray | None = None

    @property
    def rounding(self) -> float:
        """Objective that consists of rounding errors only, as for a table without noise."""
        unit = ROUNDING * (float(np.exp(self.observed.max())) if self.objective.on == "raw" else 1)
        heaviest = 1.0 if self.weights is None else float(self.weights.max(initial=0.0))
        return unit**2 * self.program.rows * heaviest + 1e-300

    def take(self, batch: np.ndarray) -> "Data":
        """Select the data of some rows of the batch."""
        observed = self.observed if self.observed.ndim == 1 else self.observed[batch]
        weights = self.weights
        if weights is not None and weights.ndim == 2:
            weights = weights[batch]
        return replace(self, observed=observed, weights=weights)

    def moments(self, theta: np.ndarray, *, newton: bool) -> Moments:
        """Evaluate objective (S,), gradient (S, p), Hessian (S, p, p) at parameters (S, p)."""
        parts = [
            part.program.moments(
                chosen,
                part.objective.rows(part.observed, part.weights, newton=newton),
                newton=newton,
            )
            for part, chosen in self._chunks(theta)
        ]
        cost, gradient, hessian = (np.concatenate(each) for each in zip(*parts, strict=True))
        return cost, gradient, hessian

    def cost(self, theta: np.ndarray) -> np.ndarray:
        """Evaluate the objective at parameters (S, p): (S,)."""
        costs = []
        for part, chosen in self._chunks(theta):
            rows = part.objective.rows(part.observed, part.weights, newton=False)
            costs.append(rows(part.program.log_loss(chosen))[0].sum(axis=1))
        return np.concatenate(costs)

    def _chunks(self, theta: np.ndarray) -> Iterator[tuple["Data", np.ndarray]]:
        step = max(1, CHUNK_SIZE // max(self.program.rows, 1))
        for begin in range(0, len(theta), step):
            batch = np.arange(begin, min(begin + step, len(theta)))
            yield self.take(batch), theta[batch]


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """End points of all starts.

    Attributes
    ----------
    theta
        Parameters, (S, p).
    cost
        Objectives, (S,).
    gradient_norm
        Norms of the gradients relative to curvature and objective, (S,).
    converged
        Mask of the starts that converged, (S,).
    """

    theta: np.ndarray
    cost: np.ndarray
    gradient_norm: np.ndarray
    converged: np.ndarray

    def joined(self, other: "Minima") -> "Minima":
        """Append other end points."""
        return Minima(
            theta=np.concatenate([self.theta, other.theta]),
            cost=np.concatenate([self.cost, other.cost]),
            gradient_norm=np.concatenate([self.gradient_norm, other.gradient_norm]),
            converged=np.concatenate([self.converged, other.converged]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """Lower and upper bounds, (p,), and the mask of the free parameters, (p,)."""

    lower: np.ndarray
    upper: np.ndarray
    free: np.ndarray

    def frozen(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Return the mask of held parameters and of those that descent pushes out of a bound."""
        low = (theta <= self.lower) & (gradient > 0)
        high = (theta >= self.upper) & (gradient < 0)
        return ~self.free | low | high

    def clip(self, theta: np.ndarray) -> np.ndarray:
        """Clip free parameters to the box; held parameters stay."""
        return np.where(self.free, np.clip(theta, self.lower, self.upper), theta)


def minimise(
    data: Data,
    starts: np.ndarray,
    bounds: Bounds,
    *,
    steps: int = 200,
    reweighted: int = 6,
    tolerance: float = 1e-14,
) -> Minima:
    """Minimise the objective of a batch from every start.

    Parameters
    ----------
    data
        Law, observed losses, objective and weights.
    starts
        Parameters, (S, p); held parameters keep the values of their starts.
    bounds
        Bounds and the mask of the free parameters.
    steps
        Largest number of steps; each step evaluates a start once.
    reweighted
        Number of steps per cycle that are Gauss-Newton steps on reweighted least squares.
    tolerance
        A start has converged when a full step promises to lower its objective by less than this
        share, or by less than the rounding error.

    Returns
    -------
    End points of all starts, in the order of the starts.
    """
    theta = bounds.clip(np.array(starts, dtype=float))
    newton = reweighted == 0
    state = _State(theta, *data.moments(theta, newton=newton))
    ended = _State.empty(*theta.shape)
    alive, rounding, before = np.arange(len(theta)), data.rounding, state.cost
    for step in range(steps):
        if newton != (wanted := step % CYCLE >= reweighted):
            newton = wanted
            state.evaluate(data.take(alive), newton=newton)
        frozen = bounds.frozen(state.theta, state.gradient)
        move, promised = damped_step(state.hessian, state.gradient, state.damping, frozen)
        trial = bounds.clip(state.theta + move)
        small = promised <= tolerance * np.abs(state.cost) + rounding
        state.converged = small & newton & np.isfinite(state.cost)
        done = state.converged
        if step and step % CYCLE == 0:
            done = done | (state.cost > before * (1 - MIN_GAIN_PER_CYCLE))
            before = state.cost
        if done.any():
            ended.put(alive[done], state, done)
            keep = ~done
            alive, trial, before = alive[keep], trial[keep], before[keep]
            state = state.take(keep)
        if not len(alive):
            break
        state.accept(trial, data.take(alive).moments(trial, newton=newton))
    ended.put(alive, state, np.ones(len(alive), dtype=bool))
    return ended.minima(bounds)


class _State:
    """State of a batch: parameters, objective, derivatives and damping, (S, ...)."""

    def __init__(
        self, theta: np.ndarray, cost: np.ndarray, gradient: np.ndarray, hessian: np.ndarray
    ) -> None:
        self.theta, self.cost = theta, np.where(np.isnan(cost), np.inf, cost)
        self.gradient, self.hessian = gradient, hessian
        self.damping = np.full(len(theta), FIRST_DAMPING)
        self.converged = np.zeros(len(theta), dtype=bool)

    @classmethod
    def empty(cls, count: int, parameters: int) -> "_State":
        """Allocate the results of a batch."""
        return cls(
            np.empty((count, parameters)),
            np.full(count, np.inf),
            np.empty((count, parameters)),
            np.empty((count, parameters, parameters)),
        )

    def minima(self, bounds: Bounds) -> Minima:
        """Return the end points with the scaled norms of their gradients."""
        return Minima(
            theta=self.theta,
            cost=self.cost,
            gradient_norm=_scaled_norm(self, bounds),
            converged=self.converged,
        )

    def evaluate(self, data: Data, *, newton: bool) -> None:
        """Evaluate derivatives of the other kind at the same parameters; reset the damping."""
        self.damping[:] = FIRST_DAMPING
        cost, self.gradient, self.hessian = data.moments(self.theta, newton=newton)
        self.cost = np.where(np.isnan(cost), np.inf, cost)

    def accept(self, trial: np.ndarray, moments: Moments) -> None:
        """Accept the trial points that lower the objective; raise the damping of the others."""
        cost, gradient, hessian = moments
        better = cost <= self.cost
        self.theta = np.where(better[:, None], trial, self.theta)
        self.gradient = np.where(better[:, None], gradient, self.gradient)
        self.hessian = np.where(better[:, None, None], hessian, self.hessian)
        self.cost = np.where(better, cost, self.cost)
        self.damping = np.where(better, np.maximum(self.damping * 0.1, 1e-14), self.damping * 8)

    def take(self, keep: np.ndarray) -> "_State":
        """Select some rows of the batch."""
        part = _State(self.theta[keep], self.cost[keep], self.gradient[keep], self.hessian[keep])
        part.damping, part.converged = self.damping[keep], self.converged[keep]
        return part

    def put(self, places: np.ndarray, other: "_State", chosen: np.ndarray) -> None:
        """Copy the chosen rows of another state to the given rows of the state."""
        for name in ("theta", "cost", "gradient", "hessian", "damping", "converged"):
            getattr(self, name)[places] = getattr(other, name)[chosen]


def _scaled_norm(state: _State, bounds: Bounds) -> np.ndarray:
    """Return the largest |gradient| / √(curvature · objective), (S,); 0 at an optimum."""
    frozen = bounds.frozen(state.theta, state.gradient)
    curvature = np.abs(np.diagonal(state.hessian, axis1=1, axis2=2))
    scale = np.sqrt(np.maximum(curvature * np.abs(state.cost)[:, None], 1e-300))
    norms = np.where(frozen, 0.0, np.abs(state.gradient) / scale)
    return np.asarray(norms.max(axis=1, initial=0.0))


@np.errstate(all="ignore")  # a diverging row may overflow: its step is rejected
def damped_step(
    hessian: np.ndarray, gradient: np.ndarray, damping: np.ndarray, frozen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve (H + λ diag|H|) step = -g for a batch, with frozen parameters unchanged.

    The Cholesky factorisation runs over the whole batch and keeps its pivots positive, so that the
    step is a descent direction also where the Hessian is indefinite. The right-hand side is its
    last row, so that it is solved forward on the way.

    Parameters
    ----------
    hessian, gradient
        Derivatives of the objective, (S, p, p) and (S, p).
    damping
        λ, (S,).
    frozen
        Mask of the parameters that do not move, (S, p).

    Returns
    -------
    Steps, (S, p), and the decreases of the objective that they promise, (S,).
    """
    parameters = gradient.shape[1]
    rows = np.arange(parameters)
    matrix = np.empty((parameters + 1, parameters, len(gradient)))
    matrix[:-1] = hessian.transpose(1, 2, 0)
    matrix[-1] = -gradient.T
    fixed = frozen.T
    diagonal = matrix[rows, rows]
    scale = np.abs(diagonal)
    scale = np.maximum(scale, SMALLEST_PIVOT * scale.max(axis=0, initial=0.0) + 1e-280)
    matrix[:-1][fixed[:, None, :] | fixed[None, :, :]] = 0.0
    matrix[-1][fixed] = 0.0
    matrix[rows, rows] = np.where(fixed, 1.0, diagonal + damping * scale)
    floor, least = np.where(fixed, 1.0, SMALLEST_PIVOT * scale), np.where(fixed, 1.0, scale)
    for j in range(parameters):
        pivot = matrix[j, j]
        matrix[j, j] = np.sqrt(np.where(pivot > floor[j], pivot, least[j]))
        below = matrix[j + 1 :, j] / matrix[j, j]
        matrix[j + 1 :, j] = below
        matrix[j + 1 :, j + 1 :] -= below[:, None] * below[:-1]  # only the lower half is read
    step = matrix[-1]
    promised = 0.5 * (step**2).sum(axis=0)
    for j in range(parameters - 1, -1, -1):
        step[j] /= matrix[j, j]
        step[:j] -= matrix[j, :j] * step[j]
    return step.T, promised
