import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.errors import InputError, WorkError
from scaling.shape import Shape
from trainers.ledger import (
    DIVERGED,
    DONE,
    FAILED,
    PLANNED,
    RUNNING,
    STALE_SECONDS,
    Ledger,
)
from trainers.liveness import process_exists
from trainers.loop import RunSpec
from trainers.optim import Recipe

SHAPE = Shape(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, vocab_size=256,
)  # fmt: skip


def spec(name: str, tokens: int = 10_240) -> RunSpec:
    return RunSpec(run_id=name, shape=SHAPE, tokens=tokens, recipe=Recipe())


def planned(path: Path, names: str = "abc") -> Ledger:
    ledger = Ledger(path / "ledger.sqlite")
    ledger.plan([spec(name) for name in names], [f"identity of {name}" for name in names])
    return ledger


def states(ledger: Ledger) -> dict[str, str]:
    return {entry.run_id: entry.state for entry in ledger.entries()}


def claimed_names(ledger: Ledger) -> list[str]:
    names = []
    while (run := ledger.claim()) is not None:
        names.append(run.run_id)
    return names


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended and was waited for."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_plan_is_planned_in_its_order(tmp_path: Path) -> None:
    ledger = planned(tmp_path, "cab")
    entries = ledger.entries()
    assert [entry.run_id for entry in entries] == ["c", "a", "b"]
    assert states(ledger) == dict.fromkeys("cab", PLANNED)
    assert {(entry.steps, entry.step) for entry in entries} == {(10, 0)}
    assert entries[0].flops == spec("c").flops
    assert ledger.table().empty


def test_runs_are_claimed_once_in_the_order_of_the_plan(tmp_path: Path) -> None:
    ledger = planned(tmp_path, "cab")
    assert claimed_names(ledger) == ["c", "a", "b"]
    assert states(ledger) == dict.fromkeys("cab", RUNNING)
    assert ledger.claim() is None


def test_a_claim_gives_the_spec_that_was_planned(tmp_path: Path) -> None:
    assert planned(tmp_path, "a").claim() == spec("a")


def test_a_run_goes_from_planned_to_done(tmp_path: Path) -> None:
    ledger = planned(tmp_path)
    ledger.claim()
    assert ledger.beat("a", 4)
    assert ledger.entries()[0].step == 4
    ledger.finish("a", {"run_id": "a", "loss": 2.125, "status": "done"})
    entry = ledger.entries()[0]
    assert (entry.state, entry.step, entry.message) == (DONE, 10, None)
    assert ledger.table().to_dict("records") == [{"run_id": "a", "loss": 2.125, "status": "done"}]


def test_a_diverged_run_has_a_row_without_a_loss(tmp_path: Path) -> None:
    ledger = planned(tmp_path)
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
    ledger.retry()
    assert ledger.entries()[0].state == DIVERGED, "it would only diverge again"


def test_a_failed_run_is_claimed_again_only_after_a_retry(tmp_path: Path) -> None:
    ledger = planned(tmp_path, "a")
    ledger.claim()
    ledger.fail("a", "OSError: no such file")
    entry = ledger.entries()[0]
    assert (entry.state, entry.message, entry.row) == (FAILED, "OSError: no such file", None)
    assert ledger.claim() is None
    ledger.retry()
    assert states(ledger) == {"a": PLANNED}
    assert claimed_names(ledger) == ["a"]


def test_a_retried_run_that_ends_well_keeps_no_old_message(tmp_path: Path) -> None:
    ledger = planned(tmp_path, "a")
    ledger.claim()
    ledger.fail("a", "OSError: no such file")
    ledger.retry()
    assert ledger.entries()[0].message is None
    ledger.claim()
    ledger.finish("a", {"run_id": "a"})
    assert ledger.entries()[0].message is None


def test_planning_again_keeps_states_and_adds_what_is_new(tmp_path: Path) -> None:
    ledger = planned(tmp_path, "ab")
    ledger.claim()
    ledger.finish("a", {"run_id": "a"})
    planned(tmp_path, "abc")
    assert states(ledger) == {"a": DONE, "b": PLANNED, "c": PLANNED}
    assert [entry.run_id for entry in ledger.entries()] == ["a", "b", "c"]


def test_other_settings_under_one_name_are_refused_and_nothing_is_planned(tmp_path: Path) -> None:
    ledger = planned(tmp_path, "a")
    with pytest.raises(InputError, match=r"has a run 'a' with other settings .* another run_id"):
        ledger.plan([spec("new"), spec("a", tokens=99_999)], ["new", "another identity"])
    assert states(ledger) == {"a": PLANNED}
    assert ledger.claim() == spec("a")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(runs=st.integers(1, 12), owners=st.integers(2, 5))
