import os
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.trainers.ledger.entry import DONE
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.ledger.store import LedgerUnreachable
from support.ledgers import plan, spec, states
from support.postgres import Server


def test_ledger_of_first_version_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs (run_id TEXT PRIMARY KEY, state TEXT NOT NULL)")
        database.execute("INSERT INTO runs VALUES ('a', 'done')")
    with pytest.raises(InputError, match=r"`version == 2` must hold .* has 1: .* another ledger"):
        Ledger(path)
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT run_id, state FROM runs").fetchall() == [("a", "done")]
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
        assert "shapelaw_runs" not in names


def test_ledger_of_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    plan(Ledger(path))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE shapelaw_ledger SET version = 9")
    with pytest.raises(InputError, match=r"`version == 2` must hold .* has 9: .* another version"):
        Ledger(path)


@pytest.mark.xdist_group("postgres")
def test_database_of_later_version_is_refused(postgres: Server) -> None:
    with postgres.connection() as other:
        other.execute("CREATE DATABASE later")
    url = postgres.url().replace("/postgres?", "/later?")
    Ledger(url)
    with postgres.connection("later") as other:
        other.execute("UPDATE shapelaw_ledger SET version = 9")
    with pytest.raises(InputError, match=r"`version == 2` must hold .* has 9"):
        Ledger(url)


def test_a_path_inside_a_file_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"could not be written .* choose another folder"):
        Ledger(tmp_path / "file" / "ledger.sqlite")


def test_a_folder_in_place_of_the_file_is_a_work_error(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"ledger .* cannot be used"):
        Ledger(tmp_path)


def test_a_file_that_is_not_a_ledger_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("this is not a database " * 100)
    with pytest.raises(
        InputError, match=r"is damaged or not a ledger .* move it away, or give another --out"
    ):
        Ledger(tmp_path / "ledger.sqlite")


def test_text_of_a_ledger_that_is_no_utf_8_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    plan(Ledger(path))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE shapelaw_runs SET spec = CAST(x'ff' AS TEXT)")
    with pytest.raises(InputError, match=r"is damaged or not a ledger .Could not decode"):
        list(Ledger(path).entries())


def locked(path: Path) -> sqlite3.Connection:
    """Return a connection, usable in any thread, whose transaction locks out every writer."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def test_a_locked_file_can_be_read_and_is_written_after_the_lock(tmp_path: Path) -> None:
    ledger = plan(Ledger(tmp_path / "ledger.sqlite"))
    with closing(locked(tmp_path / "ledger.sqlite")) as other:
        assert len(ledger.entries()) == 3, "who only reads does not wait"
        released: list[bool] = []

        def release() -> None:
            released.append(True)
            other.rollback()

        timer = threading.Timer(0.5, release)
        timer.start()
        assert ledger.claim() == spec("a")
        assert released, "a claim waits for the lock"
        timer.join()


def test_a_file_that_stays_locked_is_refused_with_its_name(tmp_path: Path) -> None:
    ledger = plan(Ledger(tmp_path / "ledger.sqlite", patience=0.3))
    message = r"was locked by another process for 0.3 s .*; end that process \(`fuser "
    with (
        closing(locked(tmp_path / "ledger.sqlite")),
        pytest.raises(LedgerUnreachable, match=message),
    ):
        ledger.claim()
    assert ledger.claim() == spec("a")


@pytest.mark.parametrize(
    ("address", "sweep", "message"),
    [
        ("mysql://u:secret@h/d", None, r"a .sqlite file or postgresql://.*, but got mysql://"),
        ("postgresql://u:secret@h/d", None, r"`\?sweep=NAME` must name .* got none; end the URL"),
        ("postgresql://u:secret@h/d?sweep=", None, r"`\?sweep=NAME` must name"),
        ("postgresql://u:secret@h/d?sweep=a", "b", r"got 'a' and 'b'"),
    ],
)
def test_an_incomplete_address_is_refused(address: str, sweep: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Ledger(address, sweep=sweep)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://user:secret@127.0.0.1:1/d?sweep=a",
        "postgres://user:secret@127.0.0.1:1/d?sweep=a&application_name=x",
        "postgresql+psycopg://127.0.0.1:1/d?user=me&password=secret&sweep=a",
    ],
)
def test_an_unreachable_server_is_named_without_the_password(address: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(LedgerUnreachable, match=r"out of reach for 0.2 s .*127.0.0.1") as away:
        Ledger(address, patience=0.2)
    assert "***@" in str(away.value) or "password=***" in str(away.value)
    assert "secret" not in str(away.value)


def test_missing_psycopg_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r'pip install "shapelaw\[postgres\]"'):
        Ledger("postgresql://h/d?sweep=a")


@pytest.mark.xdist_group("postgres")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ladder@", "stranger@"), r'refuses the connection .*role "stranger" does not exist'),
        (
            ("/postgres?", "/nowhere?"),
            r'refuses the connection .*database "nowhere" does not exist',
        ),
    ],
)
def test_a_permanent_refusal_of_the_server_is_not_retried(
    postgres: Server, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(WorkError, match=message):
        Ledger(postgres.url().replace(*change))


@pytest.mark.xdist_group("postgres")
def test_a_user_without_permission_to_create_tables_is_refused(postgres: Server) -> None:
    with postgres.connection() as other:
        other.execute("CREATE DATABASE closed")
        other.execute("CREATE USER guest")
    url = postgres.url().replace("/postgres?", "/closed?").replace("ladder@", "guest@")
    with pytest.raises(
        WorkError, match=r"cannot be used .*permission denied.* needs the permission"
    ):
        Ledger(url)


@pytest.mark.xdist_group("postgres")
def test_transactions_survive_a_restart_of_the_server(postgres: Server) -> None:
    ledger = plan(Ledger(postgres.url("restarted"), patience=60.0))
    assert ledger.claim() == spec("a")
    postgres.stop("immediate")  # like a crash: clients are not notified
    start = threading.Timer(1.0, postgres.start)
    start.start()
    assert ledger.finish("a", {"run_id": "a"})
    start.join()
    assert states(Ledger(postgres.url("restarted")))["a"] == DONE


@pytest.mark.xdist_group("postgres")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_worker_has_its_own_connection(postgres: Server) -> None:
    ledger = plan(Ledger(postgres.url("forked")))
    child = os.fork()
    if child == 0:
        os._exit(0 if ledger.claim() == spec("a") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ledger.claim() == spec("a"), "the child is dead, and its parent still connected"
