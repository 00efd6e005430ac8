"""Figure of a comparison: differences of loss with intervals, and speeds beside them."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shapelaw.scaling.plots.style import (
    BAND,
    BLUE,
    COLOURS,
    CURVE,
    GREEN,
    MARKERS,
    VERMILLION,
    add_legend,
    focused_range,
    plain_text,
    styled,
)
from shapelaw.scaling.units import format_count
from shapelaw.search.families.comparison import HIGHER, LOWER, FamilyComparison
from shapelaw.search.families.rates import LOSS_AT

HEIGHT = 0.3  # of a family, inches
VERDICT_COLOURS = {LOWER: GREEN, HIGHER: VERMILLION}
PANELS = {
    "training_tokens_per_second": "training tokens/s",
    "decode_tokens_per_second": "decoded tokens/s",
}


@styled
def plot_families(result: FamilyComparison) -> Figure:
    """Draw the difference of loss of every family to the baseline, and its speeds where known.

    Green and red intervals are verdicts after the correction for many comparisons; the grey band is
    the resolution, within which no difference can be shown.
    """
    table = result.table.iloc[::-1].reset_index(drop=True)
    speeds = [name for name in PANELS if table[name].notna().any()]
    figure = Figure(
        figsize=(5.2 + 2.2 * len(speeds), 1.4 + HEIGHT * len(table)), layout="constrained"
    )
    widths = [2.6, *[1.0] * len(speeds)]
    drawn = figure.subplots(1, 1 + len(speeds), sharey=True, squeeze=False, width_ratios=widths)[0]
    drawn[0].set_ylim(-0.6, len(table) - 0.4)
    _draw_differences(drawn[0], result, np.arange(len(table)))
    for axes, name in zip(drawn[1:], speeds, strict=True):
        axes.barh(np.arange(len(table)), table[name], color=BLUE, height=0.6)
        axes.set_xlabel(PANELS[name])
    drawn[0].set_yticks(
        np.arange(len(table)), [f"{row.family} ({row.runs})" for row in table.itertuples()]
    )
    add_legend(figure, [drawn[0]])
    sizes = table["n_active_non_embedding"]
    figure.suptitle(
        f"Loss of families at {format_count(float(sizes.median()))} active parameters and "
        f"{format_count(result.tokens)} tokens (runs in brackets)"
    )
    return figure


def _draw_differences(axes: Axes, result: FamilyComparison, places: np.ndarray) -> None:
    """Draw one interval per family, the baseline at 0 and the band of the resolution."""
    table = result.table.iloc[::-1].reset_index(drop=True)
    half = result.resolution_percent
    axes.axvspan(-half, half, color=BAND, alpha=0.35, lw=0, label=f"resolution ±{half:.2g} %")
    axes.axvline(0, color=CURVE, lw=1)
    for place, row in zip(places, table.to_dict("records"), strict=True):
        colour = VERDICT_COLOURS.get(row["verdict"], CURVE)
        axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=1.8)
        axes.plot(row["difference_percent"], place, "o", color=colour, ms=5)
    points = table["difference_percent"].dropna()
    low, high = focused_range(
        [*points, -half, half], [*table["low"].dropna(), *table["high"].dropna()]
    )
    axes.set_xlim(low, high)
    axes.set_xlabel(f"difference of loss to {result.baseline}, % (95 % interval)")


@styled
def plot_rates(rates: pd.DataFrame) -> Figure:
    """Draw the loss of every family at each learning rate that was tried, best family on top.

    Parameters
    ----------
    rates
        Table of :func:`shapelaw.search.families.rates.rates_of_rows`.
    """
    table = rates.iloc[::-1].reset_index(drop=True)
    columns = [name for name in table if str(name).startswith(LOSS_AT)]
    figure = Figure(figsize=(7.0, 1.4 + HEIGHT * len(table)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table))
    axes.hlines(places, table[columns].min(axis=1), table[columns].max(axis=1), color=BAND, lw=1.5)
    for name, colour, marker in zip(columns, COLOURS, MARKERS, strict=False):
        axes.scatter(
            table[name], places, color=colour, marker=marker, s=30, zorder=3,
            label=f"learning rate {str(name).removeprefix(LOSS_AT)}",
        )  # fmt: skip
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_yticks(places, [plain_text(str(name)) for name in table["family"]])
    axes.set_xlabel("held-out loss of one run (nats per token)")
    add_legend(figure, [axes])
    return figure
