"""Metrics of a run while it trains: to a CSV file always, to TensorBoard and W&B where asked for.

A resumed run goes on in the same places: what was logged after the step of its checkpoint is
replaced, so every step stands once. Steps are those that were computed: they never go back, also
where a run returns from the decay of a branch (``tokens`` then do).
"""

import csv
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, SupportsFloat

from shapelaw.scaling.display.documents import finite
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import installing
from shapelaw.scaling.files import write_text

METRICS = "metrics.csv"
# Metric -> unit or meaning; the columns of the CSV file, in this order.
COLUMNS = {
    "step": "optimiser steps computed",
    "tokens": "that the weights have seen",
    "seconds": "of training",
    "loss": "of the step's batch, nats per token",
    "learning_rate": "of the step, matrices",
    "gradient_norm": "before clipping",
    "tokens_per_second": "since the row before",
    "held_out_loss": "nats per token, where a run or a branch of it ends",
    "held_out_bits_per_byte": "the same per byte of text",
}
# A row is due at every tenth step, unless one was a moment ago (W&B takes milliseconds for each),
# and when a second has passed.
EVERY_STEPS, LEAST_SECONDS, MOST_SECONDS = 10, 0.1, 1.0
# The run table says what W&B would find out of machine and code, seconds before every run.
QUIET = {
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
Metrics = Mapping[str, SupportsFloat]


class Tracker(Protocol):
    """Somewhere that metrics go."""

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Begin, or go on after a step; what is known of later steps is forgotten."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a step; steps ascend."""

    def finish(self, row: Mapping[str, object] | None) -> None:
        """End, with the row of the run table, or without one where the run was broken off."""


class CSVTracker:
    """Rows of ``metrics.csv`` in the folder of the run, each written as it comes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self._file: IO[bytes] | None = None
        self._last: tuple[int, int, dict[str, str]] | None = None  # step, offset, fields

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Keep the whole rows up to the step, and write on after them."""
        kept = [row for row in self._rows() if int(row["step"]) <= step]
        lines = [_line({name: name for name in COLUMNS}), *map(_line, kept)]
        write_text(self.path, b"".join(lines).decode())
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failed(error) from error

    def _rows(self) -> Iterator[dict[str, str]]:
        """Rows that were written to their end: all their numbers are there."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        whole = text[: text.rfind("\n") + 1]
        for row in csv.DictReader(whole.splitlines()):
            if set(row) == set(COLUMNS) and None not in row.values() and row["step"].isdigit():
                yield row

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row; a metric that is missing leaves its field empty.

        More metrics of the step that was logged last go into its row.
        """
        if self._file is None:
            raise ValueError("a tracker is started before it logs")
        fields = {name: f"{value:.9g}" for name, value in metrics.items()} | {"step": str(step)}
        try:
            offset = self._file.seek(0, io.SEEK_END)
            if self._last is not None and self._last[0] == step:
                _, offset, known = self._last
                fields = known | fields
                self._file.truncate(offset)
            self._file.write(_line(fields))  # at once: a kill leaves the line whole or not there
        except OSError as error:
            raise self._failed(error) from error
        self._last = (step, offset, fields)

    def finish(self, row: Mapping[str, object] | None) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _failed(self, error: OSError) -> WorkError:
        return WorkError(
            f"{self.path} could not be written ({error.strerror}); free space and start again"
        )


def _line(fields: Mapping[str, str]) -> bytes:
    """One line of the file."""
    line = io.StringIO()
    csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(fields)
    return line.getvalue().encode()


class TensorBoardTracker:
    """Events under ``tensorboard/`` in the folder of the run."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self._open: Callable[..., Any] = SummaryWriter
        self.folder = folder / "tensorboard"
        self._writer: Any = None

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Open a file of events; TensorBoard drops the later ones of files before."""
        later = {"purge_step": step + 1} if step else {}
        self._writer = self._open(str(self.folder), **later)
        self._writer.add_text("settings", _as_list(settings), global_step=step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)

    def finish(self, row: Mapping[str, object] | None) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """A Weights & Biases run, offline under ``wandb/`` unless WANDB_MODE says ``online``.

    Nothing leaves the machine unasked: ``wandb sync`` sends an offline run later. The project is
    WANDB_PROJECT, or ``shapelaw``.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from None
        self._wandb: Any = wandb
        self.folder = folder
        self._run: Any = None

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Open the run, or go on with the one of this folder."""
        identity = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "shapelaw"),
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=str(self.folder),
            id=identity,
            resume="allow",
            name=str(settings.get("run_id", self.folder.name)),
            config=dict(settings),
            settings=self._wandb.Settings(silent=True, console="off", **QUIET),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics at the step."""
        self._run.log(dict(metrics), step=step)

    def finish(self, row: Mapping[str, object] | None) -> None:
        """Keep the row as the run's summary."""
        if self._run is None:
            return
        if row is not None:
            self._run.summary.update(dict(row))
        self._run.finish(exit_code=0 if row is not None else 1)


