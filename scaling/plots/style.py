"""One style for every picture, and the first: loss against each shape ratio, with curve and band.

Colours are those of Okabe & Ito, which people with any colour vision tell apart; sizes also differ
by marker. Figures are made without pyplot, so nothing stays open and no display is needed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.scaling.fitting.result import SIZES, Fit
from shapelaw.scaling.laws.law import D, Factor, N
from shapelaw.scaling.laws.registry import GroupedQuery, UShape
from shapelaw.scaling.runs.table import require_columns
from shapelaw.scaling.units import format_count

LABELS = {
    "hidden_over_sqrt_n": "hidden size / √N",
    "mlp_to_attention": "MLP / attention parameters",
    "gqa": "query heads per KV head",
    "num_hidden_layers": "layers",
    "hidden_size": "hidden size",
    "aspect_ratio": "hidden size / layers",
    "best_loss": "best loss at N and D (nats/token)",
    D: "D (training tokens)",
}
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY = "#CC79A7", "#E69F00", "#56B4E9"
COLOURS, MARKERS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE), ("o", "s", "^", "D", "v")
CURVE, BAND, SCALE = "#333333", "#bbbbbb", "viridis"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "svg.hashsalt": "shapelaw",  # identifiers in an SVG are otherwise new every time
}
ENDINGS = (".png", ".svg")
POINTS = 200
DIGITS = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,))
APART, WIDE = 1.2, 1.5  # sizes this far apart are two; a group this wide is no single size
Arguments = ParamSpec("Arguments")
Form = Callable[[float], str]


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Draw in the style of the project, whatever a notebook has set."""

    @wraps(draw)
    def within(*arguments: Arguments.args, **named: Arguments.kwargs) -> Figure:
        with style.context(STYLE, after_reset=True):
            return draw(*arguments, **named)

    return within


