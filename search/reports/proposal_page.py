"""Report page of a folder of proposals: interactive with plotly, a static picture without it.

The page shows ``proposals.json`` and ``fit.json``, and ``runs.csv`` where some proposals were
trained. The page is one file without external resources; texts from files are escaped.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.scaling.files import write_text
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.plots.style import LABELS, save_figure
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.units import format_count, short_unit
from shapelaw.search.engines._base import TIME_MODEL
from shapelaw.search.proposals.probabilities import NO_SPREAD
from shapelaw.search.proposals.proposal import (
    BASELINE,
    CANDIDATE,
    EQUIVALENT,
    FAST,
    SHAPE_KEY,
    read_proposals,
)
from shapelaw.search.proposals.reasons import concerns_budget, format_warning
from shapelaw.search.reports.html import Picture, formatted, render, signed
from shapelaw.search.reports.pareto_plot import NARROW, describe_pareto, plot_pareto
from shapelaw.search.reports.proposal_charts import (
    APART,
    agreement_chart,
    front_chart,
    loss_along_ratios,
    plotly_script,
    ratio_chart,
    ratio_values,
)
from shapelaw.search.reports.recommendation import recommend_proposal

INSTALL = (
    "The chart is a static picture because plotly is not installed: install it with "
    f"`{installing('plotly')}`, then write this page again with `shapelaw report FOLDER`."
)
MAX_TOKENS_DIFFERENCE = 0.02  # relative, between a proposal and the run that trained it
# Half of the 95 % interval of a difference of two runs, over the noise of one run.
HALF_INTERVAL_OF_DIFFERENCE = 1.96 * np.sqrt(2)
COMPARED = {  # label -> field that is compared with the baseline's, and its format
    "N (non-embedding parameters)": ("n_non_embedding", "count"),
    "layers": ("num_hidden_layers", "whole"),
    "hidden size": ("hidden_size", "whole"),
    "MLP width": ("intermediate_size", "whole"),
    "query heads": ("num_attention_heads", "whole"),
    "KV heads": ("num_key_value_heads", "whole"),
    "head dimension": ("head_dim", "whole"),
    "d/√N": ("hidden_over_sqrt_n", "ratio"),
    "MLP/attention parameters": ("mlp_to_attention", "ratio"),
    "query heads per KV head": ("gqa", "ratio"),
    "training tokens": ("tokens", "count"),
    "predicted loss ({unit})": ("predicted_loss", "loss"),
    "P(less loss than the baseline)": ("p_less_loss", "probability"),
    "P(faster than the baseline)": ("p_faster", "probability"),
    "P(least loss of the allowed shapes)": ("p_best", "probability"),
    "spread over law forms ({unit})": ("loss_form_spread", "loss"),
    "FLOPs of training and serving": ("lifetime_flops", "ratio"),
    "training speed at equal FLOP/s": ("training_speedup", "times"),
    "throughput (output tokens/s)": ("throughput", "whole"),
    "time to first token": ("ttft", "seconds"),
    "time per output token": ("tpot", "seconds"),
    "KV cache per token": ("kv_bytes", "bytes"),
    "weights": ("weight_bytes", "bytes"),
}


def write_pages(folder: Path) -> Path:
    """Write ``pareto.png``, ``pareto.svg`` and ``report.html``; return the path of the last.

    Raises
    ------
    InputError
        ``proposals.json`` or ``fit.json`` is missing or damaged.
    """
    rows, about = read_proposals(folder / "proposals.json", for_page=True)
    fitted = Fit.load(folder / "fit.json")
    if unknown := set(fitted.law.columns) - {"n_active", *rows[0]}:
        raise InputError(
            f"{folder}/proposals.json must have the columns of the law in fit.json, but lacks "
            f"{', '.join(sorted(unknown))}; write both again with `shapelaw propose --out`"
        )
    trained = trained_proposals(folder, rows)
    baseline, workload = str(about.get("baseline", "baseline")), str(about.get("workload", ""))
    unit = short_unit(fitted.loss_unit)
    draw = partial(plot_pareto, rows, trained, baseline_name=baseline, workload=workload, unit=unit)
    figure = draw()
    for ending in ("png", "svg"):
        save_figure(figure, folder / f"pareto.{ending}")
    library = plotly_script()
    shown = [shown_row(row, rows[0], unit) for row in rows]
    values = {
        **_texts(rows, about),
        "rows": shown,
        "accuracy": any(row["accuracy_text"] for row in shown),
        "recommendation": recommend_proposal(rows, about),
        "unit": unit,
        "pareto": Picture.of(folder / "pareto.png", draw(width=NARROW)),
        "alternative": describe_pareto(rows, unit),
        "library": library,
    }
    if library is not None:
        noise = 100 * float(about.get("noise", fitted.noise)) * HALF_INTERVAL_OF_DIFFERENCE
        first = next((row for row in rows if row["role"] == FAST), rows[min(1, len(rows) - 1)])
        values |= {"noise": f"{noise:.2f} % at 95 %", "chosen": first["name"]}
        values |= _charts(shown, about, fitted, trained)
    path = folder / "report.html"
    write_text(path, render("proposals.html", **values))
    return path


def question(about: dict[str, Any]) -> str:
    """Return the title of a page: the question that the proposals answer."""
    size, tokens = format_count(about["parameters"]), format_count(about["tokens"])
    if time := about.get("training_time"):
        devices = f"{time['devices']} × {time['hardware']}"
        return f"Which shape for {size} parameters and {time['hours']:g} hours of {devices}?"
    return f"Which shape for {size} parameters and {tokens} tokens?"


def trained_proposals(folder: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Find the proposals that were trained.

    Returns
    -------
    ``name``, ``predicted`` and measured ``loss`` (nats per token), one row per run.
    """
    columns = ["name", "predicted", "loss"]
    needed = [*SHAPE_KEY, D, "loss"]
    path = folder / "runs.csv"
    runs = load_runs(path).frame if path.exists() else pd.DataFrame()
    if not set(needed) <= set(runs.columns):
        return pd.DataFrame(columns=columns)
    proposed = pd.DataFrame(rows)[["name", "predicted_loss", D, *SHAPE_KEY]]
    joined = proposed.merge(runs[needed], on=list(SHAPE_KEY), suffixes=("", "_run"))
    same_tokens = np.abs(joined[D] / joined[f"{D}_run"] - 1) < MAX_TOKENS_DIFFERENCE
    trained: pd.DataFrame = joined[same_tokens].rename(columns={"predicted_loss": "predicted"})
    return trained[columns]


