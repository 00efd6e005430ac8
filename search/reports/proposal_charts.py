"""Interactive charts of proposals as plotly figures; the extra ``report`` installs plotly."""

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import escape

from shapelaw.scaling.architectures.shape import RATIOS
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.plots.style import (
    BLUE,
    GREEN,
    LABELS,
    focused_range,
    format_number,
    log_ticks,
)
from shapelaw.scaling.runs.columns import N
from shapelaw.search.proposals.proposal import BASELINE
from shapelaw.search.proposals.ranking import differences
from shapelaw.search.reports.html import formatted, signed
from shapelaw.search.reports.pareto_plot import ROLES, front_line

GREY, BAND, RULE = "#8c8c8c", "rgba(0,114,178,0.22)", "rgba(128,128,128,0.5)"  # on white and black
SYMBOLS = ("square", "circle", "diamond", "triangle-up")
MARKS = {
    role: (colour if role != BASELINE else GREY, symbol)
    for (role, (colour, _)), symbol in zip(ROLES.items(), SYMBOLS, strict=True)
}
FONT = {"family": 'system-ui, "DejaVu Sans", sans-serif', "size": 14, "color": "#222"}
CURVE_POINTS = 80
CURVES = (*RATIOS, "num_hidden_layers")
APART = "on the front, if changes not in the law cost no loss"
VALUES_SHOWN = 9  # rows of the table beside a curve
CURVE_MARGIN = 1.6  # factor by which a curve extends beyond the shapes and the fitted range
AGREEMENT_MARGIN = 0.02  # fraction by which the axes of an agreement chart exceed its values


def plotly_script() -> str | None:
    """Return the JavaScript library of plotly, or None where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return str(get_plotlyjs())


def loss_along_ratios(fit: Fit, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predict the loss along each ratio of the law, with all other columns as in the first row.

    Returns
    -------
    For each ratio that the law uses: ``x`` (points,), and the difference from the first row's loss
    in per cent of it: ``central``, ``low`` and ``high``, (points,) each. ``fitted`` is the range of
    the ratio in the runs, None where the fit does not record it.
    """
    base = rows[0]
    fixed = {name: float(base[name]) for name in {*fit.law.columns, "n_total", N} - {"n_active"}}
    fixed["n_active"] = float(base["n_total"])  # proposals are dense models
    curves = []
    for column in (name for name in CURVES if name in fit.law.columns):
        fitted = fit.ranges.get(column)
        ends = [*(float(row[column]) for row in rows), *(fitted or ())]
        x = np.geomspace(min(ends) / CURVE_MARGIN, max(ends) * CURVE_MARGIN, CURVE_POINTS)
        if column in ("gqa", "num_hidden_layers"):
            x = x[x >= 1]
        values = {name: np.full(len(x) + 1, value) for name, value in fixed.items()}
        frame = pd.DataFrame(values | {column: np.append(fixed[column], x)})
        percent = 100 * differences(fit, frame, 0).iloc[1:] / float(fit.expected(frame)[0])
        curves.append(
            {
                "column": column,
                "x": x.tolist(),
                "central": percent["difference_nats"].tolist(),
                "low": percent["difference_nats_low"].tolist(),
                "high": percent["difference_nats_high"].tolist(),
                "fitted": None if fitted is None else list(fitted),
            }
        )
    return curves


