"""Cross-validation of a time model: its errors on held-out shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

from shapelaw.scaling.errors import InputError
from shapelaw.search.time_model.model import TimeModel

if TYPE_CHECKING:
    from shapelaw.scaling.architectures.shape_table import ShapeTable
    from shapelaw.search.engines._base import Measurement
    from shapelaw.search.engines.accelerators import Hardware
    from shapelaw.search.workload import Workload

MIN_MEASUREMENTS = 3
MAX_DEFAULT_FOLDS = 20


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Measured output tokens/s, and predictions by models fitted without the predicted shape.

    Attributes
    ----------
    measured, predicted, deviation
        Output tokens/s, measured and predicted, and the predicted standard deviation of ln
        tokens/s, in the order of the table, (n,) each.
    mape
        Mean absolute error as a fraction of the measured speed.
    spearman
        Spearman's rank correlation; NaN where all shapes are equally fast.
    coverage
        Fraction of the shapes inside their 95 % interval.
    """

    measured: np.ndarray
    predicted: np.ndarray
    deviation: np.ndarray
    mape: float
    spearman: float
    coverage: float


def cross_validate(
    table: "ShapeTable",
    measurements: "Sequence[Measurement]",
    workload: "Workload",
    *,
    folds: int | None = None,
    device: "Hardware | None" = None,
    seed: int = 0,
) -> CrossValidation:
    """Predict the speed of each fold of the measured shapes by a time model fitted without it.

    Parameters
    ----------
    table, measurements
        The measured shapes, in order.
    folds
        Number of folds of equal size, drawn by ``seed``; None: leave-one-out, but at most
        :data:`MAX_DEFAULT_FOLDS` folds.
    device
        Hardware whose roofline is the prior.

    Raises
    ------
    InputError
        There are too few measurements.
    """
    count = len(measurements)
    if count < MIN_MEASUREMENTS:
        raise InputError(
            f"held-out errors need `measurements >= {MIN_MEASUREMENTS}`, but got {count}; "
            "measure more shapes"
        )
    parts = np.arange(count) % min(folds or MAX_DEFAULT_FOLDS, count)
    np.random.default_rng(seed).shuffle(parts)
    mean, deviation = np.zeros(count), np.zeros(count)
    for part in np.unique(parts):
        seen, unseen = np.flatnonzero(parts != part), np.flatnonzero(parts == part)
        model = TimeModel.fit(
            table.take(seen), [measurements[row] for row in seen.tolist()], workload, device=device
        )
        mean[unseen], deviation[unseen] = model.predict(table.take(unseen))
    measured = np.array([measurement.output_tokens_per_second for measurement in measurements])
    predicted = np.exp(mean)
    return CrossValidation(
        measured=measured,
        predicted=predicted,
        deviation=deviation,
        mape=float(np.mean(np.abs(predicted / measured - 1))),
        spearman=_rank_correlation(measured, predicted),
        coverage=float(np.mean(np.abs(np.log(measured) - mean) <= 1.96 * deviation)),
    )


def _rank_correlation(measured: np.ndarray, predicted: np.ndarray) -> float:
    ranks = rankdata(measured), rankdata(predicted)
    if min(np.ptp(values) for values in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
