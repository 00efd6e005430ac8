"""Speeds of shapes that no engine was asked about, from the ones that it answered.

The one place where a time model enters: :func:`estimate` takes what was answered and speaks for
the rest of a space. What it says is marked ``time model`` wherever it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from scaling.catalog import Hardware, hardware
from scaling.errors import InputError
from scaling.shape import ShapeTable
from search.proposals import TIME_MODEL
from search.throughput._base import Engine, Measurement
from search.workload import Workload

USUAL = "h100"  # stands in for an engine's machine where no published figures of it are known
UNKNOWN = 0.3  # sd of ln speed before anything was answered: a bound, not a forecast


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
        rate, spread = float(self.rate[row]), float(np.exp(1.96 * self.deviation[row]))
        work = self.workload
        return Measurement(
            engine=f"{TIME_MODEL} of {self.engine.label}",
            kind=TIME_MODEL,
            workload=str(work),
            device=self.engine.label,
            version="1",
            repeats=0,
            output_tokens_per_second=rate,
            low=rate / spread,
            high=rate * spread,
            ttft=float(self.ttft[row]),
            tpot=float(self.tpot[row]),
            prefill_tokens_per_second=work.concurrency * work.input_tokens / float(self.ttft[row]),
            decode_tokens_per_second=work.concurrency / float(self.tpot[row]),
            wall_seconds=0.0,
            cpu_seconds=0.0,
            load=None,
            disturbed=False,
        )


@dataclass(frozen=True, kw_only=True)
class Check:
    """How well the time model says what the engine answered, each shape left out in turn.

    ``rows`` are those answered, ``answered`` and ``predicted`` their tokens/s.
    """

    rows: list[int]
    answered: list[float]
    predicted: list[float]

    @property
    def error(self) -> float:
        """Mean absolute error as a fraction of what was answered."""
        answered = np.array(self.answered)
        return float(np.mean(np.abs(np.array(self.predicted) / answered - 1)))

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, None where it does not exist."""
        ranks = [rankdata(values) for values in (self.answered, self.predicted)]
        if min(np.ptp(values) for values in ranks) == 0:
            return None
        return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def estimate(
    table: ShapeTable,
    found: Mapping[int, Measurement | str],
    engine: Engine,
    workload: Workload,
) -> Estimates:
    """Speak for a whole space from the rows that an engine answered.

    The roofline of the engine's hardware, prefill and decode each scaled by what was answered.
    """
    ttft, tpot = roofline(table, workload, _device(engine))
    rows = [row for row, result in found.items() if isinstance(result, Measurement)]
    return _scaled(ttft, tpot, rows, found, engine, workload)


def check(
    table: ShapeTable,
    found: Mapping[int, Measurement | str],
    engine: Engine,
    workload: Workload,
) -> Check:
    """Predict each answered row from the others."""
    ttft, tpot = roofline(table, workload, _device(engine))
    rows = [row for row, result in found.items() if isinstance(result, Measurement)]
    rows = [row for row in rows if np.isfinite(ttft[row])]
    predicted = []
    for row in rows:
        others = [other for other in rows if other != row]
        scaled = _scaled(ttft, tpot, others, found, engine, workload)
        predicted.append(float(scaled.rate[row]))
    answered = [_answer(found, row).output_tokens_per_second for row in rows]
    return Check(rows=rows, answered=answered, predicted=predicted)


def roofline(
    table: ShapeTable, workload: Workload, device: Hardware
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to the first token and per token after it, (n,): arithmetic or memory at its peak.

    The formulas of :class:`search.throughput._roofline.RooflineEngine` over a whole table; NaN
    where weights and cache exceed the device's memory.
    """
    size, cached = workload.bytes_per_value, workload.kv_bytes_per_value
    peak = device.peak_flops.get(workload.dtype, max(device.peak_flops.values()))
    weights = table.weight_bytes(size)
    cache = workload.concurrency * table.kv_bytes(cached)
    prompt = workload.concurrency * workload.input_tokens
    ttft = np.maximum(
        prompt * table.forward_flops(workload.input_tokens / 2) / peak, weights / device.bandwidth
    )
    context = workload.input_tokens + workload.output_tokens / 2
    step = np.maximum(
        workload.concurrency * table.forward_flops(context) / peak,
        (weights + cache * context) / device.bandwidth,
    )
    fits = weights + cache * (workload.input_tokens + workload.output_tokens) <= device.memory
    return np.where(fits, ttft, np.nan), np.where(fits, step, np.nan)


def _device(engine: Engine) -> Hardware:
    """Published figures of an engine's hardware, by what stands behind the colon of its label."""
    key = engine.label.partition(":")[2].partition("_")[0]
    try:
        return hardware(key or USUAL)
    except InputError:
        return hardware(USUAL)


def _answer(found: Mapping[int, Measurement | str], row: int) -> Measurement:
    result = found[row]
    if isinstance(result, str):
        raise TypeError(f"row {row} has no measurement: {result}")
    return result


def _scaled(
    ttft: np.ndarray,
    tpot: np.ndarray,
    rows: list[int],
    found: Mapping[int, Measurement | str],
    engine: Engine,
    workload: Workload,
) -> Estimates:
    """The roofline's times, each scaled by the geometric mean of answered over predicted."""
    rows = [row for row in rows if np.isfinite(ttft[row])]
    answers = [_answer(found, row) for row in rows]
    generated = workload.concurrency * workload.output_tokens
    later = workload.output_tokens - 1
    if answers:
        first = np.array([answer.ttft for answer in answers]) / ttft[rows]
        each = np.array([answer.tpot for answer in answers]) / tpot[rows]
        ttft = ttft * np.exp(np.mean(np.log(first)))
        tpot = tpot * np.exp(np.mean(np.log(each)))
    rate = generated / (ttft + tpot * later)
    spread = UNKNOWN
    if answers:
        answered = np.array([answer.output_tokens_per_second for answer in answers])
        apart = np.log(answered / rate[rows])
        scale = float(np.exp(apart.mean()))  # an engine's total may hold more than its parts
        ttft, tpot, rate = ttft / scale, tpot / scale, rate * scale
        spread = float(apart.std(ddof=1)) * np.sqrt(1 + 1 / len(rows)) if len(rows) > 1 else UNKNOWN
    return Estimates(
        engine=engine,
        workload=workload,
        rate=rate,
        deviation=np.full(len(rate), spread),
        ttft=ttft,
        tpot=tpot,
    )
