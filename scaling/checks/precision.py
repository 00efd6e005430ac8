"""Detection of confidence intervals that are too narrow for the number of runs.

A published interval can be narrower than the runs allow: the intervals of the exponents in arXiv
2203.15556 would have needed hundreds of thousands of runs (arXiv 2404.10102). The bound is the
normal approximation of the covariance, σ² (JᵀJ)⁻¹, with σ the noise of a run around the law and J
the gradient of ln loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.checks.conditioning import free_jacobian
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.refits import public_parameters
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import RunTable

MIN_WIDTH_RATIO = 0.5  # implied standard error over the least one that the runs allow
STANDARD_ERRORS_WIDE = 2 * 1.959963984540054  # standard errors in a 95 % interval
MIN_RESAMPLES = 100
DIFFERENCE_STEP = 1e-5  # of an internal parameter, for central differences


@dataclass(frozen=True, kw_only=True, repr=False)
class IntervalWidths(Result):
    """Standard errors that intervals imply, compared with the least that the runs allow.

    Parameters
    ----------
    rows
        Number of runs.
    widths
        One row per public parameter: ``points_needed`` is the number of similar runs that an
        interval of this width needs; ``too_narrow`` flags it.
    resamples
        Number of bootstrap resamples of the fit.
    noise_degrees
        Degrees of freedom of the noise estimate.
    """

    rows: int
    widths: pd.DataFrame
    resamples: int
    noise_degrees: int

    @property
    def too_narrow(self) -> list[str]:
        """Parameters whose interval is narrower than the runs allow."""
        return list(self.widths["parameter"][self.widths["too_narrow"].astype(bool)])

    def view(self) -> View:
        """Return the intervals that are too narrow, the widths, and other causes of narrowness."""
        return View(
            title=f"intervals: {self._verdict()}",
            tables={"standard error: claimed, and as these runs allow": self.widths},
            notes=self.notes(),
        )

    def _verdict(self) -> str:
        """Summarize the widths in one clause."""
        if self.widths.empty:
            return "none (the fit has no resamples)"
        runs = counted(self.rows, "run")
        if not self.too_narrow:
            return f"none is too narrow for {runs}"
        worst = self.widths.iloc[int(self.widths["points_needed"].to_numpy().argmax())]
        return (
            f"too narrow for {runs}: {', '.join(self.too_narrow)}; the interval of "
            f"{worst['parameter']} needs {worst['points_needed']:.3g} runs"
        )

    def notes(self) -> list[str]:
        """Return other causes of too narrow intervals."""
        lines = []
        if 0 < self.resamples < MIN_RESAMPLES:
            lines.append(f"{self.resamples} resamples are too few for the ends of an interval")
        if self.noise_degrees == 0:
            lines.append("as many runs as free parameters: the noise is unknown")
        return lines

    def document(self) -> dict[str, Any]:
        """Return the widths and the flagged parameters."""
        return {
            "rows": self.rows,
            "too_narrow": self.too_narrow,
            "widths": self.widths,
            "notes": self.notes(),
        }


def interval_widths(
    fitted: Fit,
    runs: RunTable | pd.DataFrame,
    *,
    claimed: Mapping[str, tuple[float, float]] | None = None,
) -> IntervalWidths:
    """Flag 95 % intervals that are narrower than the runs allow.

    Parameters
    ----------
    fitted
        Fit whose noise and gradient give the bound.
    runs
        Runs of the fit.
    claimed
        Intervals (low, high) by public parameter or ``a_opt``, such as published ones; by default
        the intervals of the fit.

    Returns
    -------
    IntervalWidths
        Implied and least possible standard errors by parameter.

    Raises
    ------
    InputError
        A claimed parameter is not one of the law's, or its interval is empty.
    """
    runs = fitted.count_as_fitted(runs)
    bounds = _bounds(fitted, runs)
    if claimed is None:
        claimed = _fitted_intervals(fitted) if len(fitted.draws) else {}
    lines = []
    for name, (low, high) in claimed.items():
        if name not in public_parameters(fitted) or not low < high:
            names = ", ".join(public_parameters(fitted))
            raise InputError(
                f"`claimed` must give intervals low < high of {names}, but gives {name}: "
                f"({low}, {high})"
            )
        if bounds.get(name, 0.0) > 0:  # held parameters have no bound
            ratio = (high - low) / STANDARD_ERRORS_WIDE / bounds[name]
            line = {"parameter": name, "claimed_se": ratio * bounds[name]}
            line |= {"possible_se": bounds[name], "ratio": ratio}
            line |= {
                "points_needed": len(runs) / ratio**2,
                "too_narrow": bool(ratio < MIN_WIDTH_RATIO),
            }
            lines.append(line)
    titles = ["parameter", "claimed_se", "possible_se", "ratio", "points_needed", "too_narrow"]
    return IntervalWidths(
        rows=len(runs),
        widths=pd.DataFrame(lines, columns=titles),
        resamples=len(fitted.draws),
        noise_degrees=fitted.noise_degrees,
    )


def _fitted_intervals(fitted: Fit) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile intervals of the public parameters that a fit estimates."""
    draws = pd.DataFrame([public_parameters(fitted, draw) for draw in fitted.draws])
    ends = {str(name): np.percentile(draws[name], [2.5, 97.5]) for name in draws}
    # Scales vary over decades, where a normal approximation fails. Held parameters have no width.
    return {
        name: (float(low), float(high))
        for name, (low, high) in ends.items()
        if low < high and name not in ("A", "B")
    }


def _bounds(fitted: Fit, runs: RunTable) -> dict[str, float]:
    """Bound the least standard error of every public parameter, by the delta method."""
    free, jacobian = free_jacobian(fitted, fitted.columns(runs))
    covariance = fitted.noise**2 * np.linalg.pinv(jacobian.T @ jacobian)
    values = public_parameters(fitted)
    slopes = np.zeros((len(values), len(free)))
    for column, name in enumerate(free):
        ends = []
        for side in (DIFFERENCE_STEP, -DIFFERENCE_STEP):
            moved = fitted.theta.copy()
            moved[fitted.names.index(name)] += side
            ends.append(np.array(list(public_parameters(fitted, moved).values())))
        slopes[:, column] = (ends[0] - ends[1]) / (2 * DIFFERENCE_STEP)
    variance = np.einsum("ip,pq,iq->i", slopes, covariance, slopes)
    return dict(zip(values, np.sqrt(np.maximum(variance, 0.0)).tolist(), strict=True))