def front_chart(rows: list[dict[str, Any]], baseline: str) -> Any:
    """Draw loss against throughput, both relative to the baseline.

    Parameters
    ----------
    rows
        Proposals as :func:`shapelaw.search.reports.proposal_page.shown_row` returns them.
    baseline
        Name of the baseline model in the legend.
    """
    timed = [row for row in rows if row["speedup"] is not None]
    figure = _empty_figure("output tokens/s (× baseline)", "loss difference (%)")
    figure.update_xaxes(tickformat="~g", ticksuffix=" ×")
    named = [row for row in timed if row["role"] in MARKS]
    whiskers = [row[end] for row in named for end in ("low_percent", "high_percent")]
    points = [row["difference_percent"] for row in timed]
    if points:
        figure.update_yaxes(range=focused_range(points, whiskers))
    figure.update_yaxes(tickformat="~g")
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    figure.add_scatter(
        **_coordinates(front_line(timed)), mode="lines", name="Pareto front", hoverinfo="skip",
        line={"color": GREEN, "width": 1.5, "shape": "vh"},
    )  # fmt: skip
    unnamed = [row for row in timed if row["role"] not in MARKS]
    dominated = [row for row in unnamed if not row["on_front"]]
    figure.add_scatter(**_marker_trace("dominated", dominated, GREY, "circle", 8))
    on_front = [row for row in unnamed if row["on_front"] and not row.get("apart")]
    figure.add_scatter(**_marker_trace("on the front", on_front, GREEN, "circle", 9))
    apart = [row for row in unnamed if row["on_front"] and row.get("apart")]
    figure.add_scatter(**_marker_trace(APART, apart, GREEN, "diamond", 9))
    for role, (colour, symbol) in MARKS.items():
        name = f"baseline: {escape(baseline)}" if role == BASELINE else role
        marked = [row for row in named if row["role"] == role]
        trace = _marker_trace(name, marked, colour, symbol, 13)
        figure.add_scatter(**trace, error_y=_error_bars(marked, colour))
    return figure


def ratio_chart(curve: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    """Draw a curve of :func:`loss_along_ratios` with the baseline and the named proposals."""
    x, label = curve["x"], LABELS.get(curve["column"], curve["column"])
    figure = _empty_figure(label, "loss against baseline (%)", showlegend=False)
    places, bands = [row[curve["column"]] for row in rows], [*curve["low"], *curve["high"]]
    near = (np.array(x) >= min(places)) & (np.array(x) <= max(places))
    inside = [*np.array(curve["central"]), *np.array(bands)[np.tile(near, 2)]]
    figure.update_yaxes(range=focused_range(inside, bands))
    ticks = log_ticks(x[0], x[-1], most=6)
    figure.update_xaxes(
        type="log", tickvals=ticks, ticktext=[format_number(tick) for tick in ticks]
    )
    figure.update_yaxes(tickformat="~g")
    figure.add_scatter(
        x=[*x, *reversed(x)], y=[*curve["high"], *reversed(curve["low"])], fill="toself",
        fillcolor=BAND, line={"width": 0}, mode="lines", hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=curve["central"], mode="lines", line={"color": GREY, "width": 2},
        hovertemplate="%{x:.3g}: %{y:+.2f} %<extra></extra>",
    )  # fmt: skip
    for row in rows:
        if row["role"] in MARKS:
            value, (colour, symbol) = row[curve["column"]], MARKS[row["role"]]
            height = float(np.interp(np.log(value), np.log(x), curve["central"]))
            figure.add_scatter(
                x=[value], y=[height], mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 12},
                hovertemplate=f"{row['role']}: %{{x:.3g}}<extra></extra>",
            )  # fmt: skip
    low, high = curve["fitted"] or (x[0], x[-1])
    for left, right in ((x[0], min(low, x[-1])), (max(high, x[0]), x[-1])):
        if left < right:
            figure.add_vrect(left, right, fillcolor="#888", opacity=0.2, line_width=0)
    return figure


def ratio_values(curve: dict[str, Any]) -> pd.DataFrame:
    """Tabulate a curve of :func:`loss_along_ratios` at a few places."""
    places = np.unique(np.linspace(0, len(curve["x"]) - 1, VALUES_SHOWN).round()).astype(int)
    label = LABELS.get(curve["column"], curve["column"])
    return pd.DataFrame(
        {
            label: f"{curve['x'][place]:.3g}",
            "loss against baseline (%)": signed(curve["central"][place]),
            "interval": f"[{signed(curve['low'][place])}, {signed(curve['high'][place])}]",
        }
        for place in places
    )


