"""Sources of text: the standard library, files and folders, as documents in a fixed order."""

import io
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.hf_streams import is_stream, stream_documents

STDLIB = "stdlib"  # the default corpus: source files of the running Python's standard library
NOT_LIBRARY = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
# Tables written as source: how well a model copies one swings between seeds, and one such file in
# the held-out part was most of the noise of the whole loss (LOG.md).
TABLES = {"encodings", "entities.py", "topics.py", "stringprep.py"}
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".jsonl", ".parquet"}
SEPARATOR = b"<|endoftext|>"  # on a line of its own
CHUNK = 131_072  # bytes of a packed file read at once
BUFFER = 1_048_576  # bytes of its text held ready


def read_documents(source: str) -> Iterator[str]:
    """Documents of a source, in a fixed order.

    A text file is cut at lines ``<|endoftext|>``; a JSON line or Parquet row is one document
    (column ``text``); in a folder every text file is read, by name. ``hf:NAME`` is a stream; see
    :mod:`shapelaw.trainers.corpus.hf_streams`.
    """
    if is_stream(source):
        yield from stream_documents(source)
        return
    if source == STDLIB:
        library = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(library.rglob("*.py")):
            parts = set(path.relative_to(library).parts)
            if not parts & (NOT_LIBRARY | TABLES) and not path.match("_sysconfigdata*.py"):
                yield path.read_text(encoding="utf-8", errors="ignore")
        return
    path = Path(source)
    if not path.exists():
        raise InputError(f"the corpus {source} does not exist; give a file or a folder")
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _kind(file) and file.is_file()]
        if not files:
            kinds = ", ".join(sorted(TEXT_SUFFIXES))
            raise InputError(f"the folder {source} has no text file ({kinds}, or these as .zst)")
        for file in files:
            yield from _file_documents(file)
    else:
        yield from _file_documents(path)


def is_text(path: Path) -> bool:
    """Whether a file has the name of a text that can be read."""
    return _kind(path) is not None


def _kind(path: Path) -> str | None:
    """The text format of a file by its name, or None."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] == ".zst":
        suffixes = suffixes[:-1] or [".txt"]
    suffix = suffixes[-1] if suffixes else ""
    return suffix if suffix in TEXT_SUFFIXES else None


def _file_documents(path: Path) -> Iterator[str]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet_documents(path)
        return
    with path.open("rb") as raw:
        yield from _line_documents(_unpacked(raw) if path.suffix == ".zst" else raw, kind, path)


def _line_documents(stream: IO[bytes], kind: str | None, path: Path) -> Iterator[str]:
    if kind != ".jsonl":
        yield from _text_documents(stream)
        return
    with io.TextIOWrapper(stream, encoding="utf-8", newline="") as lines:
        yield from _json_documents(lines, path)


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    return io.BufferedReader(_ZstdReader(raw), BUFFER)


class _ZstdReader(io.RawIOBase):
    """Zstd frames as a stream; damage and an early end are OSErrors, as in other files."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.ready = raw, b""
        self.chunks = self._decompressed()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            chunk = next(self.chunks, None)
            if chunk is None:
                return 0
            self.ready = chunk
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size

    def _decompressed(self) -> Iterator[bytes]:
        import zstandard

        frame = None
        while packed := self.raw.read(CHUNK):
            while packed:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(packed)
                except zstandard.ZstdError as error:
                    raise OSError(f"not a zstd file ({error})") from error
                packed = frame.unused_data if frame.eof else b""
        if frame is not None and not frame.eof:
            raise OSError("the zstd file ends early; it is incomplete")


def _text_documents(stream: IO[bytes]) -> Iterator[str]:
    held, searched = bytearray(), 0  # the text since the last separator, how much was looked at
    while chunk := stream.read(BUFFER):
        held += chunk
        begin = 0
        for place, end in _separators(held, searched, final=False):
            yield held[begin:place].decode()
            begin = end
        del held[:begin]
        searched = max(0, len(held) - len(SEPARATOR) - 1)
    begin = 0
    for place, end in _separators(held, searched, final=True):
        yield held[begin:place].decode()
        begin = end
    yield held[begin:].decode()


def _separators(held: bytearray, begin: int, *, final: bool) -> Iterator[tuple[int, int]]:
    """Where lines with nothing but the separator begin and end; the text begins with a line.

    Unless the text is ``final``, a line whose end is not there yet is left for later.
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


def _json_documents(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise InputError(f'{path} line {number}: a document must be {{"text": "..."}}')
            yield row["text"]


def _parquet_documents(path: Path) -> Iterator[str]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(path)
    if "text" not in table.schema_arrow.names:
        raise InputError(f"{path} lacks the column `text`; it has {table.schema_arrow.names}")
    kind = table.schema_arrow.field("text").type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise InputError(f"{path}: the column `text` must hold strings, but holds {kind}")
    for batch in table.iter_batches(columns=["text"]):
        yield from (text for text in batch.column(0).to_pylist() if text)
