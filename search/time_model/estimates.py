"""Speeds of shapes that no engine was asked about, from the ones that it answered.

:func:`estimate` fits the time model (:mod:`shapelaw.search.time_model.model`) to what was answered
and speaks for the rest of a space. What it says is marked ``time model`` wherever it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.search.engines._base import (
    TIME_MODEL,
    Engine,
    Measurement,
    bytes_served,
)
from shapelaw.search.engines.accelerators import device_of
from shapelaw.search.time_model.cross_validation import FEWEST, held_out
from shapelaw.search.time_model.model import TimeModel
from shapelaw.search.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Output tokens/s, TTFT and TPOT of every shape of a table, (n,); NaN where it does not fit.

    ``deviation`` is the standard deviation of ln tokens/s, (n,).
    """

    engine: Engine
    workload: Workload
    rate: np.ndarray
    deviation: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray

    def measurement(self, row: int) -> Measurement:
        """One row as an engine would have answered it, marked as the time model's."""
        return Measurement.predicted(
            self.workload,
            engine=f"{TIME_MODEL} of {self.engine.label}",
            kind=TIME_MODEL,
            device=self.engine.label,
            version="1",
            ttft=float(self.ttft[row]),
            tpot=float(self.tpot[row]),
            rate=float(self.rate[row]),
            spread=float(np.exp(1.96 * self.deviation[row])),
        )


@dataclass(frozen=True, kw_only=True)
class TimeModelCheck:
    """How well the time model says what the engine answered, each shape left out in turn.

    ``rows`` are those answered, ``answered`` and ``predicted`` their tokens/s; ``error`` is the
    mean absolute error as a fraction, ``rank_correlation`` Spearman's, None where all are equal,
    ``coverage`` the fraction inside the predicted 95 % interval.
    """

    rows: list[int]
    answered: list[float]
    predicted: list[float]
    error: float
    rank_correlation: float | None
    coverage: float


def estimate(
    table: ShapeTable,
    found: Mapping[int, Measurement | str],
    engine: Engine,
    workload: Workload,
) -> Estimates:
    """Speak for a whole space from the rows that an engine answered."""
    rows, answers = _answered(found)
    device = device_of(engine)
    model = TimeModel.fit(table.take(rows), answers, workload, device=device)
    forecast = model.forecast(table)
    fits = np.ones(len(table), dtype=bool)
    if device is not None:
        fits = bytes_served(table, workload) <= device.memory
    return Estimates(
        engine=engine,
        workload=workload,
        rate=np.where(fits, forecast.rate, np.nan),
        deviation=forecast.deviation,
        ttft=np.where(fits, forecast.ttft, np.nan),
        tpot=np.where(fits, forecast.tpot, np.nan),
    )


def check(
    table: ShapeTable,
    found: Mapping[int, Measurement | str],
    engine: Engine,
    workload: Workload,
) -> TimeModelCheck | None:
    """Predict each answered row from the others; None where there are too few."""
    rows, answers = _answered(found)
    if len(rows) < FEWEST:
        return None
    told = held_out(table.take(rows), answers, workload, folds=len(rows), device=device_of(engine))
    return TimeModelCheck(
        rows=rows.tolist(),
        answered=told.measured.tolist(),
        predicted=told.predicted.tolist(),
        error=told.mape,
        rank_correlation=None if np.isnan(told.spearman) else told.spearman,
        coverage=told.coverage,
    )


def _answered(found: Mapping[int, Measurement | str]) -> tuple[np.ndarray, list[Measurement]]:
    """Rows with a measurement, and these."""
    known = {row: result for row, result in found.items() if isinstance(result, Measurement)}
    return np.array(list(known), dtype=int), list(known.values())
