import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.ledger import claims
from shapelaw.trainers.ledger import ledger as ledger_module
from shapelaw.trainers.ledger.claims import STALE_SECONDS
from shapelaw.trainers.ledger.entry import DIVERGED, DONE, FAILED, PLANNED, RUNNING
from shapelaw.trainers.ledger.ledger import BEAT_PAUSE, Ledger
from shapelaw.trainers.ledger.liveness import ProcessId, this_process
from shapelaw.trainers.ledger.store import Interrupted, LedgerUnreachable
from shapelaw.trainers.training.spec import RunSpec
from support.ledgers import plan, spec, states
from support.postgres import Server

DAY = 86_400.0
ELSEWHERE = ProcessId(host="elsewhere", pid=1, mark="elsewhere:boot:1/1/1")
Opened = Callable[..., Ledger]


class Clock:
    """Monotonic clock that a test advances."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def claimed_names(ledger: Ledger) -> list[str]:
    names = []
    while (run := ledger.claim()) is not None:
        names.append(run.run_id)
    return names


@pytest.fixture
def dead_pid() -> int:
    """Return the id of a process that has ended and was waited for."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every worker a process of another machine, whose state is unknown."""
    monkeypatch.setattr(claims, "this_process", lambda: ELSEWHERE)


def watch_until(ledger: Ledger, clock: Clock, seconds: float) -> RunSpec | None:
    """Try to claim a run once a second, for at most the given seconds."""
    end = clock.seconds + seconds
    while clock.seconds < end:
        clock.seconds += 1.0
        if (run := ledger.claim()) is not None:
            return run
    return None


