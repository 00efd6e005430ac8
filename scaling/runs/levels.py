"""Group numbers that scatter around nominal values into levels."""

import numpy as np

from shapelaw.scaling.errors import InputError

SAME = 0.1  # values within 10 % of each other are one level
DENSE = 4000  # more distinct values than this are binned instead of clustered


def level_of(values: np.ndarray, tolerance: float = SAME) -> np.ndarray:
    """Assign a level to every value, (n,), from 0 upwards: values within 10 % are one level.

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


def count_levels(label: np.ndarray) -> int:
    """Count the levels that some rows have; rows of a part of a table may miss some."""
    return len(np.unique(label))
