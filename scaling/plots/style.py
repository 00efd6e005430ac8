"""Style of all figures: colours, panels, axes, legends, and the writing of files.

Colours are those of Okabe and Ito, which people with any colour vision can distinguish; sizes also
differ by marker. Figures are made without pyplot, so no figure stays open and no display is needed.
"""

from collections.abc import Callable, Sequence
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
from numpy.typing import ArrayLike

from shapelaw.scaling.display.printable import printable
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import level_of
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import format_count, kind_mark, short_unit

LABELS = {
    "hidden_over_sqrt_n": "hidden size / √N",
    "mlp_to_attention": "MLP / attention parameters",
    "gqa": "query heads per KV head",
    "num_hidden_layers": "layers",
    "head_dim": "head dimension",
    "hidden_size": "hidden size",
    "aspect_ratio": "hidden size / layers",
    "best_loss": "best loss at N and D",
    D: "D (training tokens)",
}
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE = "#CC79A7", "#E69F00"
COLOURS, MARKERS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE), ("o", "s", "^", "D", "v")
CURVE, BAND, SCALE = "#333333", "#bbbbbb", "viridis"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so all machines have the same font
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
    "svg.hashsalt": "shapelaw",  # identifiers in an SVG are otherwise random
}
ENDINGS = (".png", ".svg")
DIGITS = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,))  # leading digits of ticks
LEVEL_TOLERANCE = 0.2  # relative difference between sizes of one entry of a legend, at most
Arguments = ParamSpec("Arguments")
Form = Callable[[float], str]


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Wrap a function so that its figures have the project's style, not a notebook's."""

    @wraps(draw)
    def draw_styled(*arguments: Arguments.args, **named: Arguments.kwargs) -> Figure:
        with style.context(STYLE, after_reset=True):
            return draw(*arguments, **named)

    return draw_styled


def plain_text(text: str) -> str:
    """Return text that matplotlib draws as it is: dollar signs begin no formula."""
    return printable(text.replace("$", r"\$"))


def panels(
    count: int, *, across: int = 3, size: tuple[float, float] = (4.2, 3.4), share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Make a figure of equal panels, row by row.

    Parameters
    ----------
    count
        The number of panels.
    across
        The largest number of panels in a row.
    size
        Width and height of a panel, inches.
    share
        Give all panels the same y axis.
    """
    across = min(count, across)
    down = -(-count // across)
    figure = Figure(figsize=(size[0] * across, size[1] * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, sharey=share, squeeze=False).ravel()
    for empty in grid[count:]:
        empty.remove()
    return figure, list(grid[:count])


def add_legend(figure: Figure, drawn: Sequence[Axes]) -> None:
    """Add one legend under all panels, with each entry once."""
    entries: dict[str, Artist] = {}
    for axes in drawn:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        # A letter of the legend is about a twelfth of an inch wide, its handle half an inch.
        width = 0.55 + max(len(label) for label in entries) / 12
        columns = min(len(entries), max(1, int(figure.get_figwidth() / width)))
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns
        )  # fmt: skip


def axis_label(fit: Fit, column: str) -> str:
    """Write the axis label of a column with its unit, and the size convention of N."""
    label = LABELS.get(column, column)
    if column == N:
        label = f"N ({fit.size_convention} parameters)"
    return f"{label} ({short_unit(fit.loss_unit)})" if column == "best_loss" else label


def runs_for_fit(fit: Fit, runs: RunTable | pd.DataFrame) -> RunTable:
    """Count N of the runs by the fit's convention, and refuse a table that cannot be drawn.

    Parameters
    ----------
    fit
        The fitted law.
    runs
        The runs to draw.

    Raises
    ------
    InputError
        The table has no rows, or lacks the loss or a column of the law.
    """
    runs = fit.count_as_fitted(runs)
    runs.law_columns(("loss", *fit.law.columns))
    if not len(runs):
        raise InputError(
            "a figure needs at least one run, but the run table has no rows; keep some rows"
        )
    return runs


def format_number(value: float) -> str:
    """Format a number of an axis with at most four digits.

    Examples
    --------
    >>> format_number(0.15), format_number(2143.4), format_number(1e21)
    ('0.15', '2143', '1e21')
    """
    return f"{value:.4g}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Choose at most ``most`` round ticks of a logarithmic axis; even steps for close ends.

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
    axes: Axes, which: str, low: float, high: float, *, form: Form = format_number, most: int = 7
) -> None:
    """Make an axis logarithmic, with plain numbers that do not overlap.

    Parameters
    ----------
    axes
        The axes of the panel.
    which
        ``x`` or ``y``.
    low, high
        The ends of the axis.
    form
        A function that formats a number.
    most
        The largest number of ticks.
    """
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(log_ticks(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def focused_range(points: ArrayLike, ends: ArrayLike = ()) -> tuple[float, float]:
    """Return the ends of an axis that shows all points, and of wide intervals only a part.

    One interval that is much wider than the points differ would flatten the picture, so intervals
    extend the axis on each side by at most the extent of the points.

    Parameters
    ----------
    points
        Values that must be seen, at least one.
    ends
        Ends of intervals.

    Examples
    --------
    >>> focused_range([0, 1]), focused_range([0, 1], [-50, 1.5])
    ((-0.05, 1.05), (-1.125, 1.625))
    """
    shown = np.asarray(points, dtype=float)
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    room = high - low if high > low else np.inf
    every = np.concatenate([shown, np.asarray(ends, dtype=float)])
    bottom = max(float(np.nanmin(every)), low - room)
    top = min(float(np.nanmax(every)), high + room)
    pad = 0.05 * (top - bottom) or 0.05 * abs(top) or 1.0
    return bottom - pad, top + pad


def column_format(column: str) -> Form:
    """Choose the number format of a column: counts have a suffix, other numbers are plain."""
    return format_count if column in (N, D) else format_number


def scatter_runs(axes: Axes, x: np.ndarray, y: np.ndarray, runs: RunTable) -> ScalarMappable | None:
    """Draw runs, with one colour and marker for each size, or with a colour scale for many sizes.

    Where the table has no N, colours are by tokens; where it has neither, all runs have one colour.

    Returns
    -------
    The points of a colour scale, for :func:`add_colour_scale`; None where there is no scale.
    """
    if not runs.has_sizes and D not in runs:
        axes.scatter(x, y, s=34, color=BLUE, label="runs", zorder=3, lw=0)
        return None
    sizes = runs.sizes if runs.has_sizes else runs.tokens
    levels = size_levels(sizes)
    if levels is None:
        return axes.scatter(x, y, s=26, c=sizes, norm=LogNorm(), cmap=SCALE, zorder=3, lw=0)
    letter = "N" if runs.has_sizes else "D"
    for level, colour, marker in zip(np.unique(levels), COLOURS, MARKERS, strict=False):
        rows = levels == level
        label = f"{letter} ≈ {format_count(float(np.exp(np.log(sizes[rows]).mean())))}"
        axes.scatter(
            x[rows], y[rows], s=34, color=colour, marker=marker, label=label, zorder=3, lw=0
        )  # fmt: skip
    return None


def size_levels(sizes: np.ndarray) -> np.ndarray | None:
    """Group sizes into levels of at most 20 %.

    Parameters
    ----------
    sizes
        N or D of every run, (n,).

    Returns
    -------
    The level of every run, (n,), or None where there are too many levels for a legend.
    """
    levels = level_of(sizes, LEVEL_TOLERANCE)
    return levels if levels.max() < len(COLOURS) else None


def add_colour_scale(
    figure: Figure, drawn: Sequence[Axes], points: ScalarMappable | None, runs: RunTable
) -> None:
    """Draw the colour scale of sizes beside all panels; nothing where ``points`` is None."""
    if points is None:
        return
    label = "N (parameters)" if runs.has_sizes else "D (tokens)"
    form = FuncFormatter(lambda size, _: format_count(size))
    bar = figure.colorbar(points, ax=list(drawn), label=label, format=form, pad=0.01)
    sizes = runs.sizes if runs.has_sizes else runs.tokens
    bar.set_ticks(log_ticks(float(sizes.min()), float(sizes.max())))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def fit_title(fit: Fit) -> str:
    """Describe a fit by the name of its law and its number of runs, for titles."""
    name = f"the {fit.law_name} law" if len(fit.law_name) < 30 else "a composed law"
    return f"{name} on {counted(len(fit.run_ids), 'run')}{kind_mark(fit.loss_kind)}"


def ending_of(path: Path) -> str:
    """Return the format of a figure's file by the ending of its path: png or svg.

    Raises
    ------
    InputError
        The path has another ending.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InputError(
            f"a figure's file must end in {' or '.join(ENDINGS)}, but got {path.name!r}; "
            f"write {path.stem or 'figure'}.png"
        )
    return ending[1:]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG; the same figure gives the same bytes.

    Parameters
    ----------
    figure
        The figure.
    path
        A file that ends in ``.png`` or ``.svg``; its folder is created. The file is replaced as a
        whole.

    Raises
    ------
    InputError
        The path has another ending.
    WorkError
        The file cannot be written.
    """
    ending = ending_of(path)
    metadata = {"Software": None} if ending == "png" else {"Date": None, "Creator": None}
    options: dict[str, Any] = {"format": ending, "dpi": 120, "metadata": metadata}
    with style.context(STYLE, after_reset=True):
        write_whole(path, lambda target: figure.savefig(target, **options))
