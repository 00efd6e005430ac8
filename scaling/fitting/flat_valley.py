"""Flat valley around an optimum: the sizes and ratios of nearly the same loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import (
    GRID_POINTS,
    MAX_RATIO_EXTRAPOLATION,
    MAX_SIZE_EXTRAPOLATION,
    ComputeOptimal,
    allocation,
    best_ratios,
    log_loss_at_compute,
    minimum_by_parabola,
)
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N

DEFAULT_TOLERANCE = 0.001  # of the loss; the flat valley lies within it


@dataclass(frozen=True, kw_only=True, repr=False)
class Valley(Result):
    """Flat valley: the ranges of N and of each ratio whose loss is within a tolerance of the best.

    Parameters
    ----------
    law_name
        Name of the law.
    tolerance
        Fraction of the loss.
    allocation
        Compute-optimal N and D.
    ranges
        One row per quantity: the best value, both ends (NaN if the valley extends beyond the range
        that was searched) and the width as a factor.
    """

    law_name: str
    tolerance: float
    allocation: ComputeOptimal
    ranges: pd.DataFrame

    def frame(self) -> pd.DataFrame:
        """Return one row per quantity."""
        return self.ranges

    def view(self) -> View:
        """Return the optimum of N at this compute, and its valley."""
        width = f"within {100 * self.tolerance:g} %"
        title = f"no best N: {self.allocation.why}"
        if not self.allocation.why:
            size = self.ranges.iloc[0]
            title = f"best N {size['best']:.3g}, {width} of its loss from "
            title += f"{_end(size['low'])} to {_end(size['high'])}"
        return View(
            title=f"{self.law_name} at {self.allocation.compute:.3g} FLOPs: {title}",
            tables={
                **self.allocation.view().tables,
                f"flat valley: loss {width} of the best": self.ranges,
            },
        )

    def document(self) -> dict[str, Any]:
        """Return the optimum and its valley."""
        return {
            "law": self.law_name,
            "compute": self.allocation.compute,
            "tolerance": self.tolerance,
            "optimum": self.allocation.frame(),
            "valley": self.ranges,
            "why": self.allocation.why,
        }


def _end(value: float) -> str:
    """Format an end of a valley."""
    return f"{value:.3g}" if np.isfinite(value) else "beyond the range searched"


def valley(
    fitted: Fit,
    compute: float | None = None,
    *,
    shape: Mapping[str, float] | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Valley:
    """Find the flat valley around the compute-optimal N and around the best value of each ratio.

    Parameters
    ----------
    fitted
        Fit with or without resamples.
    compute
        Compute budget in FLOPs; by default 6ND at the geometric middle of the fitted N and D.
    shape
        Ratios that are held while N varies; by default every ratio is at the optimum of each N.
    tolerance
        Fraction of the loss up to which losses count as equal.

    Returns
    -------
    Valley
        Optimum and ranges.

    Raises
    ------
    InputError
        The compute or the tolerance is not a positive number.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"`0 < tolerance < 1` must hold, but got {tolerance}; write 0.001")
    middle = {name: float(np.sqrt(np.prod(ends))) for name, ends in fitted.ranges.items()}
    if compute is None:
        compute = 6 * middle[N] * middle[D]
    best = allocation(fitted, compute, shape=shape)
    lines = []
    n, d = middle[N], compute / (6 * middle[N])
    if best.n["value"] is not None and best.tokens["value"] is not None:
        n, d = best.n["value"], best.tokens["value"]
        # This grid is finer than that of the search and reaches a factor 1000 either way.
        sizes = np.geomspace(
            n / MAX_SIZE_EXTRAPOLATION, n * MAX_SIZE_EXTRAPOLATION, 4 * GRID_POINTS + 1
        )
        curve = log_loss_at_compute(fitted, fitted.theta, sizes, compute, shape)
        lines.append({"quantity": N, **_flat(sizes, curve, tolerance), "best": n, "status": ""})
    ratios = best_ratios(fitted, np.full(GRID_POINTS, n), shape)
    for name in ratios:
        low, high = fitted.ranges[name]
        values = np.geomspace(
            low / MAX_RATIO_EXTRAPOLATION, high * MAX_RATIO_EXTRAPOLATION, GRID_POINTS
        )
        columns = ratios | {name: values}
        columns |= {N: np.full(GRID_POINTS, n), D: np.full(GRID_POINTS, d)}
        curve = fitted.law.log_loss(fitted.theta, columns, fitted.reference)[0]
        held = [p for p in fitted.held if p.startswith(f"{name}_") and not p.endswith("_drift")]
        status = f"not resolved: {fitted.held[held[0]].why}" if held else ""
        lines.append({"quantity": name, **_flat(values, curve, tolerance), "status": status})
    names = ["quantity", "best", "low", "high", "factor", "status"]
    ranges = pd.DataFrame(lines, columns=names)
    return Valley(law_name=fitted.law_name, tolerance=tolerance, allocation=best, ranges=ranges)


def _flat(x: np.ndarray, log_loss: np.ndarray, tolerance: float) -> dict[str, float]:
    """Find the range around the minimum within the tolerance; an end that is open is NaN."""
    above = log_loss - log_loss.min() - np.log1p(tolerance)
    i = int(np.argmin(above))
    logs, inside = np.log(x), above <= 0
    left = np.flatnonzero(~inside[:i])
    right = np.flatnonzero(~inside[i:])
    low = high = np.nan
    if len(left):
        j = left[-1]
        low = np.exp(np.interp(0.0, [above[j + 1], above[j]], [logs[j + 1], logs[j]]))
    if len(right):
        j = i + right[0]
        high = np.exp(np.interp(0.0, [above[j - 1], above[j]], [logs[j - 1], logs[j]]))
    best = np.exp(minimum_by_parabola(logs, log_loss))
    return {"best": float(best), "low": float(low), "high": float(high), "factor": high / low}
