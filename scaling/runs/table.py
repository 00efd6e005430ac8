"""The run table: one row per finished training run; columns, units, loading and validation."""

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.architectures.shape_table import FIELD_TYPES, ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.scaling.filters import select
from shapelaw.scaling.runs.columns import COLUMNS, NUMERIC, OPTIONAL_NUMERIC
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.validation import (
    SWITCHES,
    WAY_OUT,
    as_floats,
    line,
    losses_in_nats,
    plain_numbers,
    plain_switches,
    refuse_duplicates,
    refuse_giants,
    refuse_guessing,
    warnings_of,
)

LISTED = 1000  # runs left out that are named one by one


def load_runs(
    path: Path | str, *, where: str | None = None, exclude: Iterable[str] = ()
) -> pd.DataFrame:
    """Read and validate a run table (CSV or Parquet) and keep its finished runs.

    Parameters
    ----------
    path
        The table; its columns are described in ``COLUMNS`` and ``MORE_COLUMNS``.
    where
        A filter over columns (:func:`shapelaw.scaling.filters.select`), on the values of the file.
    exclude
        Identifiers of runs to leave out.

    Returns
    -------
    The rows whose status is ``done`` (or that have none), losses in nats, with the shape ratios
    added where the table has the fields of a shape. ``frame.attrs`` holds ``left_out`` (each
    dropped run and why), ``warnings`` and ``notes`` (sentences) and ``source``.

    Raises
    ------
    InputError
        The file cannot be read, or a value breaks a rule: file, line, column and value are named.
    """
    path = Path(path)
    runs = prepare_runs(read_table(path), str(path), where=where, exclude=exclude)
    runs.attrs["source"] = {"name": path.name, "address": str(path)}
    return runs


def prepare_runs(
    runs: pd.DataFrame, source: str, *, where: str | None = None, exclude: Iterable[str] = ()
) -> pd.DataFrame:
    """Validate a run table that is in memory, as :func:`load_runs` does one in a file.

    Parameters
    ----------
    runs
        One row per run; its index must count the rows from 0, for errors name lines by it.
    source
        What errors call the table.
    where, exclude
        As in :func:`load_runs`.

    Raises
    ------
    InputError
        A value breaks a rule.
    """
    names = runs["run_id"] if "run_id" in runs else [f"row-{row + 2}" for row in range(len(runs))]
    runs = runs.assign(run_id=pd.Series(names, index=runs.index).astype(str))
    left_out = _unwanted(runs, set(exclude), source)
    # The index still counts the lines of the file: errors name them.
    runs = runs[~runs["run_id"].isin(left_out)] if left_out else runs
    runs = plain_numbers(runs, [name for name in runs if name in NUMERIC])
    runs = with_ratios(plain_switches(runs, source), source)
    if where is not None:
        chosen = select(where, {str(name): runs[name] for name in runs}, len(runs))
        left_out |= dict.fromkeys(runs["run_id"][~chosen], f"not in `{where}`")
        # What kept a column from being numbers may be gone with the rows.
        runs = plain_numbers(runs[chosen], [name for name in runs if name in NUMERIC])
    validate(runs, source)
    runs, notes = losses_in_nats(runs, source)
    refuse_guessing(runs, source)
    runs = runs.reset_index(drop=True)
    runs.attrs = {"left_out": _listed(left_out), "warnings": warnings_of(runs), "notes": notes}
    return runs


def _listed(left_out: dict[str, str]) -> dict[str, str]:
    """All that was left out, or the first ``LISTED`` and a count: frames copy their attributes."""
    more = len(left_out) - LISTED
    if more <= 0:
        return left_out
    return dict(islice(left_out.items(), LISTED)) | {f"{more} more runs": "for the same reasons"}


def _unwanted(runs: pd.DataFrame, exclude: set[str], source: str) -> dict[str, str]:
    """Rows excluded by name and runs that did not finish: {run_id: why}."""
    if unknown := sorted(exclude - set(runs["run_id"])) if exclude else []:
        raise InputError(
            f"{source} has no run {unknown[0]!r} to exclude; look at its run_id column"
        )
    unwanted = dict.fromkeys(sorted(exclude), "excluded by name")
    if "status" in runs:
        status = runs["status"].astype(object).fillna("done").astype(str)
        unfinished = (status != "done") & ~runs["run_id"].isin(exclude)
        unwanted |= dict(zip(runs["run_id"][unfinished], status[unfinished], strict=True))
    return unwanted


def with_ratios(frame: pd.DataFrame, source: str = "the table") -> pd.DataFrame:
    """Add parameter counts and shape ratios where the fields of a shape are there.

    A column that the table already has is kept.
    """
    frame = frame.copy()
    if set(INTEGER_FIELDS) - {"vocab_size"} <= set(frame.columns):
        check_numbers(frame, [name for name in INTEGER_FIELDS if name in frame], source)
        refuse_giants(frame, np.asarray(_shapes(frame, np.float64).n_total), source)
        derived = table_of(frame)
        counted = {"n_non_embedding", *RATIOS} | ({"n_total"} if "vocab_size" in frame else set())
        for name in sorted(counted - set(frame.columns)):
            frame[name] = getattr(derived, name)
    return frame


