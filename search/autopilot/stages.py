"""The stages of the loop, one function each: corpus, proxies, law, search, confirmation, report.

Every stage writes files in the folder of the loop and is skipped if they exist.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.files import write_json
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.table import RunTable, write_runs
from shapelaw.search.autopilot.display import Display
from shapelaw.search.autopilot.record import CorpusSettings, LoopSettings
from shapelaw.search.autopilot.run_plan import (
    CONFIRMED,
    HEAD_DIM,
    HIDDEN_STEP,
    LAW,
    LAYERS,
    MLP_STEP,
    PRIOR,
    ROPE_THETA,
    confirmation_specs,
    confirmation_tokens,
    proxy_specs,
)
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.basis import SHIPPED, LossBasis
from shapelaw.search.proposals.pareto_search import propose
from shapelaw.search.proposals.proposal import BASELINE, EVEN, FAST, LOSS_OPTIMAL, Proposal
from shapelaw.search.proposals.ranking import Proposals
from shapelaw.search.proposals.request import (
    Budget,
    ProposalRequest,
    SearchEffort,
    Serving,
    SpaceOptions,
)
from shapelaw.search.reports.loop_record import read_loop_record
from shapelaw.search.reports.loop_report import write_report
from shapelaw.search.workload import PRESETS
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.preparation import prepare
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.spec import RunSpec

Settings = TypeVar("Settings", bound=CorpusSettings)


@dataclass(frozen=True)
class Loop(Generic[Settings]):
    """A loop in a folder, with its settings and its progress display."""

    folder: Path
    settings: Settings
    display: Display

    @property
    def work(self) -> Folder:
        """Return the folder of corpus, ledger, checkpoints and weights."""
        return Folder(self.folder / "work")

    @property
    def record(self) -> Path:
        """Return the path of the file with the settings and the seconds of the stages."""
        return self.folder / f"{self.settings.command}.json"

    @property
    def runs(self) -> Path:
        """Return the path of the run table."""
        return self.folder / "runs.csv"

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show a stage and add its seconds to the record."""
        self.display.update(name, 0.0, "")
        begun = time.perf_counter()
        yield
        record = read_loop_record(self.record)
        seconds = record.setdefault("stage_seconds", {})
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
        write_json(self.record, record)
        self.display.finished(name)

    def train(self, stage: str, specs: list[RunSpec], corpus: Corpus) -> pd.DataFrame:
        """Train the runs that are not trained yet, and return the rows of all runs."""
        return run_plan(
            specs,
            corpus,
            self.work,
            workers=self.settings.workers,
            report=lambda entries: self.display.training(stage, entries),
        )


def prepare_corpus(loop: Loop[Any]) -> Corpus:
    """Tokenize the text."""
    with loop.stage("corpus"):
        settings = loop.settings
        corpus = prepare(settings.corpus, loop.work.corpus, vocab_size=settings.vocab_size)
        about = {name: value for name, value in asdict(corpus).items() if name != "folder"}
        write_json(loop.record, read_loop_record(loop.record) | {"corpus": about})
        return corpus


def train_proxies(loop: Loop[LoopSettings], corpus: Corpus) -> pd.DataFrame:
    """Train the proxies and write the run table."""
    with loop.stage("proxies"):
        runs = loop.train("proxies", proxy_specs(loop.settings, corpus.vocab_size), corpus)
        if not loop.runs.exists():
            write_runs(loop.runs, runs)
        return runs


def fit_law(loop: Loop[LoopSettings]) -> LossBasis:
    """Fit the law on the proxies only, so that the confirmation models are a held-out set.

    Depth is among the axes of the proxies, so the law has a term for it: without one, shapes of two
    layers were predicted better than they came out. A factor of four in size says little about the
    drift of an optimum, and a few replicates about the noise between seeds: the shipped pooled law
    is the prior, and the noise is pooled with that of shipped runs.
    """
    with loop.stage("law"):
        runs, seed = load_runs(loop.runs, where="role == 'proxy'"), loop.settings.seed
        deviation, degrees = seed_noise(runs)
        noise = {"deviation": deviation, "degrees": degrees}
        write_json(loop.record, read_loop_record(loop.record) | {"seed_noise": noise})
        fitted = fit(LAW, runs, seed=seed, prior=PRIOR)
        fitted.save(loop.folder / "fit.json")
        description = f"conditional law with depth on {len(fitted.run_ids)} proxies of this loop"
        return LossBasis(fit=fitted, runs=runs, description=description)


