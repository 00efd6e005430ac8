"""Engines that run a shape and time it, with the repeats of several shapes interleaved."""

import os
import time
from abc import abstractmethod
from collections.abc import Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import architecture_config
from shapelaw.scaling.architectures.engine_conditions import require_computed_alike
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.engines._base import MAX_WALL_TO_CPU, Engine, Measurement, interval
from shapelaw.search.engines.concurrency import measure_fastest, measure_one_fastest
from shapelaw.search.workload import Workload

WARM_UP_TOKENS = 4
MAX_ROUNDS = 3  # rounds, as a multiple of the repeats, until disturbed repeats are accepted


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of the whole workload.

    ``prefill`` and ``decode`` are wall seconds and ``cpu`` CPU seconds; ``decode_cpu`` is the
    decode's part of the CPU seconds, where the engine reports it. ``forwards`` are the forward
    passes of a decoder that was asked for.
    """

    prefill: float
    decode: float
    cpu: float
    decode_cpu: float | None = None
    forwards: int | None = None

    @property
    def disturbed(self) -> bool:
        """Return whether wall time is well above CPU time: another process used the core."""
        return self.prefill + self.decode > MAX_WALL_TO_CPU * self.cpu


class Server:
    """A shape that an engine has loaded for one workload; a context manager that frees it."""

    @abstractmethod
    def serve(self, outputs: int) -> Timing:
        """Run every prompt of the workload and generate ``outputs`` tokens for each.

        Raises
        ------
        shapelaw.scaling.errors.WorkError
            The engine produced a wrong number of tokens.
        """

    def close(self) -> None:
        """Free the memory and files of the shape."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TimedEngine(Engine):
    """An engine that loads a shape and runs the workload ``repeats`` times.

    Up to ``together`` shapes are loaded at once and their repeats take turns, so that other load
    on the machine affects all of them alike. A disturbed repeat is run again, in up to
    ``MAX_ROUNDS`` times as many rounds; if repeats stay disturbed, the measurement is flagged.
    """

    kind = "measured"
    supported = frozenset({"automatic"})
    searches_concurrency = True
    version: str
    device: str
    repeats = 5
    together = 4

    @abstractmethod
    def start(self, shape: Shape | Architecture, workload: Workload) -> Server:
        """Load a shape or an architecture.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            The engine cannot run this shape or workload.
        """

    def start_alike(self, shape: Shape | Architecture, workload: Workload) -> Server:
        """Load a shape, or an architecture that the engine computes as the trainer does.

        Raises
        ------
        shapelaw.scaling.errors.InputError
            The architecture breaks a condition of the engine, or the engine cannot run it.
        """
        if isinstance(shape, Architecture):
            require_computed_alike(shape, self.name)
            require_positions(shape, workload)
        return self.start(shape, workload)

    def measure(self, shape: Shape | Architecture, workload: Workload) -> Measurement:
        """Measure one shape or architecture."""
        workload = self.served_workload(workload)
        if workload.automatic:
            return measure_one_fastest(self.measure_all, shape, workload)
        with self.start_alike(shape, workload) as server:
            (result,) = self._measure_loaded([server], workload)
        if isinstance(result, str):
            raise InputError(result)
        return result

    def measure_all(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        """Measure several shapes, with their repeats interleaved."""
        workload = self.served_workload(workload)
        if workload.automatic:
            return measure_fastest(self.measure_all, shapes, workload)
        results: list[Measurement | str] = []
        for begin in range(0, len(shapes), self.together):
            results += self._measure_part(shapes[begin : begin + self.together], workload)
        return results

    def _measure_part(self, shapes: Sequence[Shape], workload: Workload) -> list[Measurement | str]:
        results: list[Measurement | str] = []
        with ExitStack() as stack:
            servers = []
            for shape in shapes:
                try:
                    servers.append(stack.enter_context(self.start_alike(shape, workload)))
                    results.append("")
                except InputError as error:
                    results.append(str(error))
            measured = iter(self._measure_loaded(servers, workload))
            return [result or next(measured) for result in results]

    def _measure_loaded(
        self, servers: Sequence[Server], workload: Workload
    ) -> list[Measurement | str]:
        """Run interleaved repeats; return a reason for a server that fails meanwhile."""
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
        for _ in range(MAX_ROUNDS * self.repeats):
            for row in range(len(servers)):
                if row not in failed and not self._enough(timings[row]):
                    serve(row, workload.output_tokens)
        wall = (time.perf_counter() - begun) / max(len(servers), 1)
        return [
            failed.get(row) or self._summary(repeats, workload, load, wall)
            for row, repeats in enumerate(timings)
        ]

    def _enough(self, timings: Sequence[Timing]) -> bool:
        return len(_undisturbed(timings)) >= self.repeats

    def _summary(
        self, timings: Sequence[Timing], workload: Workload, load: float | None, wall: float
    ) -> Measurement:
        undisturbed = _undisturbed(timings)
        kept = undisturbed if len(undisturbed) >= self.repeats else timings
        prefill = np.array([timing.prefill for timing in kept])
        decode = np.array([timing.decode for timing in kept])
        rates = workload.concurrency * workload.output_tokens / (prefill + decode)
        low, high = interval(rates)
        after_first = workload.output_tokens - 1
        prompt = workload.concurrency * workload.input_tokens
        passes = [timing.forwards for timing in kept if timing.forwards]
        decoder: dict[str, Any] = {}
        if passes:
            decoder = {
                "decoder": self.decoder_text,
                "tokens_per_forward": workload.output_tokens / (sum(passes) / len(passes)),
                "seconds_per_answer": float((prefill + decode).mean()),
            }
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
            disturbed=len(undisturbed) < self.repeats,
            concurrency=workload.concurrency,
            **decoder,
        )


def require_positions(architecture: Architecture, workload: Workload) -> None:
    """Refuse sequences that are longer than the learned positions of an architecture."""
    positions = architecture.embedding.positions
    length = workload.input_tokens + workload.output_tokens
    if positions and length > positions:
        raise InputError(
            f"`input + output tokens <= {positions}` must hold, the learned positions of "
            f"{architecture}, but got {length}; choose a shorter workload"
        )


def serving_config(shape: Shape | Architecture, workload: Workload) -> dict[str, Any]:
    """Write the Hugging Face config of a model whose positions suffice for a workload.

    Tokens with a role are null: those of a family may lie beyond the vocabulary.
    """
    length = workload.input_tokens + workload.output_tokens
    if isinstance(shape, Shape):
        return shape.to_config(max_position_embeddings=length)
    config = architecture_config(shape, max_position_embeddings=length)
    config |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    longest = config.get("max_position_embeddings")
    return config if longest is None else config | {"max_position_embeddings": max(longest, length)}


def require_token_count(produced: Sized, expected: tuple[int, int]) -> None:
    """Check that a run produced (sequences, outputs) tokens.

    Raises
    ------
    shapelaw.scaling.errors.WorkError
        The run produced another number of tokens.
    """
    shape = tuple(getattr(produced, "shape", (len(produced),)))
    if shape != expected:
        raise WorkError(f"the engine produced {shape} tokens, not {expected}")


def _undisturbed(timings: Sequence[Timing]) -> list[Timing]:
    return [timing for timing in timings if not timing.disturbed]
