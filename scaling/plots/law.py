"""Figures of a fitted law, with one panel per shape factor."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.factors import GroupedQuery, UShape
from shapelaw.scaling.laws.part import Factor
from shapelaw.scaling.plots.style import (
    BAND,
    COLOURS,
    CURVE,
    LABELS,
    add_colour_scale,
    add_legend,
    fit_title,
    focused_range,
    log_axis,
    panels,
    runs_for_fit,
    scatter_runs,
    size_levels,
    styled,
)
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import format_count, short_unit

POINTS = 200


@styled
def plot_law(fit: Fit, runs: RunTable | pd.DataFrame, *, across: int | None = None) -> Figure:
    """Draw the effect of each shape factor on the loss, in per cent, in a panel of its own.

    Points are runs, divided by the law's prediction of everything but this ratio; the line is the
    law, the band its 95 % interval over resamples. Where the curve depends on N, each size has a
    line in its colour; of many sizes the smallest, the middle and the largest have one. For a law
    without shape factors, the figure has measured against predicted loss.

    Parameters
    ----------
    fit
        The fitted law.
    runs
        The runs to draw.
    across
        The number of panels in a row; by default all.

    Raises
    ------
    InputError
        The table lacks a column of the law.
    """
    runs = runs_for_fit(fit, runs)
    factors = fit.law.shapes
    if not factors:
        return _draw_losses(fit, runs)
    across = across or len(factors)
    figure, drawn = panels(len(factors), across=across, size=(4.6, 3.8), share=True)
    points = [_draw_panel(*pair, fit, runs) for pair in zip(drawn, factors, strict=True)]
    _focus(drawn)
    for axes in drawn[::across]:
        axes.set_ylabel(f"{fit.loss_name} above that of the best shape (%)")
    add_legend(figure, drawn)
    add_colour_scale(figure, drawn, points[0], runs)
    figure.suptitle(f"What shape costs: {fit_title(fit)}")
    return figure


def _focus(drawn: Sequence[Axes]) -> None:
    """Fit the common vertical axis to runs and curves, which a wide band would flatten."""
    points, ends = [], []
    for axes in drawn:
        points += [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
        for shown in axes.collections:
            if isinstance(shown, PolyCollection):
                ends += [np.asarray(path.vertices)[:, 1] for path in shown.get_paths()]
            else:
                points.append(np.asarray(shown.get_offsets())[:, 1])
    drawn[0].set_ylim(*focused_range(np.concatenate(points), np.concatenate([[], *ends])))


def _draw_panel(axes: Axes, factor: Factor, fit: Fit, runs: RunTable) -> ScalarMappable | None:
    columns = fit.columns(runs)
    low, high = columns[factor.of].min() / 1.1, columns[factor.of].max() * 1.1
    grid = {name: np.full(POINTS, fit.reference[name]) for name in columns}
    grid[factor.of] = np.geomspace(low, high, POINTS)
    # Another ratio inside the factor stays at its reference, as on the curve.
    fixed = {name: np.full(len(runs), fit.reference[name]) for name in columns}
    fixed |= {name: columns[name] for name in (N, D, factor.of) if name in columns}
    effect = _effect(fit, fit.theta[None], factor, fixed, grid)[0]
    relative = runs.losses / fit.central(runs)
    adjusted = 100 * (relative * (1 + effect) - 1)
    points = scatter_runs(axes, columns[factor.of], adjusted, runs)
    if _moves(fit, factor):
        _draw_curve_of_each_size(axes, factor, fit, columns, grid, points)
    else:
        _draw_curve(axes, factor, fit, grid, CURVE, "law")
    log_axis(axes, "x", low, high)
    axes.set_xlabel(LABELS.get(factor.of, factor.of))
    axes.set_title(_title(fit, factor))
    return points


def _moves(fit: Fit, factor: Factor) -> bool:
    """Test if the curve of a U-shaped factor depends on N, by a drift or a bend."""
    names = {f"{factor.of}_drift", f"{factor.of}_bend"} & set(factor.names) - set(fit.held)
    return any(fit.parameters()[name]["value"] != 0 for name in names)


def _draw_curve_of_each_size(
    axes: Axes,
    factor: Factor,
    fit: Fit,
    columns: Mapping[str, np.ndarray],
    grid: Mapping[str, np.ndarray],
    points: ScalarMappable | None,
) -> None:
    """Draw the law at each size in the colour of its runs, ``points`` those of a colour scale."""
    levels = size_levels(columns[N])
    if levels is None and points is not None:
        logs = np.log(columns[N])
        for size in np.exp([logs.min(), (logs.min() + logs.max()) / 2, logs.max()]):
            label = f"law at N = {format_count(size)}"
            at_size = {**grid, N: np.full(POINTS, size)}
            red, green, blue, opacity = (float(part) for part in points.to_rgba(size))
            _draw_curve(axes, factor, fit, at_size, (red, green, blue, opacity), label)
        return
    axes.plot([], [], color=CURVE, label="law")  # legend entry of the curves of all sizes
    levels = np.zeros(len(columns[N]), dtype=int) if levels is None else levels
    for level, colour in zip(np.unique(levels), COLOURS, strict=False):
        at_size = dict(grid)
        for name in {N, D} & set(grid):
            mean = np.exp(np.log(columns[name][levels == level]).mean())
            at_size[name] = np.full(POINTS, mean)
        _draw_curve(axes, factor, fit, at_size, colour)


def _draw_curve(
    axes: Axes,
    factor: Factor,
    fit: Fit,
    grid: Mapping[str, np.ndarray],
    colour: ColorType,
    label: str | None = None,
) -> None:
    """Draw the law at one size, with its 95 % band."""
    ratio = grid[factor.of]
    if fit.has_intervals:
        drawn = _effect(fit, fit.draws, factor, grid, grid)
        band = 100 * np.percentile(drawn, (2.5, 97.5), axis=0)
        tint, alpha = (BAND, 0.5) if colour == CURVE else (colour, 0.15)
        axes.fill_between(ratio, *band, color=tint, alpha=alpha, lw=0, label="95 % band")
    curve = _effect(fit, fit.theta[None], factor, grid, grid)[0]
    axes.plot(ratio, 100 * curve, color=colour, label=label)


def _effect(
    fit: Fit,
    theta: np.ndarray,
    factor: Factor,
    columns: Mapping[str, np.ndarray],
    grid: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Compute the relative effect of a factor on the loss, (S, n), for parameters (S, p).

    U-shaped factors and grouped queries have a zero of their own. The effect of any other factor is
    relative to its lowest value on the grid, since its scale may be shared with the base.
    """
    logs = fit.law.effect(factor, theta, columns, fit.reference)
    if not isinstance(factor, UShape | GroupedQuery):
        along = fit.law.effect(factor, theta, grid, fit.reference)
        logs = logs - along.min(axis=1, keepdims=True)
    return np.asarray(np.expm1(logs))


