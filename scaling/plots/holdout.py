"""Figures of leave-largest-out checks: parameter drift, held-out errors, comparison of laws."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shapelaw.scaling.checks.comparison import Comparison
from shapelaw.scaling.checks.holdout import UNITS, Cutoff, HoldOut
from shapelaw.scaling.checks.report import CheckReport
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_text import unit_of
from shapelaw.scaling.fitting.refits import public_parameters
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import ENDS
from shapelaw.scaling.plots.style import (
    BAND,
    BLUE,
    COLOURS,
    CURVE,
    GREEN,
    MARKERS,
    VERMILLION,
    Form,
    add_legend,
    fit_title,
    format_number,
    log_axis,
    panels,
    styled,
)
from shapelaw.scaling.units import format_count, kind_mark, loss_name

AXES = {"size": "N (parameters)", "compute": "training FLOPs", "tokens": "D (training tokens)"}
MAX_HELD_CHANGE = 1e-12  # range of a parameter that was held at every cut-off
Ends = tuple[float, float]


def select_hold_out(result: HoldOut | CheckReport, by: str = "size") -> HoldOut:
    """Return a leave-largest-out result, or that of a check.

    Parameters
    ----------
    result
        A leave-largest-out result, which is returned, or a check.
    by
        ``size``, ``compute`` or ``tokens``: the column by which the check cut off runs.

    Raises
    ------
    InputError
        The check has no leave-largest-out by this column.
    """
    if isinstance(result, HoldOut):
        return result
    if by not in result.hold_outs:
        why = result.unavailable.get(by, f"`by` must be one of {', '.join(UNITS)}")
        raise InputError(f"the check has no leave-largest-out by {by!r}: {why}")
    return result.hold_outs[by]


@styled
def plot_drift(result: HoldOut | CheckReport, *, by: str = "size") -> Figure:
    """Draw every parameter, and the held-out error, against the largest fitted run.

    The horizontal line is the fit to all rows. The line and the marks have 95 % intervals where the
    fits have resamples. Parameters that were held at every cut-off are omitted. The error is shown
    as well because parameters can drift while the error stays small.

    Parameters
    ----------
    result
        A leave-largest-out result or a check.
    by
        The leave-largest-out of a check: by ``size``, ``compute`` or ``tokens``.

    Raises
    ------
    InputError
        The check has no leave-largest-out by this column.
    """
    hold_out = select_hold_out(result, by)
    table = hold_out.drift().drop(columns=["cutoff", "rows_in"])
    names = [str(name) for name in table if np.ptp(table[name]) > MAX_HELD_CHANGE]
    cutoffs = hold_out.fitted
    places = np.array([*(cutoff.largest_fitted for cutoff in cutoffs), largest_value(hold_out)])
    fits = [*(cutoff.fit for cutoff in cutoffs if cutoff.fit is not None), hold_out.complete]
    intervals = [_intervals(fit) for fit in fits]
    figure, drawn = panels(len(names) + 1, across=4 if len(names) > 5 else 3, size=(3.8, 2.9))
    for axes, name in zip(drawn, names, strict=False):
        values = table[name].to_numpy(dtype=float)
        _draw_parameter(axes, places, values, [ends.get(name) for ends in intervals])
        unit = unit_of(name, hold_out.complete.loss_unit)
        axes.set_title(f"{name} ({unit})" if unit and len(name + unit) < 32 else name)
    _draw_error(drawn[-1], hold_out)
    for axes in drawn:
        _set_cutoff_axis(axes, places, hold_out.by)
    add_legend(figure, drawn)
    figure.suptitle(
        f"Drift under leave-largest-out by {hold_out.by}: {fit_title(hold_out.complete)}"
    )
    return figure


def largest_value(hold_out: HoldOut) -> float:
    """Return the largest value, over all rows, of the column by which runs were cut off."""
    ends = [cutoff.largest_fitted * 10 ** cutoff.held_out["distance_decades"].max()
            for cutoff in hold_out.cutoffs]  # fmt: skip
    return float(max(ends))


def _intervals(fit: Fit) -> dict[str, Ends]:
    """Compute 95 % intervals of public parameters and a_opt; none without resamples."""
    if not len(fit.draws):
        return {}
    table = np.array([list(public_parameters(fit, theta).values()) for theta in fit.draws])
    ends = np.percentile(table, ENDS, axis=0)
    return {name: (float(ends[0, i]), float(ends[1, i]))
            for i, name in enumerate(public_parameters(fit))}  # fmt: skip


def _draw_parameter(
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


def _draw_error(axes: Axes, hold_out: HoldOut) -> None:
    """Draw the mean absolute percentage error on the held-out runs."""
    places = [cutoff.largest_fitted for cutoff in hold_out.fitted]
    errors = [cutoff.scores.mape for cutoff in hold_out.fitted if cutoff.scores is not None]
    axes.plot(places, errors, color=VERMILLION, marker="D", ms=6, lw=1, label="runs left out")
    axes.set_ylim(0, 1.25 * max(errors))
    axes.set_title("error on the runs left out (%, mean)")


def _set_cutoff_axis(axes: Axes, places: np.ndarray, by: str) -> None:
    pad = (places.max() / places.min()) ** 0.06
    form: Form = format_number if by == "compute" else format_count
    log_axis(axes, "x", places.min() / pad, places.max() * pad, form=form, most=5)
    axes.set_xlabel(f"largest fitted {AXES[by]}")


@styled
def plot_held_out(result: HoldOut | CheckReport, *, by: str = "size") -> Figure:
    """Draw the error of every held-out run against its distance from the largest fitted run.

    The error is positive where the measured loss is above the predicted one.

    Parameters
    ----------
    result
        A leave-largest-out result or a check.
    by
        The leave-largest-out of a check: by ``size``, ``compute`` or ``tokens``.

    Raises
    ------
    InputError
        As for :func:`plot_drift`.
    """
    hold_out = select_hold_out(result, by)
    figure = Figure(figsize=(6.6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=CURVE, lw=1)
    cutoffs = _spaced(hold_out.fitted, len(COLOURS))
    for cutoff, colour, marker in zip(cutoffs, COLOURS, MARKERS, strict=False):
        rows = cutoff.held_out
        errors = 100 * np.log(rows["loss"] / rows["predicted_loss"])
        axes.scatter(
            rows["distance_decades"], errors, s=22, color=colour, marker=marker, alpha=0.8, lw=0,
            label=f"below {_value(cutoff.value, hold_out.by)}: {counted(cutoff.rows_in, 'run')}",
            zorder=3,
        )  # fmt: skip
    axes.set_xlabel(f"decades of {UNITS[hold_out.by]} beyond the largest fitted run")
    axes.set_ylabel(f"measured over predicted {hold_out.complete.loss_name} (%)")
    axes.set_title("runs left out, by what was fitted")
    add_legend(figure, [axes])
    figure.suptitle(f"Leave-largest-out by {hold_out.by}: {fit_title(hold_out.complete)}")
    return figure


def _spaced(cutoffs: tuple[Cutoff, ...], most: int) -> list[Cutoff]:
    """Select at most ``most`` evenly spaced cut-offs, from the first to the last."""
    places = np.unique(np.linspace(0, len(cutoffs) - 1, min(len(cutoffs), most)).round())
    return [cutoffs[int(place)] for place in places]


def _value(value: float, by: str) -> str:
    return f"{format_number(value)} FLOPs" if by == "compute" else format_count(value)


@styled
def plot_comparison(comparison: Comparison) -> Figure:
    """Draw laws ranked by held-out error, with the noise of their fits and the gap to the best.

    Laws that could not be fitted have a label and no mark. The right panel shows the paired
    difference in absolute error to the law of the smallest error, with its 95 % interval: an
    interval that contains 0 is a tie.

    Parameters
    ----------
    comparison
        The comparison of several laws on one run table.
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
    name = loss_name(comparison.loss_kind)
    left.set_xlabel(f"% of the {name}")
    right.axvline(0, color=CURVE, lw=1)
    fitted = table["worse_by_percent"].notna().to_numpy()
    rows = table[fitted]
    for place, (_, row) in zip(height[fitted], rows.iterrows(), strict=True):
        right.plot([row["low"], row["high"]], [place, place], color=BLUE, lw=1.4)
    right.plot(
        rows["worse_by_percent"], height[fitted], color=BLUE, marker="o", ms=7, lw=0
    )  # fmt: skip
    right.set_xlabel(f"behind the best (% of the {name}, 95 % interval)")
    add_legend(figure, [left])
    figure.suptitle(f"Which law extrapolates, by {comparison.by}{kind_mark(comparison.loss_kind)}")
    return figure
