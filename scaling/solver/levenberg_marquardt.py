"""Minimise one objective from many starts at once: Levenberg-Marquardt on whole batches.

All starts (or all resamples) are rows of one array. The first steps are iteratively reweighted
Gauss-Newton, which is safe far from an optimum; then the true Hessian, which ends quadratically.
Finished rows leave the batch. Bounds hold by projection: a parameter at its bound whose gradient
points outwards is frozen for a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.laws.terms import Moments, Program
from shapelaw.scaling.solver.objectives import FitObjective

BUDGET = 12_000  # numbers in one (S, n) array: all arrays of a block stay in a core's own cache
FIRST_DAMPING = 1e-3
SMALLEST_PIVOT = 1e-12
ROUNDING = 1e-15  # of ln loss
STALLED = 1e-7  # share of the objective: who gains less in a whole cycle is left where it is
CYCLE = 30  # steps after which what has not converged is reweighted again


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """What a batch is fitted to: one table for all rows of the batch, or one for each.

    ``observed`` is ln loss and ``weights`` multiply the cost of a row of the table, each (n,) or
    (S, n); ``weights`` None stands for ones.
    """

    program: Program
    observed: np.ndarray
    objective: FitObjective
    weights: np.ndarray | None = None

    @property
    def rounding(self) -> float:
        """An objective that is nothing but rounding: what a perfect table ends at."""
        unit = ROUNDING * (float(np.exp(self.observed.max())) if self.objective.on == "raw" else 1)
        heaviest = 1.0 if self.weights is None else float(self.weights.max(initial=0.0))
        return unit**2 * self.program.rows * heaviest + 1e-300

    def take(self, batch: np.ndarray) -> "Data":
        """The data of some rows of the batch."""
        observed = self.observed if self.observed.ndim == 1 else self.observed[batch]
        weights = self.weights
        if weights is not None and weights.ndim == 2:
            weights = weights[batch]
        return replace(self, observed=observed, weights=weights)

    def moments(self, theta: np.ndarray, *, newton: bool) -> Moments:
        """Objective (S,), gradient (S, p), Hessian (S, p, p) at parameters (S, p)."""
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
        """The objective at parameters (S, p): (S,)."""
        costs = []
        for part, chosen in self._chunks(theta):
            rows = part.objective.rows(part.observed, part.weights, newton=False)
            costs.append(rows(part.program.log_loss(chosen))[0].sum(axis=1))
        return np.concatenate(costs)

    def _chunks(self, theta: np.ndarray) -> Iterator[tuple["Data", np.ndarray]]:
        step = max(1, BUDGET // max(self.program.rows, 1))
        for begin in range(0, len(theta), step):
            batch = np.arange(begin, min(begin + step, len(theta)))
            yield self.take(batch), theta[batch]


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """Where each start ended: (S, p), objective (S,), scale-free gradient norm (S,), converged."""

    theta: np.ndarray
    cost: np.ndarray
    gradient_norm: np.ndarray
    converged: np.ndarray

    def joined(self, other: "Minima") -> "Minima":
        """These, then others."""
        return Minima(
            theta=np.concatenate([self.theta, other.theta]),
            cost=np.concatenate([self.cost, other.cost]),
            gradient_norm=np.concatenate([self.gradient_norm, other.gradient_norm]),
            converged=np.concatenate([self.converged, other.converged]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """Lower and upper bounds (p,) and which parameters are free (p,)."""

    lower: np.ndarray
    upper: np.ndarray
    free: np.ndarray

    def frozen(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Held parameters, and those at a bound that the gradient pushes against."""
        low = (theta <= self.lower) & (gradient > 0)
        high = (theta >= self.upper) & (gradient < 0)
        return ~self.free | low | high

    def clip(self, theta: np.ndarray) -> np.ndarray:
        """Into the box; held parameters stay."""
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
    """Minimise from every start.

    Parameters
    ----------
    starts
        (S, p); held parameters keep the values they have here.
    steps
        At most, each one evaluation of a start.
    reweighted
        How many of them are Gauss-Newton on reweighted least squares.
    tolerance
        A start has converged when a full step promises less than this share of its objective,
        or less than rounding.
    """
    theta = bounds.clip(np.array(starts, dtype=float))
    newton = reweighted == 0
    state = _State(theta, *data.moments(theta, newton=newton))
    ended = _State.empty(*theta.shape)
    alive = np.arange(len(theta))
    rounding = data.rounding
    before = state.cost
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
            done = done | (state.cost > before * (1 - STALLED))
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
    return Minima(
        theta=ended.theta,
        cost=ended.cost,
        gradient_norm=_scaled_norm(ended, bounds),
        converged=ended.converged,
    )


