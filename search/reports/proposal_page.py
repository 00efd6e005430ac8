"""The page of a folder of proposals: interactive with plotly, static without it.

Everything comes from ``proposals.json`` and ``fit.json`` (and ``runs.csv``, where some proposals
were trained). The page is one file that loads nothing; what stands in files enters it as text.
"""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import RATIOS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.scaling.files import write_text
from shapelaw.scaling.fitting.result import LEVEL, Fit
from shapelaw.scaling.plots.style import LABELS, log_ticks, save
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import load_runs
from shapelaw.scaling.units import format_count
from shapelaw.search.proposals.proposal import SHAPE_KEY, read_proposals
from shapelaw.search.proposals.reasons import of_the_budget, plainly
from shapelaw.search.reports import pareto_plot
from shapelaw.search.reports.html import STATIC, bullets, picture, table

PAGES = Path(__file__).parent / "pages"
INSTALL = (
    f"this page does not move: plotly is not installed (`{installing('plotly')}`, "
    "then write it again with `shapelaw report`)"
)
POINTS = 80
CURVES = (*RATIOS, "num_hidden_layers")
AROUND = 1.6  # how far beyond the shapes and the fitted range a curve goes, as a factor


def write_pages(folder: Path) -> Path:
    """Write ``pareto.png``, ``pareto.svg`` and ``report.html``; returns the path of the last.

    Raises
    ------
    InputError
        ``proposals.json`` or ``fit.json`` is missing or damaged.
    """
    rows, about = read_proposals(folder / "proposals.json")
    fitted = Fit.load(folder / "fit.json")
    confirmed = _confirmed(folder, rows)
    figure = pareto_plot.plot_pareto(
        rows,
        confirmed,
        baseline_name=str(about.get("baseline", "baseline")),
        workload=str(about.get("workload", "")),
    )
    for ending in ("png", "svg"):
        save(figure, folder / f"pareto.{ending}")
    library = plotly_script()
    path = folder / "report.html"
    if library is None:
        write_text(path, _static(folder, rows, about))
    else:
        write_text(path, _moving(folder, rows, about, fitted, confirmed, library))
    return path


def plotly_script() -> str | None:
    """The JavaScript of plotly, or None where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return str(get_plotlyjs())


def one_at_a_time(fit: Fit, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The law along each ratio, the rest as the first row has it.

    Returns
    -------
    For each ratio that the law uses: ``x`` (points,), and per cent of loss over the first row's:
    ``central``, ``low``, ``high``; ``fitted`` is the range of the runs, None where not known.
    """
    found = []
    for column in (name for name in CURVES if name in fit.law.columns):
        values = [float(row[column]) for row in rows]
        fitted = fit.ranges.get(column)
        low, high = min(values), max(values)
        if fitted is not None:
            low, high = min(low, fitted[0]), max(high, fitted[1])
        x = np.geomspace(low / AROUND, high * AROUND, POINTS)
        if column in ("gqa", "num_hidden_layers"):
            x = x[x >= 1]
        everything = {name: _repeated(rows[0], name, len(x) + 1) for name in _needed(fit)}
        everything[column] = np.append(values[0], x)
        program = fit.law.program(fit.columns(everything), fit.reference)
        central = program.log_loss(fit.theta[None])
        spread = program.log_loss(fit.spread)
        own = 100 * np.expm1(central[0, 1:] - central[0, 0])
        ends = [(100 - LEVEL) / 2, (100 + LEVEL) / 2]
        around = 100 * np.expm1(np.percentile(spread[:, 1:] - spread[:, [0]], ends, axis=0))
        found.append(
            {
                "column": column,
                "label": LABELS.get(column, column),
                "x": x.tolist(),
                "central": own.tolist(),
                "low": np.minimum(around[0], own).tolist(),
                "high": np.maximum(around[1], own).tolist(),
                "fitted": None if fitted is None else list(fitted),
                "ticks": log_ticks(float(x[0]), float(x[-1]), most=6),
            }
        )
    return found


def _needed(fit: Fit) -> list[str]:
    return [*fit.law.columns, "n_total", "n_active", N]


def _repeated(row: dict[str, Any], name: str, times: int) -> np.ndarray:
    own = {"n_active": "n_total"}.get(name, name)  # a dense model
    return np.full(times, float(row[own]))


