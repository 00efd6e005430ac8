import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shapelaw.trainers.ledger.entry import DIVERGED, DONE, FAILED, PLANNED, RUNNING, Entry
from shapelaw.trainers.sweep import status
from shapelaw.trainers.sweep.status import (
    Rates,
    duration,
    progress_lines,
    show_status,
    shown_progress,
    status_of,
    status_table,
)

FLOPS, STEPS = 1e9, 100


def entry(run_id: str, state: str = PLANNED, **changes: object) -> Entry:
    usual: dict[str, object] = {
        "run_id": run_id, "state": state, "flops": FLOPS, "steps": STEPS, "step": 0,
        "message": None, "row": None, "tokens_per_step": 64,
    }  # fmt: skip
    return Entry(**(usual | changes))  # type: ignore[arg-type]


def done(run_id: str, seconds: float = 50.0, **changes: object) -> Entry:
    row = {"run_id": run_id, "seconds": seconds, "tokens_per_second": 128.0}
    times = {"attempts": 1, "started": 1000.0, "ended": 1000.0 + seconds}
    return entry(run_id, DONE, **({"step": STEPS, "row": row} | times | changes))


def running(run_id: str, **changes: object) -> Entry:
    usual = {
        "step": 40, "speed": 2.0, "host": "node7", "pid": 12, "heartbeat_age": 1.0, "attempts": 1,
    }  # fmt: skip
    return entry(run_id, RUNNING, **(usual | changes))


def test_time_left_of_a_running_run_follows_from_its_own_speed() -> None:
    (run,) = status_of([running("a")]).runs
    assert (run.seconds_left, run.tokens_per_second, run.worker) == (30.0, 128.0, "node7:12")
    assert run.heartbeat_age == 1.0


def test_time_left_of_a_planned_run_follows_from_measured_runs() -> None:
    found = status_of([done("a", 50.0), running("b"), entry("c"), entry("d", flops=2 * FLOPS)])
    left = {run.run_id: run.seconds_left for run in found.runs}
    # Run b trains 2 of 100 steps in a second, so a similar run takes 50 s.
    assert left["c"] == pytest.approx(50.0)
    assert left["d"] == pytest.approx(100.0)
    assert left["a"] is None


def test_time_left_assigns_planned_runs_to_idle_workers_in_order() -> None:
    plan = [running("a"), running("b", step=90), entry("c"), entry("d"), entry("e")]
    found = status_of(plan)
    # b ends at 5, a at 30; c 5-55, d 30-80, e 55-105
    assert (found.workers, found.seconds_left) == (2, pytest.approx(105.0))
    (alone,) = [status_of([running("a"), *plan[2:]]).seconds_left]
    assert alone == pytest.approx(30 + 3 * 50)


def test_a_worker_without_heartbeats_is_not_counted_and_its_run_not_done() -> None:
    silent = running("a", heartbeat_age=500.0)
    found = status_of([silent, running("b")])
    assert found.workers == 1
    assert found.seconds_left == pytest.approx(30 + 30), "someone has to take it over"
    found = status_of([silent])
    assert (found.workers, found.seconds_left) == (0, None)
    assert "no worker is running (`shapelaw sweep run` starts workers)" in found.headline()


def test_time_left_is_unknown_before_any_measurement() -> None:
    found = status_of([running("a", speed=None), entry("b")])
    assert found.seconds_left is None
    assert {run.seconds_left for run in found.runs} == {None}
    assert found.headline().endswith("1 worker, time left not known yet")


def test_a_sweep_that_has_ended_needs_no_worker() -> None:
    ended = [done("a"), entry("b", DIVERGED, message="nan"), entry("c", FAILED, message="disk")]
    found = status_of(ended)
    assert (found.ended, found.seconds_left, found.share) == (True, 0.0, 1.0)
    assert found.headline() == "3 runs: 1 done, 1 failed, 1 diverged; 100 % of the FLOPs"


def test_an_empty_ledger_has_a_status() -> None:
    found = status_of([])
    assert (found.ended, found.share, found.seconds_left) == (True, 1.0, 0.0)
    assert found.summary().startswith("0 runs")


def test_share_done_is_a_share_of_flops() -> None:
    found = status_of([done("a", flops=3 * FLOPS), running("b", step=50)])
    assert found.share == pytest.approx(3.5 / 4)
    assert "88 % of the FLOPs; about 25 s left with 1 worker" in found.headline()


def test_expected_speed_follows_runs_of_similar_cost() -> None:
    large = done("large", seconds=10.0, flops=1e12)  # 1e11 FLOP/s, 1e10 per step
    small = done("small", seconds=10.0, flops=1e9)  # 1e8 FLOP/s, 1e7 per step
    rates = Rates([large, small])
    assert rates.at(1e10) == pytest.approx(1e11, rel=0.01)
    assert rates.at(1e7) == pytest.approx(1e8, rel=0.01)
    between = rates.at(math.sqrt(1e17))
    assert between is not None
    assert 1e8 < between < 1e11
    assert Rates([]).at(1e7) is None


