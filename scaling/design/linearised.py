"""Linearised laws: gradients in units of the prior, places in logarithms, noise and misfit.

The law is linearised at the fit: ln loss = law(θ̂) + g·(θ - θ̂) + misfit + noise
(:mod:`shapelaw.scaling.design.noise`). Gradients are in units of the prior standard deviations:
the prior adds an identity matrix to the information of any runs, which can therefore be inverted.
A held parameter has the variance of the range that it was held in, and zero variance without one.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from shapelaw.scaling.design.noise import Scatter, estimate_scatter
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.part import Columns
from shapelaw.scaling.runs.columns import N, columns_of
from shapelaw.scaling.runs.mapping import require_or_suggest
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.validation import check_numbers

MAX_PLACES = 1000  # in tables of more rows, runs closer than SAME_PLACE count as one place
SAME_PLACE = 0.02  # distance in ln of every column
NO_EFFECT = ("_curvature", "_slope")  # parameters that are zero where a factor has no effect


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points at which the law is evaluated.

    ``gradient`` (n, p) is that of ln loss by the parameters, in prior standard deviations;
    ``place`` (n, k), ln of the law's columns; ``size`` (n,), N in parameters; ``shares`` (n,), 1
    where the misfit of the place counts and 0 where the target is a parameter.
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

    Parameters
    ----------
    fit
        The fitted law.
    frame
        A table with the columns of the law, or with the fields of shapes and ``tokens``.
    source
        The name of the table in errors.

    Returns
    -------
    Values by the law's column names, (n,) each.

    Raises
    ------
    InputError
        A column is missing, or a value is not positive and finite.
    """
    frame = with_ratios(frame.reset_index(drop=True), source, needed=fit.source_columns)
    pairs = zip(fit.law.columns, fit.source_columns, strict=True)
    names = {name: column if column in frame else name for name, column in pairs}
    require_or_suggest(frame, names.values(), source)
    check_numbers(frame, names.values(), source)
    return {name: columns_of(frame, (column,))[column] for name, column in names.items()}


def prior_deviations(fit: Fit, columns: Columns, loss: np.ndarray) -> np.ndarray:
    """Find the prior standard deviation of every internal parameter.

    The prior standard deviation of a free parameter is the width of the box that starts are drawn
    from; that of a held parameter is the standard deviation of a uniform distribution over its
    range. A factor that is held at no effect may still have one: its curvature or slope counts as
    free.

    Parameters
    ----------
    fit
        The fitted law.
    columns
        Columns of the law, (n,) each.
    loss
        Measured losses, nats per token, (n,).

    Returns
    -------
    Standard deviations, (p,).
    """
    deviations = []
    for parameter in fit.law.parameters(columns, loss):
        width = max(parameter.starts[1] - parameter.starts[0], 1e-3)
        held = fit.held.get(parameter.name)
        if held is not None and not (parameter.name.endswith(NO_EFFECT) and held.value == 0):
            width = (held.high - held.low) / np.sqrt(12)
        deviations.append(width)
    return np.array(deviations)


def points_at(fit: Fit, columns: Columns, deviations: np.ndarray) -> Points:
    """Linearise a law at rows of a table.

    Parameters
    ----------
    fit
        The fitted law.
    columns
        Columns of the law, (n,) each.
    deviations
        Prior standard deviations of its parameters, (p,).
    """
    gradient = fit.law.log_loss(fit.theta, columns, fit.reference)[1]
    place = np.log(np.stack([columns[name] for name in fit.law.columns], axis=-1))
    return Points(
        gradient=gradient * deviations,
        place=place,
        size=columns[N],
        shares=np.ones(len(place)),
    )


def scatter_of(fit: Fit, columns: Columns, loss: np.ndarray) -> Scatter:
    """Estimate noise and misfit of a fit from the residuals of its runs.

    Parameters
    ----------
    fit
        The fitted law.
    columns
        Columns of the law of the fitted runs, (n,) each.
    loss
        Measured losses, nats per token, (n,).
    """
    points = points_at(fit, columns, prior_deviations(fit, columns, loss))
    residuals = np.log(loss) - np.log(fit.law.predict(fit.theta, columns, fit.reference))
    return estimate_scatter(residuals, points.gradient, points.place, points.size)


def merged(points: Points) -> tuple[Points, np.ndarray]:
    """Merge runs at one place into one point with a count, in tables of more than 1,000 rows.

    Cells grow from 2 % until at most 1,000 remain, since the cost of a design grows with the square
    of their number.

    Returns
    -------
    At most 1,000 points and the number of runs at each, (m,).
    """
    cell, places = SAME_PLACE, np.arange(len(points))
    while len(np.unique(places)) > MAX_PLACES:
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
