"""The durable record of planned, running, done, failed and diverged runs: one SQLite file.

Any number of worker processes take rows without doubling one. A worker shows that it lives by a
heartbeat; the row of a dead one is taken over.
"""

import json
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from scaling.errors import InputError, WorkError
from trainers.loop import RunSpec

PLANNED, RUNNING, DONE, FAILED, DIVERGED = "planned", "running", "done", "failed", "diverged"
STALE_SECONDS = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    identity TEXT NOT NULL,
    state TEXT NOT NULL,
    flops REAL NOT NULL,
    steps INTEGER NOT NULL,
    step INTEGER NOT NULL DEFAULT 0,
    owner TEXT,
    host TEXT,
    pid INTEGER,
    heartbeat REAL,
    message TEXT,
    row TEXT,
    position INTEGER NOT NULL
)
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run as the ledger knows it."""

    run_id: str
    state: str
    flops: float
    steps: int
    step: int
    message: str | None
    row: dict[str, object] | None


@dataclass(frozen=True)
class Ledger:
    """The ledger at a path; opening it creates it.

    Every method is one transaction, safe against other processes and against a kill at any point.
    """

    path: Path
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.execute(SCHEMA)
        except OSError as error:
            raise WorkError(
                f"{self.path} could not be written ({error.strerror}); choose another folder"
            ) from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise WorkError(f"the ledger {self.path} cannot be opened: {error}") from error
        database.row_factory = sqlite3.Row
        try:
            yield database
        except sqlite3.DatabaseError as error:
            raise WorkError(
                f"the ledger {self.path} cannot be used ({error}); free space, or move it away"
            ) from error
        finally:
            database.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:  # undo, whatever ended it, and go on raising
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def plan(self, specs: Iterable[RunSpec], identities: Iterable[str]) -> None:
        """Add runs; one that is already there with the same identity keeps its state.

        Raises
        ------
        InputError
            A run of that name is there with other settings.
        """
        with self._write() as database:
            for spec, identity in zip(specs, identities, strict=True):
                known = database.execute(
                    "SELECT identity FROM runs WHERE run_id = ?", (spec.run_id,)
                ).fetchone()
                if known is None:
                    database.execute(
                        "INSERT INTO runs (run_id, spec, identity, state, flops, steps, position)"
                        " VALUES (?, ?, ?, ?, ?, ?, (SELECT COUNT(*) FROM runs))",
                        (spec.run_id, spec.as_json(), identity, PLANNED, spec.flops, spec.steps),
                    )
                elif known["identity"] != identity:
                    raise InputError(
                        f"the ledger {self.path} has a run {spec.run_id!r} with other settings "
                        "(shape, tokens, recipe, corpus, seed or torch version); "
                        "choose another --out folder or another run_id"
                    )

    def claim(self, alive_after: float = STALE_SECONDS) -> RunSpec | None:
        """Take the next planned run, or one whose worker is dead; None if there is none."""
        now = time.time()
        with self._write() as database:
            rows = database.execute(
                "SELECT * FROM runs WHERE state IN (?, ?) ORDER BY state = ?, position",
                (PLANNED, RUNNING, PLANNED),
            ).fetchall()
            for row in rows:
                if row["state"] == RUNNING and not _dead(row, now, alive_after):
                    continue
                database.execute(
                    "UPDATE runs SET state = ?, owner = ?, host = ?, pid = ?, heartbeat = ? "
                    "WHERE run_id = ?",
                    (RUNNING, self.owner, socket.gethostname(), os.getpid(), now, row["run_id"]),
                )
                return RunSpec.from_json(row["spec"])
        return None

    def beat(self, run_id: str, step: int) -> bool:
        """Say that the run goes on; False if it is no longer this owner's."""
        with self._write() as database:
            changed = database.execute(
                "UPDATE runs SET heartbeat = ?, step = ? WHERE run_id = ? AND owner = ?",
                (time.time(), step, run_id, self.owner),
            )
            return changed.rowcount == 1

    def finish(self, run_id: str, row: dict[str, object]) -> None:
        """Record a finished run with its row of the run table."""
        self._end(run_id, DONE, None, row)

    def fail(self, run_id: str, message: str) -> None:
        """Record that a run failed, and why; it may be retried."""
        self._end(run_id, FAILED, message, None)

    def diverge(self, run_id: str, message: str, row: dict[str, object]) -> None:
        """Record that a run diverged; its row has no loss."""
        self._end(run_id, DIVERGED, message, row)

    def retry(self) -> None:
        """Plan failed runs again."""
        with self._write() as database:
            database.execute(
                "UPDATE runs SET state = ?, message = NULL WHERE state = ?", (PLANNED, FAILED)
            )

    def _end(
        self, run_id: str, state: str, message: str | None, row: dict[str, object] | None
    ) -> None:
        with self._write() as database:
            database.execute(
                "UPDATE runs SET state = ?, message = ?, row = ?, "
                "step = CASE WHEN ? = 'done' THEN steps ELSE step END "
                "WHERE run_id = ? AND owner = ?",
                (state, message, json.dumps(row) if row else None, state, run_id, self.owner),
            )

    def entries(self) -> list[Entry]:
        """All runs in the order in which they were planned."""
        with self._open() as database:
            rows = database.execute("SELECT * FROM runs ORDER BY position").fetchall()
        return [
            Entry(
                run_id=row["run_id"],
                state=row["state"],
                flops=row["flops"],
                steps=row["steps"],
                step=row["step"],
                message=row["message"],
                row=json.loads(row["row"]) if row["row"] else None,
            )
            for row in rows
        ]

    def table(self) -> pd.DataFrame:
        """The run table: a row for each run that is done or diverged, in the order of the plan."""
        return pd.DataFrame([entry.row for entry in self.entries() if entry.row is not None])


def _dead(row: sqlite3.Row, now: float, alive_after: float) -> bool:
    """Whether the worker of a running row is gone: no heartbeat, or no such process here."""
    if now - row["heartbeat"] > alive_after:
        return True
    return row["host"] == socket.gethostname() and not process_exists(row["pid"])


def process_exists(pid: int) -> bool:
    """Whether a process of this machine lives (zombies are dead)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True
