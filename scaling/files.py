"""Atomic writing of files, and reading of JSON and TOML with errors that name the way out."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError, WorkError

MAX_JSON_BYTES = 100_000_000
MAX_TOML_BYTES = 1_000_000
MAX_DEPTH = 40  # levels of lists and objects in a JSON document
MAX_DIGITS = 31  # of an integer and its sign, as of the largest count that options take


def require_file_place(path: Path, option: str) -> None:
    """Refuse a path at which no file can be written, before the work whose result goes there.

    Parameters
    ----------
    path
        File to write later. Missing folders above it are no obstacle.
    option
        Option that gives the path, for the message.

    Raises
    ------
    InputError
        The path is a folder, or no file can be created below the nearest folder that exists.
    """
    if path.is_dir():
        raise InputError(f"`{option}` must be a file, but {path} is a folder; add a file name")
    _require_parent(path, option)


def require_folder_place(path: Path, option: str) -> None:
    """Refuse a path at which no folder can be made or filled, as :func:`require_file_place`."""
    if path.exists() and not path.is_dir():
        raise InputError(f"`{option}` must be a folder, but {path} is a file; choose another name")
    _require_parent(path / "file", option)


def _require_parent(path: Path, option: str) -> None:
    """Refuse a path whose nearest existing parent is a file or a folder without write access."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise InputError(
            f"`{option}` must lie in a folder, but {parent} is a file; choose another folder"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(
            f"`{option}` must lie in a folder that you may write to, but got {parent}; choose "
            "another folder"
        )


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: fill a temporary file in the same folder, then rename it.

    Parameters
    ----------
    path
        The file; its folder is created. A device or a pipe is written to and not replaced.
    write
        Function that writes the content to the path that it gets.

    Raises
    ------
    WorkError
        The disk is full or the folder cannot be written to; ``path`` is then unchanged.
    """
    special = path.exists() and not path.is_file() and not path.is_dir()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = None if special else path.parent
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise WorkError(_reason(path, error)) from error
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if special:
            path.write_bytes(temporary.read_bytes())
            return
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise WorkError(_reason(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_whole(path, lambda target: target.write_text(text, encoding="utf-8"))


def write_json(path: Path, document: object) -> None:
    """Write a JSON document atomically; floats keep all digits and NaN raises ValueError."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object in bounded memory.

    Raises
    ------
    InputError
        The file does not exist, is too large, or does not hold a JSON object: one of finite
        numbers, texts that Unicode can encode, and not more than :data:`MAX_DEPTH` levels.
    """
    document = parse_json(read_bytes(path, MAX_JSON_BYTES), str(path))
    if not isinstance(document, dict):
        raise InputError(
            f"{path} must hold a JSON object, but holds a {type(document).__name__}; "
            "give a file that shapelaw wrote"
        )
    return document


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML document in bounded memory.

    Raises
    ------
    InputError
        The file does not exist, is too large, or is not TOML.
    """
    content = read_bytes(path, MAX_TOML_BYTES)
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        reason = "too many levels" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} is not a TOML file ({reason}); correct it") from None


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes; a device, pipe or larger file is refused."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{path} must be a file, but is a device or a pipe; give a file")
        if (size := path.stat().st_size) > limit:
            raise InputError(
                f"{path} must be of at most {limit} bytes, but has {size}; give another file"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: an InputError, or a null byte in the path
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}; give an existing file") from None


def parse_json(content: bytes | str, name: str) -> Any:
    """Parse JSON that may come from anyone.

    Raises
    ------
    InputError
        The text is not JSON, or has a number that is not finite or too long, half of a surrogate
        pair, or too many levels.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        document = json.loads(
            text, parse_constant=_refuse_number, parse_int=_integer, parse_float=_finite
        )
        if "\\ud" in text.lower():
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # as is UnicodeError
        reason = "too many levels" if isinstance(error, RecursionError) else error
        raise InputError(
            f"{name} is not JSON ({reason}); give a file that shapelaw wrote"
        ) from None
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level)
        level = [item for part in parts for item in part if isinstance(item, dict | list)]
    if level:
        raise InputError(
            f"{name} is not JSON of at most {MAX_DEPTH} levels; give a file that shapelaw wrote"
        )
    return document


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"the integer {text[:12]}… has more than {MAX_DIGITS - 1} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text[:20])


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[None]:
    """Remove a folder that did not exist before if the block raises an InputError."""
    new = not folder.exists()
    try:
        yield
    except InputError:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def sha256(path: Path) -> str:
    """Compute the SHA-256 of the bytes of a file, in hexadecimal digits."""
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
