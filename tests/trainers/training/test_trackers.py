import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.trainers.training import trackers as module
from shapelaw.trainers.training.trackers import (
    COLUMNS,
    TRACKERS,
    CSVTracker,
    Recorder,
    TensorBoardTracker,
    WandbTracker,
    read_trackers,
    recording,
)
from support.waiting import wait_until

SETTINGS: dict[str, object] = {"run_id": "tiny", "hidden_size": 16, "recipe": {"decay": 0.3}}
ROW: dict[str, object] = {
    "run_id": "tiny", "loss": 1.25, "bits_per_byte": 1.8, "tokens": 400, "seconds": 4.0,
}  # fmt: skip


def metrics(step: int) -> dict[str, float]:
    return {
        "tokens": 10.0 * step, "seconds": 0.1 * step, "loss": 5 - 0.01 * step,
        "learning_rate": 0.01, "gradient_norm": 1 / step,
    }  # fmt: skip


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv")


class Memory:
    """A tracker that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object, object]] = []

    def start(self, settings: Mapping[str, object], step: int) -> None:
        self.told.append(("start", dict(settings), step))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.told.append(("log", step, dict(metrics)))

    def finish(self, row: Mapping[str, object] | None) -> None:
        self.told.append(("finish", row, None))

    @property
    def steps(self) -> list[object]:
        return [what for kind, what, _ in self.told if kind == "log"]


class Clock:
    """Seconds as a test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "perf_counter", made)
    return made


# --- every tracker


EACH = [name if name == "csv" else pytest.param(name, marks=pytest.mark.slow) for name in TRACKERS]


@pytest.mark.parametrize("name", EACH)
def test_a_tracker_takes_a_run_a_resume_and_its_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for begin, end in ((0, 30), (20, 40)):
        tracker = TRACKERS[name](tmp_path)
        tracker.start(SETTINGS, begin)
        for step in range(begin + 5, end + 1, 5):
            tracker.log(step, metrics(step))
        tracker.finish(None if end == 30 else ROW)
    assert any(tmp_path.iterdir())


@pytest.mark.parametrize("name", EACH)
def test_a_tracker_that_was_not_started_can_be_ended(name: str, tmp_path: Path) -> None:
    TRACKERS[name](tmp_path).finish(None)


# --- CSV


def logged(folder: Path, begin: int, end: int) -> None:
    tracker = CSVTracker(folder)
    tracker.start(SETTINGS, begin)
    for step in range(begin + 1, end + 1):
        tracker.log(step, metrics(step))
    tracker.finish(None)


def test_the_file_has_every_column_and_the_numbers(tmp_path: Path) -> None:
    logged(tmp_path / "deep" / "run", 0, 3)
    found = rows(tmp_path / "deep" / "run")
    assert list(found) == list(COLUMNS)
    assert found["step"].tolist() == [1, 2, 3]
    assert found["loss"].tolist() == pytest.approx([4.99, 4.98, 4.97])
    assert found["held_out_loss"].isna().all()


def test_a_resume_replaces_the_rows_after_its_step(tmp_path: Path) -> None:
    logged(tmp_path, 0, 30)
    before = (tmp_path / "metrics.csv").read_text()
    logged(tmp_path, 20, 30)
    assert (tmp_path / "metrics.csv").read_text() == before
    logged(tmp_path, 0, 2)
    assert rows(tmp_path)["step"].tolist() == [1, 2]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_off_by_a_kill_is_no_row(tmp_path: Path, cut: int) -> None:
    logged(tmp_path, 0, 10)
    path = tmp_path / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    logged(tmp_path, 8, 10)
    assert path.read_bytes() == whole if cut <= len(whole.splitlines()[-1]) else True
    assert rows(tmp_path)["step"].is_unique
    assert rows(tmp_path)["loss"].notna().all()


@pytest.mark.parametrize("text", ["step,accuracy\n1,0.5\n", "tokens,loss\n1,0.5\n"])
def test_a_file_of_other_columns_is_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    logged(tmp_path, 1, 2)
    assert list(rows(tmp_path)) == list(COLUMNS)
    assert rows(tmp_path)["step"].tolist() == [2]


def test_rows_of_a_file_with_fewer_columns_are_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n")
    logged(tmp_path, 1, 2)
    assert rows(tmp_path)["step"].tolist() == [1, 2]
    assert rows(tmp_path)["loss"].iloc[0] == 0.5


