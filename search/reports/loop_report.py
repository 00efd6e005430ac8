"""Report of a quickstart: proposals, and predicted against measured losses.

The report is computed from the files in the folder only (``runs.csv``, ``fit.json``,
``proposals.json``, ``quickstart.json``), so every change of a number there changes the report.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from shapelaw.scaling.display.tables import cell_text, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_text
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.plots.law import plot_law
from shapelaw.scaling.plots.style import LABELS, save_figure
from shapelaw.scaling.space.pareto import hypervolume
from shapelaw.scaling.units import format_count, short_unit
from shapelaw.search.proposals.reasons import format_warning
from shapelaw.search.reports.html import Picture, formatted, render
from shapelaw.search.reports.pareto_plot import NARROW, describe_pareto, plot_pareto
from shapelaw.search.reports.proposal_page import place_of, question, source_of_speed
from shapelaw.search.reports.quickstart_verdict import (
    Evidence,
    comparison,
    format_prediction,
    read_evidence,
    recommendation,
    verdict,
)


def front_volume(evidence: Evidence) -> float:
    """Return the hypervolume of the measured proposals.

    The reference point has their highest predicted loss and their lowest throughput.
    """
    measured = pd.DataFrame(evidence.proposals).dropna(subset=["throughput"])
    worst = (float(measured["predicted_loss"].max()), float(measured["throughput"].min()))
    return hypervolume(measured["predicted_loss"].tolist(), measured["throughput"].tolist(), worst)


def write_report(folder: Path) -> Path:
    """Write ``law.png``, ``pareto.png`` and ``report.html``; return the path of the last.

    Raises
    ------
    InputError
        The folder lacks ``runs.csv``, ``fit.json`` or ``proposals.json``.
    """
    evidence = read_evidence(folder)
    fitted, about = evidence.fit, evidence.about
    fitted_runs = evidence.runs[evidence.runs["run_id"].isin(fitted.run_ids)]
    if fitted_runs.empty:
        raise InputError(
            f"{folder}/fit.json was fitted on other runs than those of runs.csv; fit again with "
            f"`shapelaw fit {folder}/runs.csv --out {folder}/fit.json`"
        )
    unit = short_unit(fitted.loss_unit)
    draw_pareto = partial(
        plot_pareto, evidence.proposals, evidence.confirmed, unit=unit,
        baseline_name=str(about.get("baseline", "baseline")),
        workload=str(about.get("workload", "")),
    )  # fmt: skip
    save_figure(plot_law(fitted, fitted_runs), folder / "law.png")
    save_figure(draw_pareto(), folder / "pareto.png")
    first = evidence.proposals[0]["warnings"]
    text = render(
        "quickstart.html",
        title=question(about),
        recommendation=recommendation(evidence),
        unit=unit,
        verdict=verdict(evidence),
        comparison=comparison(evidence),
        pareto=Picture.of(folder / "pareto.png", draw_pareto(width=NARROW)),
        alternative=describe_pareto(evidence.proposals, unit),
        law_alternative=_law_in_words(fitted),
        law=Picture.of(folder / "law.png", plot_law(fitted, fitted_runs, across=1)),
        effects=_effects(fitted),
        status=f"{fitted.status}. {fitted.noise_in_words()}.",
        notes=fitted.notes,
        coefficients=_coefficients(fitted),
        volume=f"{front_volume(evidence):.4f}",
        common=[format_warning(text) for text in first if _holds_for_all(text, evidence)],
        proposals=_proposals(evidence),
        runs=_runs(evidence),
        record=_record(evidence),
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def _law_in_words(fitted: Fit) -> str:
    """Describe the picture of the law, for readers who cannot see it."""
    if not fitted.law.shapes:
        return f"Measured against predicted loss ({short_unit(fitted.loss_unit)}) of the runs"
    ratios = " and ".join(LABELS.get(factor.of, factor.of) for factor in fitted.law.shapes)
    return f"Loss above that of the best shape (%) along {ratios}, with the runs as points"


def _coefficients(fitted: Fit) -> pd.DataFrame:
    """Tabulate the law's parameters."""
    rows = [
        {
            "parameter": name,
            "value": f"{value['value']:.4g}",
            "95 % interval": f"{value['low']:.4g} to {value['high']:.4g}",
            "status": "held"
            if name in fitted.held
            else "at its bound"
            if name in fitted.at_bounds
            else "fitted",
        }
        for name, value in fitted.parameters().items()
    ]
    return pd.DataFrame(rows)


