"""Objectives of a fit: the sum over runs of a loss of the residuals, not the mean."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.errors import InputError

KINDS = ("huber", "squares", "student", "asymmetric")
SMALLEST_RESIDUAL = 1e-300


@dataclass(frozen=True, kw_only=True)
class FitObjective:
    """Σ w ρ(r), r = ln L_predicted - ln L_observed, or L_predicted - L_observed with on="raw".

    Attributes
    ----------
    kind
        ``huber``: r²/2 up to delta, linear beyond (arXiv 2203.15556, appendix D.4, as a sum);
        ``squares``: r²/2; ``student``: δ² (ν + 1)/2 ln(1 + r²/(ν δ²)), the negative log density of
        Student's t with ν degrees of freedom and scale δ; ``asymmetric``: the Huber loss of
        ``tilt`` times r where a run is worse than predicted (r < 0), so that a badly trained run
        counts less.
    on
        ``log`` for residuals of ln loss, ``raw`` for residuals of the loss itself.
    delta
        Threshold or scale, in the unit of r.
    degrees
        Degrees of freedom ν of ``student``.
    tilt
        Factor of negative residuals in ``asymmetric``, positive and usually below 1.
    weights
        Column of the run table with the weight of each run's cost; None for equal weights.
    """

    kind: str = "huber"
    on: str = "log"
    delta: float = 1e-3
    degrees: float = 4.0
    tilt: float = 0.5
    weights: str | None = None

    def __post_init__(self) -> None:
        """Reject unknown kinds and numbers that are not positive."""
        if self.kind not in KINDS:
            raise InputError(f"`objective` must be one of {', '.join(KINDS)}, but got {self.kind}")
        if self.on not in ("log", "raw"):
            raise InputError(f"`on` must be log or raw, but got {self.on!r}")
        for name in ("delta", "degrees", "tilt"):
            if not 0 < getattr(self, name) < np.inf:
                value = getattr(self, name)
                raise InputError(
                    f"`{name}` must be positive and finite, but got {value}; give a positive number"
                )

    def at(self, delta: float) -> "FitObjective":
        """Return the objective with another threshold or scale."""
        return replace(self, delta=delta)

    @property
    def robust(self) -> bool:
        """True if the objective has a threshold or a scale."""
        return self.kind != "squares"

    @property
    def redescends(self) -> bool:
        """True if the influence of large residuals falls; the fit can then have several basins."""
        return self.kind == "student"

    def scaled(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """Scale the negative residuals of ``asymmetric``; return the residuals and the scale."""
        if self.kind != "asymmetric":
            return residual, 1.0
        side = np.where(residual < 0, self.tilt, 1.0)
        return side * residual, side

    def rho(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluate ρ and its first and second derivative at scaled residuals."""
        if self.kind == "squares":
            return residual**2 / 2, residual, np.ones_like(residual)
        delta, degrees = self.delta, self.degrees
        if self.kind == "student":
            square = (residual / delta) ** 2
            rate = (degrees + 1) / (degrees + square)
            cost = delta**2 * (degrees + 1) / 2 * np.log((degrees + square) / degrees)
            return cost, rate * residual, rate * (1 - 2 * square / (degrees + square))
        size = np.abs(residual)
        inside = size <= delta
        cost = np.where(inside, residual**2 / 2, delta * (size - delta / 2))
        return cost, np.clip(residual, -delta, delta), inside.astype(float)

    def rows(
        self, observed: np.ndarray, weights: np.ndarray | None, *, newton: bool
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return a function from ln L to cost, slope and curvature of each row, (S, n) each.

        :meth:`shapelaw.scaling.laws.terms.Program.moments` takes such a function.

        Parameters
        ----------
        observed
            ln of the observed losses, (n,) or (S, n).
        weights
            Weights of the rows, (n,) or (S, n); None for ones.
        newton
            Use the second derivative as curvature; otherwise ψ/r as in iteratively reweighted
            least squares, which is never negative.
        """

        def rows(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            predicted = np.exp(logs) if self.on == "raw" else logs
            residual = predicted - (np.exp(observed) if self.on == "raw" else observed)
            residual, side = self.scaled(residual)
            cost, slope, curve = self.rho(residual)
            if not newton:
                curve = slope / np.where(np.abs(residual) > SMALLEST_RESIDUAL, residual, 1.0)
                curve = np.where(np.abs(residual) > SMALLEST_RESIDUAL, curve, 1.0)
            slope, curve = slope * side, curve * side**2
            if self.on == "raw":
                chained = curve * predicted**2 + (slope * predicted if newton else 0.0)
                slope, curve = slope * predicted, chained
            if weights is not None:
                cost, slope, curve = cost * weights, slope * weights, curve * weights
            return cost, slope, curve

        return rows

    def residuals(self, logs: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Return predicted minus observed, with negative residuals of ``asymmetric`` scaled."""
        if self.on == "raw":
            return self.scaled(np.exp(logs) - np.exp(observed))[0]
        return self.scaled(logs - observed)[0]

    def describe(self) -> str:
        """Describe the objective exactly, for a report."""
        quantity = "ln loss" if self.on == "log" else "loss"
        if self.kind == "squares":
            return f"sum of squares / 2 on {quantity}"
        if self.kind == "student":
            settings = f"{self.degrees:g} degrees, scale {self.delta:.3g}"
            return f"Student-t likelihood on {quantity}, {settings}"
        tilted = f", residuals below zero times {self.tilt:g}" if self.kind == "asymmetric" else ""
        return f"sum of Huber on {quantity}, delta {self.delta:.3g}{tilted}"
