"""The table behind ``regret.py``: every shape of a small space, each measured several times.

The space is one of shapes of .27M to .63M parameters, so that size trades loss for speed, whose
ratios lie where the shipped law was fitted. All repeats of all shapes are drawn in one random
order, so that whatever else the machine does meets every shape alike. A row is written as soon as
it is measured; the same command goes on where it was stopped.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.space.space import Space, within
from shapelaw.search.engines._base import Measurement, interval
from shapelaw.search.engines._timed import WARM_UP_TOKENS, TimedEngine, Timing
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.workload import Workload, parse_workload

SPACE = Space(
    parameters=450_000, tolerance=0.4, layers=(2, 3, 4, 6, 8, 12), head_dims=(16, 32),
    vocab_size=512, hidden_step=32, mlp_step=128, max_heads=8, qk_norm=True,
)  # fmt: skip
TOKENS = 2_000_000
WORKLOAD = "64/32@16"
REPEATS = 6
SHAPE_COLUMNS = (*INTEGER_FIELDS, "tie_word_embeddings", "qk_norm", "rope_theta")
SECONDS = ("prefill_seconds", "decode_seconds", "cpu_seconds", "decode_cpu_seconds")
COLUMNS = (*SHAPE_COLUMNS, "repeat", *SECONDS)


@dataclass(frozen=True)
class Truth:
    """A table as a search meets it, and as it is scored.

    ``driving`` is what measuring a row returns; ``scoring`` its tokens/s by the other repeats.
    """

    driving: list[Measurement]
    scoring: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """Tokens/s by the repeats that drive the search."""
        return np.array([measurement.output_tokens_per_second for measurement in self.driving])


def question() -> SearchProblem:
    """The shapes of the benchmark and what the shipped law predicts for them."""
    runs = load_runs("quickstart", where="role == 'proxy'")
    law = fit("conditional", runs, seed=0)
    everything = SPACE.enumerate()
    ranges = {name: ends for name, ends in law.ranges.items() if name in RATIOS}
    table = everything.take(within(everything, ranges, 1.1))
    losses = np.asarray(law.central(table.frame().assign(tokens=TOKENS)))
    return SearchProblem(table=table, losses=losses, workload=parse_workload(WORKLOAD))


def measure(engine: TimedEngine, table: ShapeTable, path: Path, *, repeats: int, seed: int) -> int:
    """Measure what the file lacks; the number of rows that were added."""
    done = measured(path)
    pairs = [(row, repeat) for row in range(len(table)) for repeat in range(repeats)]
    order = np.random.default_rng(seed).permutation(len(pairs))
    workload, added = parse_workload(WORKLOAD), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if path.stat().st_size == 0:
            writer.writerow(COLUMNS)
        for row, repeat in (pairs[index] for index in order):
            shape = table[row]
            if (*_fields(shape), repeat) in done:
                continue
            timing = _timed(engine, shape, workload)
            seconds = (timing.prefill, timing.decode, timing.cpu, timing.decode_cpu)
            writer.writerow([*_fields(shape), repeat, *seconds])
            file.flush()
            added += 1
    return added


def measured(path: Path) -> set[tuple[object, ...]]:
    """What a table holds; a last line that was cut off in the middle is taken off the file."""
    if not path.exists():
        return set()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    if not whole:
        return set()
    frame = pd.read_csv(path)
    return set(frame[[*SHAPE_COLUMNS, "repeat"]].itertuples(index=False, name=None))


def halves(path: Path, table: ShapeTable) -> Truth:
    """For each shape the measurement that drives the search, and the speed that scores it.

    Even repeats drive, odd repeats score. Seconds are CPU seconds; an engine that cannot tell
    those of the decode has them shared out as the wall seconds are.
    """
    frame = pd.read_csv(path)
    by_shape = dict(iter(frame.groupby(list(SHAPE_COLUMNS))))
    driving, scoring = [], np.zeros(len(table))
    for row in range(len(table)):
        rows = by_shape[_fields(table[row])].sort_values("repeat")
        even = rows["repeat"].to_numpy() % 2 == 0
        driving.append(_measurement(rows[even]))
        scoring[row] = _measurement(rows[~even]).output_tokens_per_second
    return Truth(driving, scoring)


def _measurement(rows: pd.DataFrame) -> Measurement:
    workload = parse_workload(WORKLOAD)
    wall = rows["prefill_seconds"] + rows["decode_seconds"]
    shared_out = rows["decode_seconds"] / wall * rows["cpu_seconds"]
    decode = rows["decode_cpu_seconds"].fillna(shared_out).to_numpy()
    prefill = rows["cpu_seconds"].to_numpy() - decode
    sequences, steps = workload.concurrency, workload.output_tokens - 1
    rates = sequences * workload.output_tokens / (prefill + decode)
    # The median of a few repeats: another process that disturbs one of them does not count.
    seconds, low_high = np.median(prefill + decode), interval(rates)
    return Measurement(
        engine="torch", kind="measured", workload=str(workload), device="table", version="",
        repeats=len(rows), output_tokens_per_second=sequences * workload.output_tokens / seconds,
        low=low_high[0], high=low_high[1], ttft=float(np.median(prefill)),
        tpot=float(np.median(decode)) / steps,
        prefill_tokens_per_second=sequences * workload.input_tokens / float(np.median(prefill)),
        decode_tokens_per_second=sequences * steps / float(np.median(decode)),
        wall_seconds=float(wall.sum()), cpu_seconds=float(rows["cpu_seconds"].sum()), load=None,
        disturbed=False,
    )  # fmt: skip


def _timed(engine: TimedEngine, shape: Shape, workload: Workload) -> Timing:
    with engine.start(shape, workload) as server:
        server.serve(WARM_UP_TOKENS)
        return server.serve(workload.output_tokens)


def _fields(shape: Shape) -> tuple[object, ...]:
    return tuple(getattr(shape, name) for name in SHAPE_COLUMNS)


def synthetic(table: ShapeTable, path: Path, *, repeats: int, seed: int) -> None:
    """Write a table of a *synthetic* truth: a time model with steps, and 2 % of noise."""
    draw = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row, (prefill, decode) in enumerate(_synthetic_seconds(table)):
            for repeat in range(repeats):
                noisy = np.array([prefill, decode]) * np.exp(draw.normal(0, 0.02, 2))
                writer.writerow([*_fields(table[row]), repeat, *noisy, noisy.sum(), noisy[1]])


def _synthetic_seconds(table: ShapeTable) -> Iterator[tuple[float, float]]:
    workload = parse_workload(WORKLOAD)
    sequences, steps = workload.concurrency, workload.output_tokens - 1
    aligned = 1 + 0.15 * (table.hidden_size % 16 > 0) + 0.1 * (table.intermediate_size % 64 > 0)
    small_heads = 1 + 0.2 * (table.head_dim < 32)
    per_layer = table.num_hidden_layers * (1 + 0.02 * table.num_attention_heads)
    flops = table.forward_flops(workload.input_tokens / 2) * sequences
    prefill = flops * workload.input_tokens / 6e10 * aligned * small_heads + 2e-4 * per_layer
    step = 1e-4 + 7e-5 * per_layer + table.weight_bytes(4) / 2e10 * aligned
    step = step + flops / 3e10 * aligned
    yield from zip(prefill.tolist(), (step * steps).tolist(), strict=True)
