"""How far the axes of a plan move together: correlations in logarithms and variance inflation.

A law is fitted in the logarithms of its columns. Where two of them move together, their effects
cannot be told apart: the variance of a coefficient grows by ``1 / (1 - R²)``, with R² that of its
axis regressed on all the others (the variance inflation factor).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View, counted

MOST_CORRELATION = 0.3
CONSTANT = 0.05  # an axis that spreads less than this in ln units is held, not varied


@dataclass(frozen=True, kw_only=True, repr=False)
class Confounding(Result):
    """Correlations and variance inflation of one part of a plan.

    ``correlations`` is a square frame over the axes that vary there, Pearson's r of their
    logarithms; ``inflation`` has one factor for each of them (1 is ideal, infinite where an axis
    is a combination of the others); ``points`` is how many different points there are.
    """

    part: str
    points: int
    correlations: pd.DataFrame
    inflation: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The largest absolute correlation, 0 with fewer than two axes."""
        return max((abs(r) for _, _, r in self.pairs()), default=0.0)

    def pairs(self) -> list[tuple[str, str, float]]:
        """Every pair of axes and its correlation."""
        axes = list(self.correlations.columns)
        return [(a, b, float(self.correlations.loc[a, b])) for a, b in combinations(axes, 2)]  # type: ignore[arg-type]

    def frame(self) -> pd.DataFrame:
        """One row per axis: its correlations with the others and its variance inflation."""
        table = self.correlations.reset_index(names="axis")
        table.insert(0, "part", self.part)
        return table.assign(variance_inflation=list(self.inflation.values()))

    def view(self) -> View:
        """Return the largest correlation, and all of them as a table."""
        points = f"{self.part}: {counted(self.points, 'point')}"
        if len(self.correlations) < 2:
            return View(title=f"{points}, no two axes vary")
        title = f"{points}, largest |correlation| {self.worst:.2f}"
        table = self.frame().drop(columns="part").round(2)
        return View(title=title, tables={"correlations of the logarithms": table})

    def document(self) -> dict[str, Any]:
        """Return what the document of a plan says of this part."""
        return {
            "part": self.part,
            "points": self.points,
            "worst": self.worst,
            "correlations": [{"axes": [a, b], "r": r} for a, b, r in self.pairs()],
            "variance_inflation": self.inflation,
        }


def confounding(points: pd.DataFrame, axes: Sequence[str], *, part: str) -> Confounding:
    """Correlations and variance inflation of the axes that vary among points.

    Parameters
    ----------
    points
        One row per point, each axis a positive number.
    axes
        Columns of ``points``; one that hardly varies is left out.
    part
        What to call these points.
    """
    logs = np.log(points[list(axes)].to_numpy(dtype=float))
    varies = np.ptp(logs, axis=0) > CONSTANT if len(logs) else np.zeros(len(axes), dtype=bool)
    kept = [name for name, yes in zip(axes, varies, strict=True) if yes]
    matrix = correlation_matrix(logs[:, varies])
    return Confounding(
        part=part,
        points=len(points),
        correlations=pd.DataFrame(matrix, index=kept, columns=kept),
        inflation=dict(zip(kept, _inflation(matrix), strict=True)),
    )


def correlation_matrix(logs: np.ndarray) -> np.ndarray:
    """Pearson correlations of the columns of (points, axes), (axes, axes)."""
    if logs.shape[1] == 0:
        return np.zeros((0, 0))
    centred = logs - logs.mean(axis=0)
    scale = np.sqrt((centred**2).sum(axis=0))
    return np.asarray((centred / scale).T @ (centred / scale))


def _inflation(matrix: np.ndarray) -> list[float]:
    """Variance inflation of every axis: the diagonal of the inverse correlation matrix."""
    if len(matrix) == 0:
        return []
    if np.linalg.eigvalsh(matrix)[0] < 1e-10:
        return [float("inf")] * len(matrix)
    return [float(value) for value in np.diag(np.linalg.inv(matrix))]
