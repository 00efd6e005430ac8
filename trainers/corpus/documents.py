"""Sources of text as documents in a fixed order: the standard library, files and folders."""

import io
import json
import sysconfig
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.document import Document, unreadable
from shapelaw.trainers.corpus.hf_streams import is_stream, stream_documents
from shapelaw.trainers.corpus.zstd import open_unpacked

STDLIB = "stdlib"  # the default corpus: source files of the running Python's standard library
NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
# Tables written as source: how well a model copies one swings between seeds, and one such file in
# the held-out part was most of the noise of the whole loss (LOG.md).
TABLES = {"encodings", "entities.py", "topics.py", "stringprep.py"}
SEPARATOR = b"<|endoftext|>"  # on a line of its own
BUFFER = 1_048_576  # bytes of a text file that are read at once
PARQUET_ROWS = 1024  # documents that are read at once
MAX_DOCUMENT = 500_000_000  # bytes of one document, which memory holds several times
TOO_LONG = (
    f"a document has over {MAX_DOCUMENT // 10**6} MB; divide it by lines {SEPARATOR.decode()}"
)


def read_documents(source: str) -> Iterator[Document]:
    """Read the documents of a source, in a fixed order.

    A text file is split at lines ``<|endoftext|>``. A JSON line or Parquet row is one document
    (column ``text``). In a folder every text file is read in the order of names. ``hf:NAME`` is a
    stream; see :mod:`shapelaw.trainers.corpus.hf_streams`.

    Raises
    ------
    InputError
        The source does not exist, or a file has a record that is not a document.
    """
    if is_stream(source):
        yield from stream_documents(source)
        return
    if source == STDLIB:
        yield from _library_documents(Path(sysconfig.get_paths()["stdlib"]))
        return
    path = Path(source)
    if not path.exists():
        raise InputError(f"the corpus {source} does not exist; give a file or a folder")
    if not path.is_dir():
        yield from _file_documents(path)
        return
    files = [file for file in sorted(path.rglob("*")) if is_text(file) and file.is_file()]
    if not files:
        kinds = ", ".join(sorted(READERS))
        raise InputError(f"the folder {source} has no text file ({kinds}, or these as .zst)")
    for file in files:
        yield from _file_documents(file)


def is_text(path: Path) -> bool:
    """Return True if the suffix of a file is that of a readable text format."""
    return _format(path) in READERS


def _format(path: Path) -> str:
    """Return the suffix that names the format of a file; ``.txt`` for a plain ``NAME.zst``."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] == ".zst":
        suffixes = suffixes[:-1] or [".txt"]
    return suffixes[-1] if suffixes else ""


def _library_documents(library: Path) -> Iterator[Document]:
    for path in sorted(library.rglob("*.py")):
        parts = set(path.relative_to(library).parts)
        if not parts & (NOT_LIBRARY | TABLES) and not path.match("_sysconfigdata*.py"):
            yield Document(path.read_text(encoding="utf-8", errors="ignore").encode())


def _file_documents(path: Path) -> Iterator[Document]:
    """Read one file; every error names the file and, if known, the line."""
    try:
        yield from READERS.get(_format(path), _text_documents)(path)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        rule = f"the byte 0x{error.object[error.start]:02x} is not UTF-8 ({error.reason})"
        raise unreadable(path, rule, line=_undecodable_line(path)) from None
    except (OSError, ValueError) as error:
        raise unreadable(path, str(error)) from None


def _undecodable_line(path: Path) -> int | None:
    """Find the first line of a text file that is not UTF-8; None in other formats."""
    if _format(path) == ".parquet":
        return None
    with open_unpacked(path) as lines:
        for number, line in enumerate(iter(partial(lines.readline, MAX_DOCUMENT), b""), start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def _text_documents(path: Path) -> Iterator[Document]:
    with open_unpacked(path) as stream:
        for text in _pieces(stream):
            if not text.isascii():
                text.decode()  # only to refuse what is not UTF-8
            yield Document(text)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """Split a text at its separator lines."""
    held, searched = bytearray(), 0  # the text since the last separator, how much was looked at
    while chunk := stream.read(BUFFER):
        held += chunk
        if len(held) > MAX_DOCUMENT:
            raise ValueError(TOO_LONG)
        begin = 0
        for place, end in _separators(held, searched, final=False):
            yield bytes(held[begin:place])
            begin = end
        del held[:begin]
        searched = max(0, len(held) - len(SEPARATOR) - 1)
    begin = 0
    for place, end in _separators(held, searched, final=True):
        yield bytes(held[begin:place])
        begin = end
    yield bytes(held[begin:])


def _separators(held: bytearray, begin: int, *, final: bool) -> Iterator[tuple[int, int]]:
    """Find the ranges of lines that contain only the separator; the text begins at a line.

    Unless the text is ``final``, an incomplete last line is left for the next call.
    """
    place = held.find(SEPARATOR, begin)
    while place >= 0:
        end = place + len(SEPARATOR)
        after = bytes(held[end : end + 2])
        if len(after) < 2 and not final:
            return
        alone = place == 0 or held[place - 1] in b"\r\n"
        if alone and after[:1] in (b"", b"\n", b"\r"):
            end += len(after) if after == b"\r\n" else len(after[:1])
            yield place, end
        place = held.find(SEPARATOR, end)


def _json_documents(path: Path) -> Iterator[Document]:
    with (
        open_unpacked(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8", newline="") as lines,
    ):
        number = 0
        while line := lines.readline(MAX_DOCUMENT):
            number += 1
            if len(line) == MAX_DOCUMENT:
                raise unreadable(path, TOO_LONG, line=number)
            if line.strip():
                yield _json_document(line, path, number)


def _json_document(line: str, path: Path, number: int) -> Document:
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            return Document(row["text"].encode())
        rule = 'a document must be {"text": "..."}'
    except (ValueError, RecursionError) as error:  # no JSON, or half of a surrogate pair
        rule = str(error)
    raise unreadable(path, rule, line=number)


def _parquet_documents(path: Path) -> Iterator[Document]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    names = table.schema_arrow.names
    if "text" not in names:
        raise unreadable(path, f"the column `text` must be there, but it has {', '.join(names)}")
    kind = table.schema_arrow.field("text").type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise unreadable(path, f"the column `text` must hold strings, but holds {kind}")
    # As dictionaries: a small file may repeat a long text a million times.
    table = pyarrow.parquet.ParquetFile(path, read_dictionary=["text"])
    for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=["text"]):
        texts = batch.column(0).dictionary.to_pylist()
        for number in batch.column(0).indices.to_pylist():
            if number is not None and texts[number]:
                yield Document(texts[number].encode())


READERS: dict[str, Callable[[Path], Iterator[Document]]] = {
    **dict.fromkeys((".txt", ".md", ".rst", ".py"), _text_documents),
    ".jsonl": _json_documents,
    ".parquet": _parquet_documents,
}
