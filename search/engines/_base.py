"""The interface of throughput engines, and the measurement that they return."""

import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.schema import Count, NonNegative, PositiveFloat
from shapelaw.search.workload import BATCH, LIMITS, Workload
from shapelaw.trainers.generation.decoding_settings import DecodingSettings

TIME_MODEL = "time model"  # kind of a speed that the time model estimated
OF_DECODERS = ("decoder", "tokens_per_forward", "seconds_per_answer")  # of a measurement
MAX_WALL_TO_CPU = 1.2  # ratio of wall to CPU seconds above which another process used the core


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Speed of one shape under one workload.

    Attributes
    ----------
    kind
        ``measured``, ``predicted`` by a model of some hardware, or ``time model``.
    output_tokens_per_second
        Generated tokens of each GPU over the whole time, prefill included, at the workload's
        concurrency;
        ``low`` and ``high`` bound it at 95 % (the spread over repeats).
    ttft, tpot
        Seconds to the first token, and per output token after it.
    prefill_tokens_per_second, decode_tokens_per_second
        Prompt tokens over the prefill's time; generated tokens over the decode's.
    wall_seconds, cpu_seconds, load
        Wall and CPU seconds of all repeats, and the machine's load average before them (None where
        unknown).
    disturbed
        Whether another process used the core, by the ratio of wall to CPU time.
    concurrency, gpus
        Sequences at once, and GPUs that the model is split over: those chosen for the shape where
        the workload leaves them open. The concurrency of older stored measurements is unknown.
    decoder, tokens_per_forward, seconds_per_answer
        Settings of a decoder that was asked for, output tokens of a sequence per forward pass, and
        seconds until all output tokens of a prompt are there; else None.
    """

    engine: str
    kind: str
    workload: str
    device: str
    version: str
    repeats: Count
    output_tokens_per_second: PositiveFloat
    low: NonNegative
    high: PositiveFloat
    ttft: PositiveFloat
    tpot: PositiveFloat
    prefill_tokens_per_second: PositiveFloat
    decode_tokens_per_second: PositiveFloat
    wall_seconds: NonNegative
    cpu_seconds: NonNegative
    load: NonNegative | None
    disturbed: bool
    concurrency: Count | None = None
    gpus: Count = 1
    decoder: str | None = None
    tokens_per_forward: PositiveFloat | None = None
    seconds_per_answer: PositiveFloat | None = None

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
        """Make the measurement that a model predicts.

        Parameters
        ----------
        ttft, tpot
            Seconds to the first token and per output token after it.
        rate
            Output tokens/s; None: computed from ``ttft`` and ``tpot``.
        spread
            Factor by which the ends of the 95 % interval lie above and below ``rate``.
        """
        if rate is None:
            rate = workload.output_rate(ttft, tpot)
        prompts = 1 if workload.steady else workload.concurrency
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
            prefill_tokens_per_second=prompts * workload.input_tokens / ttft,
            decode_tokens_per_second=workload.concurrency / tpot,
            wall_seconds=0.0,
            cpu_seconds=0.0,
            load=None,
            disturbed=False,
            concurrency=workload.concurrency,
            gpus=workload.gpus,
        )

    def answer(self, workload: Workload) -> dict[str, Any]:
        """Return the decoder, tokens per forward pass, and seconds until an answer is complete."""
        if self.decoder is None:
            seconds = self.ttft + (workload.output_tokens - 1) * self.tpot
            return dict(zip(OF_DECODERS, ("ar", 1.0, seconds), strict=True))
        return {name: getattr(self, name) for name in OF_DECODERS}

    def meets(self, workload: Workload) -> bool:
        """Return whether TTFT and TPOT are within the limits of a workload."""
        within = ((self.ttft, workload.max_ttft), (self.tpot, workload.max_tpot))
        return all(limit is None or seconds <= limit for seconds, limit in within)


class Engine(ABC):
    """A program, or a model of one, that serves a shape under a workload and reports its speed.

    Measurements of an engine with a ``version`` and a ``device`` (texts) can be stored, see
    :mod:`shapelaw.search.engines.cache`.
    """

    name: str
    kind: str
    serves_architectures: bool = False  # whether it takes models outside of the dense Llama family
    decodes_diffusion: bool = False  # whether it fills in masked tokens in parallel
    # What a user must know of the speed of such a model; it is then not stored.
    architecture_note: str = ""
    is_formula: bool = False  # whether :meth:`times` answers for whole tables of shapes
    # Whether it finds an automatic concurrency by measuring one static batch after the other.
    searches_concurrency: bool = False
    supported: frozenset[str] = frozenset()  # of Workload.needs
    default_dtype = "float32"  # number format of a workload that names none
    decoder_text: str | None = None  # settings of a decoder that was asked for
    known_error: str = ""  # how a prediction compares with published measurements

    @property
    def label(self) -> str:
        """Return the name and the hardware, which identify an engine."""
        return self.name

    @property
    def basis(self) -> str:
        """Describe whether speeds are measured, and the known error of predicted ones."""
        if self.kind == "measured":
            decoder = f" with --decoder {self.decoder_text}" if self.decoder_text else ""
            return f"measured by {self.label}{decoder}"
        error = self.known_error or "no measurement tells its error"
        return f"predicted by {self.label}, nothing was measured on that hardware ({error})"

    @abstractmethod
    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Measure or predict the speed of a shape.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            The engine cannot run this shape. It can still run others.
        """

    def with_decoder(self, settings: DecodingSettings, *, weights: Path | None = None) -> "Engine":
        """Return an engine that decodes otherwise; engines of others decode one by one only.

        Parameters
        ----------
        weights
            Folder of an exported run with the weights of the model; None for random ones.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            The engine has no such decoder.
        """
        if settings == DecodingSettings(decoder="ar"):
            return self
        raise InputError(
            f"`--decoder {settings}` must be left out with the engine {self.label}, which decodes "
            "one token after the other, the most probable one; --engine torch has every decoder"
        )

    def served_workload(self, workload: Workload) -> Workload:
        """Return a workload with what the engine decides: prompts in batches where it has no else.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            The engine lacks an option.
        """
        if workload.automatic and workload.prompts is None and self.searches_concurrency:
            workload = replace(workload, prompts=BATCH)
        self.require_supported(workload)
        return workload

    def require_supported(self, workload: Workload) -> None:
        """Refuse options of a workload that the engine does not support, by their names.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            The engine lacks an option.
        """
        lacking = [text for name, text in workload.needs.items() if name not in self.supported]
        if lacking:
            raise InputError(
                f"`{'`, `'.join(lacking)}` must be left out with the engine {self.label}, which "
                "does not support it; --engine roofline:HARDWARE does"
            )

    def times(self, table: ShapeTable, workload: Workload) -> tuple[np.ndarray, np.ndarray]:
        """Compute seconds to the first token and per token after it, where a formula gives them.

        Returns
        -------
        Both times of every shape, (n,) each; NaN where the shape does not fit in memory.
        """
        raise NotImplementedError(f"{self.label} is no formula")

    def speeds(
        self, table: ShapeTable, workload: Workload
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute output tokens/s of each GPU, and both times of :meth:`times`; (n,) each."""
        ttft, tpot = self.times(table, workload)
        return workload.output_rate(ttft, tpot), ttft, tpot

    def measure_all(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        """Measure or predict the speed of several shapes.

        Returns
        -------
        For each shape its measurement, or the reason why the engine cannot run it.
        """
        results: list[Measurement | str] = []
        for shape in shapes:
            try:
                results.append(self.measure(shape, workload))
            except InputError as error:
                results.append(str(error))
        return results


def bytes_served(shape: Costs | Architecture, workload: Workload, at_once: Any = None) -> Any:
    """Compute the bytes of the weights and of the whole KV cache; (n,) for a table of n shapes.

    Parameters
    ----------
    at_once
        Sequences at once, a number or (n,); None: the workload's.
    """
    length = workload.input_tokens + workload.output_tokens
    at_once = workload.concurrency if at_once is None else at_once
    cache = at_once * shape.cache_bytes(length, workload.kv_bytes_per_value)
    return cache + shape.weight_bytes(workload.bytes_per_value)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Compute a 95 % interval of the mean of repeats (Student's t); a single repeat is a point."""
    from scipy.stats import (
        t as student,
    )  # imported here: the embedded engine needs torch and NumPy only

    if len(values) < 2:
        return float(values[0]), float(values[0])
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return max(float(values.mean() - half), 0.0), float(values.mean() + half)


def describe_processor() -> str:
    """Describe one core of the machine's processor by its model name."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"1 core of {models[0] if models else name} ({platform.machine()})"


def broken_limits(measurement: Measurement, workload: Workload) -> list[str]:
    """Return a sentence for each limit of the service level that a measurement exceeds."""
    sentences = []
    for limit in LIMITS:
        most, took = getattr(workload, limit), getattr(measurement, limit.removeprefix("max_"))
        if most is not None and took > most:
            sentences.append(
                f"{limit.removeprefix('max_').upper()} {took:.3g} s exceeds {most:g} s"
            )
    return sentences
