"""Ledgers in a PostgreSQL database, for any number of workers on any number of machines."""

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

PATIENCE = 300.0  # seconds: enough for a restart of the server, or its move to another machine
CONNECT_SECONDS = 5
# A statement that waits longer is repeated, so that the patience of the caller is respected.
SESSION_SETTINGS = {
    "lock_timeout": "1s",
    "statement_timeout": "15s",
    "idle_in_transaction_session_timeout": "60s",  # releases the locks of a frozen worker
}
# The server reports FATAL both for permanent refusals and for these temporary ones.
TEMPORARY_REFUSALS = (
    "the database system is",
    "too many",
    "connection slots",
    "terminating connection",
)
PLACEHOLDER = re.compile(r"(?<!:):([a-z_]+)")
# Advisory lock held while the tables are created; the number is arbitrary.
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
    """Store in a PostgreSQL database over one connection, which is opened again when it is lost.

    Parameters
    ----------
    url
        ``postgresql://user:password@host:port/database``, or another address that libpq accepts.
    """

    now = "EXTRACT(EPOCH FROM clock_timestamp())::float8"
    skip_locked = " FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, *, patience: float | None = None) -> None:
        try:
            import psycopg
        except ImportError:
            raise InputError(
                f"a ledger in PostgreSQL needs psycopg; install it by `{installing('psycopg')}`"
            ) from None
        self._psycopg = psycopg
        self._url = url
        self.name = re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)
        self.name = re.sub(r"(password=)[^&]*", r"\1***", self.name)
        self.patience = PATIENCE if patience is None else patience
        self._connection: Any = None
        self._parents: Any = None
        self._process = os.getpid()
        self._turn = threading.Lock()  # held by the thread whose transaction uses the connection

    def prepare(self) -> None:
        """Create the tables if they are missing."""
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
            if "FATAL" in str(error) and not any(text in str(error) for text in TEMPORARY_REFUSALS):
                raise WorkError(
                    f"the ledger {self.name} refuses the connection ({_one_line(error)}); check "
                    "user, password and database in its URL"
                ) from error
            raise Interrupted(_one_line(error)) from error
        except psycopg.Error as error:
            raise WorkError(
                f"the ledger {self.name} cannot be used ({_one_line(error)}); the user needs the "
                "permission to create and change tables in that database"
            ) from error
        finally:
            self._turn.release()

    def _connected(self, end: float) -> Any:
        if self._process != os.getpid():  # after a fork the connection belongs to the parent
            self._parents, self._connection = self._connection, None
            self._process = os.getpid()
        if self._connection is None or self._connection.closed:
            left = max(end - time.monotonic(), 2.0)
            connection = self._psycopg.connect(
                self._url,
                autocommit=True,  # transactions are opened explicitly
                row_factory=self._psycopg.rows.dict_row,
                prepare_threshold=None,  # prepared statements break behind a pooler
                connect_timeout=int(min(CONNECT_SECONDS, left)),
                **KEEPALIVE,
            )
            for name, value in SESSION_SETTINGS.items():
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
            "check that the server runs and can be reached from here, then start again"
        )


def _one_line(error: Exception) -> str:
    """Return the text of an error of libpq without line breaks."""
    return " ".join(str(error).split())
