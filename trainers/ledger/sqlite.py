"""Ledgers in an SQLite file in WAL mode, for any number of processes of one machine.

WAL needs memory shared by all processes, so the file must be on a local disk and not on a network
file system.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError, WorkError
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

PATIENCE = 60.0
VERSION_QUERY = "SELECT version FROM shapelaw_ledger"
UNVERSIONED_TABLE = "runs"  # table of ledgers of version 1, which did not store their version
TRANSIENT = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip
DAMAGED = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR}


class _Session:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def rows(self, sql: str, **values: object) -> list[Row]:
        return [dict(row) for row in self.connection.execute(sql, self._with_now(values))]

    def change(self, sql: str, **values: object) -> int:
        return self.connection.execute(sql, self._with_now(values)).rowcount

    @staticmethod
    def _with_now(values: dict[str, object]) -> dict[str, Any]:
        return {"now": time.time(), **values}


class SQLiteStore(Store):
    """Store in an SQLite file.

    Every transaction opens the file again, so that a fork or a kill leaves no open connection.
    """

    now = ":now"
    skip_locked = ""  # not needed: a writer locks the whole file

    def __init__(self, path: Path, *, patience: float | None = None) -> None:
        self.path = path
        self.name = str(path)
        self.patience = PATIENCE if patience is None else patience

    def prepare(self) -> None:
        """Create the file and its tables if they are missing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(
                f"{self.path} could not be written ({error.strerror}); choose another folder"
            ) from error
        self.transact(self._prepare)

    def _prepare(self, session: StoreSession) -> None:
        tables = {row["name"] for row in session.rows("SELECT name FROM sqlite_master")}
        if "shapelaw_ledger" in tables:
            versions = [row["version"] for row in session.rows(VERSION_QUERY)]
            check_version(versions[0] if versions else None, self.name)
            return
        if UNVERSIONED_TABLE in tables:
            check_version(1, self.name)
        session.change(VERSIONS)
        session.change(RUNS)
        session.change("INSERT INTO shapelaw_ledger (version) VALUES (:version)", version=VERSION)

    def _attempt(self, work: Work[Result], seconds: float, write: bool) -> Result:
        connection = None
        try:
            connection = sqlite3.connect(self.path, timeout=seconds, isolation_level=None)
            connection.row_factory = sqlite3.Row
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            result = work(_Session(connection))
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
            if code in TRANSIENT:
                raise Interrupted(str(error)) from error
            undecodable = str(error).startswith("Could not decode")  # has no code
            if code in DAMAGED or undecodable:
                raise InputError(
                    f"the ledger {self.name} is damaged or not a ledger ({error}); move it away, "
                    "or give another --out folder"
                ) from error
            raise WorkError(
                f"the ledger {self.name} cannot be used ({error}); free space on the disk, or move "
                "the file away"
            ) from error
        finally:
            if connection is not None:
                connection.close()  # rolls back uncommitted changes
        return result

    def _out_of_patience(self, seconds: float, reason: str) -> str:
        return (
            f"the ledger {self.name} was locked by another process for {seconds:g} s ({reason}); "
            f"end that process (`fuser {self.name}` names it) and start again"
        )