def _title(fit: Fit, factor: Factor) -> str:
    if isinstance(factor, UShape):
        optimum = fit.optima()[factor.of]
        if optimum["value"] is not None:
            best = f"best at {optimum['value']:.3g}"
            if fit.has_intervals:
                best += f" [{_end(optimum['low'])}, {_end(optimum['high'])}]"
            drifts = f"{factor.of}_drift" in factor.names and _moves(fit, factor)
            return best + (_drift_title(fit, factor) if drifts else "")
        return _brief(str(optimum["status"]))
    first = factor.names[0]
    if factor.optional and first in fit.held:
        why = fit.held[first].why
        return _brief(why if why.startswith("pinned") else f"not resolved: {why}")
    if isinstance(factor, GroupedQuery) and factor.form == "log":
        ends = fit.parameters()[first]
        value, low, high = (100 * np.log(2) * ends[key] for key in ("value", "low", "high"))
        interval = f" [{low:+.2f}, {high:+.2f}]" if fit.has_intervals else ""
        return f"{value:+.2f} % per doubling{interval}"
    return f"moves the loss by {100 * fit.effects[factor.of]['size']:.2f} % over the runs"


def _drift_title(fit: Fit, factor: Factor) -> str:
    """Describe the drift of the optimum with N, to follow the optimum at the reference N."""
    drift = fit.parameters()[f"{factor.of}_drift"]
    interval = f" [{drift['low']:.2f}, {drift['high']:.2f}]" if fit.has_intervals else ""
    place = format_count(fit.reference[N])
    return f" at N = {place},\nmoves as $N^{{{drift['value']:.2f}}}${interval}"


def _brief(text: str) -> str:
    return text.split(":")[0] if len(text) > 60 else text


def _end(value: object) -> str:
    return "open" if value is None else f"{value:.3g}"


def _draw_losses(fit: Fit, runs: RunTable) -> Figure:
    """Draw measured against predicted loss, for a law without shape factors."""
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.subplots()
    predicted, measured = fit.central(runs), runs.losses
    points = scatter_runs(axes, predicted, measured, runs)
    ends = [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
    axes.plot(ends, ends, color=CURVE, lw=1, label="predicted = measured")
    unit = short_unit(fit.loss_unit)
    name = fit.loss_name
    axes.set(xlabel=f"predicted {name} ({unit})", ylabel=f"measured {name} ({unit})")
    axes.set_title(fit_title(fit)[0].upper() + fit_title(fit)[1:])
    axes.legend()
    add_colour_scale(figure, [axes], points, runs)
    return figure