class _State:
    """Parameters of a batch with objective, derivatives and damping, (S, ...)."""

    def __init__(
        self, theta: np.ndarray, cost: np.ndarray, gradient: np.ndarray, hessian: np.ndarray
    ) -> None:
        self.theta, self.cost = theta, np.where(np.isnan(cost), np.inf, cost)
        self.gradient, self.hessian = gradient, hessian
        self.damping = np.full(len(theta), FIRST_DAMPING)
        self.converged = np.zeros(len(theta), dtype=bool)

    @classmethod
    def empty(cls, count: int, parameters: int) -> "_State":
        """Room for the results of a batch."""
        return cls(
            np.empty((count, parameters)),
            np.full(count, np.inf),
            np.empty((count, parameters)),
            np.empty((count, parameters, parameters)),
        )

    def evaluate(self, data: Data, *, newton: bool) -> None:
        """Derivatives of the other kind at the same parameters, with fresh damping."""
        self.damping[:] = FIRST_DAMPING
        cost, self.gradient, self.hessian = data.moments(self.theta, newton=newton)
        self.cost = np.where(np.isnan(cost), np.inf, cost)

    def accept(self, trial: np.ndarray, moments: Moments) -> None:
        """Go to the trial points that are better; damp the others."""
        cost, gradient, hessian = moments
        better = cost <= self.cost
        self.theta = np.where(better[:, None], trial, self.theta)
        self.gradient = np.where(better[:, None], gradient, self.gradient)
        self.hessian = np.where(better[:, None, None], hessian, self.hessian)
        self.cost = np.where(better, cost, self.cost)
        self.damping = np.where(better, np.maximum(self.damping * 0.1, 1e-14), self.damping * 8)

    def take(self, keep: np.ndarray) -> "_State":
        """Some rows of the batch."""
        part = _State(self.theta[keep], self.cost[keep], self.gradient[keep], self.hessian[keep])
        part.damping, part.converged = self.damping[keep], self.converged[keep]
        return part

    def put(self, places: np.ndarray, other: "_State", chosen: np.ndarray) -> None:
        """Keep the chosen rows of another state at places of this one."""
        for name in ("theta", "cost", "gradient", "hessian", "damping", "converged"):
            getattr(self, name)[places] = getattr(other, name)[chosen]


def _scaled_norm(state: _State, bounds: Bounds) -> np.ndarray:
    """Largest |gradient| over √(curvature · objective): 1e-8 means nothing is left to gain."""
    frozen = bounds.frozen(state.theta, state.gradient)
    curvature = np.abs(np.diagonal(state.hessian, axis1=1, axis2=2))
    scale = np.sqrt(np.maximum(curvature * np.abs(state.cost)[:, None], 1e-300))
    norms = np.where(frozen, 0.0, np.abs(state.gradient) / scale)
    return np.asarray(norms.max(axis=1, initial=0.0))


@np.errstate(all="ignore")  # a hopeless row may overflow: its step is rejected
def damped_step(
    hessian: np.ndarray, gradient: np.ndarray, damping: np.ndarray, frozen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Solve (H + λ diag|H|) step = -g for a batch, frozen parameters staying.

    A Cholesky factorisation over the whole batch, whose pivots are kept positive: so the step
    goes downhill also where the Hessian is indefinite.

    Returns
    -------
    Steps (S, p) and the decrease that they promise (S,).
    """
    parameters = gradient.shape[1]
    matrix = hessian.transpose(1, 2, 0).copy()
    right = np.where(frozen, 0.0, -gradient).T.copy()
    fixed = frozen.T
    scale = np.abs(np.einsum("jjs->js", matrix))
    scale = np.maximum(scale, SMALLEST_PIVOT * scale.max(axis=0, initial=0.0) + 1e-280)
    matrix[fixed[:, None, :] | fixed[None, :, :]] = 0.0
    for j in range(parameters):
        matrix[j, j] = np.where(fixed[j], 1.0, matrix[j, j] + damping * scale[j])
    floor = np.where(fixed, 1.0, SMALLEST_PIVOT * scale)
    for j in range(parameters):
        pivot = matrix[j, j]
        matrix[j, j] = np.sqrt(np.where(pivot > floor[j], pivot, np.where(fixed[j], 1.0, scale[j])))
        below = matrix[j + 1 :, j] / matrix[j, j]
        matrix[j + 1 :, j] = below
        for i in range(j + 1, parameters):
            matrix[i, j + 1 : i + 1] -= below[i - j - 1] * below[: i - j]
    forward = right
    for j in range(parameters):
        forward[j] /= matrix[j, j]
        forward[j + 1 :] -= matrix[j + 1 :, j] * forward[j]
    promised = 0.5 * (forward**2).sum(axis=0)
    step = forward.copy()
    for j in range(parameters - 1, -1, -1):
        step[j] /= matrix[j, j]
        step[:j] -= matrix[j, :j] * step[j]
    return step.T, promised
