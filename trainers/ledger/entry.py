"""The states of a run, and a run as the ledger knows it."""

import json
from dataclasses import dataclass

from shapelaw.trainers.ledger.store import Row

PLANNED, RUNNING, DONE, FAILED, DIVERGED = "planned", "running", "done", "failed", "diverged"
STATES = (PLANNED, RUNNING, DONE, FAILED, DIVERGED)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run as the ledger knows it.

    Times are Unix seconds: ``started`` when a worker first took it, ``ended`` when it was done,
    failed or diverged. ``heartbeat_age`` is in seconds, ``speed`` in steps per second since its
    worker took it; both only while it runs. ``attempts`` counts how often it was taken. ``note``
    says what was unusual though the run went on; ``message`` says why it failed or diverged.
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
        """Its rows of the run table: none before it ended, several for a run with branches."""
        return self.row if isinstance(self.row, list) else [self.row] if self.row else []

    @property
    def seconds_left(self) -> float | None:
        """Seconds until its last step at its present speed; None where that is not known."""
        if self.state != RUNNING or not self.speed:
            return None
        return max(self.steps - self.step, 0) / self.speed


def read_entry(row: Row) -> Entry:
    """An entry from a row of the store."""
    running = row["state"] == RUNNING
    recipe = json.loads(row["spec"])["recipe"]
    names = ("run_id", "state", "flops", "steps", "step", "message", "note", "attempts", "owner",
             "host", "pid", "started", "ended", "speed")  # fmt: skip
    return Entry(
        **{name: row[name] for name in names},
        tokens_per_step=recipe["context_length"] * recipe["sequences"],
        row=json.loads(row["result"]) if row["result"] else None,
        # A clock that was set back would make it negative.
        heartbeat_age=max(row["age"], 0.0) if running and row["age"] is not None else None,
    )
