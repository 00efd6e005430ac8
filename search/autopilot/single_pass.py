"""The whole loop in one command: text -> proxies -> law -> search -> confirmation -> report.

Every stage leaves files and is skipped when they are there: a killed quickstart goes on where it
stopped, and ends with the same losses.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.files import nothing_left, read_json, write_json
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import load_runs, write_runs
from shapelaw.scaling.space.space import Space
from shapelaw.scaling.units import format_count
from shapelaw.search.autopilot.display import Display
from shapelaw.search.autopilot.record import LoopSettings, keep_record, locked_folder
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.candidate_set import Target
from shapelaw.search.proposals.pareto_search import propose
from shapelaw.search.proposals.proposal import (
    BASELINE,
    FAST,
    LOSS_OPTIMAL,
    Proposal,
    write_proposals,
)
from shapelaw.search.reports.loop_report import write_report
from shapelaw.search.workload import PRESETS
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.preparation import prepare
from shapelaw.trainers.ledger.entry import Entry
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.launchers._local import cores
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.spec import RunSpec, run_name

LAYERS = 4
HEAD_DIM = 16
ROPE_THETA = 500.0  # contexts are short: a small base keeps the slow frequencies useful
CONFIRMED = 200_000  # non-embedding parameters of the confirmatory models
CONFIRMED_RATIO = 10  # tokens per parameter
BASELINE_NAME = "llama-3.2-1b"
# N, tokens per parameter, hidden size, query heads, key-value heads; the MLP fills N up.
# Two sizes and two token counts; the logarithms of the shape ratios are nearly uncorrelated.
PROXIES = (
    (50_000, 20, 32, 4, 1),
    (50_000, 20, 32, 2, 2),
    (50_000, 20, 40, 4, 2),
    (50_000, 20, 48, 3, 1),
    (50_000, 20, 48, 1, 1),
    (50_000, 20, 48, 3, 3),
    (50_000, 20, 64, 2, 1),
    (50_000, 20, 72, 1, 1),
    (100_000, 10, 48, 6, 2),
    (100_000, 10, 64, 2, 2),
    (100_000, 10, 64, 5, 5),
    (100_000, 10, 96, 3, 1),
    (100_000, 20, 48, 2, 1),
    (100_000, 20, 56, 4, 1),
    (100_000, 20, 80, 4, 2),
    (100_000, 20, 96, 2, 1),
)
REPLICATE = 3  # the proxy that is trained from a second seed
SECONDS_PER_MEASUREMENT = 2.0  # first guesses for the time left, replaced by what is measured
FLOPS_PER_SECOND = 2e10
LARGER_IS_FASTER = 1.4  # FLOP/s of the confirmatory models over those of the proxies


def proxy_specs(settings: LoopSettings, vocab_size: int) -> list[RunSpec]:
    """The plan of the proxies: 16 shapes and one of them from a second seed.

    Long runs come first, so that the cores end together.
    """
    specs = []
    for size, ratio, hidden, heads, groups in PROXIES:
        shape = fill(size, hidden, heads, groups, vocab_size)
        specs.append(_spec(shape, round(size * ratio * settings.effort), settings.seed))
    repeated = specs[REPLICATE]
    seed = settings.seed + 1
    again = replace(repeated, seed=seed, run_id=run_name(repeated.shape, repeated.tokens, seed))
    return sorted([*specs, again], key=lambda spec: -spec.flops)


def fill(size: int, hidden: int, heads: int, groups: int, vocab_size: int) -> Shape:
    """The shape of the given heads whose MLP width comes closest to a non-embedding size."""

    def at(width: int) -> Shape:
        return Shape(
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=LAYERS,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=HEAD_DIM,
            vocab_size=vocab_size,
            qk_norm=True,
            rope_theta=ROPE_THETA,
        )

    per_width = at(2).n_non_embedding - at(1).n_non_embedding
    return at(max(1, round(1 + (size - at(1).n_non_embedding) / per_width)))


def _spec(shape: Shape, tokens: int, seed: int, role: str = "proxy") -> RunSpec:
    name = run_name(shape, tokens, seed)
    return RunSpec(run_id=name, shape=shape, tokens=tokens, recipe=Recipe(), seed=seed, role=role)


@dataclass(frozen=True)
class Loop:
    """One quickstart in a folder."""

    folder: Path
    settings: LoopSettings
    display: Display

    @property
    def work(self) -> Folder:
        """Corpus, ledger, checkpoints and weights."""
        return Folder(self.folder / "work")

    def corpus(self) -> Corpus:
        """Stage 1."""
        with self._stage("corpus"):
            source = self.settings.corpus
            corpus = prepare(source, self.work.corpus, vocab_size=self.settings.vocab_size)
            path = self.folder / "quickstart.json"
            about = {name: value for name, value in asdict(corpus).items() if name != "folder"}
            write_json(path, read_json(path) | {"corpus": about})
            return corpus

    def proxies(self, corpus: Corpus) -> pd.DataFrame:
        """Stage 2: the run table so far."""
        with self._stage("proxies"):
            runs = self._train("proxies", proxy_specs(self.settings, corpus.vocab_size), corpus)
            path = self.folder / "runs.csv"
            if not path.exists():
                write_runs(path, runs)
            return runs

    def law(self) -> Fit:
        """Stage 3: fit the proxies only, so that the confirmation is a test."""
        with self._stage("law"):
            runs = load_runs(self.folder / "runs.csv", where="role == 'proxy'")
            fitted = fit("conditional", runs, seed=self.settings.seed)
            fitted.save(self.folder / "fit.json")
            return fitted

    def search(self, fitted: Fit, corpus: Corpus) -> list[Proposal]:
        """Stage 4."""
        engine, workload = engine_named("torch"), PRESETS["proxy"]
        target = Target(
            space=Space(
                parameters=CONFIRMED,
                layers=(LAYERS,),
                head_dims=(HEAD_DIM,),
                vocab_size=corpus.vocab_size,
                hidden_step=8,
                mlp_step=2,
                tolerance=0.01,
                qk_norm=True,
                rope_theta=ROPE_THETA,
            ),
            tokens=self._confirmed_tokens(),
            workload=workload,
            engine=engine,
            baseline_name=BASELINE_NAME,
            baseline=shape_named(BASELINE_NAME),
        )
        with self._stage("search"):
            wanted = self.settings.measurements
            proposals = propose(
                fitted,
                target,
                storage=self.folder / "study.log",
                measurements=wanted,
                seed=self.settings.seed,
                report=lambda done: self.display.update(
                    "search", done / wanted, f"{done} of {wanted} shapes measured"
                ),
            )
            about = {
                "baseline": BASELINE_NAME,
                "workload": str(workload),
                "parameters": CONFIRMED,
                "tokens": target.tokens,
                "fit_sha256": fitted.data_sha256,
            }
            write_proposals(self.folder, proposals, about)
            return proposals

    def confirmation(self, proposals: list[Proposal], corpus: Corpus) -> None:
        """Stage 5: train the named proposals and add their rows to the run table."""
        with self._stage("confirmation"):
            named = [p for p in proposals if p.role in (LOSS_OPTIMAL, FAST, BASELINE)]
            seed, tokens = self.settings.seed, self._confirmed_tokens()
            specs = [_spec(p.shape, tokens, seed, "confirmation") for p in named]
            specs.sort(key=lambda spec: -spec.flops)
            confirmed = self._train("confirmation", specs, corpus)
            path = self.folder / "runs.csv"
            runs = pd.read_csv(path)
            new = confirmed[~confirmed["run_id"].isin(runs["run_id"])]
            if len(new):
                write_runs(path, pd.concat([runs, new], ignore_index=True))

    def report(self) -> Path:
        """Stage 6."""
        with self._stage("report"):
            return write_report(self.folder)

    def _confirmed_tokens(self) -> int:
        return round(CONFIRMED * CONFIRMED_RATIO * self.settings.effort)

    def _train(self, stage: str, specs: list[RunSpec], corpus: Corpus) -> pd.DataFrame:
        def report(entries: list[Entry]) -> None:
            self.display.training(stage, entries)

        return run_plan(specs, corpus, self.work, workers=self.settings.workers, report=report)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Show a stage and add its seconds to the record."""
        self.display.update(name, 0.0, "")
        begun = time.perf_counter()
        yield
        path = self.folder / "quickstart.json"
        record = read_json(path)
        seconds = record["stage_seconds"]
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
        write_json(path, record)
        self.display.finished(name)


