"""Trackers of the metrics of a run: always a CSV file, on request TensorBoard and W&B.

A resumed run continues in the same places: metrics after the step of its checkpoint are replaced,
so that every step appears once. Steps are computed steps. They never decrease, also when a run
returns from the decay of a branch (``tokens`` then decrease).
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
    "tokens": "training tokens of the present weights",
    "seconds": "seconds of training",
    "loss": "loss of the batch of the step, nats per token",
    "learning_rate": "learning rate of the matrices in the step",
    "gradient_norm": "norm of the gradient before clipping",
    "tokens_per_second": "speed since the previous row",
    "held_out_loss": "nats per token, at the end of a run or of one of its branches",
    "held_out_bits_per_byte": "held-out loss in bits per byte of text",
    "expert_imbalance": "largest load of an expert over the mean of its layer, minus 1",
    "max_logit": "largest logit of attention in the step, before QK-clip",
    "clipped_heads": "heads whose weights QK-clip scaled after the step",
}
# A row is written at every tenth step, unless the last one is very recent (W&B takes milliseconds
# for each), and whenever a second has passed.
EVERY_STEPS, MIN_SECONDS, MAX_SECONDS = 10, 0.1, 1.0
# The run table contains what W&B would otherwise collect about machine and code, which takes
# seconds before every run.
QUIET = {
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
Metrics = Mapping[str, SupportsFloat]


class Tracker(Protocol):
    """Destination of metrics."""

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Start, or resume after a step; metrics of later steps are removed."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; steps must ascend."""

    def finish(self, row: Mapping[str, object] | None) -> None:
        """Finish with the row of the run table, or None for an interrupted run."""


class CSVTracker:
    """Tracker that writes each row at once to ``metrics.csv`` in the folder of the run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self._file: IO[bytes] | None = None
        self._last: tuple[int, int, dict[str, str]] | None = None  # step, offset, fields

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Keep the complete rows up to the step and append after them."""
        kept = [row for row in self._rows() if int(row["step"]) <= step]
        lines = [_line({name: name for name in COLUMNS}), *map(_line, kept)]
        write_text(self.path, b"".join(lines).decode())
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failed(error) from error

    def _rows(self) -> Iterator[dict[str, str]]:
        """Yield the rows that were written completely."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        whole = text[: text.rfind("\n") + 1]
        for row in csv.DictReader(whole.splitlines()):
            known = set(row) <= set(COLUMNS) and None not in row.values()
            if known and row.get("step", "").isdigit():
                yield row

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row; the field of a missing metric is empty.

        Further metrics of the last logged step are added to its row.
        """
        if self._file is None:
            raise ValueError("a tracker must be started before it logs")
        fields = {name: f"{value:.9g}" for name, value in metrics.items()} | {"step": str(step)}
        try:
            offset = self._file.seek(0, io.SEEK_END)
            if self._last is not None and self._last[0] == step:
                _, offset, known = self._last
                fields = known | fields
                self._file.truncate(offset)
            self._file.write(_line(fields))  # in one write, so that a kill leaves no partial line
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
    """Format one line of the file."""
    line = io.StringIO()
    csv.DictWriter(line, COLUMNS, lineterminator="\n").writerow(fields)
    return line.getvalue().encode()


class TensorBoardTracker:
    """Tracker that writes events to ``tensorboard/`` in the folder of the run."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", error) from None
        self._open: Callable[..., Any] = SummaryWriter
        self.folder = folder / "tensorboard"
        self._writer: Any = None

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Open a file of events; TensorBoard drops later steps of earlier files."""
        later = {"purge_step": step + 1} if step else {}
        self._writer = self._open(str(self.folder), **later)
        self._writer.add_text("settings", _as_list(settings), global_step=step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one point per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)

    def finish(self, row: Mapping[str, object] | None) -> None:
        """Write the remaining events."""
        if self._writer is not None:
            self._writer.close()


class WandbTracker:
    """Tracker of a Weights & Biases run, offline in ``wandb/`` unless WANDB_MODE is ``online``.

    No data leaves the machine by default; ``wandb sync`` sends an offline run later. The project is
    WANDB_PROJECT, or else ``shapelaw``.
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
        """Open the run, or resume the run of this folder."""
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
        """Log the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def finish(self, row: Mapping[str, object] | None) -> None:
        """Store the row as the summary of the run."""
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
FURTHER = tuple(name for name in TRACKERS if name != "csv")
BOTH = "both"


def read_trackers(text: str) -> tuple[str, ...]:
    """Parse names of trackers such as ``tensorboard,wandb``; the CSV file is always included.

    ``both`` stands for TensorBoard and Weights & Biases.

    Raises
    ------
    InputError
        A name is unknown.
    """
    given = [part.strip() for part in text.split(",") if part.strip()]
    further = [name for part in given for name in (FURTHER if part == BOTH else (part,))]
    names = dict.fromkeys(["csv", *further])
    for name in names:
        if name not in TRACKERS:
            raise InputError(
                f"`--tracker` must be of {', '.join((*FURTHER, BOTH))} (csv is always written), "
                f"but got {name!r}"
            )
    return tuple(names)


class Recorder:
    """Interface of a training loop to all trackers, with a reduced number of rows.

    Values may be tensors on a device. They are read only when a row is due, so that other steps do
    not wait for them.
    """

    def __init__(self, trackers: Sequence[Tracker], *, batch_tokens: int) -> None:
        self.trackers, self.batch_tokens = trackers, batch_tokens
        self.row: Mapping[str, object] | None = None
        self._step, self._time = 0, time.perf_counter()
        self._latest: Metrics = {}

    def start(self, settings: Mapping[str, object], step: int) -> None:
        """Start all trackers, or resume them after a step."""
        for tracker in self.trackers:
            tracker.start(settings, step)
        self._step, self._time = step, time.perf_counter()

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of a step by the names of :data:`COLUMNS`; most are not recorded."""
        since = time.perf_counter() - self._time
        self._latest = metrics
        if since >= (MAX_SECONDS if step % EVERY_STEPS else MIN_SECONDS):
            self._measure(step)

    def _measure(self, step: int) -> None:
        now = time.perf_counter()
        values = {name: float(value) for name, value in self._latest.items()}
        elapsed = max(now - self._time, 1e-9)
        values["tokens_per_second"] = (step - self._step) * self.batch_tokens / elapsed
        self._step, self._time = step, now
        self._send(step, values)

    def result(self, step: int, row: Mapping[str, object]) -> None:
        """Record the row of the run table at the end of a run or of one of its branches."""
        self.row = row
        if self._latest and self._step < step:
            self._measure(step)
        pairs = (
            ("tokens", "tokens"), ("seconds", "seconds"), ("held_out_loss", "loss"),
            ("held_out_bits_per_byte", "bits_per_byte"),
        )  # fmt: skip
        values = {name: _number(row.get(column)) for name, column in pairs}
        self._send(step, {name: value for name, value in values.items() if value is not None})
        self._time = time.perf_counter()  # excludes the evaluation from the speed of training

    def _send(self, step: int, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)

    def finish(self, row: Mapping[str, object] | None) -> None:
        """Finish every tracker, also if one of them fails."""
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.callback(tracker.finish, row)


@contextmanager
def recording(names: Sequence[str], folder: Path, *, batch_tokens: int) -> Iterator[Recorder]:
    """Open trackers for a run and finish them when it ends, also by an error.

    Parameters
    ----------
    names
        Names of trackers, as from :func:`read_trackers`.
    folder
        Folder of the run.
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
    except BaseException:  # any interruption of the run
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