def seed_noise(runs: RunTable) -> tuple[float, int]:
    """Pool the standard deviation of ln loss between seeds over runs and the shipped runs.

    Returns
    -------
    deviation
        Standard deviation of ln loss, a fraction of the loss.
    degrees
        Its degrees of freedom.
    """
    parts = [noise for noise in (runs.noise, load_runs(SHIPPED).noise) if noise[1]]
    degrees = sum(freedom for _, freedom in parts)
    squares = sum(deviation**2 * freedom for deviation, freedom in parts)
    return float(np.sqrt(squares / degrees)), degrees


def search_shapes(loop: Loop[LoopSettings], basis: LossBasis, corpus: Corpus) -> Proposals:
    """Search for shapes at the size of the confirmation models.

    No leader is measured again, so that a continued study gives the same proposals.
    """
    measurements = loop.settings.measurements
    request = ProposalRequest(
        budget=Budget(
            parameters=CONFIRMED, tokens=confirmation_tokens(loop.settings), tolerance=0.01
        ),
        space=SpaceOptions(
            any_shape=True,  # its models are never served
            layers=LAYERS,
            head_dims=(HEAD_DIM,),
            vocab_size=corpus.vocab_size,
            hidden_step=HIDDEN_STEP,
            mlp_step=MLP_STEP,
            qk_norm=True,
            rope_theta=ROPE_THETA,
            worse_percent=None,
        ),
        serving=Serving(workload=PRESETS["proxy"], engine=engine_named("torch")),
        effort=SearchEffort(
            measurements=measurements, estimated=0, leaders=0, seed=loop.settings.seed
        ),
    )
    with loop.stage("search"):
        return propose(
            request,
            basis,
            out=loop.folder,
            report=lambda done: loop.display.update(
                "search", done / measurements, f"{done} of {measurements} shapes measured"
            ),
        )


def train_confirmation(loop: Loop[LoopSettings], proposals: Proposals, corpus: Corpus) -> None:
    """Train the baseline and the proposals with a role, and measure their speed once more.

    The fastest proposal at even odds is trained where none is fast at the confidence. Their rows
    are added to the run table, and their new speeds to the record.
    """
    with loop.stage("confirmation"):
        roles = {p.role for p in proposals}
        trained = (LOSS_OPTIMAL, FAST if FAST in roles else EVEN, BASELINE)
        named = [p for p in proposals if p.role in trained]
        specs = confirmation_specs(
            loop.settings, [p.shape for p in named if isinstance(p.shape, Shape)]
        )
        confirmed = loop.train("confirmation", specs, corpus)
        runs = read_table(loop.runs)
        new = confirmed[~confirmed["run_id"].isin(runs["run_id"])]
        if len(new):
            write_runs(loop.runs, pd.concat([runs, new], ignore_index=True))
        _measure_again(loop, named)


def _measure_again(loop: Loop[LoopSettings], named: list[Proposal]) -> None:
    """Measure the output tokens/s of trained shapes in one session, if not recorded already."""
    record = read_loop_record(loop.record)
    if set(record.get("served", {})) == {p.name for p in named}:
        return
    results = engine_named("torch").measure_all(
        [p.shape for p in named if isinstance(p.shape, Shape)], PRESETS["proxy"]
    )
    served = {
        p.name: result.output_tokens_per_second
        for p, result in zip(named, results, strict=True)
        if isinstance(result, Measurement)
    }
    write_json(loop.record, record | {"served": served})


def write_loop_report(loop: Loop[LoopSettings]) -> Path:
    """Write the report of the loop and return its path."""
    with loop.stage("report"):
        return write_report(loop.folder)
