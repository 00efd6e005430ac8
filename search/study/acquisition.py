"""Acquisition functions: the expected improvement, and the expected hypervolume improvement.

The loss of each shape is known and its ln speed is a normal variable, so the expected hypervolume
improvement has a closed form. Let F(t) be the best measured ln speed among shapes with a loss of at
most t, a step function. A shape with loss l and ln speed y adds the integral of max(y − F(t), 0)
over t from l to the reference loss. Its expectation is a sum over the steps of expected
improvements s (z Φ(z) + φ(z)) with z = (μ − F) / s.
"""

import numpy as np
from scipy.special import ndtr

MARGIN = 0.1  # distance of the reference point from the front's ends, as a part of its extent
CHUNK = 1 << 14  # shapes computed at once


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Compute the mean of max(y − best, 0) for normal y.

    Parameters
    ----------
    mean, deviation, best
        Mean and standard deviation of y, and the value to improve on; arrays that broadcast.
    """
    z = (mean - best) / deviation
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(deviation * (z * ndtr(z) + density))


def expected_gain(
    losses: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    *,
    measured: tuple[np.ndarray, np.ndarray],
    reference: tuple[float, float],
) -> np.ndarray:
    """Compute the expected hypervolume improvement of measuring each shape.

    Parameters
    ----------
    losses, mean, deviation
        Loss of each shape, and mean and standard deviation of its ln tokens/s, (n,) each.
    measured
        Losses and ln tokens/s of the measured shapes, (m,) each; m may be 0.
    reference
        Upper limit of the losses and lower limit of the ln tokens/s that add hypervolume.

    Returns
    -------
    Expected improvement in nats per token times ln tokens/s, (n,).
    """
    starts, heights = step_function(*measured, reference=reference)
    ends = np.append(starts[1:], reference[0])
    gains = np.zeros(len(losses))
    for begin in range(0, len(losses), CHUNK):
        part = slice(begin, begin + CHUNK)
        widths = np.maximum(ends - np.maximum(starts, losses[part, None]), 0.0)
        better = expected_improvement(mean[part, None], deviation[part, None], heights)
        gains[part] = (widths * better).sum(axis=1)
    return gains


def step_function(
    losses: np.ndarray, speeds: np.ndarray, *, reference: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the steps of F, the best ln speed at no more than a loss.

    Returns
    -------
    The loss at which each step begins, and its ln speed; the first step begins at −∞ and has the
    reference's ln speed.
    """
    order = np.lexsort((-speeds, losses))
    loss, best = losses[order], np.maximum.accumulate(np.append(reference[1], speeds[order]))
    rises = (np.diff(best) > 0) & (loss < reference[0])
    return np.append(-np.inf, loss[rises]), np.append(reference[1], best[1:][rises])


def reference_point(losses: np.ndarray, speeds: np.ndarray) -> tuple[float, float]:
    """Return a loss and an ln speed beyond the ends of a front, so that its ends add volume too."""
    extent = max(float(np.ptp(losses)), 1e-6), max(float(np.ptp(speeds)), 1e-6)
    return (
        float(losses.max()) + MARGIN * extent[0],
        float(speeds.min()) - MARGIN * extent[1],
    )