def _effects(fitted: Fit) -> pd.DataFrame:
    """Tabulate the effect of each shape ratio on the loss, and its optimum."""
    optima = fitted.optima()
    noise = "unknown"
    if fitted.replicate_noise is not None:
        degrees = counted(fitted.replicate_degrees, "degree")
        noise = f"{100 * fitted.replicate_noise:.2f} % ({degrees} of freedom)"
    rows = []
    for column, effect in fitted.effects.items():
        optimum = optima.get(column, {})
        ends = [optimum.get(key) for key in ("low", "high")]
        interval = " to ".join("open" if end is None else f"{end:.3g}" for end in ends)
        value = optimum.get("value")
        rows.append(
            {
                "ratio": LABELS.get(column, column),
                "effect over the runs": f"{100 * effect['size']:.2f} %",
                "noise between seeds": noise,
                "best value": "–" if value is None else f"{value:.3g} ({interval})",
                "status": optimum.get("status", _slope_status(fitted, column)),
            }
        )
    return pd.DataFrame(rows)


def _slope_status(fitted: Fit, column: str) -> str:
    """Describe the term of a ratio whose effect has no optimum."""
    held = fitted.held.get(f"{column}_slope")
    return f"not resolved: {held.why}" if held else "a straight line in ln x, no optimum"


def _proposals(evidence: Evidence) -> pd.DataFrame:
    """Tabulate the proposals, with the warnings that do not hold for all of them."""
    return pd.DataFrame(
        [
            {
                "shape": row["name"],
                "role": place_of(row),
                "N (parameters)": format_count(row["n_non_embedding"]),
                "d/√N, MLP/attention": f"{row['hidden_over_sqrt_n']:.3f}, "
                f"{row['mlp_to_attention']:.2f}",
                "query heads per KV head": f"{row['gqa']:.0f}",
                "KV cache (bytes/token)": f"{row['kv_bytes']:,}",
                f"predicted loss ({short_unit(evidence.fit.loss_unit)})": format_prediction(row),
                "output tokens/s": formatted("whole", row["throughput"]),
                "speed": source_of_speed(row),
                "P(less loss), P(faster), P(best)": ", ".join(
                    formatted("probability", row.get(name))
                    for name in ("p_less_loss", "p_faster", "p_best")
                ),
                "warnings": "; ".join(
                    format_warning(text)
                    for text in row["warnings"]
                    if not _holds_for_all(text, evidence)
                ),
            }
            for row in evidence.proposals
        ]
    )


def _holds_for_all(warning: str, evidence: Evidence) -> bool:
    """Return whether every proposal has a warning about the same column."""
    column = warning.partition(" ")[0] + " "
    return all(
        any(text.startswith(column) for text in row["warnings"]) for row in evidence.proposals
    )


def _runs(evidence: Evidence) -> pd.DataFrame:
    """Tabulate the runs: shape, measured loss, and the law's loss."""
    runs, fitted = evidence.runs, evidence.fit
    columns = [name for name in ("run_id", "role") if name in runs]
    table = runs[columns].copy()
    table["N (parameters)"] = [format_count(size) for size in runs["n_non_embedding"]]
    table["tokens"] = [format_count(tokens) for tokens in runs["tokens"]]
    for name, label in (("hidden_over_sqrt_n", "d/√N"), ("mlp_to_attention", "MLP/attention")):
        table[label] = runs[name].map("{:.3f}".format)
    table["query heads per KV head"] = runs["gqa"].map("{:.0f}".format)
    unit = short_unit(fitted.loss_unit)
    table[f"measured loss ({unit})"] = runs["loss"].map("{:.4f}".format)
    table[f"law ({unit})"] = [f"{loss:.4f}" for loss in fitted.expected(runs)]
    for name, label, form in (
        ("bits_per_byte", "bits/byte", "{:.4f}"),
        ("seconds", "training time (s)", "{:.0f}"),
        ("tokens_per_second", "training tokens/s", "{:,.0f}"),
    ):
        if name in runs:
            table[label] = runs[name].map(form.format)
    return table


def _record(evidence: Evidence) -> pd.DataFrame:
    """Tabulate the corpus, the machine and the settings behind the report."""
    record = evidence.record
    rows = {
        "corpus": record.get("corpus", "not recorded"),
        "workload": evidence.about.get("workload", "not recorded"),
        "device": next((row["device"] for row in evidence.proposals if row["device"]), "–"),
        "bootstrap": evidence.fit.bootstrap,
        "data of the fit (SHA-256)": evidence.fit.data_sha256[:16],
        "settings": record.get("settings", "not recorded"),
        "recipe": record.get("recipe", "not recorded"),
        "versions": record.get("versions", "not recorded"),
        "seconds by stage": {
            stage: round(seconds) for stage, seconds in record.get("stage_seconds", {}).items()
        },
    }
    return pd.DataFrame([{"item": name, "value": cell_text(value)} for name, value in rows.items()])
