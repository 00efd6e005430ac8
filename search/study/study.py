"""The study of a search problem in Optuna: losses come from the law, throughput is measured.

The space is enumerated and encoded in the parameters of the study, so that every trial is a valid
shape. Any number of workers may run the same study in the same storage at once.
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
from shapelaw.search.study.claims import SHAPE, Claims, heartbeat_of, results_by_row
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.study.sampler import (
    CALIBRATED,
    check_sampler,
    distributions,
    result_of,
    row_of,
    sampler_named,
)
from shapelaw.search.study.storage import Address, opened_storage, retry_while_unreachable
from shapelaw.search.time_model.model import Forecast, TimeModel

Report = Callable[[int], None]  # called with the number of shapes measured so far
FORM = "values"  # of the parameters of a study: the fields of a shape
POLL_SECONDS = 0.2  # between two reads while other workers measure the last shapes


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
        Shapes that a worker claims at once, so that their repeats are interleaved; None: as many
        as the engine loads at once.

    Raises
    ------
    InputError
        No sampler has the name.
    """

    measurements: int
    first: Sequence[int] = ()
    sampler: str = CALIBRATED
    seed: int = 0
    together: int | None = None

    def __post_init__(self) -> None:
        check_sampler(self.sampler)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Results of a search: measured rows, and a time model for all other rows.

    Attributes
    ----------
    problem
        The search problem.
    results
        For each row given to the engine its measurement, or the reason why it cannot run the shape.
    """

    problem: SearchProblem
    results: dict[int, Measurement | str]

    @property
    def measured(self) -> dict[int, Measurement]:
        """Return the measurements by row, without the shapes that the engine refused."""
        return {row: each for row, each in self.results.items() if isinstance(each, Measurement)}

    @cached_property
    def model(self) -> TimeModel:
        """Return the time model fitted to all measurements."""
        rows = np.array(list(self.measured), dtype=int)
        return TimeModel.fit(
            self.problem.table.take(rows),
            list(self.measured.values()),
            self.problem.workload,
            device=self.problem.device,
        )

    @cached_property
    def forecast(self) -> Forecast:
        """Return the time model's prediction for every row, the measured ones included."""
        return self.model.forecast(self.problem.table)

    @property
    def rates(self) -> np.ndarray:
        """Return output tokens/s of every row, (n,): as measured, or else as predicted."""
        rates = self.forecast.rate.copy()
        for row, measurement in self.measured.items():
            rates[row] = measurement.output_tokens_per_second
        return rates


def explore(
    problem: SearchProblem,
    engine: Engine,
    effort: Effort,
    *,
    storage: Address,
    report: Report = lambda done: None,
) -> SearchResult:
    """Measure the shapes that a study proposes, together with other workers on the same study.

    Raises
    ------
    InputError
        The sampler does not exist, or the URL of the storage is invalid.
    WorkError
        The storage cannot be reached.
    """
    with opened_storage(storage) as opened:
        opening = partial(open_study, problem, engine, effort, opened)
        study = retry_while_unreachable(storage, opening, patience=0)
        possible = set(np.flatnonzero(problem.allowed).tolist()) | set(effort.first)
        wanted = min(effort.measurements, len(possible))
        claims = Claims(study, problem, storage, wanted)
        return SearchResult(
            problem=problem, results=_claim_and_measure(claims, engine, effort, report)
        )


def _claim_and_measure(
    claims: Claims, engine: Engine, effort: Effort, report: Report
) -> dict[int, Measurement | str]:
    """Claim and measure rows until all workers together have measured the wanted number."""
    measuring = getattr(engine, "engine", engine)  # inside a cached engine
    together = effort.together or int(getattr(measuring, "together", 1))
    while True:
        claims.recover()
        results = results_by_row(claims.problem, claims.trials())
        report(len(results))
        if len(results) >= claims.wanted:
            return results
        left = claims.wanted - len(claims.running() | set(results))
        if left <= 0:  # others measure the last rows; if they die, the rows are free again
            time.sleep(POLL_SECONDS)
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
        except BaseException:  # no row stays claimed after an interrupt
            claims.withdraw([trial for trial, _ in taken], again=True)
            raise


def open_study(
    problem: SearchProblem, engine: Engine, effort: Effort, storage: optuna.storages.BaseStorage
) -> optuna.Study:
    """Create the study of a search problem, or continue it where it exists.

    Raises
    ------
    InputError
        The sampler does not exist.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = sampler_named(effort.sampler, problem, effort.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=study_name(problem, engine),
            storage=storage,
            sampler=sampler,
            directions=problem.directions,
            load_if_exists=True,
        )
        study.set_metric_names(problem.metric_names)
    about = {"workload": str(problem.workload), "engine": engine.label, **problem.about}
    for name, text in about.items():
        if study.user_attrs.get(name) != text:
            study.set_user_attr(name, text)
    earlier = study_name(problem, engine, form="")
    if earlier in optuna.get_all_study_names(storage):
        _take_over(problem, optuna.load_study(study_name=earlier, storage=storage), study)
    return study


def study_name(problem: SearchProblem, engine: Engine, *, form: str = FORM) -> str:
    """Return the name under which all workers find the study of a search problem.

    Parameters
    ----------
    form
        Form of the parameters; empty: shares from 0 to 1, which earlier versions stored.
    """
    key = hashlib.sha256(problem.encoding.fields.tobytes() + problem.losses.tobytes())
    key.update(json.dumps(problem.identity(engine.label)).encode() + form.encode())
    return f"shapelaw-{key.hexdigest()[:12]}"


def _take_over(problem: SearchProblem, earlier: optuna.Study, study: optuna.Study) -> None:
    """Copy the results of a study whose parameters are shares, with the values of the shapes."""
    present = results_by_row(problem, study.get_trials(deepcopy=False))
    for trial in earlier.get_trials(deepcopy=False):
        row, result = row_of(problem, trial), result_of(trial)
        if row is None or row in present or result is None:
            continue
        values = problem.values(row, result) if isinstance(result, Measurement) else None
        study.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                values=values,
                params=problem.encoding.values(row),
                distributions={**distributions(problem)},
                user_attrs=trial.user_attrs | {SHAPE: problem.table[row].name},
                system_attrs={k: v for k, v in trial.system_attrs.items() if k != "fixed_params"},
            )
        )


def _measure(claims: Claims, taken: Sequence[tuple[optuna.Trial, int]], engine: Engine) -> None:
    """Measure claimed rows together and record their results."""
    problem = claims.problem
    with heartbeat_of(trial for trial, _ in taken):
        shapes = [problem.table[row] for _, row in taken]
        results = engine.measure_all(shapes, problem.workload)
    for (trial, row), result in zip(taken, results, strict=True):
        claims.record(trial, row, result)
