"""How good predictions are: errors of the loss, and what a wrong choice of shape costs."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import SAME, level_of
from shapelaw.scaling.runs.table import RunTable, as_run_table

SHAPES = 3  # a group of fewer is no choice


@dataclass(frozen=True, kw_only=True, repr=False)
class Scores(Result):
    """Errors of predicted losses; None where the rows cannot tell.

    ``mse`` in nats², ``mae`` and ``mean_error`` (predicted minus observed) in nats per token,
    ``mape`` in per cent.
    """

    rows: int
    mse: float
    mae: float
    mape: float
    mean_error: float
    r2: float | None
    spearman: float | None

    def frame(self) -> pd.DataFrame:
        """One row, units in the column names."""
        names = {
            "mse": "mse_nats2",
            "mae": "mae_nats",
            "mape": "mape_percent",
            "mean_error": "mean_error_nats",
        }
        return pd.DataFrame([asdict(self)]).rename(columns=names)

    def view(self) -> View:
        """Return the mean error and the scores."""
        title = f"error of {self.rows} predicted losses: {self.mape:.3g} % on average"
        return View(title=title, tables={"scores": self.frame()})


def scores(observed: ArrayLike, predicted: ArrayLike) -> Scores:
    """Score predicted losses.

    Parameters
    ----------
    observed, predicted
        Losses in nats per token, (n,) each.

    Raises
    ------
    InputError
        Lengths differ, there are no rows, or a loss is not a positive number.
    """
    seen, said = (np.asarray(one, dtype=float) for one in (observed, predicted))
    if seen.shape != said.shape or seen.ndim != 1 or not len(seen):
        raise InputError(
            "`observed` and `predicted` must be as many losses, at least one, but have shapes "
            f"{seen.shape} and {said.shape}"
        )
    for name, losses in (("observed", seen), ("predicted", said)):
        broken = ~(np.isfinite(losses) & (losses > 0))
        if broken.any():
            raise InputError(f"`{name} > 0` and finite must hold, but got {losses[broken][0]}")
    error = said - seen
    spread = float(((seen - seen.mean()) ** 2).sum())
    # Equal losses differ in the last digits: their spread is no yardstick.
    varied = min(np.ptp(seen), np.ptp(said)) > 1e-12
    return Scores(
        rows=len(seen),
        mse=float((error**2).mean()),
        mae=float(np.abs(error).mean()),
        mape=float(100 * np.abs(error / seen).mean()),
        mean_error=float(error.mean()),
        r2=1 - float((error**2).sum()) / spread if np.ptp(seen) > 1e-12 else None,
        spearman=float(spearmanr(seen, said).statistic) if varied and len(seen) > 2 else None,
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Regret(Result):
    """What it costs to train the shape that a law picks instead of the best one that was trained.

    ``groups`` has a row per group of equal N and D: ``regret_nats`` is the picked shape's loss
    minus the best; ``random_nats`` is what a shape picked at random costs on average. ``why`` says
    why there are no groups.
    """

    groups: pd.DataFrame
    why: str = ""

    @property
    def mean(self) -> float | None:
        """Mean over groups, nats per token."""
        return float(self.groups["regret_nats"].mean()) if len(self.groups) else None

    @property
    def largest(self) -> float | None:
        """The worst group, nats per token."""
        return float(self.groups["regret_nats"].max()) if len(self.groups) else None

    @property
    def random(self) -> float | None:
        """Mean over groups of picking at random, nats per token."""
        return float(self.groups["random_nats"].mean()) if len(self.groups) else None

    def view(self) -> View:
        """Return the mean regret and the groups."""
        title = f"decision regret: not available: {self.why}"
        if len(self.groups):
            title = (
                f"decision regret over {counted(len(self.groups), 'group')} of equal N and D: "
                f"mean {self.mean:.4g}, largest {self.largest:.4g} nats per token; picking at "
                f"random costs {self.random:.4g}"
            )
        return View(title=title, tables={"regret by group, nats per token": self.groups})

    def document(self) -> dict[str, Any]:
        """Return mean, largest and random regret, and the groups."""
        return {
            "mean_nats": self.mean,
            "largest_nats": self.largest,
            "random_nats": self.random,
            "groups": self.groups,
            "why": self.why,
        }


COLUMNS = [N, D, "shapes", "picked_nats", "best_nats", "regret_nats", "random_nats"]


def decision_regret(
    runs: RunTable | pd.DataFrame, predicted: ArrayLike, *, tolerance: float = SAME
) -> Regret:
    """Measure the regret of picking shapes by predicted loss, within groups of equal N and D.

    Parameters
    ----------
    runs
        Rows with N, tokens, loss and the fields or ratios of their shapes.
    predicted
        Predicted loss of every row, nats per token, (n,).
    tolerance
        N and D within this fraction are equal; a group needs at least three shapes.

    Notes
    -----
    Replicates of a shape count once, by their mean. Shapes that a law cannot tell apart share
    their mean loss: a law without a shape picks at random.

    Raises
    ------
    InputError
        A column is missing, or the lengths differ.
    """
    runs, nothing = as_run_table(runs), pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame({N: runs.sizes, D: runs.tokens, "loss": runs.losses})
    said = np.asarray(predicted, dtype=float)
    if said.shape != (len(runs),):
        raise InputError(f"`predicted` must have {len(runs)} losses, but has shape {said.shape}")
    if runs.shapes is None:
        return Regret(groups=nothing, why="no column of the table describes a shape")
    if not len(runs):
        return Regret(groups=nothing, why="there are no rows")
    table = table.assign(predicted=said, shape=runs.shapes)
    keys = [runs.size_level, runs.token_level]
    if tolerance != SAME:
        keys = [level_of(values, tolerance) for values in (runs.sizes, runs.tokens)]
    rows = [
        _choice(group) for _, group in table.groupby(keys) if group["shape"].nunique() >= SHAPES
    ]
    if not rows:
        why = f"no {SHAPES} shapes have the same N and D within {100 * tolerance:g} %"
        return Regret(groups=nothing, why=why)
    return Regret(groups=pd.DataFrame(rows, columns=COLUMNS))


def _choice(group: pd.DataFrame) -> dict[str, float]:
    by_shape = group.groupby("shape")[["loss", "predicted"]].mean()
    lowest = by_shape["predicted"].min()
    picked = by_shape["loss"][by_shape["predicted"] <= lowest * (1 + 1e-9)].mean()
    best = by_shape["loss"].min()
    return {
        N: float(np.exp(np.log(group[N]).mean())),
        D: float(np.exp(np.log(group[D]).mean())),
        "shapes": len(by_shape),
        "picked_nats": float(picked),
        "best_nats": float(best),
        "regret_nats": float(picked - best),
        "random_nats": float(by_shape["loss"].mean() - best),
    }
