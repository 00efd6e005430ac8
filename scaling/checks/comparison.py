"""Ranking of laws by extrapolation error, and the disagreement between their predictions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.checks.holdout import (
    HoldOut,
    hold_out_above,
    leave_largest_out,
    quantity_and_levels,
)
from shapelaw.scaling.checks.metrics import Regret, scores
from shapelaw.scaling.display.progress import track
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.refits import FitSettings, LawLike, law_label
from shapelaw.scaling.fitting.run_intervals import ENDS
from shapelaw.scaling.laws.law import Base, Law
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import SIZES, N
from shapelaw.scaling.runs.levels import count_levels
from shapelaw.scaling.runs.table import AUTO, RunsLike, RunTable, as_run_table
from shapelaw.scaling.runs.validation import as_floats
from shapelaw.scaling.units import kind_mark, loss_column

DIFFERENCE_RESAMPLES = 2000  # of the mean of paired differences, which needs no refit
MIN_CLUSTERS = 5  # held-out sizes; with fewer, runs are resampled instead of sizes
MIN_DIFFERENCE_OF_COUNTS = 1e-6  # range of ln of one count of N over another, at least
NEGLIGIBLE_DIFFERENCE = 0.01  # per cent of the loss; optimisers alone cause smaller differences


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Result):
    """Laws ranked by extrapolation error.

    Parameters
    ----------
    by
        Quantity by which the largest runs were held out: size, compute or tokens.
    table
        One row per law, the best first.
    hold_outs
        Leave-largest-out results by law.
    clusters
        Unit that the intervals of the paired differences resample.
    sizes
        Error of the best law on the same held-out rows by what N counts, the chosen count first;
        empty where the table has no other count of N or the law does not use N.
    warnings
        Properties of the run table that may bias the laws, the most harmful first.
    """

    by: str
    table: pd.DataFrame
    hold_outs: dict[str, HoldOut]
    clusters: str
    sizes: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=["size", "extrapolation_percent"])
    )
    warnings: tuple[str, ...] = ()

    @property
    def loss_kind(self) -> str:
        """Kind of the losses: exact, or bound."""
        return next((each.complete.loss_kind for each in self.hold_outs.values()), "exact")

    @property
    def best(self) -> str:
        """The name of the first law: of least error, or of least regret among laws tied with it."""
        return str(self.table["law"].iloc[0])

    def view(self) -> View:
        """Return the best law and its ties, the ranking, and the definition of a tie."""
        tied = self.table["law"][self.table["verdict"] == "tied with the best"]
        notes = [
            "a law is tied with the law of least error where the 95 % interval of its paired "
            f"difference in absolute error contains 0 or less than {NEGLIGIBLE_DIFFERENCE:g} % of "
            f"the loss, resampled by {self.clusters}; tied laws come first, in the order of their "
            "regret where it is known, then of their error"
        ]
        by_fit = self.table.dropna(subset="in_sample_percent").sort_values("in_sample_percent")
        if (closest := str(by_fit["law"].iloc[0])) != self.best:
            notes.append(f"{closest} fits the runs best, but does not extrapolate best")
        notes += self._effect_of_size()
        tables = {"laws, by error on the runs left out (not by fit)": self.table}
        if len(self.sizes):
            tables[f"{self.best}, by the parameters that N counts"] = self.sizes
        mark = kind_mark(self.loss_kind)
        title = f"{self.best} extrapolates best by {self.by}{mark}"
        if len(tied):
            names = ", ".join((self.best, *tied))
            title = f"no law extrapolates clearly better by {self.by}{mark}: {names} are tied"
        warned = [f"warning: {text}" for text in self.warnings]
        return View(title=title, tables=tables, notes=[*warned, *notes])

    def _effect_of_size(self) -> list[str]:
        """Say where the choice of N changes the error more than the choice of law does."""
        by_law = self.table["extrapolation_percent"].dropna()
        if not len(self.sizes) or len(by_law) < 2:
            return []
        errors = self.sizes.set_index("size")["extrapolation_percent"]
        chosen, other = str(errors.index[0]), str((errors - errors.iloc[0]).abs().idxmax())
        change, laws = abs(errors[other] - errors[chosen]), float(np.ptp(by_law))
        if change <= max(laws, NEGLIGIBLE_DIFFERENCE):
            return []
        return [
            f"the choice of N changes the error more than the choice of law does: {self.best} errs "
            f"by {errors[chosen]:.3g} % where N counts {chosen} parameters and by "
            f"{errors[other]:.3g} % where it counts {other} parameters, the laws differ by "
            f"{laws:.3g} %; --size chooses N"
        ]

    def document(self) -> dict[str, Any]:
        """Return the ranking and the held-out predictions behind it."""
        return {
            "best": self.best,
            "by": self.by,
            "loss_kind": self.loss_kind,
            "clusters": self.clusters,
            "warnings": self.warnings,
            "laws": self.table,
            "sizes": self.sizes,
            "hold_out": self.hold_outs,
            "notes": self.view().notes[len(self.warnings) :],
        }


def compare(
    laws: Sequence[LawLike] | LawLike,
    runs: RunsLike,
    *,
    by: str = "size",
    cutoffs: int | Iterable[float] = 4,
    **settings: Unpack[FitSettings],
) -> Comparison:
    """Rank laws by leave-largest-out error.

    Decision regret ranks tied laws. The goodness of fit never counts.

    Parameters
    ----------
    laws
        At least two different laws, by name or as objects.
    runs
        Run table with N, tokens and loss, and the columns of the laws.
    by, cutoffs, settings
        As in :func:`shapelaw.scaling.checks.holdout.leave_largest_out`; ``size`` among the settings
        is what N counts.

    Returns
    -------
    Comparison
        Laws by rank, with the 95 % interval of each paired difference in absolute error.

    Raises
    ------
    InputError
        There are fewer than two different laws, none can be fitted, or they share no cut-off.

    Notes
    -----
    All laws are evaluated on the same held-out rows: a cut-off counts only if every law can be
    fitted below it. A law that cannot be fitted at any cut-off comes last, with the reason. Where
    the table has several counts of N, the best law is evaluated on the same rows with each.
    """
    laws = [laws] if isinstance(laws, str | Law | Base) else list(laws)
    names = [law_label(law) for law in laws]
    runs = as_run_table(runs, settings.pop("size", AUTO))
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"`compare` needs at least 2 different laws, but got {names}; add another law"
        )
    ends = cutoffs if isinstance(cutoffs, int) else list(cutoffs)
    hold_outs: dict[str, HoldOut] = {}
    unavailable: dict[str, str] = {}
    pairs = list(zip(names, laws, strict=True))
    for name, law in track(pairs, "laws", total=len(pairs)):
        try:
            hold_outs[name] = leave_largest_out(law, runs, by=by, cutoffs=ends, **settings)
        except InputError as error:
            unavailable[name] = str(error)
    if not hold_outs:
        raise InputError(
            f"none of the laws can be compared: {'; '.join(dict.fromkeys(unavailable.values()))}"
        )
    common = _common_cutoffs(hold_outs)
    levels = pd.Series(runs.size_level, index=runs.run_ids)
    ranked = _rank(hold_outs, unavailable, common, levels, seed=settings.get("seed", 0))
    ranked = replace(ranked, warnings=runs.warnings)
    chosen = float(ranked.table["extrapolation_percent"].iloc[0])
    others = _errors_by_size(dict(pairs)[ranked.best], runs, by, sorted(common), settings)
    if not others:
        return ranked
    rows = list(({runs.size: chosen} | others).items())
    return replace(ranked, sizes=pd.DataFrame(rows, columns=ranked.sizes.columns))


def _common_cutoffs(hold_outs: dict[str, HoldOut]) -> set[float]:
    """Return the cut-offs below which every law can be fitted; refuse laws that share none."""
    common = set.intersection(
        *({cutoff.value for cutoff in hold_out.fitted} for hold_out in hold_outs.values())
    )
    if not common:
        raise InputError(
            "the laws share no cut-off at which all can be fitted; compare fewer laws, or give "
            "larger --cutoff values"
        )
    return common


def _errors_by_size(
    law: LawLike, runs: RunTable, by: str, ends: list[float], settings: FitSettings
) -> dict[str, float]:
    """Evaluate a law on the same held-out rows with every other count of N: mean errors in %."""
    if N not in law_named(law).columns:
        return {}
    values, _ = quantity_and_levels(runs, by)
    errors: dict[str, float] = {}
    evaluated = [runs.sizes]
    for size, column in SIZES.items():
        count = as_floats(runs[column]) if column in runs else np.full(len(runs), np.nan)
        # A constant factor changes no prediction.
        apart = (np.ptp(np.log(count / other)) > MIN_DIFFERENCE_OF_COUNTS for other in evaluated)
        if not (count > 0).all() or not all(apart):
            continue
        evaluated.append(count)
        try:
            hold_out = hold_out_above(law, runs.counting(size), by, values, ends, settings)
        except InputError:
            continue
        if len(hold_out.fitted) == len(ends):
            errors[size] = float(_errors(hold_out, set(ends))["off_percent"].mean())
    return errors


def _rank(
    hold_outs: dict[str, HoldOut],
    unavailable: dict[str, str],
    common: set[float],
    levels: pd.Series,
    *,
    seed: int,
) -> Comparison:
    """Rank laws by their errors at the common cut-offs; ``levels`` are the levels of N by run."""
    errors = {name: _errors(hold_out, common) for name, hold_out in hold_outs.items()}
    lines = {name: _line(name, hold_outs[name], errors[name], common) for name in hold_outs}
    best = min(lines, key=lambda name: float(lines[name]["extrapolation_percent"]))
    cluster, clusters = _clusters(errors[best], levels)
    for name, line in lines.items():
        difference = (errors[name]["off_percent"] - errors[best]["off_percent"]).to_numpy()
        low, high = _interval(difference, cluster, seed)
        verdict = "worse" if low > NEGLIGIBLE_DIFFERENCE else "tied with the best"
        line |= {"worse_by_percent": float(difference.mean()), "low": low, "high": high}
        line["verdict"] = "best" if name == best else verdict
    regret = loss_column("regret", hold_outs[best].complete.loss_unit)
    ordered = sorted(lines.values(), key=lambda line: _order(line, line[regret]))
    if ordered[0]["verdict"] != "best":
        # Decision regret orders tied laws, so a tied law may come before the one of least error.
        lines[best]["verdict"], ordered[0]["verdict"] = "tied with the best", "best"
    empty = {"extrapolation_percent": np.nan, "in_sample_percent": np.nan}
    ordered += [
        {"law": name, **empty, "verdict": f"not available: {why}"}
        for name, why in unavailable.items()
    ]
    by = next(iter(hold_outs.values())).by
    return Comparison(by=by, table=pd.DataFrame(ordered), hold_outs=hold_outs, clusters=clusters)


def _order(line: dict[str, Any], regret: float | None) -> tuple[bool, float, float]:
    """Return a sorting key: tied laws first, by regret, then the others by error."""
    worse = line["verdict"] == "worse"
    by_regret = 0.0 if worse or regret is None else regret
    return worse, by_regret, float(line["extrapolation_percent"])


def _errors(hold_out: HoldOut, common: set[float]) -> pd.DataFrame:
    rows = hold_out.errors()
    rows = rows[rows["cutoff"].isin(common)].reset_index(drop=True)
    return rows.assign(off_percent=100 * (rows["predicted_loss"] / rows["loss"] - 1).abs())


def _line(name: str, hold_out: HoldOut, errors: pd.DataFrame, common: set[float]) -> dict[str, Any]:
    unit = hold_out.complete.loss_unit
    errors_scored = scores(errors["loss"], errors["predicted_loss"])
    groups = [
        cutoff.regret.groups
        for cutoff in hold_out.fitted
        if cutoff.value in common and cutoff.regret is not None and len(cutoff.regret.groups)
    ]
    regret = Regret(groups=pd.concat(groups) if groups else pd.DataFrame(), loss_unit=unit)
    return {
        "law": name,
        "extrapolation_percent": errors_scored.mape,
        loss_column("mean_error", unit): errors_scored.mean_error,
        "spearman": errors_scored.spearman,
        loss_column("regret", unit): regret.mean,
        loss_column("random", unit): regret.random,
        "in_sample_percent": 100 * hold_out.complete.scatter,
    }


def _clusters(errors: pd.DataFrame, levels: pd.Series) -> tuple[np.ndarray, str]:
    """Cluster errors by size, or by run if there are few sizes.

    Errors of equal size are correlated. ``levels`` are the levels of N by run.
    """
    level = levels.groupby(level=0).first().loc[errors["run_id"]].to_numpy()
    sizes = count_levels(level)
    if sizes >= MIN_CLUSTERS:
        return np.unique(level, return_inverse=True)[1], f"size ({counted(sizes, 'size')})"
    few = f"run: {counted(sizes, 'size is', 'sizes are')} too few to resample, so the interval is "
    few += "too narrow"
    return np.unique(errors["run_id"], return_inverse=True)[1], few


def _interval(values: np.ndarray, cluster: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the percentile interval of the mean from a cluster bootstrap."""
    total = np.bincount(cluster, weights=values)
    count = np.bincount(cluster)
    drawn = np.random.default_rng(seed).integers(
        len(total), size=(DIFFERENCE_RESAMPLES, len(total))
    )
    means = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.percentile(means, ENDS)
    return float(low), float(high)
