"""Prediction of the losses of a table of shapes."""

from pathlib import Path

import pandas as pd

from shapelaw.scaling.display.console import note
from shapelaw.scaling.fitting.reach import beyond_reach, require_reach
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import NUMERIC, SIZES, D, N
from shapelaw.scaling.runs.mapping import ColumnMapping
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.validation import check_numbers, require_columns, to_numbers
from shapelaw.scaling.units import parse_count

PREDICTED = ["predicted_loss", "loss_low", "loss_high"]


def predict_table(
    fit: Fit,
    path: Path,
    tokens: str | None,
    *,
    columns: str | None = None,
    extrapolate: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a table of shapes and predict the loss of each.

    Parameters
    ----------
    fit, path, tokens, columns, extrapolate
        As in :func:`read_shapes`.

    Returns
    -------
    table
        Shapes with tokens and ratios.
    predictions
        ``predicted_loss``, ``loss_low`` and ``loss_high`` of every row, in the unit of the fit.

    Raises
    ------
    InputError
        As :func:`read_shapes`.
    """
    table = read_shapes(fit, path, tokens, columns=columns, extrapolate=extrapolate)
    return table, fit.predict(table)[PREDICTED]


def named_rows(table: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Put the run ids of a table, where it has them, before results for its rows."""
    return table[["run_id"]].join(results) if "run_id" in table else results


def read_shapes(
    fit: Fit,
    path: Path,
    tokens: str | None,
    *,
    columns: str | None = None,
    extrapolate: bool = False,
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
    columns
        Changes of the columns, as :class:`shapelaw.scaling.runs.mapping.ColumnMapping` parses them.
    extrapolate
        Accept rows beyond the reach of the fit (:mod:`shapelaw.scaling.fitting.reach`), and print
        how far they are.

    Returns
    -------
    pandas.DataFrame
        Shapes with tokens and ratios.

    Raises
    ------
    InputError
        The table cannot be read, lacks a column that the law needs, or has a row beyond the reach
        of the fit.
    """
    table = ColumnMapping.parse(columns).apply(read_table(path), str(path))
    table = to_numbers(table, [name for name in table if name in NUMERIC])
    if tokens is not None:
        table[D] = parse_count(tokens)
    elif D not in table:
        require_columns(table, (D,), f"without --tokens, {path} must name them: it")
    table = with_ratios(table, str(path))
    if N in fit.law.columns:
        require_columns(table, (SIZES[fit.size_convention],), f"N is {fit.size_convention}: {path}")
    require_columns(table, fit.source_columns, str(path))
    check_numbers(table, fit.source_columns, str(path))
    for text in require_reach(beyond_reach(fit, fit.columns(table)), extrapolate=extrapolate):
        note(f"note: {text}")
    return table
