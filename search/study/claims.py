"""Claims of several workers on the shapes of one study, without locks.

No shape is measured twice, and no result of a dead worker is lost. Optuna numbers trials in one
order that all workers see. A worker records the row of its trial, waits until every older running
trial has recorded its row, and withdraws if an older trial has the same row, so that exactly one
worker measures it. A measuring worker counts heartbeats. If the process of a trial has ended, or
its count has not changed for :data:`STALE_SECONDS`, another worker ends the trial and enqueues its
row again, see :mod:`shapelaw.trainers.ledger.liveness`.
"""

import itertools
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict

import optuna
from optuna.trial import FrozenTrial, TrialState

from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.study.sampler import UNFINISHED, recorded_measurement, result_of, row_of
from shapelaw.search.study.storage import Address, retry_while_unreachable
from shapelaw.trainers.ledger.liveness import Heartbeat, Watch, is_gone, this_process

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
POLL_SECONDS = 0.05  # between two reads of the rows that other trials have recorded
WORKER, BEATS, SHAPE = "worker", "beats", "shape"  # user attributes of a trial


def results_by_row(
    problem: SearchProblem, trials: Iterable[FrozenTrial]
) -> dict[int, Measurement | str]:
    """Return the results of the finished trials of a study by row."""
    results: dict[int, Measurement | str] = {}
    for trial in trials:
        row, result = row_of(problem, trial), result_of(trial)
        if row is not None and result is not None:
            results[row] = result
    return results


