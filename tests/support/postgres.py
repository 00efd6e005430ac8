"""Temporary PostgreSQL server for tests."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

UNPRIVILEGED = ("postgres", "nobody")  # initdb and the server refuse to run as root


def server_programs() -> Path | None:
    """Find the folder with initdb and pg_ctl."""
    program = shutil.which("pg_ctl")
    places = [Path(program).resolve().parent] if program else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


class Server:
    """Server on a free port of this machine, which can be stopped and started again."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        # Other users cannot read pytest's own folders.
        self.folder = Path(tempfile.mkdtemp(prefix="shapelaw-postgres-"))
        self.user = self._user()
        if self.user:
            shutil.chown(self.folder, self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-U", "ladder", "--auth=trust", "--no-sync", "-E", "UTF8")
        self.start()

    @staticmethod
    def _user() -> str | None:
        """Return the user that runs the server where the tests run as root, else None."""
        if os.getuid() != 0:
            return None
        import pwd

        names = {entry.pw_name for entry in pwd.getpwall()}
        return next(name for name in UNPRIVILEGED if name in names)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        if self.user:
            command = ["setpriv", f"--reuid={self.user}", "--clear-groups", *command]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, cwd=self.folder, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-p {self.port} -k '{self.folder}' -c listen_addresses=127.0.0.1"
        log = str(self.folder / "log")
        self._run("pg_ctl", "start", "-w", "-l", log, "-o", f"{options} -c fsync=off")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast`` ends the connections, ``immediate`` simulates a crash."""
        self._run("pg_ctl", "stop", "-w", "-m", mode)

    def url(self, sweep: str = "ladder") -> str:
        """Return the address of a sweep in the database."""
        return f"postgresql://ladder@127.0.0.1:{self.port}/postgres?sweep={sweep}"

    def connection(self, database: str = "postgres") -> Any:
        """Connect to a database without the ledger."""
        import psycopg

        url = self.url().partition("/postgres?")[0]
        return psycopg.connect(f"{url}/{database}", autocommit=True)

    def remove(self) -> None:
        """Stop the server and remove its folder."""
        try:
            self.stop("immediate")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def start_server() -> Server:
    """Start a server; skip the test where PostgreSQL or psycopg is not installed."""
    pytest.importorskip("psycopg", reason="a ledger in PostgreSQL needs psycopg")
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server (initdb, pg_ctl) on this machine: apt install postgresql")
    return Server(programs)