def test_speed_of_a_run_taken_over_follows_from_its_row() -> None:
    again = done("a", 50.0, attempts=2, ended=9000.0)
    assert Rates([again]).at(FLOPS / STEPS) == pytest.approx(FLOPS / 50)
    branches = [{"seconds": 20.0}, {"seconds": 50.0}]
    assert Rates([replace(again, row=branches)]).at(FLOPS / STEPS) == pytest.approx(FLOPS / 50)
    assert Rates([replace(again, row=[{}])]).at(FLOPS / STEPS) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from([PLANNED, RUNNING, DONE, FAILED, DIVERGED]),
            st.floats(1e3, 1e20),
            st.integers(0, STEPS),
            st.floats(1e-3, 1e3) | st.none(),
        ),
        max_size=12,
    )
)
def test_more_runs_never_take_less_time_and_every_status_is_json(
    drawn: list[tuple[str, float, int, float | None]],
) -> None:
    entries = [
        entry(str(place), state, flops=flops, step=step, speed=speed, heartbeat_age=0.5)
        for place, (state, flops, step, speed) in enumerate(drawn)
    ]
    found = status_of(entries)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["counts"] == found.counts
    assert 0 <= found.share <= 1 + 1e-9
    longer = status_of([*entries, entry("more")])
    if found.seconds_left is not None and longer.seconds_left is not None:
        assert longer.seconds_left >= found.seconds_left - 1e-9
    rows = found.summary().splitlines()[5:]  # below title, table title, header and rule
    assert [row.split()[0] for row in rows] == [one.run_id for one in entries]


@given(st.floats(0, 1e7))
def test_a_duration_has_numbers_with_units(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
    words = duration(seconds).split()
    value = sum(int(n) * units[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(value - seconds) <= max(1.0, seconds / 24)


def shown(entries: list[Entry], room: int, width: int = 200) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(status_table(status_of(entries), room=room))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_table_has_every_run_with_its_speed_worker_and_message() -> None:
    text = shown(
        [running("a", step=40), entry("b", FAILED, message="OSError: [Errno 28] no space")], 9
    )
    for words in ("40/100", "128", "node7:12", "1 s ago", "30 s", "OSError: [Errno 28] no space"):
        assert words in text


def test_a_short_table_keeps_runs_that_need_attention_and_counts_the_others() -> None:
    many = [*(done(f"done{n}") for n in range(50)), running("now"), entry("bad", FAILED)]
    text = shown(many, 4)
    assert "now" in text
    assert "bad" in text
    assert "48 more runs: --json shows all" in text
    assert text.index("now") < text.index("bad"), "the order of the plan"


def test_status_without_a_terminal_is_printed_once_as_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    looks: list[int] = []

    def look() -> status.SweepStatus:
        looks.append(1)
        return status_of([running("a"), entry("b", note="eager: no compiler")])

    show_status(look, watch=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(looks) == 1
    assert lines[0].startswith("2 runs: 1 planned, 1 running; 20 % of the FLOPs; about")
    assert lines[3].split() == [
        "run_id", "state", "step", "tokens/s", "worker", "heartbeat", "left", "message",
    ]  # fmt: skip
    assert lines[5].split()[:5] == ["a", "running", "40/100", "128", "node7:12"]
    assert lines[6].endswith("eager: no compiler")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setattr(status, "REFRESH_SECONDS", 0.0)


@pytest.mark.usefixtures("terminal")
def test_a_watched_status_is_updated_until_every_run_has_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    later = iter([[running("a")], [running("a", step=80)], [done("a")]])
    show_status(lambda: status_of(next(later)), watch=True)
    assert next(later, None) is None
    assert "1 done; 100 %" in capsys.readouterr().out


@pytest.mark.usefixtures("terminal")
def test_status_on_a_terminal_without_watch_is_one_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_status(lambda: status_of([running(f"a{n}") for n in range(100)]))
    assert "a99" in capsys.readouterr().out


@pytest.mark.usefixtures("terminal")
def test_progress_on_a_terminal_is_a_table_that_is_removed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown_progress() as report:
        report([running("a")])
    printed = capsys.readouterr()
    assert "40/100" in printed.err
    assert printed.out == ""


def test_progress_without_a_terminal_is_an_occasional_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    report = progress_lines()
    for now[0] in (1.0, 31.0, 32.0, 62.0):
        report([running("a")])
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["1 run: 1 running; 40 % of the FLOPs; about 30 s left with 1 worker"] * 2
