"""States and recorded entries of runs in a ledger."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict

from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import parse_json
from shapelaw.scaling.schema import Count, Name, NonNegative, Positive, conform
from shapelaw.trainers.ledger.store import Row
from shapelaw.trainers.training.spec import RunSpec

PLANNED, RUNNING, DONE, FAILED, DIVERGED = "planned", "running", "done", "failed", "diverged"
STATES = (PLANNED, RUNNING, DONE, FAILED, DIVERGED)
RowOfTable = dict[str, str | int | float | bool | None]
Rows = RowOfTable | list[RowOfTable]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Recorded state of one run in a ledger.

    Attributes
    ----------
    run_id
        Id of the run.
    state
        One of :data:`STATES`.
    flops
        Training FLOPs of the run.
    steps, step
        Number of steps, and the last reported step.
    message
        Reason why the run failed or diverged.
    row
        Row of the run table, or several rows for a run with branches.
    note
        Remarks on unusual events that did not end the run.
    attempts
        Number of times that a worker claimed the run.
    owner, host, pid
        Id of the ledger session that claimed the run, its machine and its process.
    started, ended
        Unix seconds when a worker first claimed the run, and when it was done, failed or diverged.
    heartbeat_age
        Seconds since the last heartbeat; only while the run is running.
    speed
        Steps per second since the worker claimed the run; only while the run is running.
    tokens_per_step
        Training tokens per step.
    """

    run_id: str
    state: str
    flops: float
    steps: int
    step: int
    message: str | None
    row: dict[str, object] | list[dict[str, object]] | None
    note: str | None = None
    attempts: int = 0
    owner: str | None = None
    host: str | None = None
    pid: int | None = None
    started: float | None = None
    ended: float | None = None
    heartbeat_age: float | None = None
    speed: float | None = None
    tokens_per_step: int = 0

    @property
    def rows(self) -> list[dict[str, object]]:
        """Rows of the run table: none before the run ended, several for a run with branches."""
        return self.row if isinstance(self.row, list) else [self.row] if self.row else []

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the last step at the present speed; None if unknown."""
        if self.state != RUNNING or not self.speed:
            return None
        return max(self.steps - self.step, 0) / self.speed


class StoredRun(TypedDict):
    """Row of the table of runs, of whose columns SQLite does not check the types."""

    run_id: Name
    spec: str
    state: Literal["planned", "running", "done", "failed", "diverged"]
    flops: NonNegative
    steps: Positive
    step: Count
    attempts: Count
    owner: str | None
    host: str | None
    pid: Count | None
    started: float | None
    ended: float | None
    speed: float | None
    message: str | None
    note: str | None
    result: str | None
    age: float | None


@lru_cache(maxsize=4096)
def _batch_tokens(spec: str) -> int:
    """Return the tokens per step of a stored spec, whose text never changes."""
    return RunSpec.from_json(spec).recipe.batch_tokens


@lru_cache(maxsize=4096)
def _check_result(text: str) -> None:
    """Refuse a damaged result; an intact one is checked once while a ledger is watched."""
    conform(parse_json(text, "its result"), Rows)


def read_entry(row: Row, ledger: str = "") -> Entry:
    """Convert a row of the store to an entry.

    Raises
    ------
    InputError
        The row, or a document in it, is damaged.
    """
    try:
        row = conform(row, StoredRun)
        batch_tokens = _batch_tokens(row["spec"])
        text = row["result"]
        if text:
            _check_result(text)
        result = json.loads(text) if text else None
    except InputError as error:
        run = shown(row.get("run_id"))
        raise InputError(
            f"the run {run} in the ledger {ledger} is damaged ({error}); move the ledger away, and "
            "train its plan in a new --out folder"
        ) from None
    running = row["state"] == RUNNING
    names = ("run_id", "state", "flops", "steps", "step", "message", "note", "attempts", "owner",
             "host", "pid", "started", "ended", "speed")  # fmt: skip
    return Entry(
        **{name: row[name] for name in names},
        tokens_per_step=batch_tokens,
        row=result,
        # A clock that was set back would make the age negative.
        heartbeat_age=max(row["age"], 0.0) if running and row["age"] is not None else None,
    )
