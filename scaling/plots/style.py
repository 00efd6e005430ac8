"""One style for every picture, and the first: loss against each shape ratio, with curve and band.

Colours are those of Okabe & Ito, which people with any colour vision tell apart; sizes also differ
by marker. Figures are made without pyplot, so nothing stays open and no display is needed.
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

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_whole
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
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
PURPLE, ORANGE = "#CC79A7", "#E69F00"
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


def runs_for_fit(fit: Fit, runs: RunTable | pd.DataFrame) -> RunTable:
    """Count N of the runs as the fit does, and refuse a table that cannot be drawn.

    Raises
    ------
    InputError
        The table has no rows, or lacks the loss or a column of the law.
    """
    runs = fit.count_as_fitted(runs)
    runs.law_columns(("loss", *fit.law.columns))
    if not len(runs):
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


def scatter_runs(axes: Axes, x: np.ndarray, y: np.ndarray, runs: RunTable) -> ScalarMappable | None:
    """Draw runs, one colour and marker for each size; a scale for many sizes, which is returned.

    Where the table has no N, tokens stand in for it; where it has neither, all runs look the same.
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
        own = levels == level
        label = f"{letter} ≈ {format_count(float(np.exp(np.log(sizes[own]).mean())))}"
        axes.scatter(
            x[own], y[own], s=34, color=colour, marker=marker, label=label, zorder=3, lw=0
        )  # fmt: skip
    return None


def size_levels(sizes: np.ndarray) -> np.ndarray | None:
    """Number the sizes, (n,), parted by gaps of 20 %; None where they are too many to name."""
    order = np.argsort(sizes, kind="stable")
    logs = np.log(sizes[order])
    levels = np.empty(len(sizes), dtype=int)
    levels[order] = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log(APART))])
    widest = max(np.ptp(np.log(sizes[levels == level])) for level in np.unique(levels))
    return levels if levels.max() < len(COLOURS) and widest <= np.log(WIDE) else None


def colour_scale(
    figure: Figure, drawn: Sequence[Axes], shown: ScalarMappable | None, runs: RunTable
) -> None:
    """Draw the scale of sizes beside all panels, where the runs have one."""
    if shown is None:
        return
    label = "N (parameters)" if runs.has_sizes else "D (tokens)"
    form = FuncFormatter(lambda size, _: format_count(size))
    bar = figure.colorbar(shown, ax=list(drawn), label=label, format=form, pad=0.01)
    sizes = runs.sizes if runs.has_sizes else runs.tokens
    bar.set_ticks(log_ticks(float(sizes.min()), float(sizes.max())))
    bar.ax.yaxis.set_minor_locator(NullLocator())


def headed(fit: Fit) -> str:
    """The law and its runs in a few words; an expression has no name to print."""
    name = f"the {fit.law_name} law" if len(fit.law_name) < 30 else "a composed law"
    return f"{name} on {counted(len(fit.run_ids), 'run')}"


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


def save_figure(figure: Figure, path: Path) -> None:
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