def table_of(frame: pd.DataFrame) -> ShapeTable:
    """The shapes of a frame's rows; unknown vocabulary counts 1, tied and without QK-norm."""
    return _shapes(frame, np.int64)


def _shapes(frame: pd.DataFrame, number: type) -> ShapeTable:
    """The shapes of a frame's rows with their counts as integers, or as floats to see overflow."""
    defaults = {"vocab_size": 1, "rope_theta": 10_000.0, **SWITCHES}
    frame = plain_switches(frame, "the table")
    columns: dict[str, Any] = {}
    for name, kind in FIELD_TYPES.items():
        values = frame[name] if name in frame else pd.Series(defaults[name], index=frame.index)
        if kind is np.bool_:
            columns[name] = values.to_numpy(dtype=bool)
        elif name in INTEGER_FIELDS:
            columns[name] = as_floats(values).astype(number)
        else:
            floats = as_floats(values)
            columns[name] = np.where(np.isnan(floats), defaults[name], floats)
    return ShapeTable(**columns)


def validate(runs: pd.DataFrame, source: str) -> None:
    """Check every rule of the run table.

    Raises
    ------
    InputError
        Names the source, the line (the header is line 1), the column, the value and the rule.
    """
    if runs.empty:
        raise InputError(f"{source} has no finished run left to use; loosen the filter")
    twice = runs["run_id"].duplicated()
    if twice.any():
        raise InputError(
            f"{source} line {line(runs, twice.to_numpy())}: `run_id` must be unique, "
            f"but {runs['run_id'][twice].iloc[0]!r} stands twice; rename one of them"
        )
    check_numbers(runs, [name for name in runs.columns if name in NUMERIC], source)
    if {"num_attention_heads", "num_key_value_heads"} <= set(runs.columns):
        broken = (runs["num_attention_heads"] % runs["num_key_value_heads"] != 0).to_numpy()
        if broken.any():
            row = runs.loc[broken].iloc[0]
            raise InputError(
                f"{source} line {line(runs, broken)}: "
                "`num_attention_heads % num_key_value_heads == 0` must hold, but got "
                f"{row['num_attention_heads']:.0f} and {row['num_key_value_heads']:.0f}"
            )
    refuse_duplicates(runs, source)


def check_numbers(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Every value of the columns must be a positive finite number.

    What is not known of every run (``OPTIONAL_NUMERIC``) may be missing or zero.

    Raises
    ------
    InputError
        Names the source, the line, the column and the value.
    """
    for name in columns:
        numbers = as_floats(frame[name])
        broken = ~(np.isfinite(numbers) & (numbers > 0))
        rule = f"`{name} > 0` and finite"
        if name in INTEGER_FIELDS and not broken.any():
            broken = numbers != np.round(numbers)
            rule = f"`{name}` a whole number"
        if name in OPTIONAL_NUMERIC:
            broken &= ~(frame[name].isna().to_numpy() | (numbers == 0))
        if broken.any():
            value = frame[name][broken].iloc[0]
            raise InputError(
                f"{source} line {line(frame, broken)}: {rule} must hold, but got {value}; {WAY_OUT}"
            )


def require_columns(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Name the first missing column.

    Raises
    ------
    InputError
        A column is missing.
    """
    for name in columns:
        if name not in frame:
            raise InputError(
                f"{source} lacks the column `{name}`; it has {', '.join(map(str, frame.columns))}"
            )


def same_losses(runs: pd.DataFrame, source: str) -> None:
    """Losses are comparable: one corpus, one tokenizer and one held-out text.

    Raises
    ------
    InputError
        The table mixes several.
    """
    for name in ("corpus", "tokenizer", "validation"):
        different = list(runs[name].unique()) if name in runs else []
        if len(different) > 1:
            first, second = different[:2]
            raise InputError(
                f"{source}: `{name}` must be the same for all rows of a fit, but has {first!r} "
                f"and {second!r}; choose with --where \"{name} == '{first}'\""
            )


def write_runs(path: Path, runs: pd.DataFrame) -> None:
    """Write a run table whole, in the order of ``COLUMNS``, other columns last.

    Numbers keep every digit; the format follows the file's ending (.csv or .parquet).
    """
    known = [name for name in COLUMNS if name in runs]
    runs = runs[known + [name for name in runs if name not in COLUMNS]]
    if path.suffix == ".parquet":
        write_whole(path, lambda target: runs.to_parquet(target, index=False))
    else:
        write_whole(path, lambda target: runs.to_csv(target, index=False))


def fingerprint(runs: pd.DataFrame) -> str:
    """SHA-256 over the rows, in full precision."""
    return hashlib.sha256(runs.to_csv(index=False).encode()).hexdigest()