def _confirmed(folder: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Proposals that were trained: name, predicted and measured loss."""
    empty = pd.DataFrame({"name": [], "predicted": [], "loss": []})
    if not (folder / "runs.csv").exists():
        return empty
    runs = load_runs(folder / "runs.csv")
    wanted = [*SHAPE_KEY, D, "loss"]
    if not set(wanted) <= set(runs.columns):
        return empty
    own = pd.DataFrame(rows)[["name", "predicted_loss", D, *SHAPE_KEY]]
    joined = own.merge(runs[wanted], on=list(SHAPE_KEY), suffixes=("", "_run"))
    same = np.abs(joined[D] / joined[f"{D}_run"] - 1) < 0.02
    trained: pd.DataFrame = joined[same].rename(columns={"predicted_loss": "predicted"})
    return trained[list(empty.columns)]


def _moving(
    folder: Path,
    rows: list[dict[str, Any]],
    about: dict[str, Any],
    fitted: Fit,
    confirmed: pd.DataFrame,
    library: str,
) -> str:
    data = {
        "rows": [row | {"beyond": beyond(row)} for row in rows],
        "baseline": about.get("baseline", "baseline"),
        "engine": about.get("engine", "the engine"),
        "time_model": about.get("time_model"),
        "curves": one_at_a_time(fitted, rows),
        "confirmed": [
            {"name": name, "predicted": float(predicted), "measured": float(loss)}
            for name, predicted, loss in confirmed.itertuples(index=False)
        ],
    }
    noise = 100 * float(about.get("noise", fitted.noise)) * np.sqrt(2) * 1.96
    parts = {
        **_words(rows, about),
        "noise": f"{noise:.2f}\u00a0% at 95\u00a0%",
        "picture": picture(folder / "pareto.png", "Loss against throughput"),
        "data": as_script(data),
        "script": (PAGES / "proposals.js").read_text(encoding="utf-8"),
        "plotly": library,
    }
    page = (PAGES / "proposals.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text)
    return page


def as_script(document: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(document, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def beyond(row: dict[str, Any]) -> list[str]:
    """Warnings of one row that are not about the budget, which are said once."""
    return [plainly(words) for words in row["warnings"] if not of_the_budget(words)]


def _words(rows: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, str]:
    """Texts of the page, escaped."""
    size, tokens = about.get("parameters"), about.get("tokens")
    if not size or not tokens:
        raise InputError("proposals.json lacks `parameters` and `tokens`; run `shapelaw propose`")
    shapes = about.get("shapes") or {}
    title = f"Which shape for {format_count(size)} parameters and {format_count(tokens)} tokens?"
    lead = (
        f"{about.get('engine', 'unknown engine')}, {about.get('workload', 'unknown workload')}; "
        f"against {about.get('baseline', 'a baseline')}"
    )
    footer = (
        f"{shapes.get('considered', 0):,} of the {shapes.get('enumerated', 0):,} shapes of the "
        f"budget were considered; {len(rows)} are shown. N counts "
        f"{about.get('convention', 'non-embedding')} parameters."
    )
    notes = [*map(plainly, about.get("extrapolation", [])), *about.get("notes", [])]
    basis = f"The losses rest on: {about.get('basis', 'an unknown law')}."
    return {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "basis": html.escape(basis),
        "footer": html.escape(footer),
        "notes": bullets([str(note) for note in notes]),
    }


def _static(folder: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The same in words and one picture, for those without plotly."""
    base = rows[0]
    shown = pd.DataFrame(
        [
            {
                "role": row["role"] + (", front" if row["on_front"] else ""),
                "shape": row["name"],
                "N": format_count(row["n_non_embedding"]),
                "loss difference": f"{100 * row['difference'] / base['predicted_loss']:+.2f} %",
                "predicted loss": (
                    f"{row['predicted_loss']:.4f} [{row['loss_low']:.4f}, {row['loss_high']:.4f}]"
                ),
                "× baseline": "–" if row["speedup"] is None else f"{row['speedup']:.2f}",
                "tokens/s": (
                    "–"
                    if row["throughput"] is None
                    else f"{row['throughput']:,.0f} ({row['throughput_kind']})"
                ),
                "KV bytes/token": f"{row['kv_bytes']:,}",
                "why": row["why"],
                "beyond the runs": "; ".join(beyond(row)),
            }
            for row in rows
        ]
    )
    return STATIC.substitute(
        **_words(rows, about),
        picture=picture(folder / "pareto.png", "Loss against throughput"),
        proposals=table(shown),
        install=html.escape(INSTALL),
    )
