"""What a fit minimises: the sum over runs of a loss of residuals, unrounded and never averaged."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.errors import InputError

KINDS = ("huber", "squares", "student", "asymmetric")
NEARLY_ZERO = 1e-300


@dataclass(frozen=True, kw_only=True)
class FitObjective:
    """Σ w ρ(r), r = ln L_predicted - ln L_observed, or L_predicted - L_observed with on="raw".

    Attributes
    ----------
    kind
        ``huber``: r²/2 up to delta, then straight (arXiv 2203.15556, appendix D.4, as a sum);
        ``squares``: r²/2; ``student``: δ² (ν + 1)/2 ln(1 + r²/(ν δ²)), the density of Student's t
        with ν degrees of freedom and scale δ; ``asymmetric``: Huber's of ``tilt`` times r where a
        run is worse than predicted (r < 0), so that a badly trained run counts less.
    on
        ``log`` or ``raw``.
    delta
        Threshold or scale, in units of r.
    degrees
        ν of ``student``.
    tilt
        Of ``asymmetric``, between 0 and 1.
    weights
        Column of the run table that multiplies each run's cost; none unless asked for.
    """

    kind: str = "huber"
    on: str = "log"
    delta: float = 1e-3
    degrees: float = 4.0
    tilt: float = 0.5
    weights: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not one of the kinds or not positive."""
        if self.kind not in KINDS:
            raise InputError(f"`objective` must be one of {', '.join(KINDS)}, but got {self.kind}")
        if self.on not in ("log", "raw"):
            raise InputError(f"`on` must be log or raw, but got {self.on!r}")
        for name in ("delta", "degrees", "tilt"):
            if not 0 < getattr(self, name) < np.inf:
                value = getattr(self, name)
                raise InputError(f"`{name}` must be positive and finite, but got {value}")

    def at(self, delta: float) -> "FitObjective":
        """The same with another threshold or scale."""
        return replace(self, delta=delta)

    @property
    def robust(self) -> bool:
        """Whether it has a threshold or a scale."""
        return self.kind != "squares"

    @property
    def redescends(self) -> bool:
        """Whether far residuals pull less and less: then a table can have several basins."""
        return self.kind == "student"

    def scaled(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """Residuals with the lighter side scaled, and that scale."""
        if self.kind != "asymmetric":
            return residual, 1.0
        side = np.where(residual < 0, self.tilt, 1.0)
        return side * residual, side

    def rho(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ρ of scaled residuals with its first and second derivative."""
        if self.kind == "squares":
            return residual**2 / 2, residual, np.ones_like(residual)
        delta, degrees = self.delta, self.degrees
        if self.kind == "student":
            apart = degrees + (residual / delta) ** 2
            rate = (degrees + 1) / apart
            cost = delta**2 * (degrees + 1) / 2 * np.log(apart / degrees)
            return cost, rate * residual, rate * (1 - 2 * (residual / delta) ** 2 / apart)
        size = np.abs(residual)
        inside = size <= delta
        cost = np.where(inside, residual**2 / 2, delta * (size - delta / 2))
        return cost, np.clip(residual, -delta, delta), inside.astype(float)

    def rows(
        self, observed: np.ndarray, weights: np.ndarray | None, *, newton: bool
    ) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Cost, slope and curvature by ln L of each row, as :meth:`Program.moments` takes them.

        Parameters
        ----------
        observed
            Ln of the observed losses, (n,) or (S, n).
        weights
            Of the rows, (n,) or (S, n), or None for ones.
        newton
            Whether curvature is the second derivative, or ψ/r as in iteratively reweighted least
            squares, which is never negative.
        """

        def rows(logs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            predicted = np.exp(logs) if self.on == "raw" else logs
            residual = predicted - (np.exp(observed) if self.on == "raw" else observed)
            residual, side = self.scaled(residual)
            cost, slope, curve = self.rho(residual)
            if not newton:
                curve = slope / np.where(np.abs(residual) > NEARLY_ZERO, residual, 1.0)
                curve = np.where(np.abs(residual) > NEARLY_ZERO, curve, 1.0)
            slope, curve = slope * side, curve * side**2
            if self.on == "raw":
                chained = curve * predicted**2 + (slope * predicted if newton else 0.0)
                slope, curve = slope * predicted, chained
            if weights is not None:
                cost, slope, curve = cost * weights, slope * weights, curve * weights
            return cost, slope, curve

        return rows

    def residuals(self, logs: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Predicted minus observed, with the lighter side scaled."""
        if self.on == "raw":
            return self.scaled(np.exp(logs) - np.exp(observed))[0]
        return self.scaled(logs - observed)[0]

    def words(self) -> str:
        """The objective exactly, for a report."""
        where = "ln loss" if self.on == "log" else "loss in nats"
        if self.kind == "squares":
            return f"sum of squares / 2 on {where}"
        if self.kind == "student":
            return (
                f"Student-t likelihood on {where}, {self.degrees:g} degrees, scale {self.delta:.3g}"
            )
        tilted = f", residuals below zero times {self.tilt:g}" if self.kind == "asymmetric" else ""
        return f"sum of Huber on {where}, delta {self.delta:.3g}{tilted}"
