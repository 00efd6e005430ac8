"""Speeds of shapes that no engine was asked about, from the ones that it answered.

:func:`estimate` fits the time model (:mod:`shapelaw.search.time_model.model`) to what was answered
and speaks for the rest of a space. What it says is marked ``time model`` wherever it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.catalog import Hardware, hardware
from shapelaw.search.engines._base import Engine, Measurement, bytes_served
from shapelaw.search.proposals.proposal import TIME_MODEL, front
from shapelaw.search.proposals.reasons import broken_limits
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
class Check:
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
) -> Check | None:
    """Predict each answered row from the others; None where there are too few."""
    rows, answers = _answered(found)
    if len(rows) < FEWEST:
        return None
    told = held_out(table.take(rows), answers, workload, folds=len(rows), device=device_of(engine))
    return Check(
        rows=rows.tolist(),
        answered=told.measured.tolist(),
        predicted=told.predicted.tolist(),
        error=told.mape,
        rank_correlation=None if np.isnan(told.spearman) else told.spearman,
        coverage=told.coverage,
    )


def runnable(table: ShapeTable, found: Mapping[int, Measurement | str]) -> np.ndarray:
    """Mask of the shapes whose number of key-value heads the engine has run, (n,).

    Engines lack kernels or tables for some: asking for more of these would waste the questions.
    """
    rows = [row for row, result in found.items() if isinstance(result, Measurement)]
    groups = table.num_key_value_heads
    return np.asarray(np.isin(groups, groups[rows]))


def ahead_of(
    model: Estimates,
    found: Mapping[int, Measurement | str],
    losses: np.ndarray,
    baseline: int,
    *,
    among: np.ndarray | None = None,
) -> list[int]:
    """Unanswered rows on the front of the time model and the answers: accurate to fast.

    The fastest of no more loss than the baseline comes first: it is what most people want.
    """
    speeds = np.where(np.isfinite(model.rate), model.rate, 0.0)
    if among is not None:
        speeds = np.where(among, speeds, 0.0)
    work = model.workload
    for times, limit in ((model.ttft, work.max_ttft), (model.tpot, work.max_tpot)):
        if limit is not None:
            speeds = np.where(times <= limit, speeds, 0.0)
    for row, result in found.items():
        fine = isinstance(result, Measurement) and not broken_limits(result, work)
        speeds[row] = result.output_tokens_per_second if fine else 0.0  # type: ignore[union-attr]
    rows = np.flatnonzero(front(losses, speeds) & (speeds > 0))
    ahead = [int(row) for row in rows[np.argsort(losses[rows])] if int(row) not in found]
    equal = [row for row in ahead if losses[row] <= losses[baseline]]
    first = max(equal, key=lambda row: speeds[row], default=None)
    return ahead if first is None else [first, *(row for row in ahead if row != first)]


def thinned(rows: list[int], most: int) -> list[int]:
    """The first, and the others thinned evenly."""
    if len(rows) <= most:
        return rows
    if most < 1:
        return []
    others = np.linspace(1, len(rows) - 1, max(most - 1, 0)).round().astype(int)
    return [rows[0], *(rows[place] for place in others)][:most]


def device_of(engine: Engine) -> Hardware | None:
    """Published figures of an engine's hardware, by what its label names behind the colon."""
    known = getattr(getattr(engine, "engine", engine), "hardware", None)
    if isinstance(known, Hardware):
        return known
    text = engine.label.partition(":")[2]
    for key in (text, text.rpartition("-")[0]):  # HARDWARE or HARDWARE-BACKEND
        try:
            return hardware(key)
        except InputError:
            continue
    return None


def _answered(found: Mapping[int, Measurement | str]) -> tuple[np.ndarray, list[Measurement]]:
    """Rows with a measurement, and these."""
    known = {row: result for row, result in found.items() if isinstance(result, Measurement)}
    return np.array(list(known), dtype=int), list(known.values())
