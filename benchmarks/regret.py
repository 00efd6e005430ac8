"""Regret of samplers; promise: ours after 40 measurements is below every other after 80.

``measure`` times every shape of a small space with the embedded engine, six repeats in one random
order (see ``regret_table.py``). ``replay`` then runs each sampler on that table in the study that a
real search uses, and computes the share of the exact front's hypervolume that is missing after 20,
40 and 80 measurements, over 10 seeds. Half of the repeats of a shape drive the search, the other
half scores it: the first half selects a front and the second gives its hypervolume, so that a lucky
repeat has no benefit, and a search that measured all shapes has regret 0. Seconds are CPU seconds
of one thread, which load of the machine affects little.

    python benchmarks/regret.py measure [--table data/regret/torch.csv]
    python benchmarks/regret.py replay [--table ...] [--methods "calibrated;tpe"] [--seeds 10]
    python benchmarks/regret.py synthetic --table FILE  # a synthetic table, to test the replay
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from record import finish
from regret_table import REPEATS, WORKLOAD, Truth, halves, measure, question, synthetic

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.files import write_json
from shapelaw.scaling.space.pareto import front, hypervolume
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.study.acquisition import reference_point
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.study.sampler import opening_rows
from shapelaw.search.study.study import Effort, explore
from shapelaw.search.workload import Workload

TABLE = Path(__file__).parent.parent / "data" / "regret" / "torch.csv"
PICTURE = Path(__file__).parent.parent / "docs" / "regret.png"
COUNTS = (20, 40, 80)
ENQUEUED = 6  # shapes of the roofline's front that a search measures first


@dataclass(frozen=True)
class Method:
    sampler: str
    enqueued: bool = False


OURS = "calibrated"
METHODS = {
    OURS: Method("calibrated", enqueued=True),
    "calibrated, nothing enqueued": Method("calibrated"),
    "tpe": Method("tpe"),
    "tpe, front enqueued": Method("tpe", enqueued=True),
    "nsga2": Method("nsga2"),
    "gp": Method("gp"),
    "random": Method("random"),
}


class TableEngine(Engine):
    """Engine that returns the half of the table that drives a search."""

    name, kind = "table", "measured"

    def __init__(self, problem: SearchProblem, truth: Truth, together: int) -> None:
        self.together = together
        rows = range(len(problem.table))
        self._measurements = {problem.table[row]: truth.driving[row] for row in rows}

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        return self._measurements[shape]


@dataclass(frozen=True)
class Score:
    """Regret of a set of measured rows relative to all rows."""

    losses: np.ndarray
    truth: Truth

    def value(self, rows: np.ndarray) -> float:
        """Compute the hypervolume, by the scoring half, of the front of the driving half."""
        chosen = rows[front(self.losses[rows], self.truth.rates[rows])]
        return hypervolume(self.losses[chosen], self.truth.scoring[chosen], self.reference)

    @property
    def reference(self) -> tuple[float, float]:
        rows = np.arange(len(self.losses))
        best = rows[front(self.losses, self.truth.rates)]
        loss, speed = reference_point(self.losses[best], np.log(self.truth.rates[best]))
        return loss, float(np.exp(speed))

    def regret(self, rows: list[int]) -> float:
        everything = self.value(np.arange(len(self.losses)))
        return 1 - self.value(np.array(rows)) / everything


def replayed(
    method: Method, problem: SearchProblem, truth: Truth, *, seed: int, together: int
) -> list[float]:
    """Compute the regret after each of COUNTS measurements.

    A sampler without random draws gets another start with each seed: one of the shapes of the
    roofline's front is replaced by a random shape.
    """
    first = opening_rows(problem, ENQUEUED) if method.enqueued else []
    draw = np.random.default_rng(seed)
    if first:
        first[int(draw.integers(len(first)))] = int(draw.integers(len(problem.table)))
    if not first and method.sampler == OURS:
        first = [int(draw.integers(len(problem.table)))]
    effort = Effort(
        measurements=max(COUNTS), first=first, sampler=method.sampler, seed=seed, together=together
    )
    engine = TableEngine(problem, truth, together)
    storage = optuna.storages.InMemoryStorage()
    result = explore(problem, engine, effort, storage=storage)
    rows, score = list(result.results), Score(problem.losses, truth)
    return [score.regret(rows[:count]) for count in COUNTS]


def replay(table: Path, methods: list[str], *, seeds: int, together: int, out: Path) -> None:
    """Run the searches that the JSON file lacks, write it after each, and print a summary."""
    problem = question()
    truth = halves(table, problem.table)
    results: dict[str, dict[str, list[float]]] = {}
    if out.exists():
        results = json.loads(out.read_text())["regret"]
    for seed in range(seeds):
        for name in methods:
            regrets = results.setdefault(name, {})
            if str(seed) not in regrets:
                regrets[str(seed)] = replayed(
                    METHODS[name], problem, truth, seed=seed, together=together
                )
                about = {"table": table.name, "shapes": len(problem.table), "counts": COUNTS}
                write_json(out, {**about, "together": together, "regret": results})
    real = table == TABLE
    picture = PICTURE if real else out.with_suffix(".png")
    plot(results, picture, f"{table.stem}: {len(problem.table)} shapes, {WORKLOAD}")
    finish(
        "regret" if real else out.stem,
        {"table": table.name, "shapes": len(problem.table), **summary(results)},
    )


def summary(results: dict[str, dict[str, list[float]]]) -> dict[str, object]:
    """Compute median and quartiles by method and count, and test the promise."""
    figures = {}
    for name, seeds in results.items():
        quartiles = np.quantile(list(seeds.values()), [0.25, 0.5, 0.75], axis=0).T
        figures[name] = {
            str(count): dict(zip(("low", "median", "high"), ends.tolist(), strict=True))
            for count, ends in zip(COUNTS, quartiles, strict=True)
        }
    at_80 = {name: np.median([seed[2] for seed in results[name].values()]) for name in results}
    others = [value for name, value in at_80.items() if not name.startswith(OURS)]
    ours = [seed[1] for seed in results.get(OURS, {}).values()]
    holds = bool(np.median(ours) < min(others)) if ours and others else None
    return {"regret": figures, "ours at 40 below every other at 80": holds}


def plot(results: dict[str, dict[str, list[float]]], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, seeds in results.items():
        low, middle, high = np.quantile(list(seeds.values()), [0.25, 0.5, 0.75], axis=0)
        (line,) = axes.plot(COUNTS, middle, marker="o", label=name)
        axes.fill_between(COUNTS, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="shapes measured", ylabel="hypervolume regret", title=title, xticks=COUNTS)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(bottom=-3e-4)  # a search that measured all shapes has regret 0
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["measure", "replay", "synthetic"])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--methods", default=";".join(METHODS), help="names, separated by ;")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--together", type=int, default=4, help="shapes that a search claims at once"
    )
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--out", type=Path, default=None, help="JSON file of the replay")
    options = parser.parse_args()
    if options.part == "replay":
        methods = [name for name in METHODS if name in options.methods.split(";")]
        out = options.out or options.table.with_name("replay.json")
        replay(options.table, methods or list(METHODS), seeds=options.seeds,
               together=options.together, out=out)  # fmt: skip
    elif options.part == "synthetic":
        synthetic(question().table, options.table, repeats=options.repeats, seed=0)
    else:
        from shapelaw.search.engines._torch import TorchEngine

        table = question().table
        added = measure(TorchEngine(), table, options.table, repeats=options.repeats, seed=0)
        finish("regret_table", {"shapes": len(table), "repeats": options.repeats, "added": added})


if __name__ == "__main__":
    main()
