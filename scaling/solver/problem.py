"""The fitting problem of a law on a run table, and its solution."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import OptimizeResult, least_squares
from scipy.stats import qmc

from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.laws.part import Columns, Parameter
from shapelaw.scaling.laws.terms import Program
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.scaling.solver.levenberg_marquardt import Bounds, Data, Minima, minimise
from shapelaw.scaling.solver.objectives import FitObjective


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A law, its data, its held parameters and its objective."""

    law: Law
    columns: Columns
    log_loss: np.ndarray
    reference: Mapping[str, float]
    held: Mapping[str, Held]
    objective: FitObjective
    weights: np.ndarray | None = None

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Internal parameters of the law on the data."""
        return self.law.parameters(self.columns, np.exp(self.log_loss))

    @cached_property
    def program(self) -> Program:
        """The law on the rows of the table."""
        return self.law.program(self.columns, self.reference)

    @cached_property
    def data(self) -> Data:
        """Data of the batched solver."""
        return Data(
            program=self.program,
            observed=self.log_loss,
            objective=self.objective,
            weights=self.weights,
        )

    @cached_property
    def free(self) -> np.ndarray:
        """Mask of the internal parameters that are fitted."""
        return np.array([name not in self.held for name in self.law.names], dtype=bool)

    @cached_property
    def bounds(self) -> Bounds:
        """Bounds of all parameters, with the mask of the free ones."""
        ends = np.array([parameter.bounds for parameter in self.parameters]).reshape(-1, 2)
        return Bounds(lower=ends[:, 0], upper=ends[:, 1], free=self.free)

    def but(self, **changes: object) -> "Problem":
        """Replace data or held parameters; the bounds stay those of the whole table."""
        changed = replace(self, **changes)  # type: ignore[arg-type]
        changed.__dict__["parameters"] = self.parameters
        return changed

    @cached_property
    def _held_values(self) -> np.ndarray:
        """Values of the held parameters, 0 for the free ones, (p,)."""
        return np.array([self.held[n].value if n in self.held else 0.0 for n in self.law.names])

    def complete(self, free: np.ndarray) -> np.ndarray:
        """Return all internal parameters, (..., p), from the free ones, (..., f)."""
        theta = np.empty((*np.shape(free)[:-1], len(self.free)))
        theta[...] = self._held_values
        theta[..., self.free] = free
        return theta

    def with_held(self, theta: np.ndarray) -> np.ndarray:
        """Set the held parameters of (S, p) to their values."""
        return self.complete(theta[:, self.free])

    def log_residuals(self, theta: np.ndarray) -> np.ndarray:
        """Return predicted minus observed ln loss, (n,), at internal parameters (p,)."""
        return np.asarray(self.program.log_loss(theta[None])[0] - self.log_loss)

    def residuals(self, free: np.ndarray) -> np.ndarray:
        """Return the residuals of the objective, (n,), at free parameters (f,)."""
        logs = self.program.log_loss(self.complete(free)[None])[0]
        return self.objective.residuals(logs, self.log_loss)

    def jacobian(self, free: np.ndarray) -> np.ndarray:
        """Return the Jacobian of the residuals by the free parameters, (n, f)."""
        theta = self.complete(free)[None]
        gradient = self.program.gradient(theta)[0][self.free].T
        logs = self.program.log_loss(theta)[0]
        raw = np.exp(logs) if self.objective.on == "raw" else np.ones_like(logs)
        residuals = self.objective.residuals(logs, self.log_loss)
        tilt = self.objective.tilt if self.objective.kind == "asymmetric" else 1.0
        side = np.where(residuals < 0, tilt, 1.0)
        return np.asarray(gradient * (raw * side)[:, None])

    def cost(self, free: np.ndarray) -> float:
        """Evaluate the objective at free parameters (f,)."""
        return float(self.data.cost(self.complete(free)[None])[0])

    def minimise(self, starts: np.ndarray, **settings: int) -> Minima:
        """Minimise from internal parameters (S, p) with the batched solver."""
        return minimise(self.data, self.with_held(starts), self.bounds, **settings)

    def solve(self, start: np.ndarray, steps: int = 2000) -> OptimizeResult:
        """Minimise with SciPy from one start (free parameters, (f,))."""
        lower, upper = self.bounds.lower[self.free], self.bounds.upper[self.free]
        margin = 1e-9 * (upper - lower)
        loss, scale = self._scipy_loss()
        return least_squares(
            self.residuals,
            np.clip(start, lower + margin, upper - margin),
            jac=self.jacobian,
            bounds=(lower, upper),
            loss=loss,  # type: ignore[arg-type]
            f_scale=scale,
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-12,
            gtol=1e-15,
            max_nfev=steps,
        )

    def _scipy_loss(self) -> tuple[str | Callable[[np.ndarray], np.ndarray], float]:
        """Return loss and scale with which ``least_squares`` minimises the objective."""
        plain = self.weights is None
        if plain and self.objective.kind in ("huber", "asymmetric"):
            return "huber", self.objective.delta
        if plain and self.objective.kind == "squares":
            return "linear", 1.0
        weights = np.ones(len(self.log_loss)) if self.weights is None else self.weights

        def rho(squares: np.ndarray) -> np.ndarray:
            size = np.sqrt(np.maximum(squares, 1e-300))
            cost, slope, curve = self.objective.rho(size)
            first = slope / size
            second = (curve - first) / (2 * size**2)
            return np.asarray(weights * np.stack([2 * cost, first, second]))

        return rho, 1.0

    def starts(self, count: int, seed: int) -> np.ndarray:
        """Draw a scrambled Sobol sequence of starts over the ranges of starts, (count, p)."""
        boxes = np.array([parameter.starts for parameter in self.parameters]).reshape(-1, 2)
        boxes = boxes[self.free]
        if not len(boxes):
            return self.complete(np.empty((count, 0)))
        low, high = boxes[:, 0], np.maximum(boxes[:, 1], boxes[:, 0] + 1e-9)
        exponent = int(np.ceil(np.log2(count)))
        points = qmc.Sobol(len(boxes), seed=seed).random_base2(exponent)[:count]
        return self.complete(np.asarray(qmc.scale(points, low, high)))


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best optimum over all starts, with diagnostics.

    Attributes
    ----------
    theta
        All internal parameters, (p,).
    cost, gradient_norm, converged
        Objective, relative norm of the gradient, and convergence of the best optimum.
    basins
        The best five basins as {objective, starts}, where starts is the number of starts that
        ended in the basin.
    others
        Internal parameters of the best distinct basins, (k, p), the best first.
    disagreement
        A note, empty where SciPy and the batched solver end at the same optimum.
    """

    theta: np.ndarray
    cost: float
    gradient_norm: float
    converged: bool
    basins: list[dict[str, float]]
    others: np.ndarray
    disagreement: str = ""