def test_more_metrics_of_a_step_go_into_its_row(tmp_path: Path) -> None:
    tracker = CSVTracker(tmp_path)
    tracker.start(SETTINGS, 0)
    tracker.log(1, metrics(1))
    tracker.log(2, metrics(2))
    tracker.log(2, {"held_out_loss": 1.25})
    tracker.log(3, metrics(3))
    tracker.finish(ROW)
    found = rows(tmp_path)
    assert found["step"].tolist() == [1, 2, 3]
    assert found["held_out_loss"].fillna(0).tolist() == [0, 1.25, 0]
    assert found["loss"].notna().all()


def test_rows_stand_in_the_file_at_once(tmp_path: Path) -> None:
    tracker = CSVTracker(tmp_path)
    tracker.start(SETTINGS, 0)
    tracker.log(1, metrics(1))
    assert rows(tmp_path)["step"].tolist() == [1]
    tracker.finish(None)


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files of more than 1,000 bytes cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_a_work_error(tmp_path: Path) -> None:
    tracker = CSVTracker(tmp_path)
    tracker.start(SETTINGS, 0)

    def fill() -> None:
        for step in range(1, 100):
            tracker.log(step, metrics(step))

    with pytest.raises(WorkError, match=r"metrics\.csv could not be written .*; free space"):
        fill()
    tracker.finish(None)


PROGRAM = """
import sys, time
from pathlib import Path
from shapelaw.trainers.training import trackers

trackers.MIN_SECONDS = 0.0
folder, begin = Path(sys.argv[1]), int(sys.argv[2])
with trackers.recording(["csv"], folder, batch_tokens=10) as recorder:
    recorder.start({}, begin)
    for step in range(begin + 1, 100_000):
        recorder.log(step, {"tokens": 10 * step, "loss": 5 - 0.01 * step})
        time.sleep(0.0002)
"""


def far_enough(folder: Path, step: int) -> bool:
    """Tell whether a step is recorded; a file without a row, NaN, is not enough."""
    return (folder / "metrics.csv").exists() and bool(rows(folder)["step"].max() >= step)


@pytest.mark.slow
def test_kills_and_resumes_leave_every_step_once(tmp_path: Path) -> None:
    begin = 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(begin)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        wait_until(lambda begin=begin: far_enough(tmp_path, begin + 50), "50 steps more")
        assert process.poll() is None
        process.kill()
        process.wait()
        begin = int(rows(tmp_path)["step"].max()) - 15  # the checkpoint is some steps behind
    logged(tmp_path, begin, begin + 3)
    found = rows(tmp_path)
    assert found["step"].is_unique
    assert found["step"].is_monotonic_increasing
    assert set(range(10, begin + 1, 10)) <= set(found["step"])
    assert found["loss"].to_numpy() == pytest.approx(5 - 0.01 * found["step"].to_numpy())


# --- the recorder


def test_rows_come_at_most_ten_times_and_at_least_once_a_second(clock: Clock) -> None:
    memory = Memory()
    recorder = Recorder([memory], batch_tokens=32)
    recorder.start(SETTINGS, 0)
    for step in range(1, 1001):
        clock.now = 0.001025 * step
        recorder.log(step, metrics(step))
    assert memory.steps == list(range(100, 1001, 100))
    for step in range(1001, 1004):
        clock.now += 1.5
        recorder.log(step, metrics(step))
    assert memory.steps[10:] == [1001, 1002, 1003]


def test_every_tenth_step_is_logged_and_one_after_every_second(clock: Clock) -> None:
    memory = Memory()
    recorder = Recorder([memory], batch_tokens=32)
    recorder.start(SETTINGS, 0)
    for step in range(1, 31):
        clock.now += 0.05 if step < 21 else 0.4
        recorder.log(step, metrics(step))
    assert memory.steps == [10, 20, 23, 26, 29, 30]
    assert memory.told[0] == ("start", SETTINGS, 0)


def test_tokens_per_second_are_those_since_the_row_before(clock: Clock) -> None:
    memory = Memory()
    recorder = Recorder([memory], batch_tokens=32)
    recorder.start(SETTINGS, 100)
    clock.now = 2.0
    recorder.log(101, metrics(101))
    clock.now = 2.5
    recorder.log(110, metrics(110))
    speeds = [values["tokens_per_second"] for kind, _, values in memory.told if kind == "log"]  # type: ignore[index]
    assert speeds == pytest.approx([16, 9 * 32 / 0.5])


