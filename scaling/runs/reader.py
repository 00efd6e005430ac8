"""Reading of tables from CSV and Parquet files, without interpretation of their columns."""

import warnings
from pathlib import Path

import pandas as pd

from shapelaw.scaling.errors import InputError


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or Parquet file unchanged, with every digit of its numbers.

    Raises
    ------
    InputError
        The file is missing or empty, is neither CSV nor Parquet, or is no table with one value per
        cell.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror or error}; give an existing table"
        ) from None
    # The parsers raise ValueErrors, and Arrow raises its variants of the others.
    except (ValueError, ImportError, NotImplementedError, TypeError, LookupError) as error:
        text = (str(error).splitlines() or ["it is empty"])[0]
        raise InputError(f"{path} is not a CSV or Parquet table: {text}") from None
    if frame.empty:
        raise InputError(f"{path} has no rows; give a table with one row per run")
    if not frame.index.equals(pd.RangeIndex(len(frame))):
        kept = frame.index.name is not None and frame.index.name not in frame.columns
        frame = frame.reset_index(drop=not kept)
    return _as_plain_table(frame, path)


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV file; refuse rows with more fields than the header."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            # With an index column, pandas would silently take a surplus first field as row names.
            return pd.read_csv(path, low_memory=False, index_col=False)
        except pd.errors.ParserWarning:
            raise ValueError("its rows have more fields than its header") from None


def _as_plain_table(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Convert column names to text; refuse repeated names and cells with several values."""
    frame.columns = pd.Index([str(name) for name in frame.columns])
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
