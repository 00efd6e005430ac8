"""Leave-largest-out validation: the error of a law fitted to small runs on held-out large runs.

A small held-out error does not show that the parameters are stable. On the Chinchilla data
(those of arXiv 2404.10102) the held-out error is near 1 % at every cut-off while β falls from 0.47
to 0.37. Errors and the drift of the parameters are therefore reported together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.checks.metrics import Regret, Scores, decision_regret, scores
from shapelaw.scaling.display.progress import track
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.refits import FitSettings, LawLike, fit_quickly, public_parameters
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import AUTO, RunTable, as_run_table
from shapelaw.scaling.units import kind_mark, loss_column

UNITS = {"size": "parameters", "compute": "FLOPs", "tokens": "tokens"}
SMALLEST_FITTED_SHARE, LARGEST_FITTED_SHARE = 0.5, 0.9  # of the rows that the default cut-offs fit
DISTANCE_EDGES = (0.0, 0.25, 0.5, 1.0, np.inf)  # bins, in decades beyond the largest fitted row
HELD_OUT_COLUMNS = [
    "run_id",
    N,
    D,
    "distance_decades",
    "loss",
    "predicted_loss",
    "loss_low",
    "loss_high",
]


@dataclass(frozen=True, kw_only=True)
class Cutoff:
    """Fit to the rows below a cut-off, evaluated on the held-out rows.

    Parameters
    ----------
    value
        Cut-off, in parameters, FLOPs or tokens.
    rows_in
        Number of fitted rows.
    largest_fitted
        Largest value among the fitted rows, in the unit of ``value``.
    fit
        Fit to the rows below the cut-off; None if they cannot be fitted.
    held_out
        One row per held-out run: its distance in decades from the largest fitted run, its loss, the
        predicted loss (in the unit of the fit) and the 95 % interval of a new run.
    scores
        Errors of the predicted losses; None without a fit.
    regret
        Decision regret on the held-out rows; None without a fit.
    why
        Reason that there is no fit; empty if there is one.
    """

    value: float
    rows_in: int
    largest_fitted: float
    fit: Fit | None
    held_out: pd.DataFrame
    scores: Scores | None
    regret: Regret | None
    why: str = ""

    @property
    def coverage(self) -> float | None:
        """Share of held-out losses inside their 95 % intervals; None without resamples."""
        if self.fit is None or not len(self.fit.draws):
            return None
        rows = self.held_out
        return float(rows["loss"].between(rows["loss_low"], rows["loss_high"]).mean())

    def row(self) -> dict[str, object]:
        """Return the row of this cut-off in the table of errors."""
        line: dict[str, object] = {
            "cutoff": self.value,
            "rows_in": self.rows_in,
            "rows_out": len(self.held_out),
            "largest_fitted": self.largest_fitted,
            "farthest_decades": float(self.held_out["distance_decades"].max()),
        }
        if self.scores is not None and self.regret is not None:
            errors = self.scores.frame().drop(columns="rows").iloc[0]
            line |= {str(name): value for name, value in errors.items()}
            coverage = self.coverage
            line["coverage_percent"] = None if coverage is None else 100 * coverage
            line[loss_column("regret", self.regret.loss_unit)] = self.regret.mean
        return line | {"status": self.why or "fitted"}


@dataclass(frozen=True, kw_only=True, repr=False)
class HoldOut(Result):
    """Leave-largest-out results at several cut-offs, and the fit to all rows."""

    law_name: str
    by: str
    cutoffs: tuple[Cutoff, ...]
    complete: Fit

    @property
    def fitted(self) -> tuple[Cutoff, ...]:
        """Cut-offs that have a fit."""
        return tuple(cutoff for cutoff in self.cutoffs if cutoff.fit is not None)

    def frame(self) -> pd.DataFrame:
        """Return errors by cut-off; ``cutoff`` and ``largest_fitted`` have the unit of ``by``."""
        lines = [cutoff.row() for cutoff in self.cutoffs]
        widest = max(lines, key=len)
        return pd.DataFrame(lines, columns=list(widest))

    def drift(self) -> pd.DataFrame:
        """Return the public parameters at each cut-off and on all rows (``cutoff`` infinite)."""
        fits = [(cutoff.value, cutoff.rows_in, cutoff.fit) for cutoff in self.cutoffs]
        fits.append((np.inf, len(self.complete.run_ids), self.complete))
        return pd.DataFrame(
            {"cutoff": value, "rows_in": rows, **public_parameters(fit)}
            for value, rows, fit in fits
            if fit is not None
        )

    def errors(self) -> pd.DataFrame:
        """Return every held-out run at every cut-off, with its distance in decades."""
        return pd.concat(
            [cutoff.held_out.assign(cutoff=cutoff.value) for cutoff in self.fitted],
            ignore_index=True,
        )

    def by_distance(self) -> pd.DataFrame:
        """Return the error of held-out runs by distance in decades from the largest fitted run."""
        errors, lines = self.errors(), []
        mean_error = loss_column("mean_error", self.complete.loss_unit)
        for low, high in pairwise(DISTANCE_EDGES):
            near = errors[errors["distance_decades"].between(low, high, inclusive="left")]
            if len(near):
                errors_near = scores(near["loss"], near["predicted_loss"])
                line = {"from_decades": low, "to_decades": high, "rows": errors_near.rows}
                line["mape_percent"] = errors_near.mape
                lines.append(line | {mean_error: errors_near.mean_error})
        return pd.DataFrame(lines)

    def view(self) -> View:
        """Return the largest error, the tables of errors, drift and distance, and the notes."""
        worst = max(part.scores.mape for part in self.fitted if part.scores is not None)
        return View(
            title=f"{self.law_name}{kind_mark(self.complete.loss_kind)}, "
            f"leave-largest-out by {self.by} at "
            f"{counted(len(self.fitted), 'cut-off')}: held-out error at most {worst:.3g} %",
            tables={
                f"errors (cut-off in {UNITS[self.by]})": self.frame(),
                "drift of the parameters": self.drift(),
                "error against distance": self.by_distance(),
            },
            notes=self.notes(),
        )

    def notes(self) -> list[str]:
        """Return the cut-offs without a fit, and the parameter that drifts most."""
        lines = [f"cut-off {part.value:.4g}: {part.why}" for part in self.cutoffs if part.why]
        drift = self.drift().drop(columns=["cutoff", "rows_in"])
        # A scale is correlated with its exponent, so its drift is no separate finding.
        free = [name for name in drift if name not in ("A", "B", *self.complete.held)]
        drifts = {str(name): np.ptp(drift[name]) / max(abs(drift[name].iloc[-1]), 0.01)
                 for name in free}  # fmt: skip
        if drifts:
            name = max(drifts, key=lambda column: float(drifts[column]))
            start, end = drift[name].iloc[0], drift[name].iloc[-1]
            lines.append(
                f"by {self.by}, {name} drifts most: {start:.3g} at the first cut-off, "
                f"{end:.3g} on all rows"
            )
        return lines

    def document(self) -> dict[str, Any]:
        """Return errors, drift, distances and held-out predictions."""
        return {
            "law": self.law_name,
            "by": self.by,
            "unit": UNITS[self.by],
            "cutoffs": self.frame(),
            "drift": self.drift(),
            "by_distance": self.by_distance(),
            "held_out": self.errors(),
            "notes": self.notes(),
        }


def leave_largest_out(
    law: LawLike,
    runs: RunTable | pd.DataFrame,
    *,
    by: str = "size",
    cutoffs: int | Iterable[float] = 4,
    **settings: Unpack[FitSettings],
) -> HoldOut:
    """Fit the rows below each cut-off and predict the rows at or above it.

    Parameters
    ----------
    law
        Law by name or as an object.
    runs
        Run table with N, tokens and loss, and the columns of the law.
    by
        Quantity of the cut-offs: ``"size"`` (N), ``"compute"`` (FLOPs: ``flops_6nd`` or 6ND) or
        ``"tokens"`` (D).
    cutoffs
        Number of cut-offs, placed between levels of that quantity such that 50 to 90 % of the rows
        are fitted; or the cut-offs themselves, in the unit of ``by``.
    settings
        ``size`` (what N counts), ``delta``, ``starts`` (64), ``resamples`` (0: no intervals) and
        ``seed`` of each fit.

    Returns
    -------
    HoldOut
        Held-out errors and parameters by cut-off, and the fit to all rows.

    Raises
    ------
    InputError
        ``by`` or a cut-off does not suit the table, or no cut-off can be fitted.
    """
    runs = as_run_table(runs, settings.pop("size", AUTO))
    values, levels = quantity_and_levels(runs, by)
    return hold_out_above(law, runs, by, values, _cutoffs(values, levels, by, cutoffs), settings)


def hold_out_above(
    law: LawLike,
    runs: RunTable,
    by: str,
    values: np.ndarray,
    ends: Iterable[float],
    settings: FitSettings,
) -> HoldOut:
    """Fit the rows whose values are below each cut-off and predict the others.

    Parameters
    ----------
    law
        Law by name or as an object.
    runs
        Run table that counts N as the fits should.
    by
        Name of the quantity of the values.
    values
        Value of every row, (n,); by another count of N than that of the fits where the same rows
        are to be held out.
    ends
        Cut-offs.
    settings
        Settings of every fit, without ``size``.

    Returns
    -------
    HoldOut
        Held-out errors and parameters by cut-off, and the fit to all rows.

    Raises
    ------
    InputError
        No cut-off can be fitted.
    """
    ends = list(ends)
    complete = fit_quickly(law, runs, **settings)
    parts = tuple(
        _evaluate_cutoff(
            complete, runs, values, end, lambda rows: fit_quickly(law, rows, **settings)
        )
        for end in track(ends, f"cut-offs by {by}", total=len(ends))
    )
    if all(part.fit is None for part in parts):
        raise InputError(
            f"leave-largest-out by {by} needs a cut-off below which `{complete.law_name}` can be "
            f"fitted, but: {parts[-1].why}"
        )
    return HoldOut(law_name=complete.law_name, by=by, cutoffs=parts, complete=complete)


def quantity_and_levels(runs: RunTable, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of the quantity by which runs are held out, and its levels, (n,) each."""
    if by not in UNITS:
        raise InputError(f"`by` must be one of {', '.join(UNITS)}, but got {by!r}")
    if by == "compute":
        return runs.compute, runs.compute_level
    if by == "size":
        return runs.sizes, runs.size_level
    return runs.tokens, runs.token_level