def test_many_owners_at_once_never_double_a_run(
    tmp_path_factory: pytest.TempPathFactory, runs: int, owners: int
) -> None:
    path = tmp_path_factory.mktemp("ledger")
    names = [f"run-{number}" for number in range(runs)]
    Ledger(path / "ledger.sqlite").plan([spec(name) for name in names], names)
    together = threading.Barrier(owners)

    def work(_: int) -> list[str]:
        ledger = Ledger(path / "ledger.sqlite")
        together.wait()
        return claimed_names(ledger)

    with ThreadPoolExecutor(owners) as pool:
        found = [name for part in pool.map(work, range(owners)) for name in part]
    assert sorted(found) == sorted(names)


def test_two_processes_never_double_a_run(tmp_path: Path) -> None:
    names = [f"{number:02d}" for number in range(30)]
    Ledger(tmp_path / "ledger.sqlite").plan([spec(name) for name in names], names)
    # Both live until both are done: the rows of a process that ended would be taken over.
    script = (
        "import sys, json; from pathlib import Path; from trainers.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1])); print('ready', flush=True); input()\n"
        "runs = iter(ledger.claim, None); print(json.dumps([run.run_id for run in runs]))\n"
        "sys.stdout.flush(); input()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "ledger.sqlite")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    owners = [subprocess.Popen(command, **pipes) for _ in range(2)]  # type: ignore[call-overload]
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    dead, living = planned(tmp_path, "ab"), Ledger(tmp_path / "ledger.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: dead_pid)
        assert dead.claim() == spec("a")
    assert claimed_names(living) == ["a", "b"], "what was begun comes before what is planned"
    assert not dead.beat("a", 3)
    assert living.beat("a", 3)


def test_a_process_that_ended_but_was_not_waited_for_is_dead() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    try:
        for _ in range(200):
            if not process_exists(ended.pid):
                break
            time.sleep(0.05)
        assert not process_exists(ended.pid)
    finally:
        ended.wait()


def test_this_process_and_the_first_one_live(dead_pid: int) -> None:
    assert process_exists(os.getpid())
    assert process_exists(1)
    assert not process_exists(dead_pid)


def test_a_living_run_is_not_taken_over(tmp_path: Path) -> None:
    first, second = planned(tmp_path, "a"), Ledger(tmp_path / "ledger.sqlite")
    first.claim()
    assert second.claim() is None
    assert first.beat("a", 1)
    assert not second.beat("a", 1)


def test_a_run_without_a_heartbeat_is_taken_over_even_if_its_process_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = planned(tmp_path, "a"), Ledger(tmp_path / "ledger.sqlite")
    first.claim()
    later = time.time() + STALE_SECONDS
    monkeypatch.setattr(time, "time", lambda: later - 5)
    assert second.claim() is None
    first.beat("a", 1)
    monkeypatch.setattr(time, "time", lambda: later + 5)
    assert second.claim() is None, "it gave a sign of life in between"
    monkeypatch.setattr(time, "time", lambda: later + STALE_SECONDS)
    assert second.claim() == spec("a")


def test_a_process_of_another_machine_is_judged_by_its_heartbeat_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    first, second = planned(tmp_path, "a"), Ledger(tmp_path / "ledger.sqlite")
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        patch.setattr(os, "getpid", lambda: dead_pid)
        first.claim()
    assert second.claim() is None
    assert second.claim(alive_after=-1.0) == spec("a")


@pytest.mark.parametrize("end", ["finish", "fail", "diverge"])
def test_only_the_owner_ends_a_run(tmp_path: Path, end: str) -> None:
    first, second = planned(tmp_path, "a"), Ledger(tmp_path / "ledger.sqlite")
    first.claim()
    assert second.claim(alive_after=-1.0) == spec("a")
    ends = {
        "finish": lambda: first.finish("a", {"run_id": "a", "loss": 1.0}),
        "fail": lambda: first.fail("a", "late"),
        "diverge": lambda: first.diverge("a", "late", {"run_id": "a"}),
    }
    ends[end]()
    entry = second.entries()[0]
    assert (entry.state, entry.row, entry.message) == (RUNNING, None, None)
    second.finish("a", {"run_id": "a", "loss": 2.0})
    assert second.table()["loss"].tolist() == [2.0]


def test_what_is_written_is_there_after_opening_again(tmp_path: Path) -> None:
    ledger = planned(tmp_path, "ab")
    ledger.claim()
    row: dict[str, object] = {"run_id": "a", "loss": 2.0 / 3, "qk_norm": True, "tokens": 10**13}
    ledger.finish("a", row)
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.entries()[0].row == row
    assert again.owner != ledger.owner


def test_a_path_inside_a_file_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"could not be written .* choose another folder"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_folder_in_place_of_the_file_is_a_work_error(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"ledger .* cannot be (opened|used)"):
        Ledger(tmp_path)


def test_a_file_that_is_no_ledger_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("this is not a database " * 100)
    with pytest.raises(WorkError, match=r"cannot be used .* free space, or move it away"):
        Ledger(tmp_path / "ledger.sqlite")
