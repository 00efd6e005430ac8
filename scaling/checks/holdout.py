"""Leave the largest runs out, and see whether a law fitted to small runs predicts the large ones.

A small error is not enough. On the Chinchilla data the held-out error is near 1 % at every cut-off
while β falls from .47 to .37 (arXiv 2404.10102's data): so errors and drift are shown together.
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

UNITS = {"size": "parameters", "compute": "FLOPs", "tokens": "tokens"}
SMALLEST_SHARE, LARGEST_SHARE = 0.5, 0.9  # of the rows that the default cut-offs fit
DISTANCES = (0.0, 0.25, 0.5, 1.0, np.inf)  # decades beyond the largest fitted row
ROWS = ["run_id", N, D, "distance_decades", "loss", "predicted_loss", "loss_low", "loss_high"]


@dataclass(frozen=True, kw_only=True)
class Cutoff:
    """A fit to the rows below a value, judged on the others.

    ``held_out`` has a row per held-out run: how many decades it lies beyond the largest fitted
    one, its loss, what was predicted (nats per token) and the 95 % interval of a new run. ``why``
    says why there is no fit.
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
        """A line of the error table."""
        line: dict[str, object] = {
            "cutoff": self.value,
            "rows_in": self.rows_in,
            "rows_out": len(self.held_out),
            "largest_fitted": self.largest_fitted,
            "farthest_decades": float(self.held_out["distance_decades"].max()),
        }
        if self.scores is not None:
            found = self.scores.frame().drop(columns="rows").iloc[0]
            line |= {str(name): value for name, value in found.items()}
        covered, regret = self.coverage, self.regret
        return line | {
            "coverage_percent": None if covered is None else 100 * covered,
            "regret_nats": None if regret is None else regret.mean,
            "status": self.why or "fitted",
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class HoldOut(Result):
    """Leave-largest-out at several cut-offs, and the fit to all rows."""

    law_name: str
    by: str
    cutoffs: tuple[Cutoff, ...]
    complete: Fit

    @property
    def fitted(self) -> tuple[Cutoff, ...]:
        """The cut-offs that could be fitted."""
        return tuple(cutoff for cutoff in self.cutoffs if cutoff.fit is not None)

    def frame(self) -> pd.DataFrame:
        """Errors by cut-off; ``cutoff`` and ``largest_fitted`` in the unit of ``by``."""
        lines = [cutoff.row() for cutoff in self.cutoffs]
        widest = max(lines, key=len)
        return pd.DataFrame(lines, columns=list(widest))

    def drift(self) -> pd.DataFrame:
        """Public parameters at each cut-off, and on all rows (``cutoff`` infinite)."""
        fits = [(one.value, one.rows_in, one.fit) for one in self.cutoffs]
        fits.append((np.inf, len(self.complete.run_ids), self.complete))
        return pd.DataFrame(
            {"cutoff": value, "rows_in": rows, **public_parameters(fit)}
            for value, rows, fit in fits
            if fit is not None
        )

    def errors(self) -> pd.DataFrame:
        """Every held-out run at every cut-off, with its distance in decades."""
        return pd.concat(
            [one.held_out.assign(cutoff=one.value) for one in self.fitted], ignore_index=True
        )

    def by_distance(self) -> pd.DataFrame:
        """Error against distance: scores of held-out runs by decades beyond the largest fitted."""
        errors, lines = self.errors(), []
        for low, high in pairwise(DISTANCES):
            near = errors[errors["distance_decades"].between(low, high, inclusive="left")]
            if len(near):
                found = scores(near["loss"], near["predicted_loss"])
                line = {"from_decades": low, "to_decades": high, "rows": found.rows}
                line |= {"mape_percent": found.mape, "mean_error_nats": found.mean_error}
                lines.append(line)
        return pd.DataFrame(lines)

    def view(self) -> View:
        """Return the worst error, the tables of errors, drift and distance, and the notes."""
        worst = max(one.scores.mape for one in self.fitted if one.scores is not None)
        return View(
            title=f"{self.law_name}, leave-largest-out by {self.by} at "
            f"{counted(len(self.fitted), 'cut-off')}: held-out error at most {worst:.3g} %",
            tables={
                f"errors (cut-off in {UNITS[self.by]})": self.frame(),
                "drift of the parameters": self.drift(),
                "error against distance": self.by_distance(),
            },
            notes=self.notes(),
        )

    def notes(self) -> list[str]:
        """Return cut-offs without a fit, and the parameter that drifts most."""
        lines = [f"cut-off {one.value:.4g}: {one.why}" for one in self.cutoffs if one.why]
        drift = self.drift().drop(columns=["cutoff", "rows_in"])
        # Scales trade against exponents: their drift is not a second finding.
        free = [name for name in drift if name not in ("A", "B", *self.complete.held)]
        moved = {str(name): np.ptp(drift[name]) / max(abs(drift[name].iloc[-1]), 0.01)
                 for name in free}  # fmt: skip
        if moved:
            name = max(moved, key=lambda one: float(moved[one]))
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
    """Fit the rows below each cut-off and predict those at or above it.

    Parameters
    ----------
    by
        ``"size"`` (N), ``"compute"`` (FLOPs: ``flops_6nd`` or 6ND) or ``"tokens"`` (D).
    cutoffs
        How many, between levels of that column such that 50 to 90 % of the rows are fitted; or
        the cut-offs themselves, in the unit of ``by``.
    settings
        ``delta``, ``starts`` (16), ``resamples`` (0: no intervals) and ``seed`` of each fit.

    Raises
    ------
    InputError
        The table cannot be cut like this, or none of its parts can be fitted.
    """
    runs = as_run_table(runs, settings.pop("size", AUTO))
    values, levels = _values(runs, by)
    ends = _cutoffs(values, levels, by, cutoffs)
    complete = fit_quickly(law, runs, **settings)
    parts = tuple(
        _cut(complete, runs, values, end, lambda r: fit_quickly(law, r, **settings))
        for end in track(ends, f"cut-offs by {by}", total=len(ends))
    )
    if all(part.fit is None for part in parts):
        raise InputError(
            f"leave-largest-out by {by} needs a cut-off below which `{complete.law_name}` can be "
            f"fitted, but: {parts[-1].why}"
        )
    return HoldOut(law_name=complete.law_name, by=by, cutoffs=parts, complete=complete)


def _values(runs: RunTable, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Look up what runs are left out by, and its levels, (n,) each."""
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
    if not isinstance(cutoffs, int):
        ends = sorted(float(end) for end in cutoffs)
        for end in ends:
            if not values.min() < end <= values.max():
                raise InputError(
                    f"a cut-off must lie above {values.min():.4g} and at most at "
                    f"{values.max():.4g} {UNITS[by]}, but got {end:.4g}"
                )
        if not ends:
            raise InputError("`cutoffs` must name at least one cut-off, but got none")
        return ends
    if cutoffs < 1:
        raise InputError(f"`cutoffs >= 1` must hold, but got {cutoffs}")
    edges = np.array([values[levels == one].min() for one in np.unique(levels)[1:]])
    if not len(edges):
        raise InputError(
            f"leave-largest-out by {by} needs at least 2 levels of {UNITS[by]}, but all runs have "
            "one; train a second one, or leave out by another column"
        )
    if len(edges) <= cutoffs:
        return [float(edge) for edge in edges]
    below = np.array([(values < edge).mean() for edge in edges])
    shares = np.linspace(SMALLEST_SHARE, LARGEST_SHARE, cutoffs)
    return [float(edge) for edge in np.unique([edges[np.argmin(abs(below - s))] for s in shares])]


def _all_terms(fitted: Fit, complete: Fit) -> None:
    """A part that cannot see a term of the law, such as one size only, has nothing to extrapolate.

    Raises
    ------
    InputError
        Caught by the caller: it becomes the reason that the cut-off has no fit.
    """
    for name, held in fitted.held.items():
        if name not in complete.held and name in ("A", "B"):
            raise InputError(f"below it, {name} is held at no effect: {held.why}")


def _cut(
    complete: Fit,
    runs: RunTable,
    values: np.ndarray,
    end: float,
    again: Callable[[RunTable], Fit],
) -> Cutoff:
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
        fitted = again(small)
        _all_terms(fitted, complete)
    except InputError as error:
        return Cutoff(
            value=end, rows_in=len(small), largest_fitted=largest, fit=None,
            held_out=held_out.reindex(columns=ROWS), scores=None, regret=None, why=str(error),
        )  # fmt: skip
    predictions = fitted.predict(large).reset_index(drop=True)
    held_out = held_out.join(predictions[["predicted_loss", "loss_low", "loss_high"]])
    predicted = held_out["predicted_loss"].to_numpy()
    return Cutoff(
        value=end,
        rows_in=len(small),
        largest_fitted=largest,
        fit=fitted,
        held_out=held_out[ROWS],
        scores=scores(large.losses, predicted),
        regret=decision_regret(large, predicted),
    )