def _cutoffs(
    values: np.ndarray, levels: np.ndarray, by: str, cutoffs: int | Iterable[float]
) -> list[float]:
    """Validate given cut-offs, or place as many as required between levels."""
    if not isinstance(cutoffs, int):
        ends = sorted(float(end) for end in cutoffs)
        for end in ends:
            if not values.min() < end <= values.max():
                raise InputError(
                    f"a cut-off must lie above {values.min():.4g} and at most at "
                    f"{values.max():.4g} {UNITS[by]}, but got {end:.4g}"
                )
        if not ends:
            raise InputError(
                "`cutoffs` must contain at least one cut-off, but got none; give a number of "
                "cut-offs or their values"
            )
        return ends
    if cutoffs < 1:
        raise InputError(f"`cutoffs >= 1` must hold, but got {cutoffs}; the default is 4")
    edges = np.array([values[levels == level].min() for level in np.unique(levels)[1:]])
    if not len(edges):
        raise InputError(
            f"leave-largest-out by {by} needs at least 2 levels of {UNITS[by]}, but the runs have "
            "1; train a second level, or hold out by another quantity"
        )
    if len(edges) <= cutoffs:
        return [float(edge) for edge in edges]
    below = np.array([(values < edge).mean() for edge in edges])
    shares = np.linspace(SMALLEST_FITTED_SHARE, LARGEST_FITTED_SHARE, cutoffs)
    nearest = [edges[np.argmin(abs(below - share))] for share in shares]
    return [float(edge) for edge in np.unique(nearest)]