TRACKERS: dict[str, Callable[[Path], Tracker]] = {
    "csv": CSVTracker,
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def read_trackers(text: str) -> tuple[str, ...]:
    """Names of trackers from ``tensorboard,wandb``; the CSV file is always among them.

    Raises
    ------
    InputError
        A name is not known.
    """
    names = dict.fromkeys(["csv", *(part.strip() for part in text.split(",") if part.strip())])
    for name in names:
        if name not in TRACKERS:
            raise InputError(
                f"`--tracker` must be of {', '.join(list(TRACKERS)[1:])} (csv is always written), "
                f"but got {name!r}"
            )
    return tuple(names)


class Recorder:
    """What a training loop talks to: every tracker at once, and only now and then.

    Values may be tensors of a device: they are read when a row is due and not before, so other
    steps do not wait for them.
    """

    def __init__(self, trackers: Sequence[Tracker], *, batch_tokens: int) -> None:
        self.trackers, self.batch_tokens = trackers, batch_tokens
        self.row: Mapping[str, object] | None = None
        self._step, self._time = 0, time.perf_counter()
        self._latest: Metrics = {}

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Begin, or go on after a step."""
        for tracker in self.trackers:
            tracker.start(settings, step)
        self._step, self._time = step, time.perf_counter()

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step, by the names of :data:`COLUMNS`; most are let go."""
        since = time.perf_counter() - self._time
        self._latest = metrics
        if since >= (MOST_SECONDS if step % EVERY_STEPS else LEAST_SECONDS):
            self._measure(step)

    def _measure(self, step: int) -> None:
        now = time.perf_counter()
        values = {name: float(value) for name, value in self._latest.items()}
        elapsed = max(now - self._time, 1e-9)
        values["tokens_per_second"] = (step - self._step) * self.batch_tokens / elapsed
        self._step, self._time = step, now
        self._send(step, values)

    def result(self, step: int, row: Mapping[str, object]) -> None:
        """Take the row of the run table where a run, or a branch of it, ends after a step."""
        self.row = row
        if self._latest and self._step < step:
            self._measure(step)
        pairs = (
            ("tokens", "tokens"), ("seconds", "seconds"), ("held_out_loss", "loss"),
            ("held_out_bits_per_byte", "bits_per_byte"),
        )  # fmt: skip
        found = {name: _number(row.get(column)) for name, column in pairs}
        self._send(step, {name: value for name, value in found.items() if value is not None})
        self._time = time.perf_counter()  # the evaluation was no training

    def _send(self, step: int, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)

    def finish(self, row: Mapping[str, object] | None) -> None:
        """End every tracker, also when one of them fails."""
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.finish, row)


@contextmanager
def recording(names: Sequence[str], folder: Path, *, batch_tokens: int) -> Iterator[Recorder]:
    """Trackers for the time of a run; however it ends, they do.

    Parameters
    ----------
    names
        As :func:`read_trackers` gives them.
    folder
        Of the run.
    batch_tokens
        Tokens per step, for the tokens per second.

    Raises
    ------
    InputError
        A tracker is not installed.
    WorkError
        A file cannot be written.
    """
    recorder = Recorder([TRACKERS[name](folder) for name in names], batch_tokens=batch_tokens)
    try:
        yield recorder
    except BaseException:  # however the run is broken off, the trackers end
        recorder.finish(None)
        raise
    recorder.finish(recorder.row)


def _number(value: object) -> float | None:
    return finite(float(value)) if isinstance(value, int | float) else None


def _as_list(settings: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in settings.items())


def _missing(name: str, error: ImportError) -> InputError:
    return InputError(
        f"the tracker {name} is not installed ({error}); install it by "
        f"`{installing('wandb')}`, or leave it out: metrics.csv is always written"
    )
