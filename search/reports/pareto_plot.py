"""Figure of proposals: predicted and measured loss against throughput."""

from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from shapelaw.scaling.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    VERMILLION,
    focused_range,
    plain_text,
    styled,
)
from shapelaw.search.engines._base import TIME_MODEL
from shapelaw.search.proposals.proposal import BASELINE, CANDIDATE, EVEN, FAST, LOSS_OPTIMAL

ROLES = {
    BASELINE: ("#555555", "s"),
    LOSS_OPTIMAL: (BLUE, "o"),
    FAST: (VERMILLION, "D"),
    EVEN: (ORANGE, "^"),
}
FRONT_COLOUR = GREEN
OTHER_COLOUR = "#a0a0a0"
NARROW = 4.4  # width of a picture for phones, inches
LETTERS_PER_INCH = 12  # in a title


@styled
def plot_pareto(
    rows: list[dict[str, Any]],
    confirmed: pd.DataFrame,
    *,
    baseline_name: str,
    workload: str,
    unit: str = "nats/token",
    width: float = 7.6,
) -> Figure:
    """Draw loss against output tokens per second, with the front and the named proposals.

    Parameters
    ----------
    rows
        Proposals in the format of ``proposals.json``.
    confirmed
        Confirmatory runs: ``name`` of the proposal and measured ``loss``; may be empty.
    baseline_name
        Name of the baseline model in the legend.
    workload
        Second line of the title.
    unit
        Unit of the losses.
    width
        Width of the figure, inches.
    """
    table = pd.DataFrame(rows)
    table = table[table["throughput"].notna()]
    figure = Figure(figsize=(width, 6.0), layout="constrained")
    axes = figure.subplots()
    _draw_other_proposals(axes, table[~table["role"].isin(ROLES)])
    line = [(row["throughput"], row["predicted_loss"]) for row in front_line(rows)]
    axes.plot(
        *zip(*line, strict=True), color=FRONT_COLOUR, lw=1.5, drawstyle="steps-pre",
        label="Pareto front, predicted", zorder=1,
    )  # fmt: skip
    named = table[table["role"].isin(ROLES)]
    measured = confirmed[confirmed["name"].isin(named["name"])] if len(confirmed) else confirmed
    points = [*table["predicted_loss"], *(measured["loss"] if len(measured) else ())]
    bottom, top = focused_range(points, [*named["loss_low"], *named["loss_high"]])
    axes.set_ylim(bottom, top)
    for role, (colour, marker) in ROLES.items():
        for row in named[named["role"] == role].to_dict("records"):
            title = f"{role} ({plain_text(baseline_name)})" if role == BASELINE else role
            title += ", predicted ± 95 %"
            if row["loss_low"] < bottom or row["loss_high"] > top:
                title += f" ({row['loss_low']:.3g} to {row['loss_high']:.3g}, cut)"
            _draw_named_proposal(axes, row, measured, colour, marker, title)
    axes.set_ylabel(f"held-out loss ({unit})")
    _format_throughputs(axes, most=round(width))
    axes.grid(alpha=0.25)
    kinds = plain_text(", ".join(sorted(table["throughput_kind"].unique())))
    title = fill(plain_text(workload), width=round(LETTERS_PER_INCH * width))
    axes.set_title(f"Loss against throughput ({kinds})\n{title}", fontsize=10)
    columns = 2 if width > NARROW else 1
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=columns)
    return figure


def front_line(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the proposals that the line of the front joins, from slow to fast.

    A shape that is on the front only if changes not in the law cost no loss is not joined: it would
    lie below the line.
    """
    timed = [row for row in rows if row["on_front"] and row["throughput"] is not None]
    joined = [row for row in timed if not row.get("apart")]
    return sorted(joined, key=lambda row: float(row["throughput"]))


def describe_pareto(rows: list[dict[str, Any]], unit: str) -> str:
    """Describe the picture of loss against throughput in words, for readers who cannot see it."""
    named = [row for row in rows if row["role"] in ROLES and row["throughput"] is not None]
    places = "; ".join(
        f"{row['role']} {row['name']}: loss {row['predicted_loss']:.4f}, "
        f"{row['throughput']:,.0f} tokens/s"
        for row in named
    )
    return f"Loss ({unit}) against throughput (tokens/s) of {len(rows)} proposals. {places}"


def _format_throughputs(axes: Axes, most: int) -> None:
    """Give the horizontal axis whole tokens/s on a log scale, with about so many labels at most."""
    axes.set_xlabel("output tokens per second (log scale)")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_other_proposals(axes: Axes, others: pd.DataFrame) -> None:
    """Draw proposals without one of the roles of the legend, hollow where a speed is estimated."""
    hollow = others["throughput_kind"] == TIME_MODEL
    for kind, group in (("", others[~hollow]), (", speed by the time model", others[hollow])):
        if len(group):
            axes.scatter(
                group["throughput"], group["predicted_loss"], s=26, lw=1.2, edgecolors=OTHER_COLOUR,
                facecolors="none" if kind else OTHER_COLOUR,
                label=f"other proposals, predicted{kind}",
            )  # fmt: skip
    for row in others[others["role"] != CANDIDATE].to_dict("records"):
        place = (row["throughput"], row["predicted_loss"])
        axes.annotate(
            plain_text(row["role"]), place, xytext=(0, -13), textcoords="offset points", fontsize=9,
            ha="center", color="#444444",
        )  # fmt: skip


def _draw_named_proposal(
    axes: Axes,
    row: dict[Any, Any],
    confirmed: pd.DataFrame,
    colour: str,
    marker: str,
    title: str,
) -> None:
    """Draw a proposal with its intervals, and its measured loss as a hollow mark."""
    speed = row["throughput"]
    below = row["predicted_loss"] - row["loss_low"]
    above = row["loss_high"] - row["predicted_loss"]
    width = [[speed - row["throughput_low"]], [row["throughput_high"] - speed]]
    height = np.maximum([[below], [above]], 0.0)
    axes.errorbar(
        [speed], [row["predicted_loss"]], yerr=height, xerr=np.maximum(width, 0.0),
        color=colour, marker=marker, ms=8, capsize=3, lw=1.2, label=title,
    )  # fmt: skip
    measured = confirmed[confirmed["name"] == row["name"]] if len(confirmed) else confirmed
    if len(measured):
        axes.plot(
            [speed], [measured["loss"].iloc[0]], color=colour, marker=marker, ms=11, lw=0,
            mfc="none", mew=1.8, label=f"{row['role']}, measured",
        )  # fmt: skip
