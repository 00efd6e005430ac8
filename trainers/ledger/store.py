"""What a store is: SQL in transactions that are repeated until one is known to have been kept."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from shapelaw.scaling.errors import WorkError

VERSION = 2
ONLY_SWEEP = "sweep"  # the name of the sweep in a file that holds one
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
    """The ledger could not be read or written for as long as its store is patient.

    The work itself is sound: a worker that hears this should end, and its row is taken over.
    """


class Interrupted(Exception):
    """A transaction was not made, or nobody knows whether it was; it may be tried again."""


class StoreSession(Protocol):
    """One open transaction. Values stand in the SQL as ``:name``."""

    def rows(self, sql: str, **values: object) -> list[Row]:
        """Rows of a query."""

    def change(self, sql: str, **values: object) -> int:
        """How many rows a statement changed."""


Work = Callable[[StoreSession], Result]


class Store(ABC):
    """A database that holds ledgers.

    ``name`` stands for it in errors (no password in it), ``now`` is the SQL for its time in Unix
    seconds, ``skip_locked`` what is put behind a query for rows that are about to be changed,
    and ``patience`` the seconds for which a lock or a lost connection is waited out.
    """

    name: str
    now: str
    skip_locked: str
    patience: float

    @abstractmethod
    def prepare(self) -> None:
        """Make the tables where they are missing.

        Raises
        ------
        WorkError
            The store cannot be used, or what is there was written by another version.
        """

    @abstractmethod
    def _attempt(self, work: Work[Result], seconds: float, write: bool) -> Result:
        """Do the work in one transaction, waiting for locks for at most so many seconds.

        Raises
        ------
        Interrupted
            It may be tried again.
        """

    def transact(
        self, work: Work[Result], *, patience: float | None = None, write: bool = True
    ) -> Result:
        """Do the work in one transaction, again and again until one is known to be kept.

        The answer to a commit can get lost, so ``work`` may find its own changes made already: it
        must be such that doing it twice is as doing it once. Work that only reads says so by
        ``write=False`` and waits for no writer.

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
            # Not all workers at the same moment after a server came back.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    @abstractmethod
    def _out_of_patience(self, seconds: float, reason: str) -> str:
        """The error's text: what happened, and what to do."""


def check_version(found: int, name: str) -> None:
    """Refuse a ledger of another schema version.

    Raises
    ------
    WorkError
        ``found`` is not the version that this code knows.
    """
    if found != VERSION:
        raise WorkError(
            f"`version == {VERSION}` must hold for the ledger {name}, but it has {found}: it was "
            "written by another version of shapelaw; use that one, or choose another ledger"
        )
