"""What measuring a shape is expected to add: its loss is known, its ln speed is a normal variable.

With one objective known, the expected gain in hypervolume has a closed form. Among shapes of at
most a loss t, let F(t) be the best ln speed so far: a staircase. A shape of loss l and ln speed y
adds the integral of max(y − F(t), 0) over t from l to the reference loss, so the expectation is a
sum over the steps of expected improvements s (z Φ(z) + φ(z)), z = (μ − F) / s.
"""

import numpy as np
from scipy.special import ndtr

MARGIN = 0.1  # of the front's extent: how far beyond its ends the reference point lies
CHUNK = 1 << 14


def expected_improvement(mean: np.ndarray, deviation: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Mean of max(y − best, 0) for normal y; arrays that broadcast."""
    z = (mean - best) / deviation
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(deviation * (z * ndtr(z) + density))


def expected_gain(
    losses: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    *,
    known: tuple[np.ndarray, np.ndarray],
    reference: tuple[float, float],
) -> np.ndarray:
    """Expected gain in hypervolume of measuring each shape, (n,).

    Parameters
    ----------
    losses, mean, deviation
        Of the shapes: loss, and mean and standard deviation of ln tokens/s, (n,).
    known
        Losses and ln tokens/s of what is measured, (m,) each; m may be 0.
    reference
        The loss and ln tokens/s below and above which nothing counts.
    """
    starts, heights = staircase(*known, reference=reference)
    ends = np.append(starts[1:], reference[0])
    gains = np.zeros(len(losses))
    for begin in range(0, len(losses), CHUNK):
        part = slice(begin, begin + CHUNK)
        widths = np.maximum(ends - np.maximum(starts, losses[part, None]), 0.0)
        better = expected_improvement(mean[part, None], deviation[part, None], heights)
        gains[part] = (widths * better).sum(axis=1)
    return gains


def staircase(
    losses: np.ndarray, speeds: np.ndarray, *, reference: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where each step of F begins, and its height; the first begins at −∞ with the reference."""
    order = np.lexsort((-speeds, losses))
    loss, best = losses[order], np.maximum.accumulate(np.append(reference[1], speeds[order]))
    rises = (np.diff(best) > 0) & (loss < reference[0])
    return np.append(-np.inf, loss[rises]), np.append(reference[1], best[1:][rises])


def reference_point(losses: np.ndarray, speeds: np.ndarray) -> tuple[float, float]:
    """A loss and an ln speed a little beyond the ends of a front, so that its ends count too."""
    extent = max(float(np.ptp(losses)), 1e-6), max(float(np.ptp(speeds)), 1e-6)
    return (
        float(losses.max()) + MARGIN * extent[0],
        float(speeds.min()) - MARGIN * extent[1],
    )
