import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.trainers.ledger import liveness
from shapelaw.trainers.ledger.liveness import (
    MAX_OBSERVED_GAP,
    Heartbeat,
    Watch,
    is_gone,
    process_exists,
    this_process,
)
from support.waiting import wait_until

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="tells them by /proc")


@pytest.fixture
def dead_pid() -> int:
    """Return the id of a process that has ended and was waited for."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_process_that_ended_but_was_not_waited_for_is_dead() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    try:
        wait_until(lambda: not process_exists(ended.pid), "the end of a process")
    finally:
        ended.wait()


def test_this_process_and_process_1_are_alive(dead_pid: int) -> None:
    assert process_exists(os.getpid())
    assert process_exists(1)
    assert not process_exists(dead_pid)


def test_a_living_process_is_not_gone() -> None:
    assert not is_gone(this_process().mark)


def test_an_ended_process_of_this_machine_is_gone(dead_pid: int) -> None:
    machine, _, start = this_process().mark.split("/")
    assert is_gone(f"{machine}/{dead_pid}/{start}")


@linux
def test_a_process_whose_id_was_reused_is_gone() -> None:
    machine, pid, start = this_process().mark.split("/")
    assert is_gone(f"{machine}/{pid}/{int(start) - 1}")


@pytest.mark.parametrize("mark", ["elsewhere/1/5", "elsewhere:a:b/99999999/5", "", "/", "//", "a"])
def test_a_process_of_another_machine_is_never_gone(mark: str) -> None:
    assert not is_gone(mark)


@linux
def test_a_process_from_before_a_reboot_of_a_machine_is_never_gone(
    monkeypatch: pytest.MonkeyPatch, dead_pid: int
) -> None:
    machine, _, start = this_process().mark.split("/")
    host, boot, space = machine.rsplit(":", 2)
    assert not is_gone(f"{host}:{boot}x:{space}/{dead_pid}/{start}")
    assert not is_gone(f"{host}:{boot}:{space}1/{dead_pid}/{start}"), "another container"
    monkeypatch.setattr(liveness.socket, "gethostname", lambda: "renamed")
    assert not is_gone(f"{machine}/{dead_pid}/{start}")


def test_watched_time_of_a_changing_counter_is_zero() -> None:
    clock = Clock()
    watch = Watch(clock)
    for beat in range(100):
        clock.seconds += 1.0
        assert watch.look({"a": beat, "b": 7}) == {"a": 0.0, "b": float(beat)}


def test_watched_time_of_a_counter_restarts_after_it_was_absent() -> None:
    clock = Clock()
    watch = Watch(clock)
    for _ in range(4):
        clock.seconds += 1.0
        watch.look({"a": 1})
    watch.look({})
    clock.seconds += 1.0
    assert watch.look({"a": 1}) == {"a": 0.0}


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=30))
def test_watched_time_excludes_gaps_between_observations(gaps: list[float]) -> None:
    clock = Clock()
    watch = Watch(clock)
    watch.look({"a": 1})
    for gap in gaps:
        clock.seconds += gap
        still = watch.look({"a": 1})["a"]
    assert still <= clock.seconds + 1e-6
    assert still <= MAX_OBSERVED_GAP * len(gaps)


def test_heartbeat_ends_when_the_work_is_lost() -> None:
    steps: list[int] = []
    reached = 7

    def beat() -> bool:
        steps.append(reached)
        return len(steps) < 4

    with Heartbeat(beat, 0.005) as heartbeat:
        wait_until(lambda: heartbeat.lost, "the heartbeat to learn that the work is lost")
    assert steps == [7] * 4, "it stops when the work is lost"


def test_heartbeat_ends_with_its_context() -> None:
    beats: list[None] = []

    def beat() -> bool:
        beats.append(None)
        return True

    with Heartbeat(beat, 0.005) as heartbeat:
        wait_until(lambda: len(beats) >= 2, "two beats")
    count = len(beats)
    assert not heartbeat.lost
    assert not any(thread.name == heartbeat._thread.name for thread in threading.enumerate())
    assert len(beats) == count