def shape_warnings(row: dict[str, Any]) -> list[str]:
    """Return the warnings about the shape of a row; warnings about the budget hold for all rows."""
    return [format_warning(text) for text in row["warnings"] if not concerns_budget(text)]


def source_of_speed(row: dict[str, Any]) -> str:
    """Describe the source of a speed: measured on, predicted for or estimated for a device."""
    kind, device = row["throughput_kind"], row["device"] or "an unknown device"
    if kind is None:
        return ""
    kind = "estimated" if kind == TIME_MODEL else kind
    return f"{kind} {'on' if kind == 'measured' else 'for'} {device}"


def shown_row(
    row: dict[str, Any], base: dict[str, Any], unit: str = "nats/token"
) -> dict[str, Any]:
    """Add the texts, differences in per cent and filter values of the page to a proposal.

    ``attributes`` are the values that the page filters by, as HTML attributes of the table's row.
    A shape without a value lacks the attribute and fails every limit on it.

    Parameters
    ----------
    row
        Proposal in the format of ``proposals.json``.
    base
        The baseline, in the same format.
    unit
        Unit of the losses.
    """
    percent, low, high = (
        100 * row[name] / base["predicted_loss"]
        for name in ("difference_nats", "difference_nats_low", "difference_nats_high")
    )
    estimated = row["throughput_kind"] == TIME_MODEL
    attributes = {
        "name": row["name"],
        "baseline": "" if row is base else None,
        "speedup": row["speedup"],
        "loss": percent,
        "ttft": None if row["ttft"] is None else 1e3 * row["ttft"],
        "tpot": None if row["tpot"] is None else 1e3 * row["tpot"],
        "cache": row["kv_bytes"] / 1e3,
        "weights": row["weight_bytes"] / 1e9,
        "front": "" if row["on_front"] else None,
        "answered": "" if row["throughput_kind"] and not estimated else None,
    }
    accuracy = row["accuracy"] or {"value": None}
    has_accuracy = accuracy["value"] is not None
    return row | {
        "unit": unit,
        "place": place_of(row),
        "source": source_of_speed(row),
        "estimated": estimated,
        "difference_percent": percent,
        "low_percent": low,
        "high_percent": high,
        "difference_text": "0 %" if row is base else f"{signed(percent)} %",
        "interval_text": "" if row is base else f"[{signed(low)}, {signed(high)}] %",
        "probabilities_text": _probabilities_text(row),
        "chance_text": _chance_text(row),
        "accuracy_text": f"{100 * accuracy['value']:.1f} %" if has_accuracy else "",
        "accuracy_interval": (
            f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}] %" if has_accuracy else ""
        ),
        "warnings_text": shape_warnings(row),
        "compared": _compared(row, base, f"{signed(percent)} %", unit),
        "attributes": {f"data-{name}": value for name, value in attributes.items()},
    }


