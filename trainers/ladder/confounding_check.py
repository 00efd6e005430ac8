"""Confounding of the axes of a plan: correlations of their logarithms and variance inflation.

A law is fitted in the logarithms of its columns. The effects of two correlated columns are hard to
separate: the variance of a coefficient grows by the variance inflation factor ``1 / (1 - R²)``,
with the R² of a regression of its axis on all other axes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View, counted

MAX_CORRELATION = 0.3
MIN_LOG_RANGE = 0.05  # an axis with a smaller range of its logarithm counts as constant


@dataclass(frozen=True, kw_only=True, repr=False)
class Confounding(Result):
    """Correlations and variance inflation of one part of a plan.

    Attributes
    ----------
    part
        Name of the part.
    points
        Number of different points.
    correlations
        Pearson correlations of the logarithms of the axes that vary, a square table.
    inflation
        Variance inflation factor by axis: 1 is ideal, and infinite means that the axis is a
        combination of the others.
    """

    part: str
    points: int
    correlations: pd.DataFrame
    inflation: Mapping[str, float]

    @property
    def worst(self) -> float:
        """Largest absolute correlation, 0 with fewer than two axes."""
        return max((abs(r) for _, _, r in self.pairs()), default=0.0)

    def pairs(self) -> list[tuple[str, str, float]]:
        """Return every pair of axes with its correlation."""
        axes = list(self.correlations.columns)
        return [(a, b, float(self.correlations.loc[a, b])) for a, b in combinations(axes, 2)]  # type: ignore[arg-type]

    def frame(self) -> pd.DataFrame:
        """Return the correlations and the variance inflation factor of every axis, one row each."""
        table = self.correlations.reset_index(names="axis")
        table.insert(0, "part", self.part)
        return table.assign(variance_inflation=list(self.inflation.values()))

    def view(self) -> View:
        """Return the largest correlation and a table of all correlations."""
        points = f"{self.part}: {counted(self.points, 'point')}"
        if len(self.correlations) < 2:
            return View(title=f"{points}, no two axes vary")
        title = f"{points}, largest |correlation| {self.worst:.2f}"
        table = self.frame().drop(columns="part").round(2)
        return View(title=title, tables={"correlations of the logarithms": table})

    def document(self) -> dict[str, Any]:
        """Return this part of the document of a plan."""
        return {
            "part": self.part,
            "points": self.points,
            "worst": self.worst,
            "correlations": [{"axes": [a, b], "r": r} for a, b, r in self.pairs()],
            "variance_inflation": self.inflation,
        }


def confounding(points: pd.DataFrame, axes: Sequence[str], *, part: str) -> Confounding:
    """Compute correlations and variance inflation of the axes that vary among points.

    Parameters
    ----------
    points
        Table with one row per point. Every axis must be positive.
    axes
        Columns of ``points``. Axes that hardly vary are left out.
    part
        Name of these points in the result.
    """
    logs = np.log(points[list(axes)].to_numpy(dtype=float))
    varies = np.ptp(logs, axis=0) > MIN_LOG_RANGE if len(logs) else np.zeros(len(axes), dtype=bool)
    varying = [name for name, yes in zip(axes, varies, strict=True) if yes]
    matrix = correlation_matrix(logs[:, varies])
    return Confounding(
        part=part,
        points=len(points),
        correlations=pd.DataFrame(matrix, index=varying, columns=varying),
        inflation=dict(zip(varying, _inflation(matrix), strict=True)),
    )


def correlation_matrix(logs: np.ndarray) -> np.ndarray:
    """Compute the Pearson correlations of the columns of (points, axes) -> (axes, axes)."""
    if logs.shape[1] == 0:
        return np.zeros((0, 0))
    centred = logs - logs.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=0))
    return np.asarray((centred / scale).T @ (centred / scale))


def _inflation(matrix: np.ndarray) -> list[float]:
    """Return the variance inflation factors, the diagonal of the inverse correlation matrix."""
    if len(matrix) == 0:
        return []
    if np.linalg.eigvalsh(matrix)[0] < 1e-10:
        return [float("inf")] * len(matrix)
    return [float(value) for value in np.diag(np.linalg.inv(matrix))]
