"""Search a space in Optuna: the loss of every shape is known from the law, throughput is measured.

The space is enumerated, so feasibility is built into the parameters of the study, and no trial is
ever infeasible. Any number of workers may ask the same question of the same storage at once.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import optuna

from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.study.claims import Claims, heartbeat_of, known_rows
from shapelaw.search.study.problem import Question
from shapelaw.search.study.sampler import CALIBRATED, sampler_named
from shapelaw.search.study.storage import Address, closing, patiently
from shapelaw.search.time_model.model import Forecast, TimeModel

# Called with the number of measured shapes so far.
Report = Callable[[int], None]
WAIT = 0.2  # seconds between looks while other workers measure the last shapes


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Number and order of the shapes that a study measures.

    Attributes
    ----------
    measurements
        Distinct shapes to measure, by all workers together; at most all of the space.
    first
        Rows to measure before the sampler proposes any.
    sampler
        One of :data:`shapelaw.search.study.sampler.SAMPLERS`.
    together
        Shapes that a worker claims at once, so that their repeats take turns; None: as many as
        the engine loads at once.
    """

    measurements: int
    first: Sequence[int] = ()
    sampler: str = CALIBRATED
    seed: int = 0
    together: int | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """Results of a search: measured rows, and a time model for all the others.

    ``known`` holds for each row that was asked for its measurement, or the engine's reason why it
    cannot run the shape.
    """

    question: Question
    known: dict[int, Measurement | str]

    @property
    def measured(self) -> dict[int, Measurement]:
        """The rows that the engine ran."""
        return {row: found for row, found in self.known.items() if isinstance(found, Measurement)}

    @cached_property
    def model(self) -> TimeModel:
        """The time model fitted to everything measured."""
        rows = np.array(list(self.measured), dtype=int)
        return TimeModel.fit(
            self.question.table.take(rows),
            list(self.measured.values()),
            self.question.workload,
            device=self.question.device,
        )

    @cached_property
    def forecast(self) -> Forecast:
        """What the time model says of every row, the measured ones too."""
        return self.model.forecast(self.question.table)

    @property
    def is_measured(self) -> np.ndarray:
        """Mask of the rows that were measured, (n,); of all others only the forecast speaks."""
        mask = np.zeros(len(self.question.table), dtype=bool)
        mask[list(self.measured)] = True
        return mask

    @property
    def rates(self) -> np.ndarray:
        """Output tokens/s of every row, (n,): as measured, else as predicted."""
        rates = self.forecast.rate.copy()
        for row, found in self.measured.items():
            rates[row] = found.output_tokens_per_second
        return rates


def explore(
    question: Question,
    engine: Engine,
    effort: Effort,
    *,
    storage: Address,
    report: Report = lambda done: None,
) -> Found:
    """Measure the shapes that a study proposes, beside any other workers on the same study.

    Raises
    ------
    InputError
        There is no such sampler, or the storage's URL cannot be understood.
    WorkError
        The storage cannot be reached.
    """
    with closing(storage) as opened:
        opening = partial(open_study, question, engine, effort, opened)
        study = patiently(storage, opening, patience=0)
        possible = set(np.flatnonzero(question.allowed).tolist()) | set(effort.first)
        wanted = min(effort.measurements, len(possible))
        claims = Claims(study, question, storage, wanted)
        return Found(question=question, known=_searched(claims, engine, effort, report))


def _searched(
    claims: Claims, engine: Engine, effort: Effort, report: Report
) -> dict[int, Measurement | str]:
    """Claim and measure until the wanted rows are known."""
    inside = getattr(engine, "engine", engine)  # of one that keeps what it measured
    together = effort.together or int(getattr(inside, "together", 1))
    while True:
        claims.recover()
        known = known_rows(claims.question, claims.trials())
        report(len(known))
        if len(known) >= claims.wanted:
            return known
        left = claims.wanted - len(claims.running() | set(known))
        if left <= 0:  # others measure the last ones; if they die, their rows are free again
            time.sleep(WAIT)
            continue
        busy = claims.busy()
        for row in dict.fromkeys(effort.first):
            if row not in busy:
                claims.enqueue(row)
        taken: list[tuple[optuna.Trial, int]] = []
        try:
            for _ in range(min(together, left)):
                taken += claims.take()
            if taken:
                _measure(claims, taken, engine)
        except BaseException:  # whatever interrupts, no row stays claimed
            claims.withdraw([trial for trial, _ in taken], again=True)
            raise


def open_study(
    question: Question, engine: Engine, effort: Effort, storage: optuna.storages.BaseStorage
) -> optuna.Study:
    """The study of a question: made, or continued where it exists.

    Raises
    ------
    InputError
        There is no such sampler.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = sampler_named(effort.sampler, question, effort.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=study_name(question, engine),
            storage=storage,
            sampler=sampler,
            directions=question.directions,
            load_if_exists=True,
        )
        study.set_metric_names(question.metric_names)
    return study


def study_name(question: Question, engine: Engine) -> str:
    """The name under which all workers find the study of a question."""
    key = hashlib.sha256(question.grid.fields.tobytes() + question.losses.tobytes())
    key.update(json.dumps(question.identity(engine.label)).encode())
    return f"shapelaw-{key.hexdigest()[:12]}"


def _measure(claims: Claims, taken: Sequence[tuple[optuna.Trial, int]], engine: Engine) -> None:
    """Measure claimed rows in turns and record them."""
    question = claims.question
    with heartbeat_of(trial for trial, _ in taken):
        shapes = [question.table[row] for _, row in taken]
        results = engine.measure_all(shapes, question.workload)
    for (trial, row), result in zip(taken, results, strict=True):
        claims.record(trial, row, result)
