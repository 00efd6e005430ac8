"""Report of a quickstart: proposals, and predicted against measured losses.

The report is computed from the files in the folder only (``runs.csv``, ``fit.json``,
``proposals.json``, ``quickstart.json``), so every change of a number there changes the report.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from shapelaw.scaling.display.tables import cell_text, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_text
from shapelaw.scaling.fitting.result import Fit, new_run_intervals
from shapelaw.scaling.plots.law import plot_law
from shapelaw.scaling.plots.style import LABELS, save_figure
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.space.pareto import hypervolume
from shapelaw.scaling.units import format_count
from shapelaw.search.proposals.proposal import (
    BASELINE,
    FAST,
    LOSS_OPTIMAL,
    SHAPE_KEY,
    read_proposals,
)
from shapelaw.search.proposals.reasons import format_warning
from shapelaw.search.reports.html import formatted, image_source, render
from shapelaw.search.reports.pareto_plot import plot_pareto
from shapelaw.search.reports.proposal_page import question, source_of_speed

NAMED_ROLES = (LOSS_OPTIMAL, FAST, BASELINE)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Contents of a quickstart's folder, joined.

    ``confirmed`` has a row for each named proposal that was trained: measured loss, the current
    law's prediction with its interval, and throughput.
    """

    fit: Fit
    runs: pd.DataFrame
    proposals: list[dict[str, Any]]
    about: dict[str, Any]
    record: dict[str, Any]
    confirmed: pd.DataFrame


def read_evidence(folder: Path) -> Evidence:
    """Read the files of a quickstart's folder.

    Raises
    ------
    InputError
        ``fit.json``, ``runs.csv`` or ``proposals.json`` is missing or damaged.
    """
    writers = "`shapelaw quickstart` or `shapelaw propose --out`"
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that {writers} wrote")
    needed = ("proposals.json", "fit.json", "runs.csv")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder} must be a folder that {writers} wrote, but lacks {', '.join(missing)}; "
            "give another folder, or run that command again"
        )
    fitted = Fit.load(folder / "fit.json")
    runs = load_runs(folder / "runs.csv").frame
    rows, about = read_proposals(folder / "proposals.json")
    path = folder / "quickstart.json"
    return Evidence(
        fit=fitted,
        runs=runs,
        proposals=rows,
        about=about,
        record=read_json(path) if path.exists() else {},
        confirmed=_join_confirmations(fitted, runs, rows),
    )


def _join_confirmations(
    fitted: Fit, runs: pd.DataFrame, proposals: list[dict[str, Any]]
) -> pd.DataFrame:
    """Join the named proposals with the runs that confirm them and the law's predictions."""
    named = pd.DataFrame([row for row in proposals if row["role"] in NAMED_ROLES])
    if named.empty or "role" not in runs:
        return pd.DataFrame()
    trained = runs[runs["role"] == "confirmation"]
    columns = [*SHAPE_KEY, "run_id", "loss", "loss_se", D]
    if trained.empty or not set(columns) <= set(trained.columns):
        return pd.DataFrame()
    kept = ["role", "name", "throughput", "throughput_low", "throughput_high", *SHAPE_KEY]
    joined = named[kept].merge(trained[columns], on=list(SHAPE_KEY))
    if joined.empty:
        return joined
    features = trained.set_index("run_id").loc[joined["run_id"]]
    predicted = fitted.predict(features).reset_index(drop=True)
    joined = pd.concat([joined, predicted], axis=1)
    joined["error_percent"] = 100 * (joined["loss"] / joined["predicted_loss"] - 1)
    joined["inside"] = joined["loss"].between(joined["loss_low"], joined["loss_high"])
    joined = joined.join(_differences(fitted, features, joined))
    order = {role: position for position, role in enumerate(NAMED_ROLES)}
    return joined.sort_values("role", key=lambda role: role.map(order)).reset_index(drop=True)


def _differences(fitted: Fit, features: pd.DataFrame, joined: pd.DataFrame) -> pd.DataFrame:
    """Compute the difference of each loss to the baseline's, in per cent; empty without a baseline.

    ``difference_low`` and ``difference_high`` are the 95 % interval of the difference of two new
    runs, from the uncertainty of the law, in which common errors cancel, and from the noise of both
    runs. ``noise`` is half the interval that the noise alone would have.
    """
    if BASELINE not in set(joined["role"]):
        return pd.DataFrame(index=joined.index)
    base = int((joined["role"] == BASELINE).to_numpy().argmax())
    logs = fitted.log_loss_draws(features)
    noise = fitted.noise * 2**0.5
    ends = new_run_intervals(logs - logs[:, [base]], noise, fitted.noise_degrees)
    half = noise * student.ppf(0.975, max(fitted.noise_degrees, 1))
    return 100 * pd.DataFrame(
        {
            "difference": joined["loss"] / joined["loss"].iloc[base] - 1,
            "predicted_difference": joined["predicted_loss"] / joined["predicted_loss"].iloc[base]
            - 1,
            "difference_low": np.expm1(ends[:, 0]),
            "difference_high": np.expm1(ends[:, 1]),
            "noise": half,
        }
    )


