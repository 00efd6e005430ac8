"""Rules on the fields of a config, for single numbers and for columns of many models alike."""

from typing import Any

import numpy as np


def breaking(broken: Any, *values: Any) -> tuple[Any, ...] | None:
    """Return the values of the first row that breaks a rule; None if every row keeps it.

    Parameters
    ----------
    broken
        Whether the rule is broken: one truth value, or a mask (n,).
    *values
        Numbers or columns (n,).
    """
    if not np.any(broken):
        return None
    mask, *columns = np.broadcast_arrays(broken, *values)
    return tuple(column.flat[mask.argmax()].item() for column in columns)
