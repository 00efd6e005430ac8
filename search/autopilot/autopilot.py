"""The ``autopilot`` command: train proxies until one shape is surely enough the best allowed one.

A shape is allowed if it has the size of the budget, lies within the law's range, meets the service
level, and serves at least ``speedup`` times as fast as the baseline. The best allowed shape is the
one with the least loss.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import nothing_left
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.runs.table import RunTable, write_runs
from shapelaw.scaling.schema import conform, damaged
from shapelaw.search.autopilot.autopilot_plan import (
    FIRST_SIZES,
    MAX_CHOICES,
    AutopilotSettings,
    depths_of,
    first_ladder,
    grid_of,
    spec_of,
    spread_rows,
)
from shapelaw.search.autopilot.display import Display
from shapelaw.search.autopilot.record import (
    DECISIONS,
    MAKE_AGAIN,
    keep_record,
    locked_folder,
)
from shapelaw.search.autopilot.rounds import HOUR, Run, run_rounds
from shapelaw.search.autopilot.single_pass import (
    CORPUS_SECONDS,
    FIT_SECONDS,
    SECONDS_PER_MEASUREMENT,
)
from shapelaw.search.autopilot.stages import Loop, prepare_corpus
from shapelaw.search.engines._base import Engine
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.basis import LossBasis
from shapelaw.search.proposals.leaders import served_rate, served_rates
from shapelaw.search.proposals.pareto_search import propose
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.request import ProposalRequest
from shapelaw.search.time_model.estimates import estimate
from shapelaw.trainers.ladder.grid import Rung
from shapelaw.trainers.sweep.launchers._local import cores
from shapelaw.trainers.training.cost_model import ASSUMED
from shapelaw.trainers.training.spec import RunSpec

CANDIDATES_PER_SIZE = 40  # shapes of each proxy size that may be trained next
Train = Callable[[list[RunSpec]], pd.DataFrame]


@dataclass
class ServedChoices:
    """Shapes that serve fast enough, by measurement or by the time model's estimate."""

    proposals: Proposals
    speedup: float

    def __post_init__(self) -> None:
        measured = self.proposals.estimated.measured
        candidates = measured.candidates
        serving = candidates.request.serving
        model = estimate(candidates.table, measured.results, serving.engine, serving.workload)
        self.rates = np.where(candidates.apart, 0.0, served_rates(model, measured.results))
        allowed = np.flatnonzero(self.rates >= self.speedup * self.rates[candidates.baseline])
        if not len(allowed):
            raise WorkError(
                f"`--speedup {self.speedup:g}` must hold for some shape, but none of "
                f"{len(candidates.table)} serves that fast; lower it"
            )
        lowest = int(candidates.losses[allowed].argmin())
        frame = candidates.frame.iloc[allowed]
        self.frame = frame.iloc[spread_rows(frame, MAX_CHOICES, lowest)]
        self.baseline = candidates.frame.iloc[[candidates.baseline]]

    def shape(self, row: int) -> Shape:
        """Return a shape."""
        return self.proposals.estimated.measured.candidates.table[int(self.frame.index[row])]

    def name(self, row: int) -> str:
        """Return the name of a shape."""
        return self.shape(row).name

    def about(self, row: int) -> dict[str, Any] | None:
        """Measure a shape that was only estimated; None if it serves too slowly."""
        measured = self.proposals.estimated.measured
        serving, place = measured.candidates.request.serving, int(self.frame.index[row])
        if place not in measured.results:
            result = serving.engine.measure_all([self.shape(row)], serving.workload)[0]
            self.rates[place] = served_rate(result, serving.workload)
        speedup = float(self.rates[place] / self.rates[measured.candidates.baseline])
        if speedup < self.speedup:
            return None
        shape = self.shape(row)
        return {"proposed": shape.name, "shape": shape.row(), "speedup": speedup}


def fit_conditional(runs: RunTable, seed: int) -> Fit:
    """Fit the conditional law, with a term for depth where the depth of the runs varies."""
    varies = len(set(runs["num_hidden_layers"])) > 1
    return fit("conditional+depth" if varies else "conditional", runs, seed=seed)