def verdict(evidence: Evidence) -> list[str]:
    """Describe how the trained proposals' losses and throughput agree with their predictions."""
    confirmed, fitted = evidence.confirmed, evidence.fit
    if confirmed.empty:
        return ["No confirmatory model has been trained yet: the predictions are untested."]
    sentences = []
    shared = set(confirmed["run_id"]) & set(fitted.run_ids)
    if shared:
        sentences.append(
            f"The law was fitted with {len(shared)} of the confirmatory runs: the comparison below "
            "does not test it. For a test, fit with --where \"role == 'proxy'\"."
        )
    hits = int(confirmed["inside"].sum())
    worst = confirmed.iloc[int(confirmed["error_percent"].abs().argmax())]
    sentences.append(
        f"{hits} of {len(confirmed)} confirmatory losses lie inside their 95 % intervals; "
        f"the largest error is {worst['error_percent']:+.2f} % ({worst['role']})."
    )
    sentences += [
        f"The prediction for the {row['role']} shape failed: measured {row['loss']:.4f} "
        f"nats/token, {abs(row['error_percent']):.2f} % "
        f"{'above' if row['error_percent'] > 0 else 'below'} the predicted "
        f"{_format_prediction(row)}."
        for row in confirmed[~confirmed["inside"]].to_dict("records")
    ]
    rows = {row["role"]: row for row in confirmed.to_dict("records")}
    if BASELINE in rows:
        others = [rows[role] for role in (LOSS_OPTIMAL, FAST) if role in rows]
        sentences += [_compare_with_baseline(row, rows[BASELINE]) for row in others]
    return sentences


def _compare_with_baseline(row: dict[Any, Any], base: dict[Any, Any]) -> str:
    """Compare the loss and the throughput of a trained shape with those of the baseline."""
    sentence = (
        f"Against the baseline the {row['role']} shape has {row['difference']:+.2f} % loss "
        f"(predicted {row['predicted_difference']:+.2f} %, 95 % interval "
        f"{row['difference_low']:+.2f} to {row['difference_high']:+.2f} %): "
        f"{judge_difference(row)}"
    )
    if pd.notna(row["throughput"]) and pd.notna(base["throughput"]):
        ratio = row["throughput"] / base["throughput"]
        slower = row["throughput_high"] < base["throughput_low"]
        resolved = slower or row["throughput_low"] > base["throughput_high"]
        caveat = "" if resolved else ", not resolved: the intervals overlap"
        sentence += f"; it serves {ratio:.2f} times the baseline's tokens per second{caveat}"
    return f"{sentence}."


def judge_difference(row: Mapping[Any, Any]) -> str:
    """Compare a predicted difference of two losses, with its interval, with the measured one."""
    measured, predicted, noise = (row[k] for k in ("difference", "predicted_difference", "noise"))
    if not row["difference_low"] <= measured <= row["difference_high"]:
        error = "the prediction failed, the measured difference is outside the interval"
        return error if predicted * measured > 0 else f"{error}, and the sign is wrong"
    if abs(measured - predicted) > noise:
        return (
            f"off by more than the noise of two runs (± {noise:.2f} %), but inside the interval, "
            "which contains the uncertainty of the law"
        )
    if abs(measured) < noise:
        return f"as predicted, but within the noise of two runs (± {noise:.2f} %)"
    return "as predicted"


def _format_prediction(row: dict[Any, Any]) -> str:
    """Format a predicted loss with its 95 % interval."""
    return f"{row['predicted_loss']:.4f} [{row['loss_low']:.4f}, {row['loss_high']:.4f}]"


def comparison(evidence: Evidence) -> pd.DataFrame:
    """Tabulate predicted and measured loss, and throughput relative to the baseline."""
    confirmed = evidence.confirmed
    if confirmed.empty:
        return pd.DataFrame()
    base = confirmed.loc[confirmed["role"] == BASELINE, "throughput"]
    reference = float(base.iloc[0]) if len(base) else None
    return pd.DataFrame(
        [
            {
                "role": row["role"],
                "shape": row["name"],
                "predicted loss": _format_prediction(row),
                "measured loss": f"{row['loss']:.4f} ± {row['loss_se']:.4f}",
                "error": f"{row['error_percent']:+.2f} %",
                "inside": "yes" if row["inside"] else "NO",
                "output tokens/s": f"{row['throughput']:,.0f} "
                f"[{row['throughput_low']:,.0f}, {row['throughput_high']:,.0f}]",
                "against baseline": formatted("times", reference and row["throughput"] / reference),
            }
            for row in confirmed.to_dict("records")
        ]
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
    save_figure(plot_law(fitted, fitted_runs), folder / "law.png")
    figure = plot_pareto(
        evidence.proposals,
        evidence.confirmed,
        baseline_name=str(about.get("baseline", "baseline")),
        workload=str(about.get("workload", "")),
    )
    save_figure(figure, folder / "pareto.png")
    first = evidence.proposals[0]["warnings"]
    text = render(
        "quickstart.html",
        title=question(about),
        verdict=verdict(evidence),
        comparison=comparison(evidence),
        pareto=image_source(folder / "pareto.png"),
        law=image_source(folder / "law.png"),
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
                "role": row["role"],
                "shape": row["name"],
                "N (parameters)": format_count(row["n_non_embedding"]),
                "d/√N": f"{row['hidden_over_sqrt_n']:.3f}",
                "MLP/attention": f"{row['mlp_to_attention']:.2f}",
                "query heads per KV head": f"{row['gqa']:.0f}",
                "KV cache (bytes/token)": f"{row['kv_bytes']:,}",
                "predicted loss (nats/token)": _format_prediction(row),
                "output tokens/s": formatted("whole", row["throughput"]),
                "speed": source_of_speed(row),
                "on the front": "yes" if row["on_front"] else "no",
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
    column = warning.split()[0] + " "
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
    table["measured loss (nats/token)"] = runs["loss"].map("{:.4f}".format)
    table["law (nats/token)"] = [f"{loss:.4f}" for loss in fitted.central(runs)]
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
