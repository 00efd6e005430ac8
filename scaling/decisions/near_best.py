"""The shape that is most surely among the best, within an indifference."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class NearBest:
    """The most certain choice among shapes.

    Attributes
    ----------
    row
        Position of the chosen shape.
    certainty
        Probability that its loss is within the indifference of the lowest loss.
    rival
        Position of the shape that is most often the lowest where the chosen one is not within the
        indifference; None where it always is.
    """

    row: int
    certainty: float
    rival: int | None


def near_best(draws: np.ndarray, indifference: float) -> NearBest:
    """Choose the shape whose loss is most often within an indifference of the lowest loss.

    Of equally certain shapes the one with the lowest mean is chosen.

    Parameters
    ----------
    draws
        Joint draws of ln loss, (S, n).
    indifference
        Relative difference of two losses that does not matter, such as 0.005.
    """
    regret = draws - draws.min(axis=1, keepdims=True)
    within = regret <= np.log1p(indifference)
    row = int(np.lexsort((draws.mean(axis=0), -within.sum(axis=0)))[0])
    missed = regret[~within[:, row]]
    return NearBest(
        row=row,
        certainty=float(within[:, row].mean()),
        rival=int((missed == 0).sum(axis=0).argmax()) if len(missed) else None,
    )