@dataclass(frozen=True, kw_only=True)
class ShapeProblem:
    """The choice of a shape at the target's size, from proxies that this machine trains.

    Attributes
    ----------
    train_specs
        Trains runs, or looks finished ones up, and returns their rows of the run table.
    fit_law
        Fits the law.
    """

    loop: Loop[AutopilotSettings]
    train_specs: Train
    engine: Engine
    vocab_size: int
    fit_law: Callable[[RunTable, int], Fit] = fit_conditional

    @cached_property
    def request(self) -> ProposalRequest:
        """Return the request for proposals."""
        return self.loop.settings.request(self.engine, self.vocab_size)

    def first_runs(self) -> list[Run]:
        """Plan three sizes below the target's.

        Raises
        ------
        InputError
            The budget does not pay for these runs.
        """
        settings = self.loop.settings
        ladder = first_ladder(self.request, settings.seed)
        hours = ladder.seconds.sum() / HOUR
        if hours > settings.budget_hours:
            raise InputError(
                f"`--budget-hours >= {hours:.3g}` must hold, the predicted core-hours of the "
                f"first {len(ladder.runs)} runs, but got {settings.budget_hours:g}; raise it or "
                "choose fewer --params or --tokens (--plan-only prints the price)"
            )
        return [_run(planned.spec) for planned in ladder.runs]

    def train(self, runs: list[Run]) -> RunTable:
        """Train all runs that are not trained yet, and write the run table."""
        with self.loop.stage("training"):
            write_runs(self.loop.runs, self.train_specs([self._spec(run) for run in runs]))
            return load_runs(self.loop.runs)

    def fit(self, runs: RunTable) -> Fit:
        """Fit the law and write it."""
        with self.loop.stage("law"):
            fitted = self.fit_law(runs, self.loop.settings.seed)
            fitted.save(self.loop.folder / "fit.json")
            return fitted

    def choices(self, number: int, fitted: Fit, runs: RunTable) -> ServedChoices:
        """Search for proposals, and return the shapes that serve fast enough.

        The basis has no runs, so that no other forms of the law are fitted in every round.
        """
        settings, display = self.loop.settings, self.loop.display
        basis = LossBasis(fit=fitted, description=f"{fitted.law_name} law on {len(runs)} runs")
        with self.loop.stage("proposals"):
            proposals = propose(
                self.request,
                basis,
                out=self.loop.folder / f"round-{number}",
                report=lambda done: display.update(
                    "proposals", done / settings.measurements, f"{done} shapes measured"
                ),
            )
            return ServedChoices(proposals, settings.speedup)

    def candidates(self, shapes: pd.DataFrame, runs: list[Run]) -> pd.DataFrame:
        """Return shapes of the proxies' sizes, and the allowed shapes themselves."""
        settings, like, frames = self.loop.settings, self._spec(runs[0]), [shapes]
        for part in FIRST_SIZES:
            size = settings.params // part
            rung = Rung(parameters=size, shapes=1, **depths_of(self.request))
            grid = grid_of(self.request, settings.params // max(FIRST_SIZES))
            table = grid.shapes(rung, grid.head_dim).frame()
            rows = spread_rows(table, CANDIDATES_PER_SIZE)
            frames.append(table.iloc[rows].assign(**{D: settings.tokens // part}))
        frame = pd.concat(frames, ignore_index=True)
        specs = [spec_of(shape, tokens, 0, like) for shape, tokens in _shapes(frame)]
        return frame.assign(flops_counted=[spec.flops for spec in specs])

    def runs_of(self, candidates: pd.DataFrame, runs: list[Run]) -> list[Run]:
        """Return chosen candidates as runs, a shape that is trained already with a new seed."""
        before = [self._spec(run) for run in runs]
        new: list[RunSpec] = []
        for shape, tokens in _shapes(candidates):
            seeds = [s.seed for s in (*before, *new) if (s.shape, s.tokens) == (shape, tokens)]
            new.append(spec_of(shape, tokens, max(seeds, default=-1) + 1, before[0]))
        return [_run(spec) for spec in new]

    def decided(self, lines: list[dict[str, Any]]) -> None:
        """Show the last decision, and forecast the stages of the next round."""
        settings, display = self.loop.settings, self.loop.display
        specs = [self._spec(run) for line in lines for run in line["runs"]]
        seconds = sum(ASSUMED.seconds(spec) for spec in specs) / (settings.workers or cores())
        search = SECONDS_PER_MEASUREMENT * settings.measurements
        display.forecast({"training": seconds, "law": FIT_SECONDS, "proposals": search})
        display.decided(lines[-1], settings.certainty)

    def _spec(self, run: Run) -> RunSpec:
        """Return a run of the record."""
        try:
            spec: RunSpec = conform(run, RunSpec)
        except InputError as error:
            path = self.loop.folder / DECISIONS
            raise damaged(path, error, MAKE_AGAIN) from None
        return spec


def _run(spec: RunSpec) -> Run:
    run: Run = json.loads(spec.as_json())
    return run


def _shapes(frame: pd.DataFrame) -> list[tuple[Shape, int]]:
    rows = frame.to_dict("records")
    return [(Shape.from_config(row), round(row[D])) for row in rows]  # type: ignore[arg-type]


def autopilot(folder: Path, settings: AutopilotSettings, display: Display) -> list[dict[str, Any]]:
    """Run the autopilot in a folder, or continue it there.

    Returns
    -------
    The recorded decisions, oldest first.

    Raises
    ------
    InputError
        The folder holds another loop, the corpus cannot be used, or the budget does not pay for
        the first runs.
    WorkError
        Another autopilot runs in the folder, the disk is full, or a run failed.
    """
    with nothing_left(folder), locked_folder(folder, settings.command):
        keep_record(folder, settings)
        display.forecast({"corpus": CORPUS_SECONDS})
        loop = Loop(folder, settings, display)
        corpus = prepare_corpus(loop)
        store = MeasurementStore(loop.work.path / "measurements.jsonl")
        problem = ShapeProblem(
            loop=loop,
            train_specs=lambda specs: loop.train("training", specs, corpus),
            engine=CachedEngine(engine_named(settings.engine), store),
            vocab_size=corpus.vocab_size,
        )
        return run_rounds(problem, settings.rule, folder)
