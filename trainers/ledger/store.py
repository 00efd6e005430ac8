"""Interface of a store: SQL transactions, repeated until one is known to be committed."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from shapelaw.scaling.errors import InputError, WorkError

VERSION = 2
ONLY_SWEEP = "sweep"  # name of the sweep in a file, which holds only one
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # seconds between attempts
Result = TypeVar("Result")
Row = dict[str, Any]

VERSIONS = "CREATE TABLE IF NOT EXISTS shapelaw_ledger (version INTEGER NOT NULL)"
RUNS = """
CREATE TABLE IF NOT EXISTS shapelaw_runs (
    sweep TEXT NOT NULL,
    run_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    spec TEXT NOT NULL,
    identity TEXT NOT NULL,
    state TEXT NOT NULL,
    flops DOUBLE PRECISION NOT NULL,
    steps BIGINT NOT NULL,
    step BIGINT NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    claim TEXT,
    owner TEXT,
    host TEXT,
    pid BIGINT,
    process TEXT,
    beats BIGINT NOT NULL DEFAULT 0,
    heartbeat DOUBLE PRECISION,
    started DOUBLE PRECISION,
    ended DOUBLE PRECISION,
    speed DOUBLE PRECISION,
    message TEXT,
    note TEXT,
    result TEXT,
    PRIMARY KEY (sweep, run_id)
)
"""


class LedgerUnreachable(WorkError):
    """Error for a ledger that could not be read or written within the patience of its store.

    The training itself has not failed. A worker should end on this error; another one takes its row
    over.
    """


class Interrupted(Exception):
    """Error for a transaction that failed or has an unknown result; it can be repeated."""


class StoreSession(Protocol):
    """One open transaction. The SQL refers to values as ``:name``."""

    def rows(self, sql: str, **values: object) -> list[Row]:
        """Return the rows of a query."""

    def change(self, sql: str, **values: object) -> int:
        """Execute a statement and return the number of changed rows."""


Work = Callable[[StoreSession], Result]


class Store(ABC):
    """Database that holds ledgers.

    Attributes
    ----------
    name
        Name of the database in errors, without a password.
    now
        SQL expression for the time of the database in Unix seconds.
    skip_locked
        SQL to append to a query for rows that are then changed.
    patience
        Seconds for which locks and lost connections are retried.
    """

    name: str
    now: str
    skip_locked: str
    patience: float

    @abstractmethod
    def prepare(self) -> None:
        """Create the tables that are missing.

        Raises
        ------
        WorkError
            The store cannot be used, or its tables were written by another version.
        """

    @abstractmethod
    def _attempt(self, work: Work[Result], seconds: float, write: bool) -> Result:
        """Run work in one transaction, waiting for locks for at most ``seconds``.

        Raises
        ------
        Interrupted
            The transaction can be repeated.
        """

    def transact(
        self, work: Work[Result], *, patience: float | None = None, write: bool = True
    ) -> Result:
        """Run work in one transaction, repeated until it is known to be committed.

        The answer to a commit can be lost, so that ``work`` may find its own changes. ``work`` must
        therefore be idempotent.

        Parameters
        ----------
        work
            Function of the open transaction.
        patience
            Seconds for which locks and lost connections are retried; by default those of the store.
        write
            False for work that only reads and need not wait for writers.

        Raises
        ------
        LedgerUnreachable
            The store stayed locked or out of reach for ``patience`` seconds.
        """
        allowed = self.patience if patience is None else patience
        end, pause = time.monotonic() + allowed, FIRST_PAUSE
        while True:
            try:
                return self._attempt(work, max(end - time.monotonic(), FIRST_PAUSE), write)
            except Interrupted as error:
                if time.monotonic() + pause >= end:
                    raise LedgerUnreachable(self._out_of_patience(allowed, str(error))) from error
            # A random pause, so that not all workers return at once after a restart of the server.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    @abstractmethod
    def _out_of_patience(self, seconds: float, reason: str) -> str:
        """Return the text of the error that is raised after the patience: cause and way out."""


def check_version(found: object, name: str) -> None:
    """Refuse a ledger of another schema version.

    Raises
    ------
    WorkError
        ``found`` is not the version of this code.
    """
    if found != VERSION:
        raise InputError(
            f"`version == {VERSION}` must hold for the ledger {name}, but it has {found}: it was "
            "written by another version of shapelaw; use that version, or choose another ledger"
        )
