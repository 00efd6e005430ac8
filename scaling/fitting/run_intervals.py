"""Predictions of a fit with the intervals of new runs and of the law itself."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import t as student

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit

LEVEL = 95.0
ENDS = ((100 - LEVEL) / 2, (100 + LEVEL) / 2)  # percentiles of the interval
NOISE_QUANTILES = 101  # of the noise of a new run, mixed with every resample


def predict_rows(fit: "Fit", frame: pd.DataFrame) -> pd.DataFrame:
    """Predict the loss of every row with its intervals, as :meth:`Fit.predict` describes."""
    spread = fit.joint_or_marginal_draws(frame, joint=False)
    if fit.posterior is None:
        new = new_run_intervals(spread, fit.noise, fit.noise_degrees)
    else:
        new = np.percentile(spread + fit.run_noise_draws(spread.shape), ENDS, axis=0).T
    mean = np.percentile(spread, ENDS, axis=0).T
    predicted = inside_draws(fit, fit.expected(frame), *np.exp(mean.T))
    return pd.DataFrame(
        {
            "predicted_loss": predicted,
            "loss_low": np.exp(new[:, 0]),
            "loss_high": np.exp(new[:, 1]),
            "mean_low": np.exp(mean[:, 0]),
            "mean_high": np.exp(mean[:, 1]),
        }
    )


def inside_draws(fit: "Fit", values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Move values into the interval of a posterior: where draws hardly differ, they may lie beside.

    Parameters
    ----------
    values, low, high
        Values of the fit and the ends of their 95 % intervals, (n,) each.
    """
    return values if fit.posterior is None else np.clip(values, low, high)


def new_run_intervals(spread: np.ndarray, noise: float, degrees: int) -> np.ndarray:
    """Compute 95 % intervals of ln loss of one new run at each row.

    The intervals are percentiles over every resample plus every quantile of Student's t times the
    noise. The rows are processed one at a time to bound memory.

    Parameters
    ----------
    spread
        ln loss of every resample, (S, n).
    noise
        Standard deviation of ln loss of a run around the law.
    degrees
        Degrees of freedom of ``noise``.

    Returns
    -------
    numpy.ndarray
        Low and high ends of ln loss, (n, 2).
    """
    quantiles = (np.arange(NOISE_QUANTILES) + 0.5) / NOISE_QUANTILES
    around = noise * student.ppf(quantiles, max(degrees, 1))
    return np.stack([np.percentile(np.add.outer(row, around), ENDS) for row in spread.T])
