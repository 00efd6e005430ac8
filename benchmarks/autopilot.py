"""Back-test of the autopilot; promise: of stops at a certainty of 0.9, at least 90 % chose rightly.

Simulated part: the truth is the conditional law with drawn parameters (synthetic), its runs have
seed noise, and the autopilot's own stages run with this truth in the trainer's place. Public part:
the losses of shapes in a published table (from the mirror in SHAPELAW_MIRROR) are looked up, and
the FLOPs are compared with those of the whole table. A choice is right if its true loss is within
the indifference of the lowest true loss of all allowed shapes.
"""

import argparse
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from record import finish

from shapelaw.scaling.checks.calibration import wilson_interval
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.search.autopilot.autopilot import ServedChoices, ShapeProblem
from shapelaw.search.autopilot.autopilot_plan import AutopilotSettings
from shapelaw.search.autopilot.display import Display
from shapelaw.search.autopilot.record import keep_record
from shapelaw.search.autopilot.rounds import Run, run_rounds
from shapelaw.search.autopilot.stages import Loop
from shapelaw.search.autopilot.stopping import StoppingRule
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.proposal import SHAPE_KEY
from shapelaw.trainers.training.spec import RunSpec

TARGETS = ((4.5e8, 5.5e8), (9.9e8, 1.1e9), (1.9e9, 2.1e9))  # total parameters of gemstones
MANY_HOURS = 1e9  # no limit: the table is the limit
SAME_TOKENS = 0.02  # relative difference up to which token counts are equal
FitLaw = Callable[[RunTable, int], Fit]
FLOPS_PER_SECOND = 2e10  # of one core; only the budget in hours depends on it
ANCHOR_SIZE = 1e5  # size at which the drawn optima hold
# Means and standard deviations of the drawn parameters; optima and curvatures of their logarithm.
DRAWN = {
    "hidden_over_sqrt_n_optimum": (np.log(0.18), 0.4),
    "hidden_over_sqrt_n_curvature": (np.log(0.06), 0.5),
    "hidden_over_sqrt_n_drift": (-0.18, 0.06),
    "mlp_to_attention_optimum": (np.log(2.0), 0.5),
    "mlp_to_attention_curvature": (np.log(0.03), 0.5),
    "mlp_to_attention_drift": (0.0, 0.06),
    "gqa_slope": (0.004, 0.004),
}


@dataclass(frozen=True)
class Truth:
    """A synthetic truth: the conditional law with known parameters and noise between seeds.

    ``deviations`` are the drawn parameters in standard deviations of :data:`DRAWN`.
    """

    deviations: dict[str, float]
    noise: float = 0.005
    seed: int = 0

    @classmethod
    def drawn(cls, seed: int, **settings: float) -> "Truth":
        """Draw a truth."""
        values = np.random.default_rng(seed).standard_normal(len(DRAWN))
        return cls(dict(zip(DRAWN, map(float, values), strict=True)), seed=seed, **settings)

    def log_loss(self, frame: pd.DataFrame) -> np.ndarray:
        """Compute ln loss without noise, (n,)."""
        at = {name: m + s * self.deviations.get(name, 0.0) for name, (m, s) in DRAWN.items()}
        size, tokens = frame[N].to_numpy(float), frame[D].to_numpy(float)
        loss = np.log(0.8 + 28 / size**0.35 + 42 / tokens**0.35)  # below ln 256 for all shapes
        for name in ("hidden_over_sqrt_n", "mlp_to_attention"):
            drift = at[f"{name}_drift"] * np.log(size / ANCHOR_SIZE)
            x = np.log(frame[name].to_numpy(float)) - at[f"{name}_optimum"] - drift
            loss += np.log1p(np.exp(at[f"{name}_curvature"]) * (x + np.exp(-x) - 1))
        return loss + at["gqa_slope"] * np.log(frame["gqa"].to_numpy(float))

    def train(self, specs: Sequence[RunSpec]) -> pd.DataFrame:
        """Return the rows of the run table that training these runs would give."""
        rows = []
        for spec in specs:
            for tokens in (*sorted(spec.branches), spec.tokens):
                last = tokens == spec.tokens
                rows.append(
                    {
                        "run_id": spec.run_id if last else f"{spec.run_id}-b{tokens}",
                        "run_group": spec.run_id,
                        **spec.shape.row(),
                        N: spec.shape.n_non_embedding,
                        "hidden_over_sqrt_n": spec.shape.hidden_over_sqrt_n,
                        "mlp_to_attention": spec.shape.mlp_to_attention,
                        "gqa": spec.shape.gqa,
                        D: tokens,
                        "seed": spec.seed,
                        "flops_counted": spec.flops * tokens / spec.tokens,
                        "seconds": spec.flops * tokens / spec.tokens / FLOPS_PER_SECOND,
                        "status": "done",
                    }
                )
        frame = pd.DataFrame(rows)
        seeds = [[self.seed, zlib.crc32(name.encode())] for name in frame["run_id"]]
        errors = [np.random.default_rng(seed).standard_normal() for seed in seeds]
        loss = np.exp(self.log_loss(frame) + self.noise * np.array(errors))
        return frame.assign(loss=loss)


