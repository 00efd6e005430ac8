"""Shards of tokens on disk: memory-mapped, with the starts of documents and checksums."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json, sha256, write_json
from shapelaw.trainers.corpus.encoding import TOKENIZER_FILE

if TYPE_CHECKING:
    from shapelaw.trainers.corpus.tokenizers import TokenBlock

LARGEST_UINT16 = 65_536  # tokens that 16 bits tell apart
CHECKED = "checked.json"  # sizes and times of the files whose checksums were found right


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Tokens in a file with the starts of their documents.

    ``tokens`` (count,) uint16 or uint32 and ``starts`` (documents,) int64 are memory-mapped. One
    separator token stands between two documents.
    """

    tokens: np.ndarray
    starts: np.ndarray


def token_type(vocab_size: int) -> np.dtype:
    """Return the smallest integer type of a shard that can represent the tokens."""
    return np.dtype(np.uint16 if vocab_size <= LARGEST_UINT16 else np.uint32)


def write_shard(
    folder: Path,
    name: str,
    blocks: "Iterable[TokenBlock]",
    *,
    vocab_size: int,
    limit: int | None = None,
) -> tuple[int, int]:
    """Write ``NAME.npy`` and ``NAME.starts.npy`` piece by piece.

    Parameters
    ----------
    blocks
        Tokens of the documents. The very last separator is left out of the file.
    limit
        Largest number of tokens; the document that exceeds it is cut.

    Returns
    -------
    tokens, documents : int
        Numbers of written tokens and documents.
    """
    kind, count, lengths = token_type(vocab_size), 0, []
    with (folder / f"{name}.npy").open("wb") as file:
        _write_header(file, kind, 0)
        begin = file.tell()
        for block in blocks:
            file.write(np.ascontiguousarray(block.tokens, dtype=kind).data)
            count += len(block.tokens)
            lengths.append(block.lengths)
            if limit is not None and count > limit:
                break
        count = max(0, count - 1 if limit is None else min(count - 1, limit))
        file.truncate(begin + count * kind.itemsize)
        file.seek(0)
        _write_header(file, kind, count)  # its length does not depend on the count
    sizes = np.concatenate([*lengths, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    starts = np.cumsum(sizes) - sizes
    starts = starts[starts < count]
    np.save(folder / f"{name}.starts.npy", starts)
    return count, len(starts)


def _write_header(file: Any, kind: np.dtype, count: int) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, about)


def read_shard(folder: Path, name: str) -> Shard:
    """Map a shard; a shard of an earlier version without starts is one document.

    Raises
    ------
    InputError
        A file is missing or damaged.
    """
    tokens = _mapped(folder / f"{name}.npy", ("uint16", "uint32"))
    path = folder / f"{name}.starts.npy"
    starts = _mapped(path, ("int64",)) if path.exists() else np.zeros(1, dtype=np.int64)
    return Shard(tokens=tokens, starts=starts)


def _mapped(path: Path, kinds: tuple[str, ...]) -> np.ndarray:
    """Map a one-dimensional array of whole numbers."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, SyntaxError, OverflowError, MemoryError) as error:
        raise _damaged(path, f"is not an array of NumPy ({error})") from None
    if getattr(array, "ndim", 0) != 1 or str(array.dtype) not in kinds:
        raise _damaged(path, f"does not hold one row of {' or '.join(kinds)}")
    return array


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Compute size in bytes and SHA-256 of every shard file and tokenizer in a folder."""
    files = sorted([*folder.glob("*.npy"), *folder.glob(TOKENIZER_FILE)])
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}


def verify(folder: Path, files: dict[str, dict[str, Any]], *, again: bool = False) -> None:
    """Compare the files with their checksums.

    Sizes are always compared. Contents are compared when a file is checked for the first time, when
    its time or size has changed, or with ``again``.

    Raises
    ------
    InputError
        A file is missing, cut short or changed.
    """
    seen = _seen(folder)
    stamps = {}
    for name, known in files.items():
        path = folder / name
        try:
            found = path.stat()
            if found.st_size != known["bytes"]:
                raise _damaged(path, f"has {found.st_size} bytes instead of {known['bytes']}")
            stamps[name] = [found.st_size, found.st_mtime_ns]
            if (again or seen.get(name) != stamps[name]) and sha256(path) != known["sha256"]:
                raise _damaged(path, "does not have the SHA-256 that corpus.json gives")
        except OSError as error:
            raise _damaged(path, f"cannot be read ({error.strerror})") from error
    if stamps != seen:
        _record_checked(folder, stamps)


def _record_checked(folder: Path, stamps: dict[str, list[int]]) -> None:
    """Record that the files were verified; files in a read-only folder are verified every time."""
    try:
        write_json(folder / CHECKED, stamps)
    except WorkError:
        return


def _seen(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CHECKED)
    except InputError:
        return {}


def _damaged(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} {what}: the prepared corpus is damaged; delete {path.parent} and give the same "
        "command again, which makes it anew from its text"
    )
