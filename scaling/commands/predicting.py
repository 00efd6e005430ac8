"""Tables of shapes for predictions and decisions."""

from pathlib import Path

import pandas as pd

from shapelaw.scaling.commands.options import all_of
from shapelaw.scaling.commands.table_options import RowOptions
from shapelaw.scaling.display.console import note
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import select
from shapelaw.scaling.fitting.reach import beyond_reach, require_reach
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import SIZES, D
from shapelaw.scaling.runs.mapping import read_rows, require_or_suggest
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.validation import check_numbers, require_columns
from shapelaw.scaling.units import parse_count

PREDICTED = ["predicted_loss", "loss_low", "loss_high"]


def named_rows(table: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Put the run ids of a table, where it has them, before results for its rows."""
    return table[["run_id"]].join(results) if "run_id" in table else results


def lined_rows(table: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Add run ids and the line of every row in its file, for a printed table."""
    return named_rows(table, results).assign(line=results.index + 2)


def read_shapes(
    fit: Fit, path: Path, tokens: str | None, rows: RowOptions, *, extrapolate: bool = False
) -> pd.DataFrame:
    """Read a table of shapes with the columns that a fit needs.

    Parameters
    ----------
    fit
        Fit that predicts.
    path
        Table with one shape per row.
    tokens
        Training tokens of every row, such as 2M; None to read the column ``tokens``.
    rows
        Rows to keep, and names of the columns.
    extrapolate
        Accept rows beyond the reach of the fit (:mod:`shapelaw.scaling.fitting.reach`), and print
        how far they are.

    Returns
    -------
    pandas.DataFrame
        Shapes with tokens and ratios; the index counts the rows of the file from 0.

    Raises
    ------
    InputError
        The table cannot be read, lacks a column that the law needs, has no row left, or has a row
        beyond the reach of the fit.
    """
    table = read_rows(path, rows.columns)
    if tokens is not None:
        table[D] = parse_count(tokens)
    table = with_ratios(table, str(path), needed=fit.source_columns)
    table = _kept(table, rows, str(path))
    size = SIZES[fit.size_convention]
    source = f"N is {fit.size_convention}: {path}" if D in table else f"without --tokens, {path}"
    require_or_suggest(table, (D, *fit.source_columns), source, size)
    check_numbers(table, fit.source_columns, str(path))
    beyond = beyond_reach(fit, fit.columns(table))
    lines = {int(table.index[place]): text for place, text in beyond.items()}
    for text in require_reach(lines, extrapolate=extrapolate):
        note(f"note: {text}")
    return table


def _kept(table: pd.DataFrame, rows: RowOptions, source: str) -> pd.DataFrame:
    """Keep the rows that the options of a command choose."""
    if rows.exclude:
        require_columns(table, ("run_id",), f"for --exclude, {source} must name its rows: it")
        names = table["run_id"].astype(str)
        if unknown := sorted(set(rows.exclude) - set(names)):
            raise InputError(f"{source} has no run {shown(unknown[0])} to exclude")
        table = table[~names.isin(rows.exclude)]
    if (condition := all_of(rows.where)) is not None:
        table = table[select(condition, {str(name): table[name] for name in table}, len(table))]
    if table.empty:
        raise InputError(f"{source} has no row left to use; loosen --where or --exclude")
    return table
