"""Where the loss is the same: a map of N and D with the runs, budgets, and the best N of each."""

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
from shapelaw.scaling.fitting.compute_optimal import ComputeOptimal, allocation, shape_held
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.plots.style import (
    BAND,
    LABELS,
    SCALE,
    VERMILLION,
    explain,
    headed,
    label_of,
    log_axis,
    runs_for_fit,
    short,
    styled,
)
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import format_count

GRID = 121
BUDGETS = 9  # along the line of the best N
DRAWS = 100  # resamples behind its band where each is searched on a grid
PAD = 0.35  # decades that the map goes beyond the runs
LEVELS = 12
FAN = 0.45  # slope of the line along which contours are named
CORNER = 0.08  # of the map: too small for a name
HALO: list[AbstractPathEffect] = [patheffects.withStroke(linewidth=2.5, foreground="white")]


@dataclass(frozen=True, kw_only=True)
class Map:
    """Predicted loss on a grid: ``sizes`` (m,), ``tokens`` (m,), ``loss`` (m, m), nats per token.

    Rows of ``loss`` are tokens. ``shape`` are the ratios that are held, ``frontier`` the best N
    and D at budgets that rise, ``why`` says why there are none.
    """

    sizes: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    shape: Mapping[str, float]
    frontier: tuple[ComputeOptimal, ...]
    why: str


