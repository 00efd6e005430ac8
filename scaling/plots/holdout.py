"""What leave-largest-out found, as pictures: drifting parameters, errors ahead, laws compared."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shapelaw.scaling.checks.comparison import Comparison
from shapelaw.scaling.checks.holdout import UNITS, Cutoff, HoldOut
from shapelaw.scaling.checks.report import CheckReport
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.refits import public_parameters
from shapelaw.scaling.fitting.result import LEVEL, Fit, unit_of
from shapelaw.scaling.plots.style import (
    BAND,
    BLUE,
    COLOURS,
    CURVE,
    GREEN,
    MARKERS,
    VERMILLION,
    Form,
    explain,
    headed,
    log_axis,
    panels,
    short,
    styled,
)
from shapelaw.scaling.units import format_count

AXES = {"size": "N (parameters)", "compute": "training FLOPs", "tokens": "D (training tokens)"}
STEADY = 1e-12  # a parameter that moves no more than this was held at every cut-off
Ends = tuple[float, float]


def hold_out_of(result: HoldOut | CheckReport, by: str = "size") -> HoldOut:
    """Leave-largest-out itself, or that part of a check.

    Raises
    ------
    InputError
        The check has none by this column.
    """
    if isinstance(result, HoldOut):
        return result
    if by not in result.hold_outs:
        why = result.unavailable.get(by, f"`by` must be one of {', '.join(UNITS)}")
        raise InputError(f"the check has no leave-largest-out by {by!r}: {why}")
    return result.hold_outs[by]


@styled
def plot_drift(result: HoldOut | CheckReport, *, by: str = "size") -> Figure:
    """Every parameter against the largest run that was fitted, and the error on those left out.

    The line across is the fit to all rows, with its 95 % interval where there are resamples, as
    have the marks. Parameters that were held throughout are left out. A parameter that walks while
    the error stays small is the reason why both are shown.

    Parameters
    ----------
    by
        Which part of a check; a hold-out has its own.

    Raises
    ------
    InputError
        The check has no leave-largest-out by this column.
    """
    found = hold_out_of(result, by)
    table = found.drift().drop(columns=["cutoff", "rows_in"])
    names = [str(name) for name in table if np.ptp(table[name]) > STEADY]
    places = np.array([*(one.largest_fitted for one in found.fitted), largest_of(found)])
    fits = [*(one.fit for one in found.fitted if one.fit is not None), found.complete]
    intervals = [_intervals(fit) for fit in fits]
    figure, drawn = panels(len(names) + 1, across=4 if len(names) > 5 else 3, size=(3.8, 2.9))
    for axes, name in zip(drawn, names, strict=False):
        values = table[name].to_numpy(dtype=float)
        _parameter(axes, places, values, [one.get(name) for one in intervals])
        unit = unit_of(name)
        axes.set_title(f"{name} ({unit})" if unit and len(name + unit) < 32 else name)
    _error(drawn[-1], found)
    for axes in drawn:
        _reach(axes, places, found.by)
    explain(figure, drawn)
    figure.suptitle(f"Drift under leave-largest-out by {found.by}: {headed(found.complete)}")
    return figure


def largest_of(found: HoldOut) -> float:
    """The largest value of the column that was cut by, over all rows."""
    ends = [one.largest_fitted * 10 ** one.held_out["distance_decades"].max()
            for one in found.cutoffs]  # fmt: skip
    return float(max(ends))


def _intervals(fit: Fit) -> dict[str, Ends]:
    """95 % interval of every public parameter and of a_opt; none without resamples."""
    if not len(fit.draws):
        return {}
    table = np.array([list(public_parameters(fit, theta).values()) for theta in fit.draws])
    ends = np.percentile(table, [(100 - LEVEL) / 2, (100 + LEVEL) / 2], axis=0)
    return {name: (float(ends[0, i]), float(ends[1, i]))
            for i, name in enumerate(public_parameters(fit))}  # fmt: skip


def _parameter(
    axes: Axes, places: np.ndarray, values: np.ndarray, intervals: list[Ends | None]
) -> None:
    last = intervals[-1]
    axes.axhline(values[-1], color=CURVE, lw=1, label="all runs")
    if last is not None:
        axes.axhspan(*last, color=BAND, alpha=0.35, lw=0, label="its 95 % interval")
    for place, ends in zip(places[:-1], intervals[:-1], strict=True):
        if ends is not None:
            axes.plot([place, place], ends, color=BLUE, lw=1.2)
    axes.plot(places, values, color=BLUE, lw=1, alpha=0.5)
    axes.plot(places[:-1], values[:-1], color=BLUE, marker="o", ms=6, lw=0, label="smaller runs")
    axes.plot(places[-1:], values[-1:], color=CURVE, marker="s", ms=6, lw=0)
    shown = np.concatenate([values, *(np.array(ends) for ends in intervals if ends is not None)])
    if shown.min() > 0 and shown.max() > 5 * shown.min():
        log_axis(axes, "y", shown.min() / 1.2, shown.max() * 1.2, most=5)


def _error(axes: Axes, found: HoldOut) -> None:
    """Mean absolute error on the runs left out, and the share that is bias."""
    places = [one.largest_fitted for one in found.fitted]
    size = [one.scores.mape for one in found.fitted if one.scores is not None]
    axes.plot(places, size, color=VERMILLION, marker="D", ms=6, lw=1, label="runs left out")
    axes.set_ylim(0, 1.25 * max(size))
    axes.set_title("error on the runs left out (%, mean)")


def _reach(axes: Axes, places: np.ndarray, by: str) -> None:
    pad = (places.max() / places.min()) ** 0.06
    form: Form = short if by == "compute" else format_count
    log_axis(axes, "x", places.min() / pad, places.max() * pad, form=form, most=5)
    axes.set_xlabel(f"largest fitted {AXES[by]}")


@styled
def plot_held_out(result: HoldOut | CheckReport, *, by: str = "size") -> Figure:
    """Error of every run left out against its distance from the largest run that was fitted.

    Above zero the law promised a loss that the run did not reach.

    Raises
    ------
    InputError
        As :func:`plot_drift`.
    """
    found = hold_out_of(result, by)
    figure = Figure(figsize=(6.6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=CURVE, lw=1)
    shown = _spread(found.fitted, len(COLOURS))
    for cutoff, colour, marker in zip(shown, COLOURS, MARKERS, strict=False):
        rows = cutoff.held_out
        off = 100 * np.log(rows["loss"] / rows["predicted_loss"])
        axes.scatter(
            rows["distance_decades"], off, s=22, color=colour, marker=marker, alpha=0.8, lw=0,
            label=f"below {_value(cutoff.value, found.by)}: {counted(cutoff.rows_in, 'run')}",
            zorder=3,
        )  # fmt: skip
    axes.set_xlabel(f"decades of {UNITS[found.by]} beyond the largest fitted run")
    axes.set_ylabel("measured over predicted loss (%)")
    axes.set_title("runs left out, by what was fitted")
    explain(figure, [axes])
    figure.suptitle(f"Leave-largest-out by {found.by}: {headed(found.complete)}")
    return figure


def _spread(cutoffs: tuple[Cutoff, ...], most: int) -> list[Cutoff]:
    """At most so many cut-offs, from the first to the last."""
    places = np.unique(np.linspace(0, len(cutoffs) - 1, min(len(cutoffs), most)).round())
    return [cutoffs[int(place)] for place in places]


def _value(value: float, by: str) -> str:
    return f"{short(value)} FLOPs" if by == "compute" else format_count(value)


@styled
def plot_comparison(comparison: Comparison) -> Figure:
    """Laws ranked by the error on runs left out, beside their fit and their distance to the best.

    Laws that could not be fitted are named without a mark. The right panel has the paired
    difference in absolute error to the best by error, with its 95 % interval: an interval that
    holds 0 is a tie.
    """
    table = comparison.frame()
    names = [str(name) if len(str(name)) < 30 else f"{str(name)[:27]}…" for name in table["law"]]
    height = np.arange(len(table))[::-1]
    figure = Figure(figsize=(9.2, 1.9 + 0.42 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(
        table["in_sample_percent"], height, color=GREEN, marker="s", mfc="none", ms=7, lw=0,
        label="noise around the fit to all runs",
    )  # fmt: skip
    left.plot(
        table["extrapolation_percent"], height, color=BLUE, marker="o", ms=8, lw=0,
        label="error on the runs left out",
    )  # fmt: skip
    left.set_yticks(height, names)
    left.set_ylim(-0.6, len(table) - 0.4)
    left.set_xlim(left=0)
    left.set_xlabel("% of the loss")
    right.axvline(0, color=CURVE, lw=1)
    known = table["worse_by_percent"].notna().to_numpy()
    rows = table[known]
    for place, (_, row) in zip(height[known], rows.iterrows(), strict=True):
        right.plot([row["low"], row["high"]], [place, place], color=BLUE, lw=1.4)
    right.plot(
        rows["worse_by_percent"], height[known], color=BLUE, marker="o", ms=7, lw=0
    )  # fmt: skip
    right.set_xlabel("behind the best (% of the loss, 95 % interval)")
    explain(figure, [left])
    figure.suptitle(f"Which law extrapolates, by {comparison.by}")
    return figure
