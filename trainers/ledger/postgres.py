"""Ledgers in a PostgreSQL database: for any number of workers on any number of machines."""

import os
import re
import threading
import time
from typing import Any

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import installing
from shapelaw.trainers.ledger.store import (
    RUNS,
    VERSION,
    VERSIONS,
    Interrupted,
    Result,
    Row,
    Store,
    StoreSession,
    Work,
    check_version,
)

PATIENCE = 300.0  # a server that is restarted, or moves to another machine
CONNECT_SECONDS = 5
# A statement that waits longer is tried again, so that a caller's own patience holds.
SETTINGS = {
    "lock_timeout": "1s",
    "statement_timeout": "15s",
    "idle_in_transaction_session_timeout": "60s",  # a frozen worker's locks are let go
}
# A server says FATAL to whom it will never let in, and to whom it cannot let in just now.
FOR_NOW = ("the database system is", "too many", "connection slots", "terminating connection")
PLACEHOLDER = re.compile(r"(?<!:):([a-z_]+)")
# One word that all who make the tables wait for; any number does.
TABLES_LOCK = 4_155_311
KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}  # fmt: skip


class _Session:
    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def rows(self, sql: str, **values: object) -> list[Row]:
        return self._execute(sql, values).fetchall()

    def change(self, sql: str, **values: object) -> int:
        return self._execute(sql, values).rowcount

    def _execute(self, sql: str, values: dict[str, object]) -> Any:
        return self.connection.execute(PLACEHOLDER.sub(r"%(\1)s", sql), values)


class PostgresStore(Store):
    """Rows in a database; one connection is kept open, and made anew when it is lost.

    Parameters
    ----------
    url
        ``postgresql://user:password@host:port/database``, or any other address that libpq knows.
    """

    now = "EXTRACT(EPOCH FROM clock_timestamp())::float8"
    skip_locked = " FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, *, patience: float | None = None) -> None:
        try:
            import psycopg
        except ImportError:
            raise InputError(
                f"a ledger in PostgreSQL needs psycopg; `{installing('psycopg')}`"
            ) from None
        self._psycopg = psycopg
        self._url = url
        self.name = re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)
        self.name = re.sub(r"(password=)[^&]*", r"\1***", self.name)
        self.patience = PATIENCE if patience is None else patience
        self._connection: Any = None
        self._parents: Any = None
        self._process = os.getpid()
        self._turn = threading.Lock()  # a transaction has the connection to itself

    def prepare(self) -> None:
        """Make the tables where they are missing."""
        self.transact(self._prepare)

    def _prepare(self, session: StoreSession) -> None:
        exists = "SELECT to_regclass('shapelaw_ledger') IS NOT NULL AS found"
        if not session.rows(exists)[0]["found"]:
            session.rows("SELECT pg_advisory_xact_lock(:lock) AS taken", lock=TABLES_LOCK)
            session.change(VERSIONS)
            session.change(RUNS)
        versions = session.rows("SELECT version FROM shapelaw_ledger")
        if versions:
            check_version(versions[0]["version"], self.name)
        else:
            session.change("INSERT INTO shapelaw_ledger VALUES (:version)", version=VERSION)

    def _attempt(self, work: Work[Result], seconds: float, write: bool) -> Result:
        psycopg = self._psycopg
        end = time.monotonic() + seconds
        if not self._turn.acquire(timeout=seconds):
            raise Interrupted("another thread of this process uses the connection")
        try:
            connection = self._connected(end)
            with connection.transaction():
                return work(_Session(connection))
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self._drop()
            if "FATAL" in str(error) and not any(words in str(error) for words in FOR_NOW):
                raise WorkError(f"the ledger {self.name} refuses: {_line(error)}") from error
            raise Interrupted(_line(error)) from error
        except psycopg.Error as error:
            raise WorkError(
                f"the ledger {self.name} cannot be used ({_line(error)}); the user needs the right "
                "to make and to change tables in that database"
            ) from error
        finally:
            self._turn.release()

    def _connected(self, end: float) -> Any:
        if self._process != os.getpid():  # after a fork the connection is the parent's
            self._parents, self._connection = self._connection, None
            self._process = os.getpid()
        if self._connection is None or self._connection.closed:
            left = max(end - time.monotonic(), 2.0)
            connection = self._psycopg.connect(
                self._url,
                autocommit=True,  # transactions are begun by name
                row_factory=self._psycopg.rows.dict_row,
                prepare_threshold=None,  # prepared statements break behind a pooler
                connect_timeout=int(min(CONNECT_SECONDS, left)),
                **KEEPALIVE,
            )
            for name, value in SETTINGS.items():
                connection.execute(f"SET {name} = '{value}'")
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __del__(self) -> None:
        if getattr(self, "_process", None) == os.getpid():
            self._drop()

    def _out_of_patience(self, seconds: float, reason: str) -> str:
        return (
            f"the ledger {self.name} was out of reach for {seconds:g} s ({reason}); "
            "see that the server runs and can be reached from here, then start again"
        )


def _line(error: Exception) -> str:
    """An error of libpq without its line breaks."""
    return " ".join(str(error).split())
