"""Estimated speeds of shapes that were not measured, from the measurements of others.

:func:`estimate` fits the time model (:mod:`shapelaw.search.time_model.model`) to an engine's
measurements. Its predictions are marked ``time model`` wherever they are shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.search.engines._base import TIME_MODEL, Engine, Measurement, bytes_served
from shapelaw.search.engines.accelerators import device_of
from shapelaw.search.time_model.model import TimeModel
from shapelaw.search.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """Estimated speeds of every shape of a table, (n,) each; NaN where it exceeds the memory.

    Attributes
    ----------
    rate, deviation
        Output tokens/s, and the standard deviation of their natural logarithm.
    ttft, tpot
        Seconds to the first token and per output token after it.
    concurrency
        Sequences at once.
    """

    engine: Engine
    workload: Workload
    rate: np.ndarray
    deviation: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray
    concurrency: np.ndarray

    def measurement(self, row: int) -> Measurement:
        """Return the estimate of one row as a measurement of kind ``time model``."""
        at_once = int(self.concurrency[row])
        return Measurement.predicted(
            replace(self.workload, automatic=False, concurrency=at_once),
            engine=f"{TIME_MODEL} of {self.engine.label}",
            kind=TIME_MODEL,
            device=self.engine.label,
            version="1",
            ttft=float(self.ttft[row]),
            tpot=float(self.tpot[row]),
            rate=float(self.rate[row]),
            spread=float(np.exp(1.96 * self.deviation[row])),
        )


def estimate(
    table: ShapeTable,
    results: Mapping[int, Measurement | str],
    engine: Engine,
    workload: Workload,
) -> Estimates:
    """Predict the speed of every shape of a table from the measurements of some rows.

    Parameters
    ----------
    results
        By row, the measurement, or the engine's reason why it cannot run the shape.
    """
    measured = {row: result for row, result in results.items() if isinstance(result, Measurement)}
    rows, device = np.array(list(measured), dtype=int), device_of(engine)
    model = TimeModel.fit(table.take(rows), list(measured.values()), workload, device=device)
    forecast = model.forecast(table)
    fits = np.ones(len(table), dtype=bool)
    if device is not None:
        fits = bytes_served(table, workload, forecast.concurrency) <= device.memory
    return Estimates(
        engine=engine,
        workload=workload,
        rate=np.where(fits, forecast.rate, np.nan),
        deviation=forecast.deviation,
        ttft=np.where(fits, forecast.ttft, np.nan),
        tpot=np.where(fits, forecast.tpot, np.nan),
        concurrency=forecast.concurrency,
    )