def agreement_chart(
    names: list[str], x: list[float], y: list[float], labels: tuple[str, str]
) -> Any:
    """Draw the values of two sources against each other, with the line of equality.

    Parameters
    ----------
    names
        Name of each point.
    x, y
        Values of the two sources, (n,) each.
    labels
        Titles of the two axes, with units.
    """
    values = [*x, *y]
    ends = [min(values) * (1 - AGREEMENT_MARGIN), max(values) * (1 + AGREEMENT_MARGIN)]
    figure = _empty_figure(*(str(escape(label)) for label in labels), showlegend=False)
    figure.update_xaxes(range=ends, nticks=6)
    figure.update_yaxes(range=ends, nticks=6)
    figure.add_scatter(
        x=ends, y=ends, mode="lines", hoverinfo="skip",
        line={"color": GREY, "width": 1, "dash": "dot"},
    )  # fmt: skip
    texts = [
        f"{escape(name)}<br>{escape(labels[0])}: {left:,.5g}<br>{escape(labels[1])}: {right:,.5g}"
        for name, left, right in zip(names, x, y, strict=True)
    ]
    figure.add_scatter(
        x=x, y=y, text=texts, mode="markers", marker={"color": BLUE, "size": 9},
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    return figure


def _empty_figure(x: str, y: str, **layout: Any) -> Any:
    """Return a figure without traces; the page's style sheet sets the colours of text and grid."""
    import plotly.graph_objects as go

    axis = {"gridcolor": "#e5e5e5", "zeroline": False, "showline": True, "linecolor": RULE,
            "ticks": "outside", "tickcolor": RULE, "automargin": True}  # fmt: skip
    clear = "rgba(0,0,0,0)"
    hover = {
        "align": "left",
        "bgcolor": "#fff",
        "bordercolor": "#888",
        "font": {**FONT, "size": 13},
    }
    return go.Figure(
        layout={
            "template": "none", "font": FONT, "hovermode": "closest", "hoverlabel": hover,
            "margin": {"l": 62, "r": 14, "t": 12, "b": 52},
            "plot_bgcolor": clear, "paper_bgcolor": clear,
            "xaxis": {**axis, "title": {"text": x, "standoff": 10}},
            "yaxis": {**axis, "title": {"text": y, "standoff": 8}},
            **layout,
        }
    )  # fmt: skip


def _coordinates(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the coordinates of rows and their names, by which the page selects them."""
    return {
        "x": [row["speedup"] for row in rows],
        "y": [row["difference_percent"] for row in rows],
        "customdata": [row["name"] for row in rows],
    }


def _marker_trace(
    name: str, rows: list[dict[str, Any]], colour: str, symbol: str, size: int
) -> dict[str, Any]:
    """Describe a trace of markers, hollow where the speed is from the time model."""
    symbols = [f"{symbol}-open" if row["estimated"] else symbol for row in rows]
    line = {"color": colour, "width": 1.6}
    return {
        **_coordinates(rows), "mode": "markers", "name": name,
        "text": [_hover_text(row) for row in rows],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "size": size, "symbol": symbols, "line": line},
    }  # fmt: skip


def _error_bars(rows: list[dict[str, Any]], colour: str) -> dict[str, Any]:
    """Describe error bars over the 95 % intervals of the loss differences."""
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1.2, "width": 4,
        "array": [row["high_percent"] - row["difference_percent"] for row in rows],
        "arrayminus": [row["difference_percent"] - row["low_percent"] for row in rows],
    }  # fmt: skip


def _hover_text(row: dict[str, Any]) -> str:
    """Describe a proposal in the markup of plotly's labels; texts from files are escaped."""
    lines = [
        f"<b>{escape(row['name'])}</b>",
        str(escape(row["place"])),
        f"loss {row['predicted_loss']:.4f} [{row['loss_low']:.4f}, {row['loss_high']:.4f}] "
        f"{row['unit']}",
        f"against baseline {row['difference_text']} {row['interval_text']}",
        f"{row['throughput']:,.0f} tokens/s, {formatted('times', row['speedup'])} baseline",
        str(escape(row["source"])),
        f"TTFT {formatted('seconds', row['ttft'])}, TPOT {formatted('seconds', row['tpot'])}",
        f"N {formatted('count', row['n_non_embedding'])}, KV cache "
        f"{formatted('bytes', row['kv_bytes'])}/token, "
        f"weights {formatted('bytes', row['weight_bytes'])}",
    ]
    if row["accuracy_text"]:
        lines.append(f"accuracy {row['accuracy_text']} {row['accuracy_interval']}")
    if row["why"]:
        lines.append(f"<i>{escape(row['why'])}</i>")
    return "<br>".join(lines)