def quick_fit(runs: RunTable, seed: int) -> Fit:
    """Fit with fewer starts and resamples than the command does."""
    return fit("conditional", runs, seed=seed, starts=64, resamples=300)


@dataclass(frozen=True, kw_only=True)
class Simulation(ShapeProblem):
    """A problem with one plan, whose allowed shapes can be looked at after the last decision."""

    last: dict[str, pd.DataFrame]
    plans: ClassVar[list[list[Run]]] = []

    def first_runs(self) -> list[Run]:
        """Plan the first runs once, as they depend on no truth."""
        if not self.plans:
            self.plans.append(super().first_runs())
        return self.plans[0]

    def choices(self, number: int, fitted: Fit, runs: RunTable) -> ServedChoices:
        """Search for proposals, and keep the allowed shapes."""
        choices = super().choices(number, fitted, runs)
        self.last["choices"] = choices.frame
        return choices


def simulate(
    truth: Truth, settings: AutopilotSettings, folder: Path, fit_law: FitLaw = quick_fit
) -> dict[str, Any]:
    """Run the autopilot on a truth; return its last decision with the true regret."""
    keep_record(folder, settings)
    problem = Simulation(
        loop=Loop(folder, settings, Display(quiet=True)),
        train_specs=truth.train,
        engine=engine_named(settings.engine),
        vocab_size=256,
        fit_law=fit_law,
        last={},
    )
    lines = run_rounds(problem, settings.rule, folder)
    allowed = problem.last["choices"]
    proposed = lines[-1]["shape"]
    row = np.all([allowed[name] == proposed[name] for name in SHAPE_KEY], axis=0)
    regret = np.expm1(truth.log_loss(allowed) - truth.log_loss(allowed).min())
    grid = problem.candidates(allowed, lines[0]["runs"])["flops_counted"].iloc[: len(allowed)]
    return {
        "certainty": lines[-1]["certainty"],
        "first_certainty": lines[1]["certainty"],
        "regret": float(regret[row][0]),
        "right_by_chance": float((regret <= settings.indifference).mean()),
        "rounds": len(lines) - 1,
        "flops": lines[-1]["flops"],
        "grid_flops": float(grid.sum()),
        "certain": lines[-1]["certainty"] >= settings.certainty,
    }


def summary(results: Sequence[dict[str, Any]], settings: AutopilotSettings) -> dict[str, Any]:
    """Summarise autopilots: how many stopped surely, and how many of these chose rightly."""
    frame = pd.DataFrame(results)
    right = frame["regret"] <= settings.indifference
    sure = frame["certain"]
    interval = wilson_interval(int((right & sure).sum()), int(sure.sum())) if sure.any() else None
    return {
        "autopilots": len(frame),
        "sure": int(sure.sum()),
        "mean_certainty_of_sure": float(frame["certainty"][sure].mean()),
        "sure_and_right": int((right & sure).sum()),
        "wilson_90": interval,
        "right_of_unsure": f"{int((right & ~sure).sum())} of {int((~sure).sum())}",
        "right_by_chance": float(frame["right_by_chance"].mean()),
        "rounds": float(frame["rounds"].mean()),
        "flops_over_grid": float((frame["flops"] / frame["grid_flops"]).mean()),
    }


@dataclass(frozen=True)
class TableChoices:
    """Shapes of a table with the name of each."""

    frame: pd.DataFrame

    @property
    def baseline(self) -> pd.DataFrame:
        """Return the first shape."""
        return self.frame.iloc[:1]

    def name(self, row: int) -> str:
        """Return the name of a shape."""
        return str(self.frame["run_id"].iloc[row])

    def about(self, row: int) -> dict[str, Any]:
        """Return the name of a shape; every shape of the table is allowed."""
        return {"proposed": self.name(row)}


