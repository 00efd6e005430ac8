"""Cross-validation of a time model: its error on shapes that it has not seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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

FEWEST = 3


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """Measured and predicted output tokens/s, each shape predicted by a model that did not see it.

    Attributes
    ----------
    measured, predicted, deviation
        Tokens/s, and the predicted standard deviation of ln tokens/s, in the order of the table.
    mape
        Mean absolute error as a fraction of what was measured.
    spearman
        Rank correlation; NaN where all shapes are equally fast.
    coverage
        Fraction of the shapes inside their 95 % interval.
    """

    measured: np.ndarray
    predicted: np.ndarray
    deviation: np.ndarray
    mape: float
    spearman: float
    coverage: float

    def figures(self) -> dict[str, float]:
        """Return the three figures by name."""
        names = ("mape", "spearman", "coverage")
        return {name: value for name, value in asdict(self).items() if name in names}


def cross_validate(
    table: "ShapeTable",
    measurements: "Sequence[Measurement]",
    workload: "Workload",
    *,
    folds: int | None = None,
    device: "Hardware | None" = None,
    seed: int = 0,
) -> CrossValidation:
    """Predict each fold of the measured shapes by a time model fitted without it.

    Parameters
    ----------
    table, measurements
        The measured shapes, in order.
    folds
        Parts of equal size, drawn by ``seed``; by default every shape is a fold of its own, up to
        20 folds.

    Raises
    ------
    InputError
        There are too few measurements.
    """
    count = len(measurements)
    if count < FEWEST:
        raise InputError(
            f"held-out errors need `measurements >= {FEWEST}`, but got {count}; measure more shapes"
        )
    parts = np.arange(count) % min(folds or 20, count)
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


def _rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    ranks = rankdata(one), rankdata(other)
    if min(np.ptp(values) for values in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])
