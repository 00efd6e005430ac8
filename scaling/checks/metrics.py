"""Metrics of predictions: errors of the loss, and the regret of a choice of shape."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import LEVEL_TOLERANCE, level_of
from shapelaw.scaling.runs.table import RunTable, as_run_table
from shapelaw.scaling.units import NATS, loss_column

MIN_SHAPES = 3  # in a group of equal N and D


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores(Result):
    """Errors of predicted losses.

    Parameters
    ----------
    rows
        Number of losses.
    mse
        Mean squared error, in the square of ``loss_unit``.
    mae
        Mean absolute error, in ``loss_unit``.
    mape
        Mean absolute error in per cent of the observed loss.
    mean_error
        Mean of predicted minus observed loss, in ``loss_unit``.
    r2
        Coefficient of determination; None if the observed losses are equal.
    spearman
        Rank correlation; None for fewer than three rows or equal losses.
    loss_unit
        Unit of the losses.
    """

    rows: int
    mse: float
    mae: float
    mape: float
    mean_error: float
    r2: float | None
    spearman: float | None
    loss_unit: str = NATS

    def frame(self) -> pd.DataFrame:
        """Return one row of scores with units in the column names."""
        names = {name: loss_column(name, self.loss_unit) for name in ("mse", "mae", "mean_error")}
        names |= {"mse": f"{names['mse']}2", "mape": "mape_percent"}
        return pd.DataFrame([asdict(self)]).drop(columns="loss_unit").rename(columns=names)

    def view(self) -> View:
        """Return the mean error and the scores."""
        title = f"error of {self.rows} predicted losses: {self.mape:.3g} % on average"
        return View(title=title, tables={"scores": self.frame()})


def scores(observed: ArrayLike, predicted: ArrayLike, *, loss_unit: str = NATS) -> Scores:
    """Score predicted losses.

    Parameters
    ----------
    observed, predicted
        Losses, (n,) each.
    loss_unit
        Unit of the losses.

    Returns
    -------
    Scores
        Errors and rank correlation.

    Raises
    ------
    InputError
        The lengths differ, there are no rows, or a loss is not a positive number.
    """
    actual, forecast = (np.asarray(losses, dtype=float) for losses in (observed, predicted))
    if actual.shape != forecast.shape or actual.ndim != 1 or not len(actual):
        raise InputError(
            "`observed` and `predicted` must have the same length, at least one, but have shapes "
            f"{actual.shape} and {forecast.shape}; give one predicted loss per observed loss"
        )
    for name, losses in (("observed", actual), ("predicted", forecast)):
        broken = ~(np.isfinite(losses) & (losses > 0))
        if broken.any():
            raise InputError(
                f"`{name} > 0` and finite must hold, but got {losses[broken][0]}; omit that row"
            )
    error = forecast - actual
    sum_of_squares = float(((actual - actual.mean()) ** 2).sum())
    # Equal losses may differ in their last digits, which has no meaning for a correlation.
    varied = min(np.ptp(actual), np.ptp(forecast)) > 1e-12
    return Scores(
        rows=len(actual),
        mse=float((error**2).mean()),
        mae=float(np.abs(error).mean()),
        mape=float(100 * np.abs(error / actual).mean()),
        mean_error=float(error.mean()),
        r2=1 - float((error**2).sum()) / sum_of_squares if np.ptp(actual) > 1e-12 else None,
        spearman=float(spearmanr(actual, forecast).statistic)
        if varied and len(actual) > 2
        else None,
        loss_unit=loss_unit,
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Regret(Result):
    """Decision regret: the loss of the shape that a law picks minus the best loss trained.

    Parameters
    ----------
    groups
        One row per group of equal N and D. ``regret_nats`` is the loss of the picked shape minus
        the lowest loss; ``random_nats`` is the mean regret of a shape picked at random. The names
        have the unit of other losses, such as ``regret_bits_per_byte``.
    why
        Reason that there are no groups; empty if there are some.
    loss_unit
        Unit of the losses.
    """

    groups: pd.DataFrame
    why: str = ""
    loss_unit: str = NATS

    def _column(self, quantity: str) -> pd.Series:
        return self.groups[loss_column(quantity, self.loss_unit)]

    @property
    def mean(self) -> float | None:
        """Mean regret over groups, in ``loss_unit``."""
        return float(self._column("regret").mean()) if len(self.groups) else None

    @property
    def largest(self) -> float | None:
        """Largest regret of a group, in ``loss_unit``."""
        return float(self._column("regret").max()) if len(self.groups) else None

    @property
    def random(self) -> float | None:
        """Mean regret over groups of a random choice, in ``loss_unit``."""
        return float(self._column("random").mean()) if len(self.groups) else None

    def view(self) -> View:
        """Return the mean regret and the groups."""
        title = f"decision regret: not available: {self.why}"
        if len(self.groups):
            title = (
                f"decision regret over {counted(len(self.groups), 'group')} of equal N and D: "
                f"mean {self.mean:.4g}, largest {self.largest:.4g} {self.loss_unit}; picking at "
                f"random costs {self.random:.4g}"
            )
        return View(title=title, tables={f"regret by group, {self.loss_unit}": self.groups})

    def document(self) -> dict[str, Any]:
        """Return mean, largest and random regret, and the groups."""
        regrets = {"mean": self.mean, "largest": self.largest, "random": self.random}
        return {
            **{loss_column(name, self.loss_unit): value for name, value in regrets.items()},
            "groups": self.groups,
            "why": self.why,
        }


GROUP_LOSSES = ("picked", "best", "regret", "random")


def decision_regret(
    runs: RunTable | pd.DataFrame, predicted: ArrayLike, *, tolerance: float = LEVEL_TOLERANCE
) -> Regret:
    """Measure the regret of picking shapes by predicted loss, within groups of equal N and D.

    Parameters
    ----------
    runs
        Rows with N, tokens, loss and the fields or ratios of their shapes.
    predicted
        Predicted loss of every row, in the unit of the runs, (n,).
    tolerance
        Relative difference up to which N and D are equal. A group needs at least three shapes.

    Returns
    -------
    Regret
        Regret by group, or the reason that there is no group.

    Raises
    ------
    InputError
        A column is missing, or the lengths differ.

    Notes
    -----
    Replicates of a shape count once, by their mean. Shapes with equal predicted loss share their
    mean loss, so a law without a term of shape has the regret of a random choice.
    """
    runs = as_run_table(runs)
    columns = [N, D, "shapes", *(loss_column(name, runs.loss_unit) for name in GROUP_LOSSES)]

    def none(why: str) -> Regret:
        return Regret(groups=pd.DataFrame(columns=columns), why=why, loss_unit=runs.loss_unit)

    table = pd.DataFrame({N: runs.sizes, D: runs.tokens, "loss": runs.losses})
    forecast = np.asarray(predicted, dtype=float)
    if forecast.shape != (len(runs),):
        raise InputError(
            f"`predicted` must have {len(runs)} losses, but has shape {forecast.shape}; give one "
            "predicted loss per row"
        )
    if runs.shapes is None:
        return none("no column of the table describes a shape")
    if not len(runs):
        return none("there are no rows")
    table = table.assign(predicted=forecast, shape=runs.shapes)
    keys = [runs.size_level, runs.token_level]
    if tolerance != LEVEL_TOLERANCE:
        keys = [level_of(values, tolerance) for values in (runs.sizes, runs.tokens)]
    rows = [
        _group_regret(group)
        for _, group in table.groupby(keys)
        if group["shape"].nunique() >= MIN_SHAPES
    ]
    if not rows:
        return none(f"no {MIN_SHAPES} shapes have the same N and D within {100 * tolerance:g} %")
    return Regret(groups=pd.DataFrame(rows, columns=columns), loss_unit=runs.loss_unit)


def _group_regret(group: pd.DataFrame) -> tuple[float, ...]:
    """Return N, D, shapes and the losses of a group, with the regret of the picked shape."""
    by_shape = group.groupby("shape")[["loss", "predicted"]].mean()
    lowest = by_shape["predicted"].min()
    picked = by_shape["loss"][by_shape["predicted"] <= lowest * (1 + 1e-9)].mean()
    best = by_shape["loss"].min()
    size, tokens = (float(np.exp(np.log(group[name]).mean())) for name in (N, D))
    random = float(by_shape["loss"].mean() - best)
    return size, tokens, len(by_shape), float(picked), float(best), float(picked - best), random