class Claims:
    """The trials of one worker on a study.

    Parameters
    ----------
    study, problem
        The Optuna study, and the search problem that it belongs to.
    address
        Address of the storage, for errors.
    wanted
        Number of rows that all workers together measure.
    """

    def __init__(
        self, study: optuna.Study, problem: SearchProblem, address: Address, wanted: int
    ) -> None:
        self.study, self.problem, self.wanted = study, problem, wanted
        self._address = address
        self._watch = Watch(time.monotonic)
        self._mark = this_process().mark
        self._own_numbers: set[int] = set()

    def trials(self) -> list[FrozenTrial]:
        """Return all trials as the storage has them now."""
        return retry_while_unreachable(self._address, lambda: self.study.get_trials(deepcopy=False))

    def take(self) -> list[tuple[optuna.Trial, int]]:
        """Ask Optuna for a trial and claim its row.

        If an older trial or a result has the row already, the trial is withdrawn, and the nearest
        free shape is enqueued in its place.

        Returns
        -------
        The trial with its row, or an empty list.
        """
        trial = retry_while_unreachable(self._address, self.study.ask)
        self._own_numbers.add(trial.number)
        retry_while_unreachable(self._address, lambda: trial.set_user_attr(WORKER, self._mark))
        row = retry_while_unreachable(self._address, lambda: self._suggested_row(trial))
        name = self.problem.table[row].name
        retry_while_unreachable(self._address, lambda: trial.set_user_attr("row", row))
        retry_while_unreachable(self._address, lambda: trial.set_user_attr(SHAPE, name))
        taken, enqueued = self._rows_taken_before(trial.number)
        free = row not in taken and len(taken) < self.wanted
        if free and (enqueued or self.problem.allowed[row]):
            return [(trial, row)]
        self.withdraw([trial])
        if not enqueued and len(taken) < self.wanted:
            self._enqueue_nearest(row)
        return []

    def _suggested_row(self, trial: optuna.Trial) -> int:
        """Ask the sampler for the parameters of a trial; return the row that they select."""
        ends = self.problem.encoding.parameters
        return self.problem.encoding.row(
            lambda name: trial.suggest_int(name, *ends[name], log=True)
        )

    def _rows_taken_before(self, number: int) -> tuple[set[int], bool]:
        """Return the rows already measured or claimed, and whether the trial was enqueued.

        Blocks until every older running trial has recorded its row.
        """
        while True:
            self.recover()
            trials = {trial.number: trial for trial in self.trials()}
            older = [trial for trial in trials.values() if trial.number < number]
            rows = {trial.number: row_of(self.problem, trial) for trial in older}
            running = [trial for trial in older if trial.state == TrialState.RUNNING]
            if all(rows[trial.number] is not None for trial in running):
                claimed = [rows[trial.number] for trial in older if trial.state in UNFINISHED]
                results = results_by_row(self.problem, trials.values())
                enqueued = "fixed_params" in trials[number].system_attrs
                return {row for row in [*claimed, *results] if row is not None}, enqueued
            time.sleep(POLL_SECONDS)

    def _enqueue_nearest(self, row: int) -> None:
        free = self.problem.allowed.copy()
        free[list(self.busy())] = False
        if free.any():
            self.enqueue(self.problem.encoding.nearest(row, free.nonzero()[0]))

    def busy(self) -> set[int]:
        """Return the rows that are measured, being measured or enqueued."""
        trials = self.trials()
        claimed = {row_of(self.problem, trial) for trial in trials if trial.state in UNFINISHED}
        results = results_by_row(self.problem, trials)
        return {row for row in [*claimed, *results] if row is not None}

    def running(self) -> set[int]:
        """Return the rows that any worker measures now."""
        rows = {
            row_of(self.problem, trial)
            for trial in self.trials()
            if trial.state == TrialState.RUNNING
        }
        return {row for row in rows if row is not None}

    def enqueue(self, row: int) -> None:
        """Enqueue a row for the next worker that asks for a trial."""
        values = self.problem.encoding.values(row)
        retry_while_unreachable(self._address, lambda: self.study.enqueue_trial(values))

    def withdraw(self, trials: Sequence[optuna.Trial], *, again: bool = False) -> None:
        """End trials without a result.

        Parameters
        ----------
        again
            Enqueue their rows for the next worker that asks.
        """
        for trial in trials:
            row = trial.user_attrs.get("row")
            if self._end(trial.number) and again and row is not None:
                self.enqueue(int(row))

    def record(self, trial: optuna.Trial, row: int, result: Measurement | str) -> None:
        """End a trial with the engine's measurement, or its reason for refusing the shape."""
        if isinstance(result, str):
            retry_while_unreachable(self._address, lambda: trial.set_user_attr("reason", result))
            self.tell(trial.number, None)
            return
        broken = self.problem.constraints(row, result)
        retry_while_unreachable(self._address, lambda: trial.set_user_attr("constraints", broken))
        retry_while_unreachable(
            self._address, lambda: trial.set_user_attr("measurement", asdict(result))
        )
        self.tell(trial.number, self.problem.values(row, result))

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """End a trial with its values; None: as failed."""
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        retry_while_unreachable(self._address, lambda: self._tell(number, state, values))

    def recover(self) -> None:
        """End the trials of dead workers and enqueue their rows again."""
        running = {
            str(trial.number): trial
            for trial in self.trials()
            if trial.state == TrialState.RUNNING and trial.number not in self._own_numbers
        }
        beats = {name: trial.user_attrs.get(BEATS, -1) for name, trial in running.items()}
        still = self._watch.look(beats)
        for name, trial in running.items():
            if is_gone(trial.user_attrs.get(WORKER, "")) or still[name] > STALE_SECONDS:
                self._take_back(trial)

    def _take_back(self, trial: FrozenTrial) -> None:
        row, recorded = row_of(self.problem, trial), trial.user_attrs
        measurement = recorded_measurement(trial) if "measurement" in recorded else None
        if row is not None and measurement is not None:  # the worker died before it ended it
            self.tell(trial.number, self.problem.values(row, measurement))
        elif self._end(trial.number) and row is not None and "reason" not in recorded:
            self.enqueue(row)

    def _end(self, number: int) -> bool:
        """End a trial as failed; return False if another worker had ended it already."""
        return retry_while_unreachable(
            self._address, lambda: self._tell(number, TrialState.FAIL, None)
        )

    def _tell(self, number: int, state: TrialState, values: Sequence[float] | None) -> bool:
        try:
            self.study.tell(number, values, state=state)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return False  # another worker ended it first
        return True


def heartbeat_of(trials: Iterable[optuna.Trial]) -> Heartbeat:
    """Make a heartbeat that shows other workers that trials are being measured."""
    trials, counter = list(trials), itertools.count(1)

    def beat() -> bool:
        count = next(counter)
        with suppress(Exception):  # each storage raises other classes; a later beat succeeds
            for trial in trials:
                trial.set_user_attr(BEATS, count)
        return True

    return Heartbeat(beat, BEAT_SECONDS)