def panels(
    count: int, *, across: int = 3, size: tuple[float, float] = (4.2, 3.4), share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels, row by row; with ``share`` they have one y axis."""
    across = min(count, across)
    down = -(-count // across)
    figure = Figure(figsize=(size[0] * across, size[1] * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, sharey=share, squeeze=False).ravel()
    for empty in grid[count:]:
        empty.remove()
    return figure, list(grid[:count])


def explain(figure: Figure, drawn: Sequence[Axes]) -> None:
    """One legend under all panels, each entry once."""
    found: dict[str, Artist] = {}
    for axes in drawn:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        # A letter of the legend is about a twelfth of an inch wide, its handle half an inch.
        width = 0.55 + max(len(label) for label in found) / 12
        columns = min(len(found), max(1, int(figure.get_figwidth() / width)))
        figure.legend(
            list(found.values()), list(found), loc="outside lower center", ncols=columns
        )  # fmt: skip


def label_of(fit: Fit, column: str) -> str:
    """A column in words with its unit; N says by which convention it counts."""
    return f"N ({fit.size_convention} parameters)" if column == N else LABELS.get(column, column)


def rows_of(fit: Fit, runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, with N counted as the fit counts it.

    Raises
    ------
    InputError
        The table has no rows, or lacks the loss or a column of the law.
    """
    size = SIZES[fit.size_convention]
    if size in runs:
        runs = runs.assign(**{N: runs[size]})
    require_columns(runs, ("loss", *fit.law.columns), "the run table")
    if runs.empty:
        raise InputError("a picture needs at least one run, but the run table has no rows")
    return runs


def short(value: float) -> str:
    """A number on an axis: 0.15, 478, 1e21.

    Examples
    --------
    >>> short(0.15), short(2143.4), short(1e21)
    ('0.15', '2143', '1e21')
    """
    return f"{value:.4g}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers between two ends, at most so many; even steps where the ends are close.

    Examples
    --------
    >>> log_ticks(0.9, 60)
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    >>> log_ticks(2.05, 2.45, most=4)
    [2.1, 2.25, 2.4]
    """
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for digits in DIGITS:
        every = [float(f"{digit}e{power}") for power in decades for digit in digits]
        ticks = [tick for tick in every if low <= tick <= high]
        if len(ticks) <= most:
            break
    if len(ticks) > most:
        ticks = ticks[:: -(-len(ticks) // most)]
    if len(ticks) < 3:
        even = MaxNLocator(most).tick_values(low, high)
        ticks = [round(float(tick), 12) for tick in even if low <= tick <= high]
    return ticks


def log_axis(
    axes: Axes, which: str, low: float, high: float, *, form: Form = short, most: int = 7
) -> None:
    """A logarithmic axis with plain numbers that do not overlap; ``which`` is x or y."""
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(log_ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def form_of(column: str) -> Form:
    """How the values of a column are written: counts with a suffix, other numbers plainly."""
    return format_count if column in (N, D) else short


def scatter_runs(
    axes: Axes, x: np.ndarray, y: np.ndarray, rows: pd.DataFrame
) -> ScalarMappable | None:
    """Runs, one colour and marker for each size; a scale for many sizes, which is returned.

    Where the table has no N, tokens stand in for it; where it has neither, all runs look the same.
    """
    by = next((name for name in (N, D) if name in rows), None)
    if by is None:
        axes.scatter(x, y, s=34, color=BLUE, label="runs", zorder=3, lw=0)
        return None
    sizes = rows[by].to_numpy(dtype=float)
    levels = _levels(sizes)
    if levels is None:
        return axes.scatter(x, y, s=26, c=sizes, norm=LogNorm(), cmap=SCALE, zorder=3, lw=0)
    letter = "N" if by == N else "D"
    for level, colour, marker in zip(np.unique(levels), COLOURS, MARKERS, strict=False):
        own = levels == level
        label = f"{letter} ≈ {format_count(float(np.exp(np.log(sizes[own]).mean())))}"
        axes.scatter(
            x[own], y[own], s=34, color=colour, marker=marker, label=label, zorder=3, lw=0
        )  # fmt: skip
    return None


def _levels(sizes: np.ndarray) -> np.ndarray | None:
    """Number the sizes, (n,), parted by gaps of 20 %; None where they are too many to name."""
    order = np.argsort(sizes, kind="stable")
    logs = np.log(sizes[order])
    levels = np.empty(len(sizes), dtype=int)
    levels[order] = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log(APART))])
    widest = max(np.ptp(np.log(sizes[levels == level])) for level in np.unique(levels))
    return levels if levels.max() < len(COLOURS) and widest <= np.log(WIDE) else None


def colour_scale(
    figure: Figure, drawn: Sequence[Axes], shown: ScalarMappable | None, rows: pd.DataFrame
) -> None:
    """The scale of sizes beside all panels, where the runs have one."""
    if shown is None:
        return
    label = "N (parameters)" if N in rows else "D (tokens)"
    form = FuncFormatter(lambda size, _: format_count(size))
    bar = figure.colorbar(shown, ax=list(drawn), label=label, format=form, pad=0.01)
    sizes = rows[N if N in rows else D]
    bar.set_ticks(log_ticks(float(sizes.min()), float(sizes.max())))
    bar.ax.yaxis.set_minor_locator(NullLocator())


@styled
def plot_law(fit: Fit, runs: pd.DataFrame) -> Figure:
    """One panel for each shape factor: its effect on the loss, in per cent.

    Points are runs, divided by what the law says of everything but this ratio; the line is the
    law, the band its 95 % interval over resamples. Where the optimum moves with N, each size has
    a line in its colour. A law without shape gets measured against predicted loss.

    Raises
    ------
    InputError
        The table lacks a column of the law.
    """
    rows = rows_of(fit, runs)
    factors = fit.law.shapes
    if not factors:
        return _plot_sizes(fit, rows)
    figure, drawn = panels(len(factors), across=len(factors), size=(4.6, 3.8), share=True)
    shown = [_panel(*pair, fit, rows) for pair in zip(drawn, factors, strict=True)]
    drawn[0].set_ylabel("loss above that of the best shape (%)")
    explain(figure, drawn)
    colour_scale(figure, drawn, shown[0], rows)
    figure.suptitle(f"What shape costs: {headed(fit)}")
    return figure


def headed(fit: Fit) -> str:
    """The law and its runs in a few words; an expression has no name to print."""
    name = f"the {fit.law_name} law" if len(fit.law_name) < 30 else "a composed law"
    return f"{name} on {len(fit.run_ids)} runs"


def _panel(axes: Axes, factor: Factor, fit: Fit, rows: pd.DataFrame) -> ScalarMappable | None:
    columns = fit.columns(rows)
    low, high = columns[factor.of].min() / 1.1, columns[factor.of].max() * 1.1
    grid = {name: np.full(POINTS, fit.reference[name]) for name in columns}
    grid[factor.of] = np.geomspace(low, high, POINTS)
    # Another ratio inside the factor stays at its middle, as it does on the curve.
    steady = {name: np.full(len(rows), fit.reference[name]) for name in columns}
    steady |= {name: columns[name] for name in (N, D, factor.of) if name in columns}
    own = _effect(fit, fit.theta[None], factor, steady, grid)[0]
    relative = rows["loss"].to_numpy(dtype=float) / fit.central(rows)
    adjusted = 100 * (relative * (1 + own) - 1)
    shown = scatter_runs(axes, columns[factor.of], adjusted, rows)
    levels = _levels(columns[N]) if _moves(fit, factor) else None
    if levels is None:
        _curve(axes, factor, fit, grid, CURVE)
    else:
        axes.plot([], [], color=CURVE, label="law")  # for the legend: sizes have its colours
        for level, colour in zip(np.unique(levels), COLOURS, strict=False):
            size = np.exp(np.log(columns[N][levels == level]).mean())
            _curve(axes, factor, fit, {**grid, N: np.full(POINTS, size)}, colour)
    log_axis(axes, "x", low, high)
    axes.set_xlabel(LABELS.get(factor.of, factor.of))
    axes.set_title(_title(fit, factor))
    return shown


def _moves(fit: Fit, factor: Factor) -> bool:
    """Whether the optimum of a bowl moves with N."""
    drift = f"{factor.of}_drift"
    if drift not in factor.names or drift in fit.held:
        return False
    return fit.parameters()[drift]["value"] != 0


def _curve(
    axes: Axes, factor: Factor, fit: Fit, grid: Mapping[str, np.ndarray], colour: str
) -> None:
    """The law at one size, with its band."""
    ratio = grid[factor.of]
    if len(fit.draws):
        drawn = _effect(fit, fit.draws, factor, grid, grid)
        band = 100 * np.percentile(drawn, (2.5, 97.5), axis=0)
        tint, deep = (BAND, 0.5) if colour == CURVE else (colour, 0.15)
        axes.fill_between(ratio, *band, color=tint, alpha=deep, lw=0, label="95 % band")
    curve = _effect(fit, fit.theta[None], factor, grid, grid)[0]
    axes.plot(ratio, 100 * curve, color=colour, label="law" if colour == CURVE else None)


def _effect(
    fit: Fit,
    theta: np.ndarray,
    factor: Factor,
    columns: Mapping[str, np.ndarray],
    grid: Mapping[str, np.ndarray],
) -> np.ndarray:
    """What a factor adds to the loss, as a share of it, (S, n).

    Bowls and grouped queries have a zero of their own; any other factor is counted from its lowest
    value on the grid, since its scale may be shared with the base.
    """
    logs = fit.law.effect(factor, theta, columns, fit.reference)
    if not isinstance(factor, UShape | GroupedQuery):
        along = fit.law.effect(factor, theta, grid, fit.reference)
        logs = logs - along.min(axis=1, keepdims=True)
    return np.asarray(np.expm1(logs))


def _title(fit: Fit, factor: Factor) -> str:
    if isinstance(factor, UShape):
        found = fit.optima()[factor.of]
        if found["value"] is not None:
            best = f"best at {found['value']:.3g} [{_end(found['low'])}, {_end(found['high'])}]"
            return best + (_drift_title(fit, factor) if _moves(fit, factor) else "")
        return _brief(str(found["status"]))
    first = factor.names[0]
    if factor.optional and first in fit.held:
        why = fit.held[first].why
        return _brief(why if why.startswith("pinned") else f"not resolved: {why}")
    if isinstance(factor, GroupedQuery) and factor.form == "log":
        ends = fit.parameters()[first]
        value, low, high = (100 * np.log(2) * ends[key] for key in ("value", "low", "high"))
        return f"{value:+.2f} % per doubling [{low:+.2f}, {high:+.2f}]"
    return f"moves the loss by {100 * fit.effects[factor.of]['size']:.2f} % over the runs"


def _drift_title(fit: Fit, factor: Factor) -> str:
    """Where the optimum goes as N grows, behind the optimum of the middle of the table."""
    drift = fit.parameters()[f"{factor.of}_drift"]
    return (
        f" at N = {format_count(fit.reference[N])},\nmoves as $N^{{{drift['value']:.2f}}}$ "
        f"[{drift['low']:.2f}, {drift['high']:.2f}]"
    )


def _brief(words: str) -> str:
    return words.split(":")[0] if len(words) > 60 else words


def _end(value: object) -> str:
    return "open" if value is None else f"{value:.3g}"


def _plot_sizes(fit: Fit, rows: pd.DataFrame) -> Figure:
    """A law without shape: measured against predicted loss."""
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.subplots()
    predicted, measured = fit.central(rows), rows["loss"].to_numpy(dtype=float)
    shown = scatter_runs(axes, predicted, measured, rows)
    ends = [min(predicted.min(), measured.min()), max(predicted.max(), measured.max())]
    axes.plot(ends, ends, color=CURVE, lw=1, label="predicted = measured")
    axes.set(xlabel="predicted loss (nats/token)", ylabel="measured loss (nats/token)")
    axes.set_title(headed(fit)[0].upper() + headed(fit)[1:])
    axes.legend()
    if shown is not None:
        colour_scale(figure, [axes], shown, rows)
    return figure


def ending_of(path: Path) -> str:
    """The format that a path's ending asks for: png or svg.

    Raises
    ------
    InputError
        It is neither.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(
            f"a picture's file must end in {' or '.join(ENDINGS)}, but got {path.name!r}; "
            f"write {path.stem or 'picture'}.png"
        )
    return ending[1:]


def save(figure: Figure, path: Path) -> None:
    """Write PNG or SVG, by the file's ending, whole: the same figure gives the same bytes.

    Raises
    ------
    InputError
        The ending is another one.
    WorkError
        The file cannot be written.
    """
    ending = ending_of(path)
    about = {"Software": None} if ending == "png" else {"Date": None, "Creator": None}
    options: dict[str, Any] = {"format": ending, "dpi": 120, "metadata": about}
    with style.context(STYLE, after_reset=True):
        write_whole(path, lambda target: figure.savefig(target, **options))
