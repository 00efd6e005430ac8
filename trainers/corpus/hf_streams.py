"""Hugging Face ``datasets`` as sources of text, read as streams without a full download."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.extras import installing
from shapelaw.trainers.corpus.document import Document, unreadable

PREFIX = "hf:"
FORM = "hf:NAME[:CONFIG][@SPLIT][#COLUMN]"
PARTS = re.compile(
    r"hf:(?P<name>[^:@#]+)(?::(?P<config>[^:@#]+))?(?:@(?P<split>[^:@#]+))?(?:#(?P<column>[^#]+))?"
)
READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
ROWS = 256  # rows of a stream that are taken at once
OTHER_COLUMN = "write hf:NAME#COLUMN"


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Dataset on the Hub (``org/name``), or a file or folder on disk in the same formats."""

    name: str
    config: str | None = None
    split: str = "train"
    column: str = "text"

    @property
    def short(self) -> str:
        """Last part of the name, up to its first dot."""
        return Path(self.name).name.split(".")[0]

    @property
    def described(self) -> str:
        """Text form of the stream, without the folders of a path on disk."""
        name = Path(self.name).name if Path(self.name).exists() else self.name
        config = f":{self.config}" if self.config else ""
        return f"{PREFIX}{name}{config}@{self.split}#{self.column}"


def is_stream(source: str) -> bool:
    """Return True if a source is read by ``datasets``."""
    return source.startswith(PREFIX)


def parse_stream(source: str) -> Stream:
    """Parse ``hf:NAME[:CONFIG][@SPLIT][#COLUMN]``.

    Raises
    ------
    InputError
        The text has another form.

    Examples
    --------
    >>> parse_stream("hf:HuggingFaceFW/finepdfs:eng_Latn")
    Stream(name='HuggingFaceFW/finepdfs', config='eng_Latn', split='train', column='text')
    """
    found = PARTS.fullmatch(source)
    if found is None:
        raise InputError(f"`{FORM}` must hold, but got {source!r}")
    return Stream(**{name: value for name, value in found.groupdict().items() if value})


def stream_documents(source: str) -> Iterator[Document]:
    """Read the documents of a stream in their order; empty rows are left out.

    Raises
    ------
    InputError
        ``datasets`` is not installed, or the configuration, split or column does not exist.
    WorkError
        The data cannot be reached, or the connection was lost.
    """
    stream = parse_stream(source)
    with _understood(stream):
        for batch in _opened(stream).iter(batch_size=ROWS):
            if stream.column not in batch:
                names = ", ".join(batch)
                rule = f"the column `{stream.column}` must be there, but it has {names}"
                raise unreadable(stream.described, rule, way_out=OTHER_COLUMN)
            for text in batch[stream.column]:
                if text is not None and not isinstance(text, str):
                    kind = type(text).__name__
                    rule = f"the column `{stream.column}` must hold strings, but holds {kind}"
                    raise unreadable(stream.described, rule, way_out=OTHER_COLUMN)
                if text:
                    yield Document(text.encode())


def _opened(stream: Stream) -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            f"{stream.described} needs the package datasets; `{installing('datasets')}`"
        ) from None
    path = Path(stream.name)
    if not path.is_file():
        return load_dataset(stream.name, stream.config, split=stream.split, streaming=True)
    kind = next((READERS[suffix] for suffix in path.suffixes if suffix in READERS), None)
    if kind is None:
        raise InputError(
            f"{path} must be one of {', '.join(READERS)}, or a folder of these, to be read as a "
            "stream; leave `hf:` out to read other texts"
        )
    return load_dataset(kind, data_files=str(path), split=stream.split, streaming=True)


@contextmanager
def _understood(stream: Stream) -> Iterator[None]:
    """Convert any error of ``datasets`` to one line, for bad data or a lost connection."""
    try:
        yield
    except (InputError, WorkError, ImportError):
        raise
    except ValueError as error:  # an unknown configuration or split, and damaged files
        way_out = "give another CONFIG or SPLIT, or repair the file"
        raise unreadable(stream.described, _line(error), way_out=way_out) from None
    except Exception as error:  # fsspec, httpx, pyarrow and datasets raise classes of their own
        raise WorkError(
            f"{stream.described} cannot be reached ({type(error).__name__}: {_line(error)}); check "
            "the name and the network, or give files on disk, and start again"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
