"""Search for the concurrency of the highest throughput within a service level, by measurements."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Measurement
from shapelaw.search.workload import BATCH, Workload

MOST_AT_ONCE = 4096  # sequences of an automatic concurrency; engines schedule fewer
MIN_GAIN = 1.02  # ratio of throughputs of which smaller ones are within the noise of repeats
FINENESS = 8  # the bisection ends at 1/FINENESS of the concurrency

Result = Measurement | str  # a measurement, or why the engine cannot run the shape
MeasureAll = Callable[[Sequence[Any], Workload], Sequence[Result]]


def measure_fastest(
    measure_all: MeasureAll, shapes: Sequence[Any], workload: Workload
) -> list[Result]:
    """Measure every shape at the concurrency of its highest throughput within the service level.

    Each shape is measured at the workload's concurrency, then at twice as many sequences while the
    service level holds and the throughput rises, or at half as many until it holds. A bisection
    follows between the largest number that holds and the smallest one that does not, up to an
    eighth. Shapes that are due at the same number are measured together.

    Parameters
    ----------
    measure_all
        Measures shapes at a fixed concurrency. A search that was killed finds its measurements
        again where they are kept.
    workload
        Workload with an automatic concurrency.

    Returns
    -------
    For each shape the fastest measurement within the service level. Where even one sequence breaks
    it, that of one sequence, or the reason why the engine cannot run the shape.
    """
    searches = [_search(workload) for _ in shapes]
    asked = {row: next(search) for row, search in enumerate(searches)}
    results: dict[int, Result] = {}
    while asked:
        at_once = min(asked.values())
        rows = [row for row, number in asked.items() if number == at_once]
        fixed = replace(workload, automatic=False, prompts=BATCH, concurrency=at_once)
        answers = measure_all([shapes[row] for row in rows], fixed)
        for row, answer in zip(rows, answers, strict=True):
            try:
                asked[row] = searches[row].send(answer)
            except StopIteration as end:
                results[row] = end.value
                del asked[row]
    return [results[row] for row in range(len(shapes))]


def measure_one_fastest(measure_all: MeasureAll, shape: Any, workload: Workload) -> Measurement:
    """Measure one shape as :func:`measure_fastest` does.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The engine cannot run the shape.
    """
    (result,) = measure_fastest(measure_all, [shape], workload)
    if isinstance(result, str):
        raise InputError(result)
    return result


def _search(workload: Workload) -> Generator[int, Result, Result]:
    """Yield the concurrencies to measure one shape at, take the results, and return the best."""
    low, high = 0, MOST_AT_ONCE + 1  # the largest number that holds, the smallest that does not
    at_once = min(workload.concurrency, MOST_AT_ONCE)
    best: Measurement | None = None
    result: Result = ""
    while high - low > max(1, low // FINENESS):
        result = yield at_once
        rate = 0.0 if isinstance(result, str) else result.output_tokens_per_second
        rises = best is None or not rate or rate > MIN_GAIN * best.output_tokens_per_second
        if isinstance(result, Measurement) and result.meets(workload):
            low = at_once
            best = result if best is None else max(best, result, key=_throughput)
        else:
            high = at_once
        if not rises:  # neither do more sequences
            break
        bounded = high <= MOST_AT_ONCE
        at_once = max((low + high) // 2, 1) if bounded else min(2 * low, MOST_AT_ONCE)
    return result if best is None else best


def _throughput(measurement: Measurement) -> float:
    return measurement.output_tokens_per_second
