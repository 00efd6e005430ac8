"""Table for ``regret.py``: repeated measurements of every shape of a small space.

The shapes have 0.27M to 0.63M parameters, so that size trades loss for speed, and ratios within the
range of the shipped law. All repeats of all shapes are measured in one random order, so that other
load of the machine affects all shapes alike. A row is written as soon as it is measured; the same
command continues where it was stopped.
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
from shapelaw.scaling.space.proportions import within
from shapelaw.scaling.space.space import Space
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
    """Measurements of a table in two halves, one for the search and one for its score.

    ``driving`` has the measurement of each row that a search gets; ``scoring`` has the tokens/s of
    each row by the other repeats.
    """

    driving: list[Measurement]
    scoring: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """Tokens/s of each row by the repeats that drive the search, (n,)."""
        return np.array([measurement.output_tokens_per_second for measurement in self.driving])


def question() -> SearchProblem:
    """Make the search problem: the shapes with the losses that the shipped law predicts."""
    runs = load_runs("quickstart", where="role == 'proxy'")
    law = fit("conditional", runs, seed=0)
    shapes = SPACE.enumerate()
    ranges = {name: ends for name, ends in law.ranges.items() if name in RATIOS}
    table = shapes.take(within(shapes, ranges, 1.1))
    losses = np.asarray(law.central(table.frame().assign(tokens=TOKENS)))
    return SearchProblem(table=table, losses=losses, workload=parse_workload(WORKLOAD))


def measure(engine: TimedEngine, table: ShapeTable, path: Path, *, repeats: int, seed: int) -> int:
    """Measure the rows that the file lacks; return the number of added rows."""
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
    """Read which rows a table has, after an incomplete last line is removed from the file."""
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
    """Split the repeats of each shape into a measurement for the search and a speed for its score.

    Even repeats drive the search, odd repeats score it. Seconds are CPU seconds. Where the CPU
    seconds of the decode are missing, its share of the wall seconds determines them.
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
    """Make the measurement of some repeats of a shape."""
    workload = parse_workload(WORKLOAD)
    wall = rows["prefill_seconds"] + rows["decode_seconds"]
    estimated = rows["decode_seconds"] / wall * rows["cpu_seconds"]
    decode = rows["decode_cpu_seconds"].fillna(estimated).to_numpy()
    prefill = rows["cpu_seconds"].to_numpy() - decode
    sequences, steps = workload.concurrency, workload.output_tokens - 1
    rates = sequences * workload.output_tokens / (prefill + decode)
    # The median excludes a repeat that another process disturbed.
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
    """Time the workload once after a warm-up."""
    with engine.start(shape, workload) as server:
        server.serve(WARM_UP_TOKENS)
        return server.serve(workload.output_tokens)


def _fields(shape: Shape) -> tuple[object, ...]:
    """Return the values of a shape in the table's columns."""
    return tuple(getattr(shape, name) for name in SHAPE_COLUMNS)


def synthetic(table: ShapeTable, path: Path, *, repeats: int, seed: int) -> None:
    """Write a synthetic table: a time model with steps, and 2 % of noise."""
    draw = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row, (prefill, decode) in enumerate(_synthetic_seconds(table)):
            for repeat in range(repeats):
                noisy = np.array([prefill, decode]) * np.exp(draw.normal(0, 0.02, 2))
                writer.writerow([*_fields(table[row]), repeat, *noisy, noisy.sum(), noisy[1]])


def _synthetic_seconds(table: ShapeTable) -> Iterator[tuple[float, float]]:
    """Yield the synthetic seconds of prefill and decode of each shape."""
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
