"""Several workers on one study: no shape is measured twice, and nothing of a dead worker is lost.

Optuna numbers trials in one order that all workers see. A worker announces the row of its trial,
waits until every older trial has announced its own, and gives way to an older one of the same row:
so one and only one of them measures it, without any lock. While it measures, it counts heartbeats;
a trial whose process is gone, or whose count was seen standing still, is taken back and its row
enqueued again, see :mod:`shapelaw.trainers.ledger.liveness`.
"""

import itertools
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict

import optuna
from optuna.trial import FrozenTrial, TrialState

from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.problem import Question
from shapelaw.search.study.sampler import LIVE, result_of, row_of
from shapelaw.search.study.storage import Address, patiently
from shapelaw.trainers.ledger.liveness import Heartbeat, Watch, is_gone, this_process

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
PAUSE = 0.05  # between two looks at what others announce
WORKER, BEATS = "worker", "beats"


def known_rows(question: Question, trials: Iterable[FrozenTrial]) -> dict[int, Measurement | str]:
    """What the finished trials of a study found, by row."""
    known: dict[int, Measurement | str] = {}
    for trial in trials:
        row, result = row_of(question, trial), result_of(trial)
        if row is not None and result is not None:
            known[row] = result
    return known


class Claims:
    """The trials that this worker has taken.

    Parameters
    ----------
    address
        Of the storage, for errors.
    wanted
        Rows that all workers together measure.
    """

    def __init__(
        self, study: optuna.Study, question: Question, address: Address, wanted: int
    ) -> None:
        self.study, self.question, self.wanted = study, question, wanted
        self._address = address
        self._watch = Watch(time.monotonic)
        self._mark = this_process().mark
        self._mine: set[int] = set()

    def trials(self) -> list[FrozenTrial]:
        """All trials, as the storage has them now."""
        return patiently(self._address, lambda: self.study.get_trials(deepcopy=False))

    def take(self) -> list[tuple[optuna.Trial, int]]:
        """Ask for a trial and claim its row; nothing where an older trial or a result has it.

        What was asked for in vain is withdrawn, and the nearest free shape enqueued in its place.
        """
        trial = patiently(self._address, self.study.ask)
        self._mine.add(trial.number)
        patiently(self._address, lambda: trial.set_user_attr(WORKER, self._mark))
        picks = lambda name: trial.suggest_float(name, 0.0, 1.0)  # noqa: E731
        row = patiently(self._address, lambda: self.question.grid.row(picks))
        patiently(self._address, lambda: trial.set_user_attr("row", row))
        taken, enqueued = self._taken_before(trial.number)
        free = row not in taken and len(taken) < self.wanted
        if free and (enqueued or self.question.allowed[row]):
            return [(trial, row)]
        self.withdraw([trial])
        if not enqueued and len(taken) < self.wanted:
            self._enqueue_nearest(row)
        return []

    def _taken_before(self, number: int) -> tuple[set[int], bool]:
        """Rows that are known or of older trials, once all of these have announced theirs.

        And whether the trial itself was enqueued.
        """
        while True:
            self.recover()
            trials = {trial.number: trial for trial in self.trials()}
            older = [trial for trial in trials.values() if trial.number < number]
            rows = {trial.number: row_of(self.question, trial) for trial in older}
            running = [trial for trial in older if trial.state == TrialState.RUNNING]
            if all(rows[trial.number] is not None for trial in running):
                live = [rows[trial.number] for trial in older if trial.state in LIVE]
                known = known_rows(self.question, trials.values())
                enqueued = "fixed_params" in trials[number].system_attrs
                return {row for row in [*live, *known] if row is not None}, enqueued
            time.sleep(PAUSE)

    def _enqueue_nearest(self, row: int) -> None:
        free = self.question.allowed.copy()
        free[list(self.busy())] = False
        if free.any():
            self.enqueue(self.question.grid.nearest(row, free.nonzero()[0]))

    def busy(self) -> set[int]:
        """Rows that are known, being measured or enqueued."""
        trials = self.trials()
        live = {row_of(self.question, trial) for trial in trials if trial.state in LIVE}
        known = known_rows(self.question, trials)
        return {row for row in [*live, *known] if row is not None}

    def running(self) -> set[int]:
        """Rows that some worker measures now."""
        rows = {
            row_of(self.question, trial)
            for trial in self.trials()
            if trial.state == TrialState.RUNNING
        }
        return {row for row in rows if row is not None}

    def enqueue(self, row: int) -> None:
        """Let the next worker that asks measure a row."""
        picks = self.question.grid.picks(row)
        patiently(self._address, lambda: self.study.enqueue_trial(picks))

    def withdraw(self, trials: Sequence[optuna.Trial], *, again: bool = False) -> None:
        """End trials without a result; ``again`` enqueues their rows for whoever comes next."""
        for trial in trials:
            row = trial.user_attrs.get("row")
            if self._end(trial.number) and again and row is not None:
                self.enqueue(int(row))

    def record(self, trial: optuna.Trial, row: int, result: Measurement | str) -> None:
        """End a trial with what the engine answered."""
        if isinstance(result, str):
            patiently(self._address, lambda: trial.set_user_attr("reason", result))
            self.tell(trial.number, None)
            return
        broken = self.question.constraints(row, result)
        patiently(self._address, lambda: trial.set_user_attr("constraints", broken))
        patiently(self._address, lambda: trial.set_user_attr("measurement", asdict(result)))
        self.tell(trial.number, self.question.values(row, result))

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """End a trial with its values, or as failed where there are none."""
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        patiently(self._address, lambda: self._tell(number, state, values))

    def recover(self) -> None:
        """Take back the trials of workers that are gone."""
        running = {
            str(trial.number): trial
            for trial in self.trials()
            if trial.state == TrialState.RUNNING and trial.number not in self._mine
        }
        beats = {name: trial.user_attrs.get(BEATS, -1) for name, trial in running.items()}
        still = self._watch.look(beats)
        for name, trial in running.items():
            if is_gone(trial.user_attrs.get(WORKER, "")) or still[name] > STALE_SECONDS:
                self._take_back(trial)

    def _take_back(self, trial: FrozenTrial) -> None:
        row, found = row_of(self.question, trial), trial.user_attrs
        if row is not None and "measurement" in found:  # it died just before the last word
            self.tell(trial.number, self.question.values(row, Measurement(**found["measurement"])))
        elif self._end(trial.number) and row is not None and "reason" not in found:
            self.enqueue(row)

    def _end(self, number: int) -> bool:
        """Whether it was this call that ended the trial."""
        return patiently(self._address, lambda: self._tell(number, TrialState.FAIL, None))

    def _tell(self, number: int, state: TrialState, values: Sequence[float] | None) -> bool:
        try:
            self.study.tell(number, values, state=state)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            return False  # somebody else ended it first
        return True


def heartbeat_of(trials: Iterable[optuna.Trial]) -> Heartbeat:
    """Make a heartbeat that shows others that these trials are being measured."""
    trials, counter = list(trials), itertools.count(1)

    def beat() -> bool:
        count = next(counter)
        with suppress(Exception):  # every storage raises its own classes; the next beat counts
            for trial in trials:
                trial.set_user_attr(BEATS, count)
        return True

    return Heartbeat(beat, BEAT_SECONDS)
