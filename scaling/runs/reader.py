"""Reading of tables by their content, without interpretation of their columns.

Formats: CSV with commas, semicolons or tabs, JSON, JSON lines and Parquet; plain or compressed with
gzip, bzip2, xz, zstd or zip. The ending of a file does not matter.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pandas as pd

from shapelaw.scaling.errors import InputError

MAX_BYTES = 2**30  # of a table
MAX_UNPACKED = 2**28  # of a compressed table: it may be made to fill the memory
MAX_RATIO = 200  # unpacked bytes for a packed one; a table of runs has fewer
MIN_SUSPICIOUS = 2**24  # unpacked bytes up to which any ratio is accepted
MAX_CELLS = 5 * 10**7  # of a Parquet table, which stores repeated values once
DELIMITERS = (",", ";", "\t", "|")
FORMATS = "CSV, JSON, JSON lines or Parquet"
# Whole numbers with commas in groups of three, and numbers with a decimal comma.
GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?|[+-]?\d{1,3}(\.\d{3})+(,\d+)?")


def read_table(path: Path) -> pd.DataFrame:
    """Read a table unchanged, with every digit of its numbers.

    Raises
    ------
    InputError
        The file is missing, empty, damaged or too large, has another format, or is no table with
        one value per cell.
    """
    try:
        frame = _parse(_decompressed(path))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; give an existing table"
        ) from None
    # The parsers raise ValueErrors, and Arrow raises its variants of the others.
    except (
        ValueError, ImportError, NotImplementedError, TypeError, LookupError, EOFError,
        RecursionError, OverflowError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, csv.Error,
    ) as error:  # fmt: skip
        text = (str(error).splitlines() or ["it is empty"])[0][:120]
        raise InputError(f"{path} is not a {FORMATS} table: {text}") from None
    if frame.empty:
        raise InputError(f"{path} has no rows; give a table with one row per run")
    if not frame.index.equals(pd.RangeIndex(len(frame))):
        kept = frame.index.name is not None and frame.index.name not in frame.columns
        frame = frame.reset_index(drop=not kept)
    return _as_plain_table(frame, path)


def _decompressed(path: Path) -> bytes:
    """Read a file, decompressed if its first bytes are those of a compressed format."""
    with path.open("rb") as stream:
        head = stream.read(6)
    opened = next((OPENERS[magic] for magic in OPENERS if head.startswith(magic)), None)
    if opened is None:
        with path.open("rb") as stream:
            return _bounded(stream, MAX_BYTES, "give a smaller table")
    most = min(max(MAX_RATIO * path.stat().st_size, MIN_SUSPICIOUS), MAX_UNPACKED)
    try:
        with opened(path) as stream:
            return _bounded(stream, most, "decompress it, or give a smaller table")
    except RuntimeError as error:  # of an archive with a password
        raise ValueError(str(error)) from None
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # of a package that may be missing
            raise ValueError(str(error)) from None
        raise


def _bounded(stream: IO[bytes], most: int, way_out: str) -> bytes:
    """Read a stream piece by piece, so that a small file cannot fill the memory."""
    pieces, left = [], most
    while piece := stream.read(min(2**20, left + 1)):
        left -= len(piece)
        if left < 0:
            raise ValueError(f"it has more than {most / 2**20:.0f} MiB; {way_out}")
        pieces.append(piece)
    return b"".join(pieces)


def _open_zip(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    if "[Content_Types].xml" in names:
        raise ValueError("it is a workbook of a spreadsheet; save it as CSV")
    if len(names) != 1:
        raise ValueError(f"a zip archive must hold one file, but has {len(names)}")
    return archive.open(names[0])


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise ValueError("zstd needs `pip install zstandard`; or decompress it") from None
    opened: IO[bytes] = zstandard.open(path, "rb")
    return opened


OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"PK\x03\x04": _open_zip,
}


def _parse(data: bytes) -> pd.DataFrame:
    """Parse the bytes of a table in any of the formats."""
    if data.startswith(b"PAR1"):
        return _read_parquet(data)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = data.decode("utf-16" if wide else "utf-8-sig")
    start = text.lstrip()[:1]
    if start in ("{", "["):
        return _read_json(text)
    return _read_csv(text)


def _read_parquet(data: bytes) -> pd.DataFrame:
    """Read a Parquet table; refuse one whose repeated values would fill the memory."""
    import pyarrow.compute
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
    about = file.metadata
    texts = [
        field.name
        for field in file.schema_arrow
        if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
    ]
    unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    if about.num_rows * max(about.num_columns, 1) > MAX_CELLS or unpacked > MAX_BYTES:
        raise ValueError(f"it has over {MAX_CELLS:,} values or 1 GiB; give a smaller table")
    packed = pyarrow.parquet.ParquetFile(io.BytesIO(data), read_dictionary=texts)
    room = MAX_BYTES
    for group in range(about.num_row_groups if texts else 0):  # each text once
        table = packed.read_row_group(group, columns=texts, use_threads=False)
        for chunk in (chunk for column in table.columns for chunk in column.chunks):
            texts_of = chunk.dictionary if isinstance(chunk, pyarrow.DictionaryArray) else chunk
            longest = pyarrow.compute.max(pyarrow.compute.binary_length(texts_of)).as_py() or 0
            room -= longest * len(chunk)
        if room < 0:
            raise ValueError("its texts are too long; give a smaller table")
    return pd.read_parquet(io.BytesIO(data))


def _read_json(text: str) -> pd.DataFrame:
    """Read a list of objects, an object of columns, or one object a line."""
    try:
        document = json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        document = [json.loads(line) for line in lines]
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        if len(lists) == 1 and len(lists[0]) and all(isinstance(row, dict) for row in lists[0]):
            document = lists[0]
        elif not lists and not any(isinstance(value, dict) for value in document.values()):
            document = [document]
    if isinstance(document, list) and not all(isinstance(row, dict) for row in document):
        raise ValueError('its rows must be objects such as {"tokens": 1e9, "loss": 3.2}')
    return pd.DataFrame(document)


def _read_csv(text: str) -> pd.DataFrame:
    """Read delimited text; refuse rows with more fields than the header."""
    bare = re.sub(r'"[^"]*"', "", text[: text.find("\n") + 1] or text)
    delimiter = max(DELIMITERS, key=bare.count)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            # With an index column, pandas would silently take a surplus first field as row names.
            frame = pd.read_csv(io.StringIO(text), sep=delimiter, low_memory=False, index_col=False)
        except pd.errors.ParserWarning:
            raise ValueError("its rows have more fields than its header") from None
    pattern = GROUPED if delimiter == "," else DECIMAL_COMMA
    for name in frame.columns:
        values = frame[name]
        if values.dtype == object or isinstance(values.dtype, pd.StringDtype):
            frame[name] = _without_commas(values, pattern)
    return frame


def _without_commas(values: pd.Series, pattern: re.Pattern[str]) -> pd.Series:
    """Write numbers with commas in a column as plain numbers, if all that have commas match."""
    text = values.dropna().astype(str).str.strip()
    marked = text[text.str.contains(r"\d,|,\d|\d\.\d{3}\.", regex=True)]
    if not len(marked) or not marked.map(lambda value: bool(pattern.fullmatch(value))).all():
        return values
    if pattern is GROUPED:
        plain = marked.str.replace(",", "")
    else:
        plain = marked.str.replace(".", "").str.replace(",", ".")
    changed = values.astype(object)
    changed[plain.index] = plain
    numbers = pd.to_numeric(changed, errors="coerce")
    return numbers if (numbers.isna() == changed.isna()).all() else changed


def _as_plain_table(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Convert column names to text; refuse repeated names and cells with several values."""
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    frame.attrs = {}  # Parquet files may store the attributes of an earlier load
    if frame.columns.has_duplicates:
        repeated = frame.columns[frame.columns.duplicated()][0]
        raise InputError(
            f"{path} must name each column once, but has `{repeated}` twice; rename one"
        )
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].astype(object)
        elif frame[name].dtype == object and not frame[name].map(pd.api.types.is_scalar).all():
            raise InputError(f"{path}: `{name}` must hold one value per row, but holds lists")
    return frame
