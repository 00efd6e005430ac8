"""Prediction of the losses of a table of shapes."""

from pathlib import Path

import pandas as pd

from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import SIZES, D, N
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.validation import check_numbers, require_columns
from shapelaw.scaling.units import parse_count

PREDICTED = ["predicted_loss", "loss_low", "loss_high"]


def predict_table(fit: Fit, path: Path, tokens: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a table of shapes and predict the loss of each.

    Parameters
    ----------
    fit, path, tokens
        As in :func:`read_shapes`.

    Returns
    -------
    table
        Shapes with tokens and ratios.
    predictions
        ``predicted_loss``, ``loss_low`` and ``loss_high`` of every row, in nats per token.

    Raises
    ------
    InputError
        As :func:`read_shapes`.
    """
    table = read_shapes(fit, path, tokens)
    return table, fit.predict(table)[PREDICTED]


def read_shapes(fit: Fit, path: Path, tokens: str | None) -> pd.DataFrame:
    """Read a table of shapes with the columns that a fit needs.

    Parameters
    ----------
    fit
        Fit that predicts.
    path
        CSV or Parquet file with one shape per row.
    tokens
        Training tokens of every row, such as 2M; None to read the column ``tokens``.

    Returns
    -------
    pandas.DataFrame
        Shapes with tokens and ratios.

    Raises
    ------
    InputError
        The table cannot be read, or lacks a column that the law needs.
    """
    table = read_table(path)
    if tokens is not None:
        table[D] = parse_count(tokens)
    elif D not in table:
        require_columns(table, (D,), f"without --tokens, {path} must name them: it")
    table = with_ratios(table, str(path))
    if N in fit.law.columns:
        require_columns(table, (SIZES[fit.size_convention],), f"N is {fit.size_convention}: {path}")
    require_columns(table, fit.source_columns, str(path))
    check_numbers(table, fit.source_columns, str(path))
    return table