def loss_map(
    fit: Fit,
    runs: RunTable | pd.DataFrame,
    *,
    shape: Mapping[str, float] | None = None,
    points: int = GRID,
) -> Map:
    """Compute the loss that a law predicts around the runs, and the compute-optimal line.

    Parameters
    ----------
    shape
        Ratios of the shape; by default each at its optimum, else in the middle of the runs.
    points
        Of the grid in each direction.

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
    held = shape_held(fit, shape)
    sizes, tokens = (_reach(values, points) for values in (runs.sizes, runs.tokens))
    columns = {name: np.full(points**2, value) for name, value in held.items()}
    columns |= {N: np.tile(sizes, points), D: np.repeat(tokens, points)}
    loss = fit.law.predict(fit.theta, columns, fit.reference).reshape(points, points)
    plain = set(fit.law.columns) == {N, D}
    judged = fit if plain else replace(fit, draws=fit.draws[:DRAWS])
    # A little beyond the corners, so that the line leaves the map instead of ending in it.
    budgets = np.geomspace(5 * sizes[0] * tokens[0], 7 * sizes[-1] * tokens[-1], BUDGETS)
    found = [allocation(judged, float(budget), shape=held) for budget in budgets]
    known = tuple(one for one in found if one.n["value"] is not None)
    why = next((one.why for one in found if one.why), "") if len(known) < 2 else ""
    return Map(sizes=sizes, tokens=tokens, loss=loss, shape=held, frontier=known, why=why)


def _reach(values: np.ndarray, points: int) -> np.ndarray:
    pad = 10**PAD
    return np.geomspace(values.min() / pad, values.max() * pad, points)


@styled
def plot_contours(
    fit: Fit,
    runs: RunTable | pd.DataFrame,
    *,
    shape: Mapping[str, float] | None = None,
    levels: Sequence[float] | None = None,
) -> Figure:
    """Iso-loss contours in N and D, the runs, budgets C = 6ND and the compute-optimal line.

    A run has the colour of its measured loss on the scale of the contours: one that differs from
    its surroundings is one that the law misses. The band is the 95 % interval of the best N at
    each budget (of 100 resamples for laws that are searched on a grid).

    Parameters
    ----------
    shape
        Ratios of the shape, as in :func:`loss_map`.
    levels
        Losses of the contours, nats per token; by default about a dozen, evenly spaced in ln L.

    Raises
    ------
    InputError
        As :func:`loss_map`, or the levels do not rise.
    """
    found, runs = loss_map(fit, runs, shape=shape), runs_for_fit(fit, runs)
    chosen = _levels(found.loss) if levels is None else np.asarray(levels, dtype=float)
    if len(chosen) < 1 or not (np.diff(chosen) > 0).all():
        raise InputError(f"`levels` must rise, but got {list(chosen)}; give losses in nats/token")
    figure = Figure(figsize=(7.6, 6.2), layout="constrained")
    axes = figure.subplots()
    log_axis(axes, "x", found.sizes[0], found.sizes[-1], form=format_count)
    log_axis(axes, "y", found.tokens[0], found.tokens[-1], form=format_count)
    _budgets(axes, found)
    ends = runs.losses.min(), runs.losses.max()
    scale = Normalize(min(ends[0], chosen[0]), max(ends[1], chosen[-1]))
    lines = axes.contour(
        found.sizes, found.tokens, found.loss, levels=chosen, cmap=SCALE, norm=scale, linewidths=1.2
    )  # fmt: skip
    _frontier(axes, found)
    shown = axes.scatter(
        runs.sizes, runs.tokens, c=runs.losses, cmap=SCALE, norm=scale, s=22, edgecolors="white",
        linewidths=0.4, zorder=3, label="runs, by measured loss",
    )  # fmt: skip
    _name_contours(axes, found, lines)
    axes.set_xlabel(label_of(fit, N))
    axes.set_ylabel(label_of(fit, D))
    axes.grid(visible=False)
    figure.colorbar(shown, ax=axes, label="loss (nats/token)", pad=0.02)
    explain(figure, [axes])
    axes.set_title(_shape_words(found))
    figure.suptitle(f"Iso-loss contours: {headed(fit)}")
    return figure


def _levels(loss: np.ndarray) -> np.ndarray:
    """Round losses, evenly spaced in ln L."""
    low, high = float(loss.min()), float(loss.max())
    for digits in (2, 3, 4, 6):
        even = np.geomspace(low, high, LEVELS + 2)[1:-1]
        levels = np.unique(np.round(even, digits))
        if len(levels) == LEVELS:
            return levels
    return np.linspace(low, high, LEVELS + 2)[1:-1]


def _shape_words(found: Map) -> str:
    held = ", ".join(f"{LABELS.get(name, name)} {value:.3g}" for name, value in found.shape.items())
    words = [f"at {held}"] if held else []
    return "; ".join([*words, *([f"no compute-optimal line: {found.why}"] if found.why else [])])


def _budgets(axes: Axes, found: Map) -> None:
    """Lines of equal training FLOPs, one a decade, each named where it leaves the map."""
    low, high = (6 * found.sizes[end] * found.tokens[end] for end in (0, -1))
    decades = range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1)
    for place, power in enumerate(decades):
        along = 10.0**power / (6 * found.sizes)
        label = "equal training FLOPs (6ND)" if place == 0 else None
        axes.plot(found.sizes, along, color="#999999", lw=0.8, ls=":", label=label, zorder=1)
        top, left = 10.0**power / (6 * found.tokens[-1]), 10.0**power / (6 * found.sizes[0])
        above = top > found.sizes[0]
        if above or left > found.tokens[0] * (found.tokens[-1] / found.tokens[0]) ** CORNER:
            axes.annotate(
                f"1e{power}", (top, found.tokens[-1]) if above else (found.sizes[0], left),
                xytext=(4, -4) if above else (4, 0), textcoords="offset points", fontsize=8,
                color="#666666", ha="left", va="top", path_effects=HALO,
            )  # fmt: skip


def _name_contours(axes: Axes, found: Map, lines: QuadContourSet) -> None:
    """Each contour's loss, along a line that leaves the lower left corner below the runs."""
    low = np.log([found.sizes[0], found.tokens[0]])
    span = np.log([found.sizes[-1], found.tokens[-1]]) - low
    places = []
    for segments in lines.allsegs:
        if len(segments):
            corners = np.concatenate([np.asarray(one) for one in segments])
            inside = (np.log(corners) - low) / span
            off = np.abs(inside[:, 1] - FAN * inside[:, 0])
            off[inside[:, 0] > 1 - CORNER / 2] = np.inf
            nearest = int(np.argmin(off))
            if np.isfinite(off[nearest]) and inside[nearest, 0] > CORNER:
                places.append(tuple(corners[nearest]))
    texts = axes.clabel(
        lines, fmt=short, fontsize=8, colors="black", inline=False, manual=places
    )  # fmt: skip
    for text in texts:
        text.set_path_effects(HALO)


def _frontier(axes: Axes, found: Map) -> None:
    if len(found.frontier) < 2:
        return
    budgets = np.array([one.compute for one in found.frontier])
    size = np.array([one.n["value"] for one in found.frontier], dtype=float)
    low = np.array([one.n["low"] for one in found.frontier], dtype=float)
    high = np.array([one.n["high"] for one in found.frontier], dtype=float)
    known = np.isfinite(low) & np.isfinite(high)
    if known.sum() > 1:
        # Along a budget: the ends of the band lie on its line of equal FLOPs.
        x = np.concatenate([low[known], high[known][::-1]])
        y = np.concatenate([budgets[known] / 6 / low[known], (budgets / 6 / high)[known][::-1]])
        axes.fill(x, y, color=BAND, alpha=0.6, lw=0, label="95 % band", zorder=1.5)
    axes.plot(
        size, budgets / (6 * size), color=VERMILLION, lw=2, label="best N of a budget", zorder=2
    )