def lose_answers(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Commit every transaction and lose its first answer."""
    attempt = ledger._store._attempt
    lost: list[int] = []

    def first_answer_lost(work: Any, seconds: float, write: bool) -> Any:
        result = attempt(work, seconds, write)
        if write:
            lost.append(1 - lost[-1] if lost else 1)
            if lost[-1]:
                raise Interrupted("the connection broke at the commit")
        return result

    monkeypatch.setattr(ledger._store, "_attempt", first_answer_lost)
    return lost


def unreachable(*_: object) -> None:
    raise Interrupted("the server is away")


class LedgerContract:
    """Contract of a ledger, for every store."""

    @pytest.fixture
    def address(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def opened(self, address: str) -> Opened:
        """Open the ledger of a test as a further worker."""
        name = f"sweep {uuid.uuid4()}"
        return lambda **options: Ledger(address, **({"sweep": name} | options))

    def test_planned_runs_keep_the_order_of_the_plan(self, opened: Opened) -> None:
        ledger = plan(opened(), "cab")
        entries = ledger.entries()
        assert [entry.run_id for entry in entries] == ["c", "a", "b"]
        assert states(ledger) == dict.fromkeys("cab", PLANNED)
        assert {(entry.steps, entry.step, entry.attempts) for entry in entries} == {(10, 0, 0)}
        assert entries[0].flops == spec("c").flops
        assert {(entry.started, entry.heartbeat_age) for entry in entries} == {(None, None)}
        assert ledger.table().empty

    def test_runs_are_claimed_once_in_the_order_of_the_plan(self, opened: Opened) -> None:
        ledger = plan(opened(), "cab")
        assert claimed_names(ledger) == ["c", "a", "b"]
        assert states(ledger) == dict.fromkeys("cab", RUNNING)
        assert ledger.claim() is None

    def test_further_runs_that_fit_are_claimed_under_the_first_claim(self, opened: Opened) -> None:
        ledger = plan(opened(), "abcde")
        first = ledger.claim()
        assert first is not None
        more = ledger.claim_more(first, lambda run: run.run_id != "c", 2)
        assert [run.run_id for run in more] == ["b", "d"]
        assert states(ledger) == {
            "a": RUNNING, "b": RUNNING, "c": PLANNED, "d": RUNNING, "e": PLANNED,
        }  # fmt: skip
        assert claimed_names(opened()) == ["c", "e"]
        assert all(ledger.beat(name, 1) for name in "abd")
        assert ledger.finish("b", {"run_id": "b"})
        ledger.give_back()
        assert not ledger.beat("a", 2)

    def test_runs_claimed_together_are_given_back_together(self, opened: Opened) -> None:
        ledger = plan(opened(), "abcd")
        first = ledger.claim()
        assert first is not None
        ledger.claim_more(first, lambda run: True, 2)
        assert ledger.finish("b", {"run_id": "b"})
        ledger.give_back()
        assert states(ledger) == {"a": PLANNED, "b": DONE, "c": PLANNED, "d": PLANNED}

    def test_runs_claimed_together_are_claimed_once_if_answers_are_lost(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = plan(opened(), "abcd")
        lose_answers(ledger, monkeypatch)
        first = ledger.claim()
        assert first is not None
        more = ledger.claim_more(first, lambda run: True, 2)
        assert [run.run_id for run in more] == ["b", "c"]
        assert {entry.attempts for entry in ledger.entries()} == {0, 1}
        assert states(ledger)["d"] == PLANNED

    def test_all_runs_of_a_dead_worker_are_claimed_together(
        self, opened: Opened, dead_pid: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            gone = this_process()
            mark = "/".join((gone.mark.rpartition("/")[0].rpartition("/")[0], str(dead_pid), "1"))
            patched.setattr(
                claims, "this_process",
                lambda: ProcessId(host=gone.host, pid=dead_pid, mark=mark),
            )  # fmt: skip
            dead = plan(opened(), "abcd")
            lost = dead.claim()
            assert lost is not None
            assert len(dead.claim_more(lost, lambda run: True, 2)) == 2
        ledger = opened()
        first = ledger.claim()
        assert first is not None
        more = ledger.claim_more(first, lambda run: True, 8)
        assert [first.run_id, *(run.run_id for run in more)] == ["a", "b", "c", "d"]
        assert not any(dead.beat(name, 1) for name in "abc")

    def test_a_claim_returns_the_planned_spec(self, opened: Opened) -> None:
        assert plan(opened(), "a").claim() == spec("a")

    def test_a_run_goes_from_planned_to_done(self, opened: Opened) -> None:
        ledger = plan(opened())
        ledger.claim()
        assert ledger.beat("a", 4)
        assert ledger.entries()[0].step == 4
        row = {"run_id": "a", "loss": 2.125, "status": "done"}
        assert ledger.finish("a", dict(row))
        entry = ledger.entries()[0]
        assert (entry.state, entry.step, entry.message) == (DONE, 10, None)
        assert ledger.table().to_dict("records") == [row]

    def test_an_entry_has_owner_times_and_speed(self, opened: Opened) -> None:
        clock, before = Clock(), time.time()
        ledger = plan(opened(clock=clock), "ab")
        ledger.claim()
        ledger.beat("a", 0)
        clock.seconds += 100.0  # a compilation
        ledger.beat("a", 2)
        clock.seconds += 4.0
        ledger.beat("a", 4)
        entry, waiting = ledger.entries()
        process = this_process()
        assert (entry.owner, entry.host, entry.pid) == (ledger.owner, process.host, process.pid)
        assert (entry.attempts, entry.speed, entry.seconds_left) == (1, 0.5, 12.0)
        assert entry.heartbeat_age == pytest.approx(0.0, abs=5.0)
        assert entry.started == pytest.approx(before, abs=5.0)
        assert entry.ended is None
        assert (waiting.owner, waiting.seconds_left) == (None, None)
        ledger.finish("a", {"run_id": "a"})
        entry = ledger.entries()[0]
        assert entry.ended >= entry.started  # type: ignore[operator]
        assert (entry.speed, entry.seconds_left, entry.heartbeat_age) == (None, None, None)

    def test_a_diverged_run_has_a_row_without_a_loss(self, opened: Opened) -> None:
        ledger = plan(opened())
        ledger.claim()
        ledger.diverge("a", "training loss is nan at step 3", {"run_id": "a", "status": "diverged"})
        ledger.claim()
        ledger.finish("b", {"run_id": "b", "loss": 2.5, "status": "done"})
        entry = ledger.entries()[0]
        assert (entry.state, entry.message) == (DIVERGED, "training loss is nan at step 3")
        assert "loss" not in entry.row  # type: ignore[operator]
        table = ledger.table().set_index("run_id")
        assert table["loss"].isna().to_dict() == {"a": True, "b": False}
        assert table["status"].to_dict() == {"a": "diverged", "b": "done"}
        assert ledger.retry() == 0
        assert ledger.entries()[0].state == DIVERGED, "it would only diverge again"

    def test_a_failed_run_is_claimed_again_only_after_a_retry(self, opened: Opened) -> None:
        ledger = plan(opened(), "a")
        ledger.claim()
        ledger.fail("a", "OSError: no such file")
        entry = ledger.entries()[0]
        assert (entry.state, entry.message, entry.row) == (FAILED, "OSError: no such file", None)
        assert ledger.claim() is None
        assert ledger.retry() == 1
        entry = ledger.entries()[0]
        assert (entry.state, entry.message, entry.started, entry.ended) == (PLANNED, *[None] * 3)
        assert claimed_names(ledger) == ["a"]
        ledger.finish("a", {"run_id": "a"})
        entry = ledger.entries()[0]
        assert (entry.state, entry.message, entry.attempts) == (DONE, None, 2)

    def test_a_retry_is_restricted_to_the_named_states_and_runs(self, opened: Opened) -> None:
        ledger = plan(opened(), "abcd")
        claimed_names(ledger)
        ledger.fail("a", "x")
        ledger.fail("b", "x")
        ledger.diverge("c", "nan", {"run_id": "c"})
        ledger.finish("d", {"run_id": "d"})
        assert ledger.retry(run_ids=["b", "d", "none of these"]) == 1
        assert states(ledger) == {"a": FAILED, "b": PLANNED, "c": DIVERGED, "d": DONE}
        assert ledger.retry(states=[FAILED, DIVERGED]) == 2
        assert states(ledger) == {"a": PLANNED, "b": PLANNED, "c": PLANNED, "d": DONE}
        assert ledger.table()["run_id"].tolist() == ["d"]

    @pytest.mark.parametrize("state", [DONE, RUNNING, "broken"])
    def test_retry_of_a_state_other_than_failed_or_diverged_is_refused(
        self, opened: Opened, state: str
    ) -> None:
        with pytest.raises(InputError, match=f"must be failed or diverged, but got '{state}'"):
            opened().retry(states=[state])

    def test_planning_again_keeps_states_and_adds_new_runs(self, opened: Opened) -> None:
        ledger = plan(opened(), "ab")
        ledger.claim()
        ledger.finish("a", {"run_id": "a"})
        plan(opened(), "abc")
        assert states(ledger) == {"a": DONE, "b": PLANNED, "c": PLANNED}
        assert [entry.run_id for entry in ledger.entries()] == ["a", "b", "c"]

    def test_other_settings_under_one_name_are_refused_and_nothing_is_planned(
        self, opened: Opened
    ) -> None:
        ledger = plan(opened(), "a")
        with pytest.raises(InputError, match=r"run 'a' with other settings .* another run_id"):
            ledger.plan([spec("new"), spec("a", tokens=99_999)], ["new", "another identity"])
        assert states(ledger) == {"a": PLANNED}
        assert ledger.claim() == spec("a")

    @pytest.mark.parametrize(("runs", "owners"), [(1, 5), (7, 2), (12, 4)])
    def test_concurrent_owners_never_claim_a_run_twice(
        self, address: str, runs: int, owners: int
    ) -> None:
        names = [f"run-{number}" for number in range(runs)]
        sweep, together = str(uuid.uuid4()), threading.Barrier(owners)

        def work(_: int) -> list[str]:
            ledger = Ledger(address, sweep=sweep)
            together.wait()
            ledger.plan([spec(name) for name in names], names)
            return claimed_names(ledger)

        with ThreadPoolExecutor(owners) as pool:
            found = [name for part in pool.map(work, range(owners)) for name in part]
        assert sorted(found) == sorted(names)
        entries = Ledger(address, sweep=sweep).entries()
        assert [entry.run_id for entry in entries] == names
        assert {entry.attempts for entry in entries} == {1}

    def test_two_processes_never_claim_a_run_twice(self, address: str) -> None:
        names = [f"{number:02d}" for number in range(30)]
        sweep = str(uuid.uuid4())
        Ledger(address, sweep=sweep).plan([spec(name) for name in names], names)
        # Both processes live until both are done, because rows of an ended process are taken over.
        script = (
            "import sys, json; from shapelaw.trainers.ledger.ledger import Ledger\n"
            "ledger = Ledger(sys.argv[1], sweep=sys.argv[2]); print('ready', flush=True); input()\n"
            "runs = iter(ledger.claim, None); print(json.dumps([run.run_id for run in runs]))\n"
            "sys.stdout.flush(); input()\n"
        )
        command = [sys.executable, "-c", script, address, sweep]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        owners = [subprocess.Popen(command, **pipes) for _ in range(2)]
        for owner in owners:
            assert owner.stdout.readline() == "ready\n"
        for owner in owners:
            owner.stdin.write("\n")
            owner.stdin.flush()
        found = [json.loads(owner.stdout.readline()) for owner in owners]
        for owner in owners:
            owner.communicate("\n")
        assert sorted(found[0] + found[1]) == names

    def test_the_run_of_a_dead_process_is_taken_over_at_once(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch, dead_pid: int
    ) -> None:
        dead, living = plan(opened(), "ab"), opened()
        mark = this_process().mark.split("/")
        gone = ProcessId(host="here", pid=dead_pid, mark=f"{mark[0]}/{dead_pid}/{mark[2]}")
        with monkeypatch.context() as patch:
            patch.setattr(claims, "this_process", lambda: gone)
            assert dead.claim() == spec("a")
        assert claimed_names(living) == ["a", "b"], "what was begun comes before what is planned"
        assert not dead.beat("a", 3)
        assert living.beat("a", 3)
        assert living.entries()[0].attempts == 2

    def test_a_living_run_is_not_taken_over(self, opened: Opened) -> None:
        first, second = plan(opened(), "a"), opened()
        first.claim()
        assert second.claim() is None
        assert first.beat("a", 1)
        assert not second.beat("a", 1)

    def test_a_run_whose_heartbeat_has_stopped_is_taken_over(self, opened: Opened) -> None:
        clock = Clock()
        first, second = plan(opened(), "a"), opened(clock=clock)
        first.claim()
        assert watch_until(second, clock, STALE_SECONDS - 1) is None
        first.beat("a", 1)
        assert watch_until(second, clock, STALE_SECONDS) is None, "it gave a sign of life"
        assert watch_until(second, clock, 5) == spec("a")
        assert not first.beat("a", 2)

    @pytest.mark.usefixtures("elsewhere")
    @pytest.mark.parametrize("jump", [-DAY, DAY, -20 * 365 * DAY])
    def test_a_jump_of_the_clock_takes_no_run_from_a_living_worker(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch, jump: float
    ) -> None:
        clock, wall = Clock(), time.time()
        first, second = plan(opened(clock=clock), "a"), opened(clock=clock)
        first.claim()
        for second_gone in range(40):
            clock.seconds += 1.0
            jumped = wall + second_gone + (jump if second_gone % 7 > 3 else 0.0)
            monkeypatch.setattr(time, "time", lambda now=jumped: now)
            assert second.claim() is None
            assert first.beat("a", 0)
            assert second.entries()[0].heartbeat_age >= 0.0  # type: ignore[operator]
        assert first.finish("a", {"run_id": "a"})

    @pytest.mark.usefixtures("elsewhere")
    @pytest.mark.parametrize("jump", [-DAY, DAY])
    def test_a_dead_worker_is_detected_after_a_jump_of_the_clock(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch, jump: float
    ) -> None:
        clock, wall = Clock(), time.time()
        first, second = plan(opened(), "a"), opened(clock=clock)
        monkeypatch.setattr(time, "time", lambda: wall + jump)
        first.claim()  # its last heartbeat has a time of tomorrow or of yesterday
        monkeypatch.setattr(time, "time", lambda: wall)
        assert watch_until(second, clock, STALE_SECONDS) is None
        assert watch_until(second, clock, 5) == spec("a")

    @pytest.mark.usefixtures("elsewhere")
    def test_time_in_which_the_observer_slept_does_not_count(self, opened: Opened) -> None:
        clock = Clock()
        first, second = plan(opened(), "a"), opened(clock=clock)
        first.claim()
        assert second.claim() is None
        clock.seconds += DAY  # the whole machine was frozen, the worker too
        assert second.claim() is None
        assert first.beat("a", 1)

    @pytest.mark.parametrize("end", ["finish", "fail", "diverge", "note", "release"])
    def test_only_the_owner_changes_a_run(self, opened: Opened, end: str) -> None:
        first, second = plan(opened(), "a"), opened()
        first.claim()
        assert second.claim(alive_after=-1.0) == spec("a")
        ends: dict[str, Callable[[Ledger], bool]] = {
            "finish": lambda ledger: ledger.finish("a", {"run_id": "a", "loss": 1.0}),
            "fail": lambda ledger: ledger.fail("a", "late"),
            "diverge": lambda ledger: ledger.diverge("a", "late", {"run_id": "a"}),
            "note": lambda ledger: ledger.note("a", "late"),
            "release": lambda ledger: ledger.release("a"),
        }
        assert not ends[end](first)
        assert not ends[end](opened()), "a worker that never had it"
        entry = second.entries()[0]
        assert (entry.state, entry.row, entry.message, entry.note) == (RUNNING, None, None, None)
        assert second.finish("a", {"run_id": "a", "loss": 2.0})
        assert second.table()["loss"].tolist() == [2.0]
        assert not second.fail("a", "twice"), "a run ends once"
        assert states(second) == {"a": DONE}

    def test_a_repeated_note_is_stored_once(self, opened: Opened) -> None:
        ledger = plan(opened(), "a")
        ledger.claim()
        for text in ("compile failed; eager", "began again at step 0", "compile failed; eager"):
            assert ledger.note("a", text)
        ledger.finish("a", {"run_id": "a"})
        entry = ledger.entries()[0]
        assert entry.note == "compile failed; eager\nbegan again at step 0"
        assert (entry.state, entry.message) == (DONE, None)

    def test_a_run_with_branches_has_a_row_for_each(self, opened: Opened) -> None:
        ledger = plan(opened(), "abc")
        claimed_names(ledger)
        branches: list[dict[str, object]] = [{"run_id": "a-1", "loss": 3.0}, {"run_id": "a"}]
        assert ledger.finish("a", branches)
        assert ledger.finish("b", {"run_id": "b"})
        assert [len(entry.rows) for entry in ledger.entries()] == [2, 1, 0]
        assert ledger.table()["run_id"].tolist() == ["a-1", "a", "b"]

    def test_a_released_run_is_claimed_next(self, opened: Opened) -> None:
        first, second = plan(opened(), "ab"), opened()
        first.claim()
        assert first.release("a")
        assert not first.beat("a", 1)
        assert claimed_names(second) == ["a", "b"]

    def test_give_back_returns_only_the_last_claim(self, opened: Opened) -> None:
        first, second = plan(opened(), "abc"), opened()
        first.give_back()  # nothing was claimed
        for name in "abc":
            claimed = first.claim()
            assert claimed is not None
            if name == "a":
                first.finish("a", {"run_id": "a"})
        first.give_back()
        states = {entry.run_id: entry.state for entry in second.entries()}
        assert states == {"a": DONE, "b": RUNNING, "c": PLANNED}

    def test_records_are_present_after_opening_again(self, opened: Opened) -> None:
        ledger = plan(opened(), "ab")
        ledger.claim()
        row: dict[str, object] = {"run_id": "a", "loss": 2.0 / 3, "qk_norm": True, "tokens": 10**13}
        ledger.finish("a", row)
        again = opened()
        assert again.entries()[0].row == row
        assert again.owner != ledger.owner

    def test_any_text_is_accepted_as_a_message(self, opened: Opened) -> None:
        ledger = plan(opened(), "a")
        ledger.claim()
        ledger.fail("a", "Ü: 'quoted' \"x\" %s :name \0 \ud800 \n;--")
        assert ledger.entries()[0].message == "Ü: 'quoted' \"x\" %s :name  ? \n;--"

    def test_sweeps_in_one_store_are_independent(self, opened: Opened) -> None:
        first, second = plan(opened(), "ab"), opened(sweep=f"another {uuid.uuid4()}")
        assert second.claim() is None
        second.plan([spec("a", tokens=99_999)], ["another identity of the same name"])
        claimed_names(first)
        first.finish("a", {"run_id": "a"})
        assert states(second) == {"a": PLANNED}
        assert states(first) == {"a": DONE, "b": RUNNING}

    def test_nothing_is_doubled_or_lost_if_the_answer_to_a_commit_is_lost(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = plan(opened(), "a")
        lost = lose_answers(ledger, monkeypatch)
        plan(ledger, "abc")
        assert claimed_names(ledger) == ["a", "b", "c"]
        assert ledger.beat("a", 3)
        assert ledger.note("a", "remark")
        assert ledger.finish("a", {"run_id": "a", "loss": 1.0})
        assert ledger.fail("b", "broken")
        assert ledger.diverge("c", "nan", {"run_id": "c"})
        entries = ledger.entries()
        assert [entry.state for entry in entries] == [DONE, FAILED, DIVERGED]
        assert [entry.attempts for entry in entries] == [1, 1, 1]
        assert entries[0].note == "remark"
        ledger.retry()
        assert states(ledger) == {"a": DONE, "b": PLANNED, "c": DIVERGED}
        assert sum(lost) == 11, "one answer of every change"

    def test_heartbeats_are_skipped_while_the_ledger_is_out_of_reach(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        ledger = plan(opened(clock=clock, patience=60.0), "a")
        ledger.claim()
        monkeypatch.setattr(ledger_module, "BEAT_PATIENCE", 0.05)
        with monkeypatch.context() as patch:
            patch.setattr(ledger._store, "_attempt", unreachable)
            for _ in range(10):
                assert ledger.beat("a", 1)
                clock.seconds += BEAT_PAUSE
        assert ledger.beat("a", 2)
        assert ledger.entries()[0].step == 2
        monkeypatch.setattr(ledger._store, "_attempt", unreachable)
        clock.seconds += 61.0
        with pytest.raises(LedgerUnreachable, match="the server is away"):
            ledger.beat("a", 3)

    def test_a_ledger_out_of_reach_is_an_error_after_its_patience(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ledger = opened(patience=0.2)
        monkeypatch.setattr(ledger._store, "_attempt", unreachable)
        with pytest.raises(LedgerUnreachable, match=r"for 0.2 s \(the server is away\)"):
            ledger.claim()


class TestSQLite(LedgerContract):
    @pytest.fixture
    def address(self, tmp_path: Path) -> str:
        return str(tmp_path / "deep" / "ledger.sqlite")

    def test_a_path_is_accepted_as_address(self, tmp_path: Path) -> None:
        plan(Ledger(tmp_path / "ledger.sqlite"))
        assert len(Ledger(str(tmp_path / "ledger.sqlite")).entries()) == 3


@pytest.mark.xdist_group("postgres")
class TestPostgres(LedgerContract):
    @pytest.fixture
    def address(self, postgres: Server) -> str:
        return postgres.url().partition("?")[0]

    def test_the_sweep_is_read_from_the_url(self, postgres: Server, address: str) -> None:
        plan(Ledger(postgres.url("named in the URL").replace(" ", "%20")))
        assert len(Ledger(address, sweep="named in the URL").entries()) == 3

    @pytest.mark.usefixtures("elsewhere")
    def test_a_heartbeat_at_the_last_moment_prevents_a_takeover(
        self, address: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock()
        first = plan(Ledger(address, sweep="last moment"), "a")
        second = Ledger(address, sweep="last moment", clock=clock)
        first.claim()
        assert watch_until(second, clock, STALE_SECONDS) is None
        dead = second._claimant._dead

        def then_it_beats(session: Any, alive_after: float) -> Any:
            found = dead(session, alive_after)
            assert [row["run_id"] for row in found] == ["a"]
            assert first.beat("a", 1)
            return found

        monkeypatch.setattr(second._claimant, "_dead", then_it_beats)
        clock.seconds += 2.0
        assert second.claim() is None
        assert first.finish("a", {"run_id": "a"})

    def test_a_row_locked_by_another_session_is_skipped(
        self, postgres: Server, address: str
    ) -> None:
        ledger = plan(Ledger(address, sweep="held"), "ab")
        with postgres.connection() as other, other.transaction():
            other.execute(
                "SELECT * FROM shapelaw_runs WHERE sweep = 'held' AND run_id = 'a' FOR UPDATE"
            )
            assert ledger.claim() == spec("b")
            assert ledger.claim() is None
        assert ledger.claim() == spec("a")

    def test_a_heartbeat_waits_only_briefly_for_a_locked_row(
        self, postgres: Server, address: str
    ) -> None:
        ledger = plan(Ledger(address, sweep="locked"), "a")
        ledger.claim()
        with postgres.connection() as other, other.transaction():
            other.execute("SELECT * FROM shapelaw_runs WHERE sweep = 'locked' FOR UPDATE")
            assert ledger.beat("a", 1)
        assert ledger.finish("a", {"run_id": "a"})
