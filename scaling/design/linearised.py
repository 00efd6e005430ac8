"""Tables seen by a law: gradients in units of the prior, places in logarithms, noise and misfit.

The law is taken as linear around the fit: ln loss = law(θ) + g·(θ - θ̂) + misfit + noise
(:mod:`shapelaw.scaling.design.noise`). Gradients are kept in units of the prior's deviations, so
that the information of any runs is 1 + ... and can be inverted; a held parameter has the variance
of the range it was held in, none where it has no range.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from shapelaw.scaling.design.noise import Scatter, estimate_scatter
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Columns
from shapelaw.scaling.runs.columns import N, columns_of
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.validation import check_numbers, require_columns

MOST_PLACES = 1000  # runs closer than CLOSE count as one place where a table has more rows
CLOSE = 0.02  # in ln of every column
NEUTRAL = ("_curvature", "_slope")  # zero where a factor is held at no effect


@dataclass(frozen=True, kw_only=True)
class Points:
    """Places at which the law is looked at.

    ``gradient`` (n, p) of ln loss by the parameters, in prior deviations; ``place`` (n, k), ln of
    the law's columns; ``size`` (n,), N in parameters; ``shares`` (n,), 1 where the misfit of the
    place counts and 0 where the target is a parameter.
    """

    gradient: np.ndarray
    place: np.ndarray
    size: np.ndarray
    shares: np.ndarray

    def __len__(self) -> int:
        return len(self.gradient)


def law_columns(fit: Fit, frame: pd.DataFrame, source: str) -> dict[str, np.ndarray]:
    """Read the columns of the fit's law from rows to train or to predict.

    A row may give N by the convention of the fit, or under the law's own name, as typed goals do.

    Raises
    ------
    InputError
        One is missing, or a value is not positive and finite.
    """
    frame = with_ratios(frame.reset_index(drop=True), source)
    pairs = zip(fit.law.columns, fit.source_columns, strict=True)
    names = {name: own if own in frame else name for name, own in pairs}
    require_columns(frame, names.values(), source)
    check_numbers(frame, names.values(), source)
    return {name: columns_of(frame, (own,))[own] for name, own in names.items()}


def prior_deviations(fit: Fit, columns: Columns, loss: np.ndarray) -> np.ndarray:
    """Standard deviation of every internal parameter before any run, (p,).

    The width of the box that starts are drawn from; for a held parameter the deviation of a
    uniform range. A factor held at no effect is not known to have none: its curvature or slope
    counts as free.
    """
    deviations = []
    for parameter in fit.law.parameters(columns, loss):
        width = max(parameter.starts[1] - parameter.starts[0], 1e-3)
        held = fit.held.get(parameter.name)
        if held is not None and not (parameter.name.endswith(NEUTRAL) and held.value == 0):
            width = (held.high - held.low) / np.sqrt(12)
        deviations.append(width)
    return np.array(deviations)


def points_at(fit: Fit, columns: Columns, deviations: np.ndarray) -> Points:
    """Rows of a table as points."""
    gradient = fit.law.log_loss(fit.theta, columns, fit.reference)[1]
    place = np.log(np.stack([columns[name] for name in fit.law.columns], axis=-1))
    return Points(
        gradient=gradient * deviations,
        place=place,
        size=columns[N],
        shares=np.ones(len(place)),
    )


def scatter_of(fit: Fit, columns: Columns, loss: np.ndarray) -> Scatter:
    """Noise and misfit of a fit, from the residuals of its runs."""
    points = points_at(fit, columns, prior_deviations(fit, columns, loss))
    residuals = np.log(loss) - np.log(fit.law.predict(fit.theta, columns, fit.reference))
    return estimate_scatter(residuals, points.gradient, points.place, points.size)


def merged(points: Points) -> tuple[Points, np.ndarray]:
    """Runs at one place as one point with a count, where a table has more than 1,000 rows.

    Cells grow from 2 % on until at most 1,000 are left: the cost of what follows grows with the
    square of their number.
    """
    cell, places = CLOSE, np.arange(len(points))
    while len(np.unique(places)) > MOST_PLACES:
        cells = np.round(points.place / cell)
        places = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
        cell *= 1.5
    counts = np.bincount(places)
    means = Points(
        gradient=_means(points.gradient, places, counts),
        place=_means(points.place, places, counts),
        size=np.exp(_means(np.log(points.size)[:, None], places, counts)[:, 0]),
        shares=np.ones(len(counts)),
    )
    return means, counts


def _means(values: np.ndarray, places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, places, values)
    return np.asarray(sums / counts[:, None])
