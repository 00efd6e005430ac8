"""Levels of numbers that scatter around nominal values: the one way in which levels are counted."""

import numpy as np

from shapelaw.scaling.errors import InputError

LEVEL_TOLERANCE = 0.1  # relative difference between the values of one level, at most
MAX_CLUSTERED_VALUES = 4000  # more distinct values than this are binned instead of clustered


def level_of(values: np.ndarray, tolerance: float = LEVEL_TOLERANCE) -> np.ndarray:
    """Assign a level to every value, so that values within a tolerance share one.

    The densest window of that width becomes the first level, then the densest window of the
    remaining values, and so on. Values that scatter around a nominal value thus share one level,
    and a chain of close values that spans more than the tolerance is several levels.

    Parameters
    ----------
    values
        Positive numbers, (n,).
    tolerance
        Largest relative difference within a level.

    Returns
    -------
    Number of each value's level, (n,), from 0 upwards.

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
    if len(logs) > MAX_CLUSTERED_VALUES:
        windows = np.floor((np.log(values) - logs[0]) / (width * (1 + 1e-9)))
        return np.unique(windows, return_inverse=True)[1]
    label = np.full(len(logs), -1)
    remaining = np.arange(len(logs))
    while len(remaining):
        ends = np.searchsorted(logs[remaining], logs[remaining] + width * (1 + 1e-9), side="right")
        weight = np.concatenate(([0], np.cumsum(counts[remaining])))
        first = int(np.argmax(weight[ends] - weight[: len(remaining)]))
        # A later window may reach across this level; _split_levels separates its two sides.
        window = remaining[first : ends[first]]
        label[window] = window[0]
        remaining = np.delete(remaining, slice(first, ends[first]))
    return np.unique(_split_levels(label), return_inverse=True)[1][inverse]


def _split_levels(label: np.ndarray) -> np.ndarray:
    """Relabel sorted values so that no level has values on both sides of another level."""
    starts = np.concatenate(([True], label[1:] != label[:-1]))
    return np.asarray(np.cumsum(starts))


def count_levels(label: np.ndarray) -> int:
    """Count the distinct levels among some rows; a part of a table may lack some levels."""
    return len(np.unique(label))


def count_distinct(values: np.ndarray) -> int:
    """Count the levels of positive values, (n,)."""
    return count_levels(level_of(values))
