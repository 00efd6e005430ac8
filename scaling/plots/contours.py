"""Iso-loss contours over N and D, with the runs, budgets, and the compute-optimal line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import (
    ComputeOptimal,
    allocation,
    best_ratios,
    has_closed_form,
)
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.plots.style import (
    BAND,
    LABELS,
    SCALE,
    VERMILLION,
    add_legend,
    axis_label,
    fit_title,
    format_number,
    log_axis,
    runs_for_fit,
    styled,
)
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import format_count, short_unit

GRID_POINTS = 121  # in each direction
BUDGETS = 9  # points on the compute-optimal line
MAX_GRID_DRAWS = 100  # resamples of its band, for laws whose optimum is searched on a grid
MARGIN_DECADES = 0.35  # by which the map extends beyond the runs
LEVELS = 12
LABEL_SLOPE = 0.45  # slope of the line along which contours are labelled
CORNER = 0.08  # share of the map at each edge that is too small for a label
HALO: list[AbstractPathEffect] = [patheffects.withStroke(linewidth=2.5, foreground="white")]


@dataclass(frozen=True, kw_only=True)
class Map:
    """Predicted loss on a grid: ``sizes`` (m,), ``tokens`` (m,), ``loss`` (m, m).

    Rows of ``loss`` are tokens. ``shape`` has the ratios with one value at all sizes, ``drifting``
    the ratios that are at the optimum of each N. ``frontier`` is the best N and D at increasing
    budgets, ``why`` the reason why there is no frontier.
    """

    sizes: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    shape: Mapping[str, float]
    drifting: tuple[str, ...]
    frontier: tuple[ComputeOptimal, ...]
    why: str


def loss_map(
    fit: Fit,
    runs: RunTable | pd.DataFrame,
    *,
    shape: Mapping[str, float] | None = None,
    points: int = GRID_POINTS,
) -> Map:
    """Compute the loss that a law predicts around the runs, and the compute-optimal line.

    Parameters
    ----------
    fit
        The fitted law.
    runs
        The runs that the map encloses.
    shape
        Ratios that are held; by default each is at the optimum of each N, else in the middle of the
        runs.
    points
        The number of grid points in each direction.

    Raises
    ------
    InputError
        The law has no N or no D, the table lacks a column, or ``shape`` is not of the law.
    """
    absent = [letter for letter, name in (("N", N), ("D", D)) if name not in fit.law.columns]
    if absent:
        raise InputError(
            f"iso-loss contours need `N and D` in the law, but `{fit.law_name}` has no "
            f"{' and no '.join(absent)}; fit chinchilla or conditional"
        )
    runs = runs_for_fit(fit, runs)
    sizes, tokens = (_axis_values(values, points) for values in (runs.sizes, runs.tokens))
    ratios = best_ratios(fit, sizes, shape)
    columns = {name: np.tile(values, points) for name, values in {N: sizes, **ratios}.items()}
    columns[D] = np.repeat(tokens, points)
    loss = fit.law.predict(fit.theta, columns, fit.reference).reshape(points, points)
    draws = fit.draws if has_closed_form(fit, shape) else fit.draws[:MAX_GRID_DRAWS]
    # A little beyond the corners, so that the line leaves the map instead of ending in it.
    budgets = np.geomspace(5 * sizes[0] * tokens[0], 7 * sizes[-1] * tokens[-1], BUDGETS)
    resampled = replace(fit, draws=draws)
    optima = [allocation(resampled, float(budget), shape=shape) for budget in budgets]
    frontier = tuple(optimum for optimum in optima if optimum.n["value"] is not None)
    why = next((optimum.why for optimum in optima if optimum.why), "") if len(frontier) < 2 else ""
    drifting = tuple(name for name, values in ratios.items() if np.ptp(values) > 0)
    steady = {name: float(ratios[name][0]) for name in ratios if name not in drifting}
    return Map(
        sizes=sizes, tokens=tokens, loss=loss, shape=steady, drifting=drifting, frontier=frontier,
        why=why,
    )  # fmt: skip


def _axis_values(values: np.ndarray, points: int) -> np.ndarray:
    margin = 10**MARGIN_DECADES
    return np.geomspace(values.min() / margin, values.max() * margin, points)


@styled
def plot_contours(
    fit: Fit,
    runs: RunTable | pd.DataFrame,
    *,
    shape: Mapping[str, float] | None = None,
    levels: Sequence[float] | None = None,
) -> Figure:
    """Draw iso-loss contours over N and D, the runs, budgets C = 6ND, the compute-optimal line.

    A run has the colour of its measured loss on the scale of the contours: the law does not fit a
    run whose colour differs from its surroundings. The band is the 95 % interval of the best N at
    each budget (from 100 resamples for laws whose optimum is searched on a grid).

    Parameters
    ----------
    fit
        The fitted law.
    runs
        The runs to draw.
    shape
        Ratios of the shape, as in :func:`loss_map`.
    levels
        Losses of the contours, in the unit of the runs; by default about a dozen, evenly spaced
        in ln L.

    Raises
    ------
    InputError
        As for :func:`loss_map`, or the levels do not rise.
    """
    losses, runs = loss_map(fit, runs, shape=shape), runs_for_fit(fit, runs)
    chosen = _levels(losses.loss) if levels is None else np.asarray(levels, dtype=float)
    if len(chosen) < 1 or not (np.diff(chosen) > 0).all():
        raise InputError(
            f"`levels` must rise, but got {list(chosen)}; give losses in the unit of the runs"
        )
    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    axes = figure.subplots()
    log_axis(axes, "x", losses.sizes[0], losses.sizes[-1], form=format_count)
    log_axis(axes, "y", losses.tokens[0], losses.tokens[-1], form=format_count)
    _draw_budgets(axes, losses)
    ends = runs.losses.min(), runs.losses.max()
    scale = Normalize(min(ends[0], chosen[0]), max(ends[1], chosen[-1]))
    lines = axes.contour(
        losses.sizes, losses.tokens, losses.loss, levels=chosen, cmap=SCALE, norm=scale,
        linewidths=1.2,
    )  # fmt: skip
    _draw_frontier(axes, losses)
    points = axes.scatter(
        runs.sizes, runs.tokens, c=runs.losses, cmap=SCALE, norm=scale, s=22, edgecolors="white",
        linewidths=0.4, zorder=3, label=f"runs, by measured {fit.loss_name}",
    )  # fmt: skip
    _label_contours(axes, losses, lines)
    axes.set_xlabel(axis_label(fit, N))
    axes.set_ylabel(axis_label(fit, D))
    axes.grid(visible=False)
    figure.colorbar(
        points, ax=axes, label=f"{fit.loss_name} ({short_unit(runs.loss_unit)})", pad=0.02
    )
    add_legend(figure, [axes])
    axes.set_title(_title(losses))
    figure.suptitle(f"Iso-loss contours: {fit_title(fit)}")
    return figure


def _levels(loss: np.ndarray) -> np.ndarray:
    """Choose rounded losses, evenly spaced in ln L."""
    low, high = float(loss.min()), float(loss.max())
    for digits in (2, 3, 4, 6):
        even = np.geomspace(low, high, LEVELS + 2)[1:-1]
        levels = np.unique(np.round(even, digits))
        if len(levels) == LEVELS:
            return levels
    return np.linspace(low, high, LEVELS + 2)[1:-1]


def _title(losses: Map) -> str:
    shown = [f"{LABELS.get(name, name)} {ratio:.3g}" for name, ratio in losses.shape.items()]
    parts = [f"at {', '.join(shown)}"] if shown else []
    if losses.drifting:
        names = " and ".join(LABELS.get(name, name) for name in losses.drifting)
        parts.append(f"\neach N at its best {names}")
    return "; ".join([*parts, *([f"no compute-optimal line: {losses.why}"] if losses.why else [])])


def _draw_budgets(axes: Axes, losses: Map) -> None:
    """Draw lines of equal training FLOPs, one per decade, labelled where they leave the map."""
    sizes, tokens = losses.sizes, losses.tokens
    low, high = (6 * sizes[end] * tokens[end] for end in (0, -1))
    decades = range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1)
    for number, power in enumerate(decades):
        label = "equal training FLOPs (6ND)" if number == 0 else None
        budget = 10.0**power / 6
        axes.plot(sizes, budget / sizes, color="#999999", lw=0.8, ls=":", label=label, zorder=1)
        top, left = budget / tokens[-1], budget / sizes[0]
        above = top > sizes[0]
        if above or left > tokens[0] * (tokens[-1] / tokens[0]) ** CORNER:
            axes.annotate(
                f"1e{power}", (top, tokens[-1]) if above else (sizes[0], left),
                xytext=(4, -4) if above else (4, 0), textcoords="offset points", fontsize=8,
                color="#666666", ha="left", va="top", path_effects=HALO,
            )  # fmt: skip


def _label_contours(axes: Axes, losses: Map, lines: QuadContourSet) -> None:
    """Label contours with their loss, along a line from the lower left corner below the runs."""
    low = np.log([losses.sizes[0], losses.tokens[0]])
    span = np.log([losses.sizes[-1], losses.tokens[-1]]) - low
    places = []
    for segments in lines.allsegs:
        if len(segments):
            corners = np.concatenate([np.asarray(segment) for segment in segments])
            position = (np.log(corners) - low) / span
            distance = np.abs(position[:, 1] - LABEL_SLOPE * position[:, 0])
            distance[position[:, 0] > 1 - CORNER / 2] = np.inf
            nearest = int(np.argmin(distance))
            if np.isfinite(distance[nearest]) and position[nearest, 0] > CORNER:
                places.append(tuple(corners[nearest]))
    texts = axes.clabel(
        lines, fmt=format_number, fontsize=8, colors="black", inline=False, manual=places
    )  # fmt: skip
    for text in texts:
        text.set_path_effects(HALO)


def _draw_frontier(axes: Axes, losses: Map) -> None:
    if len(losses.frontier) < 2:
        return
    budgets = np.array([optimum.compute for optimum in losses.frontier])
    size, low, high = (
        np.array([optimum.n[key] for optimum in losses.frontier], dtype=float)
        for key in ("value", "low", "high")
    )
    closed = np.isfinite(low) & np.isfinite(high)
    if closed.sum() > 1:
        # The two ends of the band at a budget lie on its line of equal FLOPs.
        x = np.concatenate([low[closed], high[closed][::-1]])
        y = np.concatenate([budgets[closed] / 6 / low[closed], (budgets / 6 / high)[closed][::-1]])
        axes.fill(x, y, color=BAND, alpha=0.6, lw=0, label="95 % band", zorder=1.5)
    axes.plot(
        size, budgets / (6 * size), color=VERMILLION, lw=2, label="best N of a budget", zorder=2
    )
