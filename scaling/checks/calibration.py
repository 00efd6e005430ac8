"""Calibration of stated probabilities: Brier score, log score, Wilson intervals, reliability."""

from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import norm

WILSON_LEVEL = 90.0  # per cent
RELIABILITY_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the probability of the favoured side
SURE = 0.9  # probability from which a decision is stated surely
SMALLEST_PROBABILITY = 1e-4  # in log scores: a finite number of draws may state 0


def wilson_interval(held: float, count: int, level: float = WILSON_LEVEL) -> tuple[float, float]:
    """Compute the Wilson score interval of a share.

    Parameters
    ----------
    held
        Number of successes; ties may count one half.
    count
        Number of trials, at least 1.
    level
        Confidence level in per cent.

    Returns
    -------
    tuple of float
        Low and high end. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    z = float(norm.ppf(0.5 + level / 200))
    centre = held + z**2 / 2
    half = z * np.sqrt(held * (count - held) / count + z**2 / 4)
    low, high = ((centre + side) / (count + z**2) for side in (-half, half))
    return (float(low) if held else 0.0), (float(high) if held < count else 1.0)


def brier_score(stated: ArrayLike, happened: ArrayLike) -> float:
    """Average (p − o)² over events: 0 is perfect, 0.25 is what p = 0.5 scores.

    Parameters
    ----------
    stated
        Stated probabilities p of the events, (n,).
    happened
        Outcomes o: 1, 0, or 0.5 for a tie, (n,).
    """
    return float(np.mean((np.asarray(stated) - np.asarray(happened)) ** 2))


def log_score(stated: ArrayLike, happened: ArrayLike) -> float:
    """Average −o ln p − (1 − o) ln (1 − p) over events: 0 is perfect, p = 0.5 scores 0.693.

    Parameters
    ----------
    stated, happened
        As in :func:`brier_score`. Probabilities are bounded to [0.0001, 0.9999].
    """
    p = np.clip(np.asarray(stated, dtype=float), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    outcome = np.asarray(happened, dtype=float)
    return float(-np.mean(outcome * np.log(p) + (1 - outcome) * np.log(1 - p)))


def favoured(stated: ArrayLike, happened: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Convert probabilities of an event to those of its more probable side.

    Parameters
    ----------
    stated, happened
        As in :func:`brier_score`.

    Returns
    -------
    probability
        max(p, 1 − p), (n,).
    held
        1 where the more probable side happened, else 0; 0.5 for a tie and for p = 0.5, (n,).
    """
    p, outcome = np.asarray(stated, dtype=float), np.asarray(happened, dtype=float)
    side = np.sign(p - 0.5)
    return np.maximum(p, 1 - p), 0.5 + side * (outcome - 0.5)


def reliability_table(stated: ArrayLike, happened: ArrayLike) -> pd.DataFrame:
    """Compare stated probabilities with the share of events that held, in bins.

    Parameters
    ----------
    stated, happened
        As in :func:`brier_score`.

    Returns
    -------
    pandas.DataFrame
        One row per bin of max(p, 1 − p) that has events: ``stated_from``, ``stated_to``, ``n``,
        ``mean_stated``, ``share_held`` with its 90 % Wilson interval ``held_low`` to
        ``held_high``, and ``consistent`` if the interval includes the mean stated probability.
    """
    probability, held = favoured(stated, happened)
    rows = []
    for low, high in pairwise(RELIABILITY_EDGES):
        last = high == RELIABILITY_EDGES[-1]
        inside = (probability >= low) & ((probability < high) | last)
        if inside.any():
            rows.append({"stated_from": low, "stated_to": high} | _bin(probability, held, inside))
    names = ("stated_from", "stated_to", "n", "mean_stated", "share_held", "held_low", "held_high")
    return pd.DataFrame(rows, columns=[*names, "consistent"])


def _bin(probability: np.ndarray, held: np.ndarray, inside: np.ndarray) -> dict[str, object]:
    """Compare mean stated probability and share held of some events."""
    count = int(inside.sum())
    mean = float(probability[inside].mean())
    low, high = wilson_interval(float(held[inside].sum()), count)
    return {
        "n": count,
        "mean_stated": mean,
        "share_held": float(held[inside].mean()),
        "held_low": low,
        "held_high": high,
        "consistent": low <= mean <= high,
    }


def sharpness(stated: ArrayLike) -> float:
    """Average 2 max(p, 1 − p) − 1 over events: 0 if all are stated at 0.5, 1 if all are certain.

    Parameters
    ----------
    stated
        Stated probabilities, (n,).
    """
    return float(np.mean(2 * np.abs(np.asarray(stated, dtype=float) - 0.5)))
