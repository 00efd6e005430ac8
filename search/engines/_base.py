"""What every throughput engine is and returns."""

import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.workload import LIMITS, Workload

TIME_MODEL = "time model"  # the kind of a speed that no engine was asked for

DISTURBED = 1.2  # wall over CPU seconds above which something else used the core


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Speed of one shape under one workload.

    Attributes
    ----------
    kind
        ``measured``, or ``predicted`` by a model of some hardware.
    output_tokens_per_second
        Generated tokens over the whole time, prefill included, at the workload's concurrency;
        ``low`` and ``high`` bound it at 95 % (the spread over repeats).
    ttft, tpot
        Seconds to the first token, and per output token after it.
    prefill_tokens_per_second, decode_tokens_per_second
        Prompt tokens over the prefill's time; generated tokens over the decode's.
    wall_seconds, cpu_seconds, load
        Of all repeats, and the machine's load average before them (None where unknown).
    disturbed
        Wall over CPU time says that something else used the core.
    """

    engine: str
    kind: str
    workload: str
    device: str
    version: str
    repeats: int
    output_tokens_per_second: float
    low: float
    high: float
    ttft: float
    tpot: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    wall_seconds: float
    cpu_seconds: float
    load: float | None
    disturbed: bool

    @classmethod
    def predicted(
        cls,
        workload: Workload,
        *,
        engine: str,
        device: str,
        version: str,
        ttft: float,
        tpot: float,
        kind: str = "predicted",
        rate: float | None = None,
        spread: float = 1.0,
    ) -> "Measurement":
        """What a model of some hardware says of one static batch.

        ``rate`` is in output tokens/s, by default what TTFT and TPOT make; its interval reaches
        to ``spread`` times it and to one ``spread``-th.
        """
        if rate is None:
            rate = workload.output_rate(ttft, tpot)
        return cls(
            engine=engine,
            kind=kind,
            workload=str(workload),
            device=device,
            version=version,
            repeats=0,
            output_tokens_per_second=rate,
            low=rate / spread,
            high=rate * spread,
            ttft=ttft,
            tpot=tpot,
            prefill_tokens_per_second=workload.concurrency * workload.input_tokens / ttft,
            decode_tokens_per_second=workload.concurrency / tpot,
            wall_seconds=0.0,
            cpu_seconds=0.0,
            load=None,
            disturbed=False,
        )

    def meets(self, workload: Workload) -> bool:
        """Whether the service level of a workload holds: TTFT and TPOT within its limits."""
        within = ((self.ttft, workload.max_ttft), (self.tpot, workload.max_tpot))
        return all(limit is None or seconds <= limit for seconds, limit in within)


class Engine(ABC):
    """Something that tells how fast a shape serves a workload.

    An engine with a ``version`` and a ``device`` (texts) lets its measurements be kept
    (:mod:`shapelaw.search.engines.cache`).
    """

    name: str
    kind: str

    @property
    def label(self) -> str:
        """Name and hardware: what tells two engines apart."""
        return self.name

    @abstractmethod
    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Speed of a shape.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            This engine cannot run this shape; others may be asked on.
        """

    def measure_all(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        """Speed of several shapes, or for a shape the reason why the engine cannot run it."""
        results: list[Measurement | str] = []
        for shape in shapes:
            try:
                results.append(self.measure(shape, workload))
            except InputError as error:
                results.append(str(error))
        return results


def bytes_served(shape: Costs, workload: Workload) -> Any:
    """Bytes of the weights and of the whole KV cache; (n,) of a table of n shapes."""
    length = workload.input_tokens + workload.output_tokens
    cache = workload.concurrency * length * shape.kv_bytes(workload.kv_bytes_per_value)
    return cache + shape.weight_bytes(workload.bytes_per_value)


def interval(values: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the mean of repeats (Student's t); a point for a single one."""
    from scipy.stats import t as student  # here: the embedded engine needs torch and NumPy only

    if len(values) < 2:
        return float(values[0]), float(values[0])
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return max(float(values.mean() - half), 0.0), float(values.mean() + half)


def this_device() -> str:
    """The machine's processor, in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"1 core of {models[0] if models else name} ({platform.machine()})"


def broken_limits(measurement: Measurement, workload: Workload) -> list[str]:
    """In words: what of the service level a measurement breaks."""
    words = []
    for limit in LIMITS:
        most, took = getattr(workload, limit), getattr(measurement, limit.removeprefix("max_"))
        if most is not None and took > most:
            words.append(f"{limit.removeprefix('max_').upper()} {took:.3g} s exceeds {most:g} s")
    return words