def test_values_of_a_device_are_read_only_when_a_row_is_due(clock: Clock) -> None:
    class Waiting:
        reads = 0

        def __float__(self) -> float:
            Waiting.reads += 1
            return 2.0

    memory = Memory()
    recorder = Recorder([memory], batch_tokens=1)
    recorder.start(SETTINGS, 0)
    for step in range(1, 40):
        clock.now += 0.05
        recorder.log(step, {"loss": Waiting()})
    assert Waiting.reads == len(memory.steps) == 3
    clock.now += 0.05
    recorder.log(40, {"loss": torch.tensor(3.0)})
    assert memory.told[-1][2]["loss"] == 3.0  # type: ignore[index]


def test_the_end_of_a_run_gives_its_held_out_loss(tmp_path: Path) -> None:
    with recording(("csv",), tmp_path, batch_tokens=10) as recorder:
        recorder.start(SETTINGS, 0)
        for step in range(1, 41):
            recorder.log(step, metrics(step))
        recorder.result(40, ROW)
    (last,) = rows(tmp_path).to_dict("records")  # forty steps take no tenth of a second
    assert last["step"] == 40
    assert last["held_out_loss"] == 1.25
    assert last["held_out_bits_per_byte"] == 1.8
    assert last["loss"] == pytest.approx(4.6)


def test_a_result_that_is_no_number_is_left_out() -> None:
    memory = Memory()
    recorder = Recorder([memory], batch_tokens=10)
    recorder.start(SETTINGS, 0)
    recorder.result(5, {"loss": math.nan, "tokens": None, "seconds": 2})
    assert memory.told[-1] == ("log", 5, {"seconds": 2.0})


def remembered(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setitem(TRACKERS, "memory", lambda folder: memory)
    return memory


def test_trackers_end_with_the_row_of_a_run_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = remembered(monkeypatch)
    with recording(("memory",), tmp_path, batch_tokens=10) as recorder:
        recorder.result(5, ROW)
    assert memory.told[-1] == ("finish", ROW, None)


def test_trackers_end_without_a_row_where_a_run_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = remembered(monkeypatch)

    def broken_off() -> None:
        with recording(("memory",), tmp_path, batch_tokens=10) as recorder:
            recorder.result(5, ROW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert memory.told[-1] == ("finish", None, None)


def test_a_tracker_that_fails_to_end_does_not_keep_the_others_open() -> None:
    class Failing(Memory):
        def finish(self, row: Mapping[str, object] | None) -> None:
            raise RuntimeError("no network")

    before, after = Memory(), Memory()
    with pytest.raises(RuntimeError, match="no network"):
        Recorder([before, Failing(), after], batch_tokens=1).finish(ROW)
    assert before.told == after.told == [("finish", ROW, None)]


# --- names


def test_csv_is_always_among_the_trackers() -> None:
    assert read_trackers("") == ("csv",)
    assert read_trackers("both") == ("csv", "tensorboard", "wandb")
    assert read_trackers(" wandb,tensorboard,wandb") == ("csv", "wandb", "tensorboard")
    with pytest.raises(
        InputError, match=r"must be of tensorboard, wandb, both \(csv is always .* 'mlf'"
    ):
        read_trackers("mlf")


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_tracker_package_is_named_with_the_command_that_installs_it(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{name} is not installed .*shapelaw\[trackers\]"):
        TRACKERS[name](tmp_path)


# --- TensorBoard, W&B


@pytest.mark.slow
def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, end, shift in ((0, 30, 0.0), (20, 40, 100.0)):
        tracker = TensorBoardTracker(tmp_path)
        tracker.start(SETTINGS, begin)
        for step in range(begin + 1, end + 1):
            tracker.log(step, {"loss": metrics(step)["loss"] + shift})
        tracker.finish(ROW)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = events.Scalars("loss")
    assert [point.step for point in points] == list(range(1, 41))
    assert points[19].value == pytest.approx(4.8)
    assert points[20].value == pytest.approx(104.79)
    assert "- hidden_size: 16" in str(events.Tensors("settings/text_summary")[0])


@pytest.mark.slow
def test_wandb_writes_an_offline_run_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
    tracker = WandbTracker(tmp_path)
    tracker.start(SETTINGS, 0)
    for step in range(1, 4):
        tracker.log(step, metrics(step))
    assert tracker._run.offline
    assert tracker._run.name == "tiny"
    assert tracker._run.config["hidden_size"] == 16
    tracker.finish(ROW)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # A process of its own writes the file.
    wait_until(lambda: b"bits_per_byte" in written.read_bytes(), "wandb's file")
    assert b"gradient_norm" in written.read_bytes()
