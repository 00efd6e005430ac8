"""Where a study is kept: Optuna's journal in a file, or a database by URL."""

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import installing

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

Result = TypeVar("Result")
# A path, a URL, or a storage of Optuna's that is open already.
Address: TypeAlias = "Path | str | BaseStorage"
CONNECT_SECONDS = 10
PATIENCE = 60.0  # seconds for which a lost database is waited out once a study is open
PAUSE = 1.0
TABLES_TRIES = 5  # several workers may make the tables at the same moment
# SQLAlchemy's own names for PostgreSQL take another driver than the one of our extra.
POSTGRES = re.compile(r"^(postgres|postgresql)://")


def is_url(address: Address) -> bool:
    """Whether an address is that of a database."""
    return "://" in str(address)


def shown(address: Address) -> str:
    """An address without its password."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", str(address))


def storage_at(address: Address) -> "BaseStorage":
    """Open a study's storage: the path of a journal, or ``postgresql://user:password@host/name``.

    Raises
    ------
    InputError
        The URL is not one, or its driver is not installed.
    WorkError
        The file cannot be written, or the database cannot be reached.
    """
    if is_url(address):
        return _database(str(address))
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if isinstance(address, BaseStorage):
        return address
    path = Path(address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise WorkError(f"{path} could not be written ({error.strerror})") from error


@contextmanager
def closing(address: Address) -> "Iterator[BaseStorage]":
    """A storage that is closed in the end, unless it was open already; see :func:`storage_at`."""
    from optuna.storages import RDBStorage

    storage = storage_at(address)
    try:
        yield storage
    finally:
        if isinstance(storage, RDBStorage) and storage is not address:
            storage.remove_session()
            storage.engine.dispose()


def _database(url: str) -> "BaseStorage":
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    for left in reversed(range(TABLES_TRIES)):
        try:
            return _opened(POSTGRES.sub("postgresql+psycopg://", url))
        except ImportError:
            raise InputError(
                f"{shown(url)} needs a database driver; for PostgreSQL install it with "
                f"`{installing('psycopg')}`"
            ) from None
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise InputError(
                "`--storage` must be a path or postgresql://user:password@host/database, but got "
                f"{shown(url)} ({_first_line(error)})"
            ) from None
        except SQLAlchemyError as error:
            if not left or not _is_race(error):
                raise unreachable(url, error) from error
            time.sleep(PAUSE / 4)
    raise AssertionError("the last try returns or raises")


def _opened(url: str) -> "BaseStorage":
    from optuna.storages import RDBStorage

    options: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith("postgresql+psycopg:"):
        options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RDBStorage(url, engine_kwargs=options)


def _is_race(error: Exception) -> bool:
    """Another worker made the same table a moment ago."""
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    return isinstance(error, IntegrityError | ProgrammingError)


def unreachable(address: Address, error: BaseException) -> WorkError:
    """One line for a storage that does not answer."""
    way_out = (
        "start the database, or check host, port, user and password"
        if is_url(address)
        else ("free space, or choose another file")
    )
    reason = _first_line(getattr(error, "__cause__", None) or error)
    return WorkError(f"the study at {shown(address)} cannot be reached ({reason}); {way_out}")


def patiently(
    address: Address, call: Callable[[], Result], *, patience: float | None = None
) -> Result:
    """Call what uses the storage; a database that is away for a moment is waited for.

    Raises
    ------
    WorkError
        It stayed out of reach.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    ends = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        try:
            return call()
        except (SQLAlchemyError, StorageInternalError) as error:
            if time.monotonic() >= ends:
                raise unreachable(address, error) from error
            time.sleep(PAUSE)
        except OSError as error:
            raise unreachable(address, error) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
