"""Several workers on first study, and workers that die."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

import shapelaw.search.study.claims
from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.claims import BEATS, WORKER, Claims, heartbeat_of, results_by_row
from shapelaw.search.study.sampler import result_of
from shapelaw.search.study.storage import open_storage, opened_storage
from shapelaw.search.study.study import Effort, explore, open_study
from support.made_up import MadeUpEngine, made_up_problem
from support.paths import ROOT, SUPPORT
from support.postgres import Server
from support.waiting import PATIENCE, wait_until

PROBLEM = made_up_problem()
WANTED = 10
ELSEWHERE = "second:boot:1/99/7"  # a process of another machine, whose life cannot be checked here


def opened(storage: object, wanted: int = WANTED) -> Claims:
    effort = Effort(measurements=wanted)
    study = open_study(PROBLEM, MadeUpEngine(), effort, storage)  # type: ignore[arg-type]
    return Claims(study, PROBLEM, storage, wanted)  # type: ignore[arg-type]


@pytest.fixture
def storage() -> optuna.storages.InMemoryStorage:
    return optuna.storages.InMemoryStorage()


class Workers:
    """Processes that run first study; those still running are killed at the end."""

    def __init__(self, storage: str, log: Path) -> None:
        self.storage, self.log, self.all = storage, log, []

    def start(self, seconds: float, wanted: int = WANTED) -> subprocess.Popen[str]:
        command = [sys.executable, str(SUPPORT / "search_workers.py")]
        root = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        environment = os.environ | {"PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}"}
        process = subprocess.Popen(
            [*command, self.storage, str(self.log), str(seconds), str(wanted)],
            stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.all.append(process)
        return process

    def lines(self, what: str) -> list[tuple[int, str]]:
        if not self.log.exists():
            return []
        parts = [line.split(" ", 2) for line in self.log.read_text().splitlines()]
        return [(int(process), shape) for process, kind, shape in parts if kind == what]

    def wait_for(self, what: str, process: subprocess.Popen[str], count: int = 1) -> None:
        def reached() -> bool:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            return sum(each == process.pid for each, _ in self.lines(what)) >= count

        wait_until(reached, f"{count} times {what} by a worker")

    def stop(self) -> None:
        for process in self.all:
            if process.poll() is None:
                process.kill()
            process.communicate()


def check_kill_of_one_of_two_workers(storage: str, log: Path) -> None:
    workers = Workers(storage, log)
    try:
        victim = workers.start(seconds=3600)  # the victim never ends its first measurement
        workers.wait_for("begin", victim)
        survivor = workers.start(seconds=0.05)
        workers.wait_for("end", survivor, count=2)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert survivor.wait(timeout=PATIENCE) == 0
        ended = Counter(shape for _, shape in workers.lines("end"))
        lost = {shape for process, shape in workers.lines("begin") if process == victim.pid}
    finally:
        workers.stop()
    with opened_storage(storage) as kept:
        trials = opened(kept).trials()
    rows = [
        trial.user_attrs["row"] for trial in trials if isinstance(result_of(trial), Measurement)
    ]
    assert len(rows) == len(set(rows)) == WANTED, "each row is recorded once"
    assert ended == Counter(str(PROBLEM.table[row]) for row in rows), "each row was measured once"
    assert lost <= set(ended), "the survivor measured the row that the victim had begun"
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    assert {5, 0} <= set(rows)


@pytest.mark.slow
@pytest.mark.xdist_group("postgres")
def test_result_on_postgresql_is_complete_after_one_of_two_workers_is_killed(
    postgres: Server, tmp_path: Path
) -> None:
    with postgres.connection() as connection:
        connection.execute("DROP DATABASE IF EXISTS search_killed")
        connection.execute("CREATE DATABASE search_killed")
    url = f"postgresql://ladder@127.0.0.1:{postgres.port}/search_killed"
    check_kill_of_one_of_two_workers(url, tmp_path / "log")


@pytest.mark.slow
def test_result_in_a_journal_is_complete_after_one_of_two_workers_is_killed(
    tmp_path: Path,
) -> None:
    check_kill_of_one_of_two_workers(str(tmp_path / "study.log"), tmp_path / "log")


@pytest.mark.slow
def test_two_workers_share_the_work_and_measure_nothing_twice(tmp_path: Path) -> None:
    workers = Workers(str(tmp_path / "study.log"), tmp_path / "log")
    try:
        both = [workers.start(seconds=0.3, wanted=12) for _ in range(2)]
        assert [process.wait(timeout=PATIENCE) for process in both] == [0, 0]
        ended = workers.lines("end")
    finally:
        workers.stop()
    assert len(ended) == len({shape for _, shape in ended}) == 12
    assert {process for process, _ in ended} == {process.pid for process in both}


def test_a_worker_gives_way_to_an_older_trial_of_the_same_row(
    storage: optuna.storages.InMemoryStorage,
) -> None:
    first, second = opened(storage), opened(storage)
    first.enqueue(7)
    second.enqueue(7)
    assert [row for _, row in first.take()] == [7]
    assert second.take() == []
    states = Counter(trial.state.name for trial in first.trials())
    assert states == {"RUNNING": 1, "FAIL": 1}, "no row is enqueued in place of the withdrawn first"


def test_row_that_another_worker_measures_is_not_claimed(
    storage: optuna.storages.InMemoryStorage,
) -> None:
    claims = [opened(storage) for _ in range(4)]
    rows = [row for each in claims for _, row in each.take()]
    assert len(set(rows)) == 4


def test_workers_claim_no_more_rows_than_wanted(storage: optuna.storages.InMemoryStorage) -> None:
    claims = [opened(storage, wanted=2) for _ in range(3)]
    assert [len(each.take()) for each in claims] == [1, 1, 0]


def left_behind(storage: object, **attributes: object) -> int:
    """Start a trial of a worker on another machine that never ends it; return its row."""
    claims = opened(storage)
    claims.enqueue(9)
    ((trial, row),) = claims.take()
    for name, value in ({WORKER: ELSEWHERE} | attributes).items():
        trial.set_user_attr(name, value)
    return row


def test_trial_of_another_machine_is_kept_until_its_heartbeat_stops(
    storage: optuna.storages.InMemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = left_behind(storage)
    claims = opened(storage)
    claims.recover()
    assert claims.running() == {row}
    monkeypatch.setattr(shapelaw.search.study.claims, "STALE_SECONDS", -1.0)
    claims.recover()
    assert claims.running() == set()
    assert claims.busy() == {row}, "the row is enqueued for the next worker"
    assert [taken for _, taken in claims.take()] == [row]


def test_trial_taken_back_by_two_workers_is_enqueued_once(
    storage: optuna.storages.InMemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(storage)
    first, second = opened(storage), opened(storage)
    stale = [trial for trial in second.trials() if trial.state == TrialState.RUNNING]
    monkeypatch.setattr(shapelaw.search.study.claims, "STALE_SECONDS", -1.0)
    first.recover()
    second._take_back(stale[0])
    waiting = [trial for trial in first.trials() if trial.state == TrialState.WAITING]
    assert len(waiting) == 1


@pytest.mark.parametrize("attribute", ["measurement", "reason"])
def test_result_of_a_worker_that_died_before_ending_its_trial_is_kept(
    storage: optuna.storages.InMemoryStorage, monkeypatch: pytest.MonkeyPatch, attribute: str
) -> None:
    found = MadeUpEngine().measure(PROBLEM.table[9], PROBLEM.workload)
    row = left_behind(
        storage, **{attribute: vars(found) if attribute == "measurement" else "too wide"}
    )
    monkeypatch.setattr(shapelaw.search.study.claims, "STALE_SECONDS", -1.0)
    claims = opened(storage)
    claims.recover()
    known = results_by_row(PROBLEM, claims.trials())
    assert known == {row: found if attribute == "measurement" else "too wide"}
    assert claims.busy() == {row}


def test_trial_of_a_dead_process_on_this_machine_is_taken_back_at_once(
    storage: optuna.storages.InMemoryStorage,
) -> None:
    from shapelaw.trainers.ledger.liveness import this_process

    machine = this_process().mark.rpartition("/")[0].rpartition("/")[0]
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    row = left_behind(storage, **{WORKER: f"{machine}/{gone.pid}/1"})
    claims = opened(storage)
    claims.recover()
    assert claims.running() == set()
    assert claims.busy() == {row}


def test_heartbeat_of_trials_counts_while_its_context_lasts(
    storage: optuna.storages.InMemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapelaw.search.study.claims, "BEAT_SECONDS", 0.01)
    claims = opened(storage)
    ((trial, _),) = claims.take()

    def beats() -> int:
        return int(claims.trials()[0].user_attrs.get(BEATS, 0))

    with heartbeat_of([trial]):
        wait_until(lambda: beats() >= 3, "three beats")
    last = beats()
    time.sleep(0.05)
    assert beats() == last


def test_heartbeat_of_trials_goes_on_after_an_error_of_the_storage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beats: list[int] = []

    def set_user_attr(name: str, value: int) -> None:
        beats.append(value)
        if len(beats) == 1:
            raise OSError("the storage is gone for a moment")

    monkeypatch.setattr(shapelaw.search.study.claims, "BEAT_SECONDS", 0.01)
    with heartbeat_of([SimpleNamespace(set_user_attr=set_user_attr)]):  # type: ignore[list-item]
        wait_until(lambda: len(beats) >= 3, "beats after the error")
    assert beats[:3] == [1, 2, 3]


def test_interrupted_batch_leaves_no_row_claimed(tmp_path: Path) -> None:
    class Stopping(MadeUpEngine):
        def measure_all(self, shapes: object, workload: object) -> list[Measurement | str]:
            raise KeyboardInterrupt

    path = tmp_path / "study.log"
    effort = Effort(measurements=6, first=[5, 0, 7], together=3)
    with pytest.raises(KeyboardInterrupt):
        explore(PROBLEM, Stopping(), effort, storage=path)
    claims = opened(open_storage(path))
    assert claims.running() == set()
    assert claims.busy() == {5, 0, 7}
    found = explore(PROBLEM, MadeUpEngine(), effort, storage=path)
    assert {5, 0, 7} <= set(found.results)
    assert len(found.results) == 6