def place_of(row: dict[str, Any]) -> str:
    """Describe the role of a row and whether it is on the front."""
    if row.get("apart") and row["on_front"]:
        return APART
    if row["role"] == CANDIDATE:
        return "on the front" if row["on_front"] else "dominated"
    return str(row["role"]) + (", on the front" if row["on_front"] else "")


def _chance_text(row: dict[str, Any]) -> str:
    """Write P(less loss), of a printed law as a number of its fits."""
    chance, fits = row.get("p_less_loss"), row.get("printed_fits")
    if chance is None or fits is None:
        return formatted("probability", chance)
    return f"{chance * fits:g} of {fits} fits"


def _probabilities_text(row: dict[str, Any]) -> str:
    """Write P(faster), marked where it is 1 or 0 for want of a spread, and P(best)."""
    faster = formatted("probability", row.get("p_faster"))
    if str(row.get("p_faster_basis", "")).startswith(NO_SPREAD):
        faster = f"{row['p_faster']:g} ({NO_SPREAD})"
    best = formatted("probability", row.get("p_best"))
    return f"best {best}" if row["role"] == BASELINE else f"faster {faster}, best {best}"


def _compared(
    row: dict[str, Any], base: dict[str, Any], difference: str, unit: str
) -> list[tuple[str, str, str, str]]:
    """Compare a row with the baseline: label, baseline's value, row's value, and their ratio."""
    lines = [("shape", base["name"], row["name"], "")]
    for label, (field, form) in COMPARED.items():
        value, reference = row.get(field), base.get(field)
        if value is None and reference is None:
            continue
        if field == "predicted_loss":
            ratio = difference
        elif form == "probability":
            ratio = ""
        else:
            ratio = "–" if value is None or not reference else f"{value / reference:.3g} ×"
        texts = (formatted(form, reference), formatted(form, value))
        lines.append((label.format(unit=unit), *texts, ratio))
        if field == "predicted_loss" and (worth := _worth(row)):
            lines.append(("equivalent compute, with interval", "1 ×", worth, ""))
    return lines


