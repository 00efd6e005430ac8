"""Lowest loss of all shapes at the same N and D, the empirical L_opt of arXiv 2510.18245."""

import pandas as pd

from shapelaw.scaling.runs.levels import LEVEL_TOLERANCE, level_of
from shapelaw.scaling.runs.table import AUTO, RunTable, as_run_table


def with_best_loss(
    runs: RunTable | pd.DataFrame, *, size: str = AUTO, tolerance: float = LEVEL_TOLERANCE
) -> RunTable:
    """Add ``best_loss``: the lowest loss of all shapes trained at the same N and D.

    ``best_loss`` is the empirical L_opt by which arXiv 2510.18245 multiplies its shape factors
    below 1B parameters; :class:`shapelaw.scaling.laws.bases.BestLoss` reads it. A run that is alone
    at its N and D has the lowest loss there, and so gives no information on shape. The lowest loss
    of few or noisy runs is not a smooth function of N and D: predicting the losses of a larger size
    requires runs of that size.

    Parameters
    ----------
    runs
        Run table, or a frame with one row per run.
    size
        Convention of N: ``non-embedding``, ``total`` or ``active``; ``"auto"`` keeps the table's.
    tolerance
        Relative difference up to which values of N, or of D, are equal.

    Raises
    ------
    InputError
        A column is missing, or the convention of N is unknown.
    """
    runs = as_run_table(runs, size)
    keys = [runs.size_level, runs.token_level]
    if tolerance != LEVEL_TOLERANCE:
        keys = [level_of(values, tolerance) for values in (runs.sizes, runs.tokens)]
    best = runs["loss"].astype(float).groupby(keys).transform("min")
    return runs.assign(best_loss=best)
