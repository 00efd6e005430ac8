"""Tables in files, CSV or Parquet, read as they are."""

import warnings
from pathlib import Path

import pandas as pd

from shapelaw.scaling.errors import InputError


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or Parquet file as it is, every digit of its numbers.

    Raises
    ------
    InputError
        There is no such file, it is neither, or it is no plain table.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; give an existing table"
        ) from None
    # The parsers' own errors are ValueErrors, or Arrow's kinds of the others.
    except (ValueError, ImportError, NotImplementedError, TypeError, LookupError) as error:
        text = (str(error).splitlines() or ["it is empty"])[0]
        raise InputError(f"{path} is not a CSV or Parquet table: {text}") from None
    if frame.empty:
        raise InputError(f"{path} has no rows; give a table with one row per run")
    if not frame.index.equals(pd.RangeIndex(len(frame))):
        kept = frame.index.name is not None and frame.index.name not in frame.columns
        frame = frame.reset_index(drop=not kept)
    return _flat(frame, path)


def _read_csv(path: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            # Else a first field too many would silently become the names of the rows.
            return pd.read_csv(path, low_memory=False, index_col=False)
        except pd.errors.ParserWarning:
            raise ValueError("its rows have more fields than its header") from None


def _flat(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Columns with text for names, each once, and one value in a cell."""
    frame.columns = pd.Index([str(name) for name in frame.columns])
    frame.attrs = {}  # Parquet files may bring the notes of another load
    if frame.columns.has_duplicates:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise InputError(f"{path} must name each column once, but has `{twice}` twice; rename one")
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].astype(object)
        elif frame[name].dtype == object and not frame[name].map(pd.api.types.is_scalar).all():
            raise InputError(f"{path}: `{name}` must hold one value per row, but holds lists")
    return frame