def _require_all_terms(fitted: Fit, complete: Fit) -> None:
    """Require that the fit below a cut-off estimates every term that the complete fit estimates.

    A fit to rows of one size, for instance, holds the term of N and cannot extrapolate in it.

    Raises
    ------
    InputError
        A term is held. The caller records the text as the reason that the cut-off has no fit.
    """
    for name, held in fitted.held.items():
        if name not in complete.held and name in ("A", "B"):
            raise InputError(f"below it, {name} is held at no effect: {held.why}")


def _evaluate_cutoff(
    complete: Fit,
    runs: RunTable,
    values: np.ndarray,
    end: float,
    refit: Callable[[RunTable], Fit],
) -> Cutoff:
    """Fit the rows below a cut-off and evaluate the predictions of the others."""
    inside = values < end
    small, large = runs.take(inside), runs.take(~inside)
    largest = float(values[inside].max())
    held_out = pd.DataFrame(
        {
            "run_id": large.run_ids,
            N: large.sizes,
            D: large.tokens,
            "loss": large.losses,
            "distance_decades": np.log10(values[~inside] / largest),
        }
    )
    try:
        fitted = refit(small)
        _require_all_terms(fitted, complete)
    except InputError as error:
        return Cutoff(
            value=end,
            rows_in=len(small),
            largest_fitted=largest,
            fit=None,
            held_out=held_out.reindex(columns=HELD_OUT_COLUMNS),
            scores=None,
            regret=None,
            why=str(error),
        )
    predictions = fitted.predict(large).reset_index(drop=True)
    held_out = held_out.join(predictions[["predicted_loss", "loss_low", "loss_high"]])
    predicted = held_out["predicted_loss"].to_numpy()
    return Cutoff(
        value=end,
        rows_in=len(small),
        largest_fitted=largest,
        fit=fitted,
        held_out=held_out[HELD_OUT_COLUMNS],
        scores=scores(large.losses, predicted, loss_unit=fitted.loss_unit),
        regret=decision_regret(large, predicted),
    )