@dataclass(frozen=True)
class LookedUp:
    """A choice among the shapes of the gemstones table near a total size, by looking losses up.

    The first runs are the smaller shapes with up to a third of the tokens; every other run with no
    more parameters than the target's may be chosen.
    """

    runs: pd.DataFrame
    target: tuple[float, float]

    @classmethod
    def of(cls, target: tuple[float, float]) -> "LookedUp":
        """Load the table, with the cost of every run."""
        frame = load_runs("gemstones").frame
        flops = 6.0 * frame[N] * frame[D]
        return cls(frame.assign(flops_counted=flops, seconds=flops / FLOPS_PER_SECOND), target)

    @property
    def choices_frame(self) -> pd.DataFrame:
        """Return the target's shapes at the largest token count that all of them have."""
        near = self.runs[self.runs["n_total"].between(*self.target)]
        tokens = near.groupby("run_group")[D].max().min()
        return near[(near[D] / tokens - 1).abs() < SAME_TOKENS].reset_index(drop=True)

    def _rows(self, mask: pd.Series) -> list[Run]:
        return [{"run_id": name} for name in self.runs["run_id"][mask]]

    def first_runs(self) -> list[Run]:
        """Return the short runs of the smaller shapes."""
        short = self.runs[D] <= self.runs[D].max() / 3
        return self._rows(short & (self.runs["n_total"] < self.target[0]))

    def train(self, runs: list[Run]) -> RunTable:
        """Look runs up."""
        names = [run["run_id"] for run in runs]
        return RunTable(frame=self.runs.set_index("run_id").loc[names].reset_index())

    def fit(self, runs: RunTable) -> Fit:
        """Fit a law of size, tokens and width."""
        return fit("width", runs, starts=64, resamples=300)

    def choices(self, number: int, fitted: Fit, runs: RunTable) -> TableChoices:
        """Return the target's shapes."""
        return TableChoices(self.choices_frame)

    def candidates(self, shapes: pd.DataFrame, runs: list[Run]) -> pd.DataFrame:
        """Return the runs that are not trained and no larger than the target."""
        left = ~self.runs["run_id"].isin([run["run_id"] for run in runs])
        return self.runs[left & (self.runs["n_total"] <= self.target[1])]

    def runs_of(self, candidates: pd.DataFrame, runs: list[Run]) -> list[Run]:
        """Return chosen rows as runs; a row that was chosen twice is one run."""
        return [{"run_id": name} for name in dict.fromkeys(candidates["run_id"])]

    def decided(self, lines: list[dict[str, Any]]) -> None:
        """Show nothing."""


def look_up(target: tuple[float, float], rule: StoppingRule) -> dict[str, Any]:
    """Run the autopilot on a target of the table; compare it with training every target's shape."""
    problem = LookedUp.of(target)
    with TemporaryDirectory() as folder:
        last = run_rounds(problem, rule, Path(folder))[-1]
    shapes = problem.choices_frame.set_index("run_id")
    regret = shapes["loss"] / shapes["loss"].min() - 1
    return {
        "shapes": len(shapes),
        "certainty": last["certainty"],
        "regret": float(regret[last["proposed"]]),
        "largest_regret": float(regret.max()),
        "rounds": last["round"],
        "flops_over_grid": float(last["flops"] / shapes["flops_counted"].sum()),
        "stop": last["stop"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--truths", type=int, default=40, help="drawn truths for each noise")
    parser.add_argument("--fixed", type=int, default=8, help="noise seeds of each fixed truth")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.005, 0.01])
    options = parser.parse_args()
    settings = AutopilotSettings(
        params=200_000, tokens=2_000_000, workload="edge", engine="roofline:h100", layers="4",
        speedup=0.5, measurements=4, budget_hours=1.0,
    )  # fmt: skip
    fit_law = quick_fit
    cases = {
        f"drawn, noise {noise:g}": [
            Truth.drawn(seed, noise=noise) for seed in range(options.truths)
        ]
        for noise in (options.noise if options.truths else ())
    }
    for k in (0, 1, 2) if options.fixed else ():
        cases[f"fixed at {k} deviations"] = [
            Truth(dict.fromkeys(DRAWN, float(k)), seed=seed) for seed in range(options.fixed)
        ]
    begun, figures = time.perf_counter(), {}
    table = {
        f"{low:.2g} parameters": look_up(
            (low, high), replace(settings.rule, budget_hours=MANY_HOURS)
        )
        for low, high in TARGETS
    }
    print(table, flush=True)
    for name, truths in cases.items():
        results = []
        for truth in truths:
            with TemporaryDirectory() as folder:
                results.append(simulate(truth, settings, Path(folder), fit_law))
            print(name, truth.seed, results[-1], flush=True)
        figures[name] = summary(results, settings)
        print(name, figures[name], flush=True)
    finish(
        "autopilot",
        {
            "promise": "the interval of the share of sure stops that were right includes 0.9 or "
            "lies above",
            "indifference": settings.indifference,
            "certainty": settings.certainty,
            "simulated": figures,
            "gemstones": table,
            "seconds": time.perf_counter() - begun,
        },
    )


if __name__ == "__main__":
    main()
