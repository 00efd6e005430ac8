"""Decisions between shapes: the probability that each is best, and differences with intervals."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from shapelaw.scaling.decisions.equivalent_compute import NOT_REACHABLE, equivalent_compute
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit, as_fit
from shapelaw.scaling.fitting.run_intervals import ENDS, inside_draws
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.runs.table import as_frame
from shapelaw.scaling.units import loss_column


def decide(fitted: Fit, shapes: pd.DataFrame, *, runs: ArrayLike = 1) -> pd.DataFrame:
    """Compare shapes: which is best, by how much, and how sure that is.

    Every probability and interval is computed from the same joint draws of the losses of all
    shapes (:meth:`shapelaw.scaling.fitting.result.Fit.log_loss_draws`), so errors that the shapes
    share cancel.

    Parameters
    ----------
    fitted
        Fit with draws.
    shapes
        One row per shape: the columns of the law and ``tokens``.
    runs
        Number of new runs of each shape, (n,), or one number for all shapes, whose mean losses
        ``p_best_run`` compares.

    Returns
    -------
    pandas.DataFrame
        One row per shape, in the order and with the index of ``shapes``:

        ``p_best``
            Probability that the shape has the lowest true loss.
        ``p_best_run``
            Probability that of one new run of every shape, that of this shape has the lowest loss;
            of ``runs`` new runs of every shape, the mean of this shape.
        ``difference_nats``, ``difference_nats_low``, ``difference_nats_high``
            True loss minus that of the first shape, nats per token, with its 95 % interval; the
            names have the unit of another fit, such as ``difference_bits_per_byte``.
        ``equivalent_compute``, ``equivalent_compute_low``, ``equivalent_compute_high``
            Factor of compute with which the first shape, trained compute-optimally, reaches the
            loss of this shape, as
            :func:`shapelaw.scaling.decisions.equivalent_compute.equivalent_compute` defines it:
            ``not reachable`` where no compute suffices, NaN where the law has no trade-off between
            size and tokens.

    Raises
    ------
    InputError
        There is no shape, the fit has no draws, a column is missing, or a number of runs is below
        1.
    """
    fitted, shapes = as_fit(fitted), as_frame(shapes)
    if not len(shapes):
        raise InputError("`len(shapes) >= 1` must hold for a decision, but got no rows")
    if D not in shapes:
        raise InputError(
            f"`{D}` must be in the table of shapes, but it has {', '.join(map(str, shapes))}; add "
            "the training tokens of every shape"
        )
    if np.min(runs) < 1:
        raise InputError(
            f"`runs >= 1` must hold for every shape, but got {np.min(runs)}; give the number of "
            "new runs"
        )
    draws = fitted.log_loss_draws(shapes)
    measured = draws + fitted.run_noise_draws(draws.shape, runs)
    losses = np.exp(draws)
    differences = losses - losses[:, :1]
    predicted = fitted.expected(shapes)
    low, high = np.percentile(differences, ENDS, axis=0)
    name = difference_column(fitted)
    columns = {
        "p_best": share_lowest(draws),
        "p_best_run": share_lowest(measured),
        name: inside_draws(fitted, predicted - predicted[0], low, high),
        f"{name}_low": low,
        f"{name}_high": high,
    }
    compute = equivalent_compute(fitted, shapes, draws)
    return pd.DataFrame(columns, index=shapes.index).join(compute)


def difference_column(fitted: Fit) -> str:
    """Return the name of the column of differences, which has the unit of the losses."""
    return loss_column("difference", fitted.loss_unit)


def share_lowest(draws: np.ndarray) -> np.ndarray:
    """Compute the share of draws in which each column is the lowest; equal columns share a draw.

    Parameters
    ----------
    draws
        Losses, (S, n).

    Returns
    -------
    numpy.ndarray
        Shares, (n,); their sum is 1.
    """
    lowest = draws <= draws.min(axis=1, keepdims=True)
    return np.asarray((lowest / lowest.sum(axis=1, keepdims=True)).mean(axis=0))


__all__ = ["NOT_REACHABLE", "decide", "share_lowest"]
