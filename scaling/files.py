"""Files are written whole or not at all, and read with an error that a person can act on."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError, WorkError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there in one step.

    Raises
    ------
    WorkError
        The disk is full or the folder cannot be written to; ``path`` is then as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise WorkError(_reason(path, error)) from error
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise WorkError(_reason(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    write_whole(path, lambda target: target.write_text(text, encoding="utf-8"))


def write_json(path: Path, document: object) -> None:
    """Write a JSON document whole; floats keep all their digits, NaN is refused."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    InputError
        There is no such file, or it is not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give an existing file"
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give a file that shapelaw wrote") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold a JSON object, but holds a {type(document).__name__}")
    return document


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """On bad input, remove a folder that was not there before: nothing is left half-made."""
    new = not folder.exists()
    try:
        yield
    except InputError:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(path: Path, error: OSError) -> str:
    return f"{path} could not be written ({error.strerror}); free space or choose another folder"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@cache
def data_folder() -> Path:
    """Return the folder of the shipped tables: ``data`` inside the package ``shapelaw``."""
    return Path(__file__).parents[1] / "data"
