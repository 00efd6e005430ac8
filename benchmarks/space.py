"""Enumeration of spaces; promises: 10^5 shapes in 0.5 s, 10^7 with their front in 30 s and 2 GB.

Seconds are CPU seconds of one thread. The exact front is that of a fitted law's loss against FLOPs
and cache per token. The benchmark also times the refusal of a space of 10^9 shapes.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import resource
import time
from collections.abc import Callable
from dataclasses import replace

from record import finish

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.space.pareto import Score, running_front
from shapelaw.scaling.space.space import Space

REPEATS = 5
TOKENS, CONTEXT = 10**11, 4608
SMALL = Space(
    parameters=94_000_000,
    layers=(8, 12, 16, 20, 24),
    head_dims=(32, 64),
    vocab_size=32_000,
    hidden_step=64,
    mlp_step=64,
)
LARGE = Space(
    parameters=1_000_000_000,
    layers=tuple(range(8, 41)),
    head_dims=(64, 128),
    vocab_size=128_256,
    hidden_step=128,
    mlp_step=32,
)
LIMITED = replace(LARGE, constraints=("num_hidden_layers % 4 == 0", "mlp_to_attention < 8"))
HUGE = replace(LARGE, layers=tuple(range(2, 80)), hidden_step=16, mlp_step=4)


def peak_gb() -> float:
    """Return the peak memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def cpu_seconds(work: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Return the sorted CPU seconds of repeated calls."""
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return sorted(seconds)


def scored_by_a_law() -> Score:
    """Return a function that computes a fitted law's loss and the cost of shapes."""
    runs = load_runs("quickstart", where="role == 'proxy'")
    law = fit("conditional", runs, starts=64, resamples=0, seed=0)
    return lambda table: (
        law.expected(table.frame().assign(**{D: TOKENS})),
        table.forward_flops(CONTEXT) + table.kv_bytes(2) * CONTEXT,
    )


def refused() -> str:
    """Return the error with which a space of 10^9 shapes is refused."""
    try:
        HUGE.enumerate()
    except InputError as error:
        return str(error)
    raise AssertionError("a space of 10^9 shapes was not refused")


def main() -> None:
    score = scored_by_a_law()
    figures: dict[str, object] = {"promise_1e5_s": 0.5, "promise_1e7_s": 30, "promise_1e7_gb": 2}
    small = SMALL.enumerate()
    seconds = cpu_seconds(SMALL.enumerate)
    figures |= {"small_shapes": len(small), "small_cpu_s": seconds}
    figures["before_gb"] = peak_gb()
    fronts = []
    seconds = cpu_seconds(lambda: fronts.append(running_front(LARGE.chunks(), score)), 3)
    figures |= {"large_shapes": fronts[0].seen, "large_front": len(fronts[0])}
    figures |= {"large_front_cpu_s": seconds, "large_front_peak_gb": peak_gb()}
    figures["large_chunks_cpu_s"] = cpu_seconds(lambda: sum(len(c) for c in LARGE.chunks()), 3)
    figures["limited_left"] = [*LIMITED.counts().items()][-3:]
    figures["limited_cpu_s"] = cpu_seconds(LIMITED.enumerate, 3)
    figures["huge_estimate"] = HUGE.size()
    figures["huge_refused_cpu_s"] = cpu_seconds(refused)
    figures["huge_words"] = refused()
    figures["large_one_table_cpu_s"] = cpu_seconds(LARGE.enumerate, 1)
    figures["large_one_table_peak_gb"] = peak_gb()
    figures["load_1_min"] = os.getloadavg()[0]
    finish("space", figures)


if __name__ == "__main__":
    main()
