"""Engines that really run a shape: the repeats of several candidates take turns."""

import os
import time
from abc import abstractmethod
from collections.abc import Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.engines._base import DISTURBED, Engine, Measurement, interval
from shapelaw.search.workload import Workload

WARM_UP_TOKENS = 4
PATIENCE = 3  # rounds, as a multiple of the repeats, until disturbed repeats are accepted


@dataclass(frozen=True)
class Timing:
    """One run of the whole workload: seconds of prefill and decode (wall), and CPU seconds.

    ``decode_cpu`` is the decode's part of the CPU seconds, where the engine can tell.
    """

    prefill: float
    decode: float
    cpu: float
    decode_cpu: float | None = None

    @property
    def disturbed(self) -> bool:
        """Something else used the core: wall time is well above CPU time."""
        return self.prefill + self.decode > DISTURBED * self.cpu


class Server:
    """A shape that an engine has loaded for one workload; a context that frees it."""

    @abstractmethod
    def serve(self, outputs: int) -> Timing:
        """Run every prompt of the workload and generate ``outputs`` tokens for each.

        Raises
        ------
        shapelaw.scaling.errors.WorkError
            The engine produced another number of tokens.
        """

    def close(self) -> None:
        """Free what the shape holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TimedEngine(Engine):
    """An engine that loads a shape and runs the workload ``repeats`` times.

    Up to ``together`` shapes are loaded at once and take turns, so that what else the machine does
    meets all of them. A repeat that something disturbed is run again, up to ``PATIENCE`` times as
    many rounds; what stays disturbed is flagged.
    """

    kind = "measured"
    version: str
    device: str
    repeats = 5
    together = 4

    @abstractmethod
    def start(self, shape: Shape, workload: Workload) -> Server:
        """Load a shape.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            This engine cannot run this shape or workload.
        """

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        """Measure one shape."""
        with self.start(shape, workload) as server:
            (found,) = self._measured([server], workload)
        if isinstance(found, str):
            raise InputError(found)
        return found

    def measure_all(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        """Measure several shapes in turns."""
        results: list[Measurement | str] = []
        for begin in range(0, len(shapes), self.together):
            results += self._together(shapes[begin : begin + self.together], workload)
        return results

    def _together(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        results: list[Measurement | str] = []
        with ExitStack() as stack:
            servers = []
            for shape in shapes:
                try:
                    servers.append(stack.enter_context(self.start(shape, workload)))
                    results.append("")
                except InputError as error:
                    results.append(str(error))
            measured = iter(self._measured(servers, workload))
            return [result or next(measured) for result in results]

    def _measured(self, servers: Sequence[Server], workload: Workload) -> list[Measurement | str]:
        """Repeats in turns; for a server that fails on the way, its reason."""
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        timings: list[list[Timing]] = [[] for _ in servers]
        failed: dict[int, str] = {}

        def serve(row: int, outputs: int) -> None:
            try:
                timings[row].append(servers[row].serve(outputs))
            except InputError as error:
                failed[row] = str(error)

        for row in range(len(servers)):
            serve(row, min(WARM_UP_TOKENS, workload.output_tokens))
            timings[row].clear()
        begun = time.perf_counter()
        for _ in range(PATIENCE * self.repeats):
            for row in range(len(servers)):
                if row not in failed and not self._enough(timings[row]):
                    serve(row, workload.output_tokens)
        wall = (time.perf_counter() - begun) / max(len(servers), 1)
        return [
            failed.get(row) or self._summary(every, workload, load, wall)
            for row, every in enumerate(timings)
        ]

    def _enough(self, timings: Sequence[Timing]) -> bool:
        return len(_calm(timings)) >= self.repeats

    def _summary(
        self, timings: Sequence[Timing], workload: Workload, load: float | None, wall: float
    ) -> Measurement:
        calm = _calm(timings)
        kept = calm if len(calm) >= self.repeats else timings
        prefill = np.array([timing.prefill for timing in kept])
        decode = np.array([timing.decode for timing in kept])
        rates = workload.concurrency * workload.output_tokens / (prefill + decode)
        low, high = interval(rates)
        after_first = workload.output_tokens - 1
        prompt = workload.concurrency * workload.input_tokens
        return Measurement(
            engine=self.label,
            kind=self.kind,
            workload=str(workload),
            device=self.device,
            version=self.version,
            repeats=len(kept),
            output_tokens_per_second=float(rates.mean()),
            low=low,
            high=high,
            ttft=float(prefill.mean()),
            tpot=float(decode.mean() / after_first),
            prefill_tokens_per_second=float((prompt / prefill).mean()),
            decode_tokens_per_second=float((workload.concurrency * after_first / decode).mean()),
            wall_seconds=wall,
            cpu_seconds=sum(timing.cpu for timing in timings),
            load=load,
            disturbed=len(calm) < self.repeats,
        )


def assert_count(produced: Sized, expected: tuple[int, int]) -> None:
    """Refuse a run that produced another number of tokens than (sequences, outputs).

    Raises
    ------
    shapelaw.scaling.errors.WorkError
        It did.
    """
    found = tuple(getattr(produced, "shape", (len(produced),)))
    if found != expected:
        raise WorkError(f"the engine produced {found} tokens, not {expected}")


def _calm(timings: Sequence[Timing]) -> list[Timing]:
    return [timing for timing in timings if not timing.disturbed]
