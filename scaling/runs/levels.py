"""Levels of model size and compute: which rows of a run table belong together."""

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import SIZES, D, N
from shapelaw.scaling.runs.table import require_columns

SAME = 0.1  # values within 10 % of each other are one level


DENSE = 4000  # more distinct values than this are binned instead of clustered


def sized(runs: pd.DataFrame) -> pd.DataFrame:
    """The table with a column N; total parameters stand in where it has no others.

    Raises
    ------
    InputError
        The table counts no parameters, or lacks tokens or loss.
    """
    if N not in runs and "n_total" in runs:
        runs = runs.assign(**{N: runs["n_total"]})
    require_columns(runs, (N, D, "loss"), "the run table")
    return runs


def compute_of(runs: pd.DataFrame) -> np.ndarray:
    """Training FLOPs of every row, (n,): ``flops_6nd`` where the table has it, else 6 N D."""
    if "flops_6nd" in runs:
        given = pd.to_numeric(runs["flops_6nd"], errors="coerce").to_numpy(dtype=float)
        if (given > 0).all():
            return given
    return np.asarray(6.0 * runs[N].to_numpy(dtype=float) * runs[D].to_numpy(dtype=float))


def level_of(values: np.ndarray, tolerance: float = SAME) -> np.ndarray:
    """Number the levels of a column, (n,), from 0 upwards: values within 10 % are one level.

    The densest window of that width becomes a level first, then the densest of what is left: so a
    level that scatters around its nominal value stays whole.

    Raises
    ------
    InputError
        A value is not a positive number.

    Examples
    --------
    >>> level_of(np.array([1.0, 1.05, 3.0, 0.98, 2.9])).tolist()
    [0, 0, 1, 0, 1]
    """
    values = np.asarray(values, dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InputError("levels need `value > 0` and finite; leave such rows out")
    width = np.log1p(tolerance)
    logs, inverse, counts = np.unique(np.log(values), return_inverse=True, return_counts=True)
    if len(logs) > DENSE:
        return np.unique(np.floor(np.log(values) / width), return_inverse=True)[1]
    label = np.full(len(logs), -1)
    left = np.arange(len(logs))
    while len(left):
        ends = np.searchsorted(logs[left], logs[left] + width * (1 + 1e-9), side="right")
        weight = np.concatenate(([0], np.cumsum(counts[left])))
        first = int(np.argmax(weight[ends] - weight[: len(left)]))
        # What a chosen level splits off must not be joined again across it.
        window = left[first : ends[first]]
        label[window] = window[0]
        left = np.delete(left, slice(first, ends[first]))
    return np.unique(_unbroken(label), return_inverse=True)[1][inverse]


def _unbroken(label: np.ndarray) -> np.ndarray:
    """Labels of sorted values such that no level surrounds another one."""
    starts = np.concatenate(([True], label[1:] != label[:-1]))
    return np.asarray(np.cumsum(starts))


def with_best_loss(
    runs: pd.DataFrame, *, size: str = "auto", tolerance: float = SAME
) -> pd.DataFrame:
    """Add ``best_loss``: the lowest loss of all shapes trained at the same N and D, nats per token.

    The empirical L_opt that arXiv 2510.18245 multiplies its brackets with below 1B parameters, and
    that :class:`shapelaw.scaling.laws.bases.BestLoss` reads. A run without others at its N and D
    is its own best and tells nothing of shape. The best of few or noisy runs is no smooth law of N
    and D: a larger size needs runs of its own before its losses can be predicted.

    Parameters
    ----------
    size
        Convention of N: ``non-embedding``, ``total`` or ``active``; ``"auto"`` is the first of the
        first two that the table has.
    tolerance
        N and D within this fraction are equal.

    Raises
    ------
    InputError
        A column is missing, or there is no such convention.
    """
    if size not in (*SIZES, "auto"):
        raise InputError(f"`size` must be auto, {', '.join(SIZES)}, but got {size!r}")
    if size == "auto":
        column, runs_sized = N, sized(runs)
    else:
        column, runs_sized = SIZES[size], runs
    require_columns(runs_sized, (column, D, "loss"), "the run table")
    keys = [level_of(runs_sized[name].to_numpy(dtype=float), tolerance) for name in (column, D)]
    best = runs["loss"].astype(float).groupby(keys).transform("min")
    return runs.assign(best_loss=best)


def shapes_of(runs: pd.DataFrame) -> np.ndarray | None:
    """Number the distinct shapes of a table, (n,); None where no column describes a shape."""
    columns = [name for name in (*INTEGER_FIELDS, *RATIOS) if name in runs and name != "vocab_size"]
    if not columns:
        return None
    return runs.groupby(columns, dropna=False, sort=False).ngroup().to_numpy()