def _texts(rows: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, object]:
    """Write the sentences of the page."""
    shapes = about.get("shapes") or {}
    engine = about.get("engine", "an unknown engine")
    return {
        "title": question(about),
        "lead": f"Speeds are {about.get('speed_basis', f'from {engine}')}, under the workload "
        f"{about.get('workload', 'unknown')}. "
        f"Baseline: {about.get('baseline', 'unknown')}.",
        "engine": engine,
        "basis": f"The losses come from: {about.get('basis', 'an unknown law')}.",
        "interval": about.get("interval", "95 % interval"),
        "notes": [
            *map(format_warning, about.get("extrapolation", [])),
            *about.get("notes", []),
            *map(_measured_by_paper, about.get("paper_models", [])[1:]),
        ],
        "footer": f"{shapes.get('considered', 0):,} of the {shapes.get('enumerated', 0):,} shapes "
        f"of this budget were considered; {len(rows)} are listed. N counts "
        f"{about.get('convention', 'non-embedding')} parameters.",
        "install": INSTALL,
    }


def _measured_by_paper(model: dict[str, Any]) -> str:
    """Compare the loss of a model of a printed law's paper with the prediction."""
    return (
        f"{model['model']}, which the paper trained: {signed(model['predicted_percent'])} % loss "
        f"predicted, {signed(model['measured_percent'])} % measured"
    )


def _worth(row: dict[str, Any]) -> str:
    """Write the equivalent compute of a row with its interval; empty where it is unknown."""
    middle, low, high = (row.get(name) for name in EQUIVALENT)
    if middle is None:
        return ""
    return f"{_factor(middle)} [{_factor(low)}, {_factor(high)}]"


def _factor(value: float | str | None) -> str:
    return value if isinstance(value, str) else formatted("times", value)


def _charts(
    rows: list[dict[str, Any]], about: dict[str, Any], fitted: Fit, trained: pd.DataFrame
) -> dict[str, object]:
    """Draw the interactive charts by the id of their element, with title, words and values."""
    figures = {"front": front_chart(rows, str(about.get("baseline", "baseline")))}
    curves, checks = {}, {}
    for curve in loss_along_ratios(fitted, rows):
        place = f"curve-{curve['column']}"
        title = LABELS.get(curve["column"], curve["column"])
        curves[place] = {
            "title": title,
            "alternative": f"Predicted loss against the baseline's (%) along: {title}",
            "frame": ratio_values(curve),
        }
        figures[place] = ratio_chart(curve, rows)
    engine, model = str(about.get("engine", "the engine")), about.get("time_model")
    checked = "There is no check of a time model."
    if model and len(model["answered"]) > 1:
        rank = model["rank_correlation"]
        checked = (
            f"Time model against {engine}: mean error {100 * model['error']:.1f} %"
            f"{'' if rank is None else f', rank correlation {rank:.3f}'}; each of "
            f"{len(model['answered'])} shapes was predicted from the others."
        )
        checks["check-speed"], figures["check-speed"] = _agreement(
            "Throughput: time model against engine",
            pd.DataFrame(
                {
                    "shape": model["shapes"],
                    "time model (tokens/s)": model["predicted"],
                    f"{engine} (tokens/s)": model["answered"],
                }
            ),
        )
    if len(trained):
        checked += f" Number of proposals that were trained: {len(trained)}."
        unit = short_unit(fitted.loss_unit)
        names = {"name": "shape", "predicted": f"predicted ({unit})", "loss": f"measured ({unit})"}
        checks["check-loss"], figures["check-loss"] = _agreement(
            "Loss: law against training", trained.rename(columns=names)[list(names.values())]
        )
    else:
        checked += " No proposal has been trained yet: the predicted losses are untested."
    return {
        "figures": {place: figure.to_plotly_json() for place, figure in figures.items()},
        "curves": curves,
        "checks": checks,
        "checked": checked,
    }


def _agreement(title: str, values: pd.DataFrame) -> tuple[dict[str, object], Any]:
    """Draw the second column of a table of shapes against the third; return words and chart."""
    shape, first, second = map(str, values.columns)
    chart = agreement_chart(
        values[shape].tolist(), values[first].tolist(), values[second].tolist(), (first, second)
    )
    shown = values.assign(**{name: values[name].map("{:,.5g}".format) for name in (first, second)})
    alternative = f"{second} against {first} of {len(values)} shapes"
    return {"title": title, "alternative": alternative, "frame": shown}, chart
