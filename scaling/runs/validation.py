"""Rules of run tables.

Every error names the source, the line (the header is line 1), the value and the remedy.
"""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, SWITCH_FIELDS
from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import LOSS_KINDS, NUMERIC, OPTIONAL_NUMERIC, USUAL_LOSS
from shapelaw.scaling.units import SUFFIXES

SWITCHES = {  # defaults
    "tie_word_embeddings": True,
    "qk_norm": False,
    "decayed": False,
    **SWITCH_FIELDS,
}
SPELLINGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
LARGEST_MODEL = 2.0**62  # parameters that 64-bit integers count without overflow
COUNT_WITH_SUFFIX = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([kKmMbBgGtT])\s*")  # 125M
MAX_LINES = 6  # named in an error
REMEDY = "correct the row, or leave it out with --exclude RUN_ID"


def line(frame: pd.DataFrame, broken: np.ndarray) -> int:
    """Return the line in the file of the first row where a mask is true.

    The index of the frame counts the rows of the file from 0.
    """
    return int(frame.index[broken][0]) + 2


def name_lines(frame: pd.DataFrame, broken: np.ndarray) -> str:
    """Name the lines in the file of the rows where a mask is true, the first ones of many."""
    lines = [str(number + 2) for number in frame.index[broken]]
    return f"line{'s' if len(lines) > 1 else ''} {listed(lines, MAX_LINES)}"


def as_floats(values: pd.Series) -> np.ndarray:
    """Convert values to float64, (n,); text, dates, true and false become NaN."""
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        return np.full(len(values), np.nan)
    if not pd.api.types.is_numeric_dtype(values):
        switches = values.map(lambda value: isinstance(value, bool)).to_numpy(dtype=bool)
        plain = values.astype(object).mask(switches)
        values = pd.to_numeric(plain.map(_without_suffix).astype(object), errors="coerce")
    return values.to_numpy(dtype=float, na_value=np.nan)


def _without_suffix(value: object) -> object:
    """Return a count with a suffix, such as 125M or 2B, as a number; other values unchanged."""
    match = COUNT_WITH_SUFFIX.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * SUFFIXES[match[2].upper()] if match else value


def require_columns(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Refuse a table that lacks a column, and name the first one that is missing.

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


def check_numbers(frame: pd.DataFrame, columns: Iterable[str], source: str) -> None:
    """Refuse values that are not positive finite numbers.

    A value of a column in ``OPTIONAL_NUMERIC`` may be missing or zero.

    Raises
    ------
    InputError
        A value breaks the rule; the message names the source, line, column and value.
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
                f"{source} line {line(frame, broken)}: {rule} must hold, but got {value}; {REMEDY}"
            )


def validate(runs: pd.DataFrame, source: str) -> None:
    """Check every rule of the run table.

    Raises
    ------
    InputError
        A rule is broken; the message names the source, line, column, value and rule.
    """
    if runs.empty:
        raise InputError(f"{source} has no finished run left to use; loosen the filter")
    duplicated = runs["run_id"].duplicated()
    if duplicated.any():
        raise InputError(
            f"{source} line {line(runs, duplicated.to_numpy())}: `run_id` must be unique, "
            f"but {runs['run_id'][duplicated].iloc[0]!r} occurs twice; rename one of them"
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


def require_comparable_losses(runs: pd.DataFrame, source: str) -> None:
    """Refuse losses of several corpora, tokenizers, held-out texts, objectives or kinds in one fit.

    Raises
    ------
    InputError
        The table has several values of one of these columns.
    """
    for name in ("corpus", "tokenizer", "validation", "loss_kind", "objective"):
        column = runs[name] if name in runs else pd.Series(dtype=object)
        # Rows of tables from before these columns are of next-token prediction.
        column = column.fillna(USUAL_LOSS[name]) if name in USUAL_LOSS else column
        values = list(column.unique())
        if len(values) > 1:
            first, second = values[:2]
            raise InputError(
                f"{source}: `{name}` must be the same for all rows of a fit, but has {first!r} "
                f"and {second!r}; choose with --where \"{name} == '{first}'\""
            )


def to_numbers(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Convert text to numbers in the columns where every value is a number.

    Other columns stay unchanged, so that a check can name the invalid value.
    """
    changed = {}
    for name in columns:
        values = frame[name]
        if pd.api.types.is_numeric_dtype(values) and isinstance(values.dtype, np.dtype):
            continue
        numbers = as_floats(values)
        if (np.isnan(numbers) == values.isna().to_numpy()).all():
            changed[name] = numbers
    return frame.assign(**changed) if changed else frame


def parse_switches(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """Convert spellings of true and false to booleans; a missing value takes its default.

    Raises
    ------
    InputError
        A value is neither true nor false.
    """
    changed = {}
    for name, default in SWITCHES.items():
        if name not in frame or frame[name].dtype == np.bool_:
            continue
        values = frame[name]
        parsed = values.astype(object).map(lambda value: SPELLINGS.get(str(value).strip().lower()))
        broken = (parsed.isna() & values.notna()).to_numpy()
        if broken.any():
            raise InputError(
                f"{source} line {line(frame, broken)}: `{name}` must be true or false, "
                f"but got {values[broken].iloc[0]}; {REMEDY}"
            )
        changed[name] = np.where(parsed.isna(), default, parsed == True)  # noqa: E712 (objects)
    return frame.assign(**changed) if changed else frame


def refuse_oversized_shapes(frame: pd.DataFrame, parameters: np.ndarray, source: str) -> None:
    """Refuse shapes whose parameters, counted in float64, overflow 64-bit integers.

    Raises
    ------
    InputError
        A shape is too large; the message names the first one.
    """
    broken = ~(parameters < LARGEST_MODEL)
    if broken.any():
        raise InputError(
            f"{source} line {line(frame, broken)}: a shape must have fewer than "
            f"`{LARGEST_MODEL:.3g}` parameters, but got {parameters[broken][0]:.3g}; {REMEDY}"
        )


def refuse_duplicates(runs: pd.DataFrame, source: str) -> None:
    """Refuse two rows that differ only in ``run_id``: one run counted twice.

    Raises
    ------
    InputError
        There are such rows; the message names both lines.
    """
    if "loss" not in runs:
        return
    likely = runs.duplicated([name for name in ("loss", "tokens") if name in runs], keep=False)
    rows = runs.loc[likely].drop(columns="run_id")
    repeated = rows.duplicated().to_numpy()
    if repeated.any():
        hashes = pd.util.hash_pandas_object(rows, index=False).to_numpy()
        position = int(np.flatnonzero(repeated)[0])
        second, first = rows.index[position], rows.index[hashes == hashes[position]][0]
        names = runs["run_id"]
        raise InputError(
            f"{source} lines {first + 2} and {second + 2}: two rows must differ in more than "
            f"`run_id`, but {names[first]!r} and {names[second]!r} do not; leave one out with "
            f"--exclude {names[second]}, or tell replicates apart by a column `seed`"
        )


def refuse_unknown_kinds(runs: pd.DataFrame, source: str) -> None:
    """Refuse a ``loss_kind`` that is neither exact nor a bound.

    Raises
    ------
    InputError
        A row breaks the rule; the message names its line.
    """
    if "loss_kind" not in runs:
        return
    unknown = ~runs["loss_kind"].isin(LOSS_KINDS).to_numpy()
    if unknown.any():
        raise InputError(
            f"{source} line {line(runs, unknown)}: `loss_kind` must be {' or '.join(LOSS_KINDS)}, "
            f"but got {runs['loss_kind'][unknown].iloc[0]}; {REMEDY}"
        )
