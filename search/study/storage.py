"""The storage of a study: Optuna's journal in a file, or a database by URL."""

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from shapelaw.scaling.display.console import note
from shapelaw.scaling.display.printable import listed, without_passwords
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import installing
from shapelaw.scaling.files import require_file_place

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

Result = TypeVar("Result")
# A path, a URL, or an Optuna storage that is open already.
Address: TypeAlias = "Path | str | BaseStorage"
CONNECT_SECONDS = 10
RETRY_SECONDS = 60.0  # time for which a call to a lost database is repeated
PAUSE = 1.0  # seconds between two tries
MAX_PORT = 65_535
MAX_TABLE_TRIES = 5  # several workers may create the tables at the same moment
# SQLAlchemy's plain names for PostgreSQL select another driver than psycopg, shapelaw's extra.
POSTGRES = re.compile(r"^(postgres|postgresql)://")


def is_url(address: Address) -> bool:
    """Return whether an address is meant to be the URL of a database."""
    text = str(address)
    return "://" in text or text.startswith(("postgres:", "postgresql:", "postgresql+psycopg:"))


def hide_password(address: Address) -> str:
    """Return an address as text without its password."""
    return without_passwords(str(address))


def check_storage_address(address: Address) -> None:
    """Refuse the address of a storage that cannot be opened, before anything is written.

    Raises
    ------
    InputError
        The URL names no known database, or the path is a folder or a file of another kind.
    """
    if is_url(address):
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError

        try:
            if str(address).partition("://")[2].partition("/")[0].count("@") > 1:
                raise ValueError("an @ in a password is written %40")
            url = make_url(_with_driver(str(address)))
            url.get_dialect()
            if {*"[]"} & {*(url.host or "")} or (url.port or 0) > MAX_PORT:
                raise ValueError("no host or port is written so")
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise InputError(
                "`--storage` must be a path or postgresql://user:password@host/database, but got "
                f"{hide_password(address)} ({_first_line(error)})"
            ) from None
    elif isinstance(address, Path | str):
        path = Path(address)
        require_file_place(path, "--storage")
        if path.exists() and not path.is_file():
            raise _not_a_journal(path, "it is a device or a pipe")
        if path.is_file():
            with path.open("rb") as file:  # Optuna would append to any file
                if file.read(1) not in (b"", b"{"):
                    raise _not_a_journal(path, "the first line is not a JSON object")


def open_storage(address: Address) -> "BaseStorage":
    """Open a study's storage: the path of a journal, or ``postgresql://user:password@host/name``.

    Raises
    ------
    InputError
        The URL is invalid, its driver is not installed, or the file is not a journal of Optuna.
    WorkError
        The file cannot be written, or the database cannot be reached.
    """
    check_storage_address(address)
    if is_url(address):
        return _open_database(str(address))
    from optuna.storages import BaseStorage

    if isinstance(address, BaseStorage):
        return address
    path = Path(address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _open_journal(path)
    except OSError as error:
        raise WorkError(
            f"{path} could not be written ({error.strerror}); choose another file"
        ) from error


def _open_journal(path: Path) -> "BaseStorage":
    """Open a journal; note the damaged lines that are skipped."""
    from optuna.exceptions import OptunaError
    from optuna.storages import JournalStorage

    from shapelaw.search.study.journal import StudyJournal

    journal = StudyJournal(path)
    first = next(journal.read_logs(0), None)
    if journal.damaged and first is None:
        raise _not_a_journal(path, "no line is a record of Optuna")
    try:
        storage = JournalStorage(journal)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        OptunaError,
    ) as error:
        reason = f"a record does not fit those before it, {type(error).__name__}: {error}"
        raise _not_a_journal(path, reason) from None
    journal.repair()
    if lines := journal.damaged:
        _note_once(f"damaged lines of {path} were skipped: {listed(lines)}")
    return storage


@cache
def _note_once(text: str) -> None:
    """Print a note, once for a file that is opened again for the leaders."""
    note(f"note: {text}")


def _not_a_journal(path: Path, reason: str) -> InputError:
    return InputError(
        f"the storage of a study must be a file that shapelaw wrote, but {path} cannot be read "
        f"({reason}); give another file"
    )


@contextmanager
def opened_storage(address: Address) -> "Iterator[BaseStorage]":
    """Open a storage for a context (:func:`open_storage`); one that is open stays open."""
    from optuna.storages import RDBStorage

    storage = open_storage(address)
    try:
        yield storage
    finally:
        if isinstance(storage, RDBStorage) and storage is not address:
            storage.remove_session()
            storage.engine.dispose()


def check_study(address: "Address | None") -> None:
    """Open and repair the journal of a study, if it exists, though no shape is to be measured."""
    if isinstance(address, Path | str) and not is_url(address) and Path(address).exists():
        with opened_storage(address):
            return


def _open_database(url: str) -> "BaseStorage":
    from sqlalchemy.exc import SQLAlchemyError

    for tries_left in reversed(range(MAX_TABLE_TRIES)):
        try:
            return _rdb_storage(_with_driver(url))
        except ImportError:
            raise InputError(
                f"{hide_password(url)} needs a database driver; for PostgreSQL install it with "
                f"`{installing('psycopg')}`"
            ) from None
        except SQLAlchemyError as error:
            if not tries_left or not _is_race(error):
                raise unreachable_error(url, error) from error
            time.sleep(PAUSE / 4)
    raise AssertionError("the last try returns or raises")  # for the type checker


def _with_driver(url: str) -> str:
    return POSTGRES.sub("postgresql+psycopg://", url)


def _rdb_storage(url: str) -> "BaseStorage":
    from optuna.storages import RDBStorage

    options: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith("postgresql+psycopg:"):
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RDBStorage(url, engine_kwargs=options)


def _is_race(error: Exception) -> bool:
    """Return whether another worker has just created the same table."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    return isinstance(error, IntegrityError | ProgrammingError)


def unreachable_error(address: Address, error: BaseException) -> WorkError:
    """Make the error of a storage that does not answer."""
    way_out = (
        "start the database, or check host, port, user and password"
        if is_url(address)
        else ("free space, or choose another file")
    )
    reason = _first_line(getattr(error, "__cause__", None) or error)
    return WorkError(
        f"the study at {hide_password(address)} cannot be reached ({reason}); {way_out}"
    )


def retry_while_unreachable(
    address: Address, call: Callable[[], Result], *, patience: float | None = None
) -> Result:
    """Call a function that uses the storage, and retry while the database cannot be reached.

    Parameters
    ----------
    patience
        Seconds until an unreachable_error database is an error; None: :data:`RETRY_SECONDS`.

    Raises
    ------
    WorkError
        The storage stayed unreachable_error.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    ends = time.monotonic() + (RETRY_SECONDS if patience is None else patience)
    while True:
        try:
            return call()
        except (SQLAlchemyError, StorageInternalError) as error:
            if time.monotonic() >= ends:
                raise unreachable_error(address, error) from error
            time.sleep(PAUSE)
        except OSError as error:
            raise unreachable_error(address, error) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