def quickstart(folder: Path, settings: LoopSettings, display: Display) -> Path:
    """Run the loop in a folder, or go on with it; returns the path of the report.

    Raises
    ------
    InputError
        The folder holds a quickstart with other settings, or the corpus cannot be used.
    WorkError
        Another quickstart runs there, the disk is full, or a run failed.
    """
    with nothing_left(folder), locked_folder(folder):
        keep_record(folder, settings)
        workers = settings.workers or cores()
        display.forecast(_forecast(settings, workers))
        loop = Loop(folder, settings, display)
        corpus = loop.corpus()
        loop.proxies(corpus)
        fitted = loop.law()
        proposals = loop.search(fitted, corpus)
        loop.confirmation(proposals, corpus)
        return loop.report()


def _forecast(settings: LoopSettings, workers: int) -> dict[str, float]:
    """First guess of each stage's seconds."""
    vocabulary = settings.vocab_size or 256
    proxies = sum(spec.flops for spec in proxy_specs(settings, vocabulary))
    confirmed = fill(CONFIRMED, 64, 4, 1, vocabulary).training_flops(Recipe().context_length)
    tokens = CONFIRMED * CONFIRMED_RATIO * settings.effort
    rounds = -(-3 // workers)
    return {
        "corpus": 3.0,
        "proxies": proxies / FLOPS_PER_SECOND / workers,
        "law": 12.0,
        "search": SECONDS_PER_MEASUREMENT * settings.measurements,
        "confirmation": rounds * confirmed * tokens / FLOPS_PER_SECOND / LARGER_IS_FASTER,
        "report": 5.0,
    }


def in_short(folder: Path) -> str:
    """Where to look next."""
    return (
        f"{folder}/report.html has the whole story; the law refits with\n"
        f"  shapelaw fit {folder}/runs.csv --where \"role == 'proxy'\" --out {folder}/fit.json\n"
        f"  shapelaw report {folder}\n"
        f"(target: {format_count(CONFIRMED)} non-embedding parameters)"
    )
