"""Solve one robust least-squares problem of a law: bounds, held parameters, many starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import OptimizeResult, least_squares
from scipy.stats import qmc

from scaling.identifiability import Held
from scaling.laws import Columns, Law, Parameter

HUBER = 1.345  # times the residual scale: 95 % as efficient as least squares on normal residuals
ROUGH_STEPS = 40  # evaluations of each start before the best are solved to the end
POLISHED = 6
SMALLEST_DELTA = 1e-6
Bounds = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A law, its data and what is held: everything that a solve needs."""

    law: Law
    columns: Columns
    log_loss: np.ndarray
    reference: Mapping[str, float]
    held: Mapping[str, Held]
    delta: float

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Internal parameters of the law on these data."""
        return self.law.parameters(self.columns, np.exp(self.log_loss))

    @cached_property
    def free(self) -> np.ndarray:
        """Mask of the internal parameters that are fitted."""
        return np.array([parameter.name not in self.held for parameter in self.parameters])

    @cached_property
    def bounds(self) -> Bounds:
        """Lower and upper bounds of the free parameters."""
        ends = np.array([parameter.bounds for parameter in self.parameters])[self.free]
        return ends[:, 0], ends[:, 1]

    def complete(self, free: np.ndarray) -> np.ndarray:
        """All internal parameters from the free ones."""
        theta = np.array([self._held_value(parameter.name) for parameter in self.parameters])
        theta[self.free] = free
        return theta

    def _held_value(self, name: str) -> float:
        return self.held[name].value if name in self.held else 0.0

    def residuals(self, free: np.ndarray) -> np.ndarray:
        """Predicted minus observed ln loss, (n,)."""
        theta = self.complete(free)
        predicted = self.law.log_loss(theta, self.columns, self.reference)[0]
        return np.asarray(predicted - self.log_loss)

    def jacobian(self, free: np.ndarray) -> np.ndarray:
        """Gradient of the residuals by the free parameters, (n, p)."""
        theta = self.complete(free)
        return self.law.log_loss(theta, self.columns, self.reference)[1][:, self.free]

    def objective(self, free: np.ndarray) -> float:
        """The sum-Huber objective."""
        size = np.abs(self.residuals(free))
        linear = self.delta * (size - self.delta / 2)
        return float(np.where(size <= self.delta, size**2 / 2, linear).sum())

    def solve(self, start: np.ndarray, steps: int = 2000) -> OptimizeResult:
        """Minimise from one start (free parameters)."""
        lower, upper = self.bounds
        margin = 1e-9 * (upper - lower)
        return least_squares(
            self.residuals,
            np.clip(start, lower + margin, upper - margin),
            jac=self.jacobian,
            bounds=self.bounds,
            loss="huber",
            f_scale=self.delta,
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-12,
            gtol=1e-15,
            max_nfev=steps,
        )

    def starts(self, count: int, seed: int) -> np.ndarray:
        """A scrambled Sobol set of starts over the parameters' boxes, (count, p)."""
        boxes = np.array([parameter.starts for parameter in self.parameters])[self.free]
        low, high = boxes[:, 0], np.maximum(boxes[:, 1], boxes[:, 0] + 1e-9)
        exponent = int(np.ceil(np.log2(count)))
        points = qmc.Sobol(len(boxes), seed=seed).random_base2(exponent)[:count]
        return np.asarray(qmc.scale(points, low, high))


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best optimum over all starts."""

    free: np.ndarray
    objective: float
    gradient_norm: float
    converged: bool
    basins: list[dict[str, float]]


def solve_at(
    problem: Problem, delta: float | str, starts: int, seed: int
) -> tuple[Problem, Solution, float]:
    """Solve at the given delta, or at the one that the residuals ask for (three rounds)."""
    best = multi_start(problem, starts, seed)
    for _ in range(3 if delta == "auto" else 0):
        scale = residual_scale(problem, best.free)
        problem = replace(problem, delta=max(HUBER * scale, SMALLEST_DELTA))
        best = warm_start(problem, best)
    return problem, best, residual_scale(problem, best.free)


def multi_start(problem: Problem, starts: int, seed: int) -> Solution:
    """Solve roughly from every start, then the best ones to the end."""
    rough = [problem.solve(start, ROUGH_STEPS) for start in problem.starts(starts, seed)]
    rough.sort(key=lambda result: result.cost)
    results = [problem.solve(result.x) for result in rough[:POLISHED]]
    best = min(results, key=lambda result: result.cost)
    basins = _basins([result.cost for result in [*rough, best]])
    return _solution(problem, best, basins)


def _basins(costs: list[float]) -> list[dict[str, float]]:
    """Group the objectives that the starts reached: {objective, starts}, the best five."""
    ordered = np.sort(costs)
    groups = np.split(ordered, 1 + np.flatnonzero(np.diff(ordered) > 1e-4 * ordered[:-1] + 1e-15))
    return [{"objective": float(group[0]), "starts": len(group)} for group in groups[:5]]


def warm_start(problem: Problem, best: Solution) -> Solution:
    """Solve again from an optimum of a neighbouring problem."""
    return _solution(problem, problem.solve(best.free), best.basins)


def _solution(problem: Problem, result: OptimizeResult, basins: list[dict[str, float]]) -> Solution:
    return Solution(
        free=result.x,
        objective=problem.objective(result.x),
        gradient_norm=float(result.optimality),
        converged=bool(result.status > 0),
        basins=basins,
    )


def residual_scale(problem: Problem, free: np.ndarray) -> float:
    """Robust standard deviation of the residuals, corrected for the fitted parameters."""
    residuals = problem.residuals(free)
    rows, fitted = len(residuals), int(problem.free.sum())
    median = float(np.median(np.abs(residuals - np.median(residuals))))
    return 1.4826 * median * float(np.sqrt(rows / max(rows - fitted, 1)))
