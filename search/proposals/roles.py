"""The roles of proposals: baseline, lowest loss, fastest at no more loss, fastest at even odds."""

from collections.abc import Sequence

import numpy as np

from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement, broken_limits
from shapelaw.search.proposals.leaders import EVEN_ODDS, MIN_SPEEDUP
from shapelaw.search.proposals.proposal import BASELINE, CANDIDATE, EVEN, FAST, LOSS_OPTIMAL
from shapelaw.search.workload import Workload

EQUAL_LOSS = 1e-3  # relative difference up to which predicted losses count as equal


def assign_roles(
    losses: np.ndarray,
    speeds: np.ndarray,
    likely: np.ndarray,
    eligible: np.ndarray,
    *,
    confidence: float,
) -> list[str]:
    """Assign a role to each of n listed shapes, the first of which is the baseline.

    ``loss-optimal`` is the shape of lowest predicted loss; of those within 0.1 % of it that are not
    likely to have more loss than the baseline, the fastest. ``fast`` is the fastest shape with no
    more loss than the baseline at the confidence; ``even odds`` is the fastest at a probability of
    one half, if that is another shape. Both are faster than the baseline by more than the tolerance
    in N, which is no gain of shape.

    A shape with two roles has the first of ``loss-optimal``, ``fast``, ``even odds``, and the
    baseline keeps its own, so that a role may be missing.

    Parameters
    ----------
    losses
        Predicted losses, (n,).
    speeds
        Output tokens/s, 0 where a shape is not served within the service level, (n,).
    likely
        Probability of no more loss than the baseline, (n,).
    eligible
        Mask of the shapes that may have a role, (n,).
    """
    roles = [CANDIDATE] * len(losses)
    served = eligible & (speeds > 0)
    for role, level in ((EVEN, EVEN_ODDS), (FAST, confidence)):
        roles[fastest_place(speeds, likely, served, level)] = role
    rows = np.flatnonzero(served)
    if len(rows):
        lowest = int(rows[losses[rows].argmin()])
        ties = rows[
            (losses[rows] <= losses[lowest] * (1 + EQUAL_LOSS))
            & (likely[rows] >= min(EVEN_ODDS, likely[lowest]))
        ]
        roles[int(ties[speeds[ties].argmax()])] = LOSS_OPTIMAL
    roles[0] = BASELINE
    return roles


def fastest_place(
    speeds: np.ndarray, likely: np.ndarray, eligible: np.ndarray, level: float
) -> int:
    """Return the place of the fastest shape with no more loss at a probability; 0 if none is.

    The parameters are those of :func:`assign_roles`; place 0 is the baseline.
    """
    allowed = eligible & (likely >= level) & (speeds > MIN_SPEEDUP * speeds[0])
    return int(np.where(allowed, speeds, -np.inf).argmax()) if allowed.any() else 0


def front_of(
    losses: Sequence[float] | np.ndarray,
    answers: Sequence[Measurement | str | None],
    workload: Workload | None = None,
    apart: np.ndarray | None = None,
) -> list[bool]:
    """Mark the front of loss against speed among shapes that run and meet the service level.

    Parameters
    ----------
    losses, answers
        Predicted loss of each shape, and its speed or the reason why it has none.
    workload
        Workload with the service level; None: no limits.
    apart
        Mask of the shapes that are on the front only if no shape at all dominates them; the others
        need not be compared with these. None: no shape is set apart.
    """
    speeds = np.array(
        [
            result.output_tokens_per_second
            if isinstance(result, Measurement)
            and not (workload and broken_limits(result, workload))
            else 0.0
            for result in answers
        ]
    )
    of_all = front(losses, speeds) & (speeds > 0)
    if apart is None:
        return [bool(on) for on in of_all]
    near = np.where(apart, 0.0, speeds)
    return [bool(on) for on in np.where(apart, of_all, front(losses, near) & (near > 0))]
