"""The report of a loop: what was proposed, what was predicted, what was measured.

Everything is computed from the files in the folder (``runs.csv``, ``fit.json``,
``proposals.json``, ``quickstart.json``): change a number there and the report changes.
"""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_text
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.plots.law import plot_law
from shapelaw.scaling.plots.style import LABELS, save
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.runs.table import load_runs
from shapelaw.scaling.space.pareto import hypervolume
from shapelaw.scaling.units import format_count
from shapelaw.search.proposals.proposal import (
    BASELINE,
    FAST,
    LOSS_OPTIMAL,
    SHAPE_KEY,
    read_proposals,
)
from shapelaw.search.reports import pareto_plot
from shapelaw.search.reports.html import TEMPLATE, bullets, picture, table

NAMED = (LOSS_OPTIMAL, FAST, BASELINE)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The files of a folder, read and joined.

    ``confirmed`` has a row for each named proposal that was trained: measured loss, the current
    law's prediction with its interval, and throughput.
    """

    fit: Fit
    runs: pd.DataFrame
    proposals: list[dict[str, Any]]
    about: dict[str, Any]
    record: dict[str, Any]
    confirmed: pd.DataFrame


def gather(folder: Path) -> Evidence:
    """Read the files of a folder.

    Raises
    ------
    InputError
        One is missing or damaged.
    """
    fitted = Fit.load(folder / "fit.json")
    runs = load_runs(folder / "runs.csv")
    rows, about = read_proposals(folder / "proposals.json")
    path = folder / "quickstart.json"
    return Evidence(
        fit=fitted,
        runs=runs,
        proposals=rows,
        about=about,
        record=read_json(path) if path.exists() else {},
        confirmed=_confirmed(fitted, runs, rows),
    )


def _confirmed(fitted: Fit, runs: pd.DataFrame, proposals: list[dict[str, Any]]) -> pd.DataFrame:
    named = pd.DataFrame([row for row in proposals if row["role"] in NAMED])
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
    order = {role: position for position, role in enumerate(NAMED)}
    return joined.sort_values("role", key=lambda role: role.map(order)).reset_index(drop=True)


def verdict(evidence: Evidence) -> list[str]:
    """In words: did the prediction hold, was the order right, is the fast shape faster."""
    confirmed, fitted = evidence.confirmed, evidence.fit
    if confirmed.empty:
        return ["No confirmatory model has been trained yet: nothing here has been tested."]
    words = []
    known = set(confirmed["run_id"]) & set(fitted.run_ids)
    if known:
        words.append(
            f"The law was fitted with {len(known)} of the confirmatory runs: the comparison below "
            "is no test of it. Fit with --where \"role == 'proxy'\" for one."
        )
    hits = int(confirmed["inside"].sum())
    missed = confirmed[~confirmed["inside"]]
    worst = confirmed.iloc[int(confirmed["error_percent"].abs().argmax())]
    words.append(
        f"{hits} of {len(confirmed)} confirmatory losses lie inside their 95 % intervals; "
        f"the largest error is {worst['error_percent']:+.2f} % ({worst['role']})."
    )
    for row in missed.to_dict("records"):
        side = "above" if row["error_percent"] > 0 else "below"
        words.append(
            f"The prediction missed for the {row['role']} shape: measured {row['loss']:.4f}, "
            f"{abs(row['error_percent']):.2f} % {side} the predicted {row['predicted_loss']:.4f} "
            f"[{row['loss_low']:.4f}, {row['loss_high']:.4f}]."
        )
    return words + _against_baseline(confirmed, fitted)


def _against_baseline(confirmed: pd.DataFrame, fitted: Fit) -> list[str]:
    rows = {row["role"]: row for row in confirmed.to_dict("records")}
    if BASELINE not in rows:
        return []
    base, words = rows[BASELINE], []
    for role in (LOSS_OPTIMAL, FAST):
        if role not in rows:
            continue
        row = rows[role]
        predicted = 100 * (row["predicted_loss"] / base["predicted_loss"] - 1)
        measured = 100 * (row["loss"] / base["loss"] - 1)
        judged = _judged(predicted, measured, 200 * fitted.noise * 2**0.5)
        if pd.notna(row["throughput"]) and pd.notna(base["throughput"]):
            ratio = row["throughput"] / base["throughput"]
            apart = (
                row["throughput_low"] > base["throughput_high"]
                or row["throughput_high"] < base["throughput_low"]
            )
            certain = "" if apart else ", not resolved: the intervals overlap"
            judged += f"; it serves {ratio:.2f} times the baseline's tokens per second{certain}"
        words.append(
            f"Against the baseline the {role} shape has {measured:+.2f} % loss "
            f"(predicted {predicted:+.2f} %): {judged}."
        )
    return words


def _judged(predicted: float, measured: float, noise: float) -> str:
    """A difference of two losses in per cent beside its prediction and the noise of two runs."""
    if abs(measured - predicted) > noise:
        words = f"the prediction missed it by more than noise explains (± {noise:.2f} %)"
        return words if predicted * measured > 0 else f"{words}, and in its direction"
    if abs(measured) < noise:
        return f"as predicted, but no more than noise explains (± {noise:.2f} %)"
    return "as predicted"


def comparison(evidence: Evidence) -> pd.DataFrame:
    """The table of predicted against measured loss and of throughput against the baseline."""
    confirmed = evidence.confirmed
    if confirmed.empty:
        return pd.DataFrame()
    base = confirmed.loc[confirmed["role"] == BASELINE, "throughput"]
    reference = float(base.iloc[0]) if len(base) else float("nan")
    return pd.DataFrame(
        {
            "role": confirmed["role"],
            "shape": confirmed["name"],
            "predicted loss": [
                f"{row.predicted_loss:.4f} [{row.loss_low:.4f}, {row.loss_high:.4f}]"
                for row in confirmed.itertuples()
            ],
            "measured loss": [
                f"{row.loss:.4f} ± {row.loss_se:.4f}" for row in confirmed.itertuples()
            ],
            "error": [f"{error:+.2f} %" for error in confirmed["error_percent"]],
            "inside": ["yes" if inside else "NO" for inside in confirmed["inside"]],
            "output tokens/s": [
                f"{row.throughput:,.0f} [{row.throughput_low:,.0f}, {row.throughput_high:,.0f}]"
                for row in confirmed.itertuples()
            ],
            "against baseline": [f"{speed / reference:.2f} x" for speed in confirmed["throughput"]],
        }
    )


def front_volume(evidence: Evidence) -> float:
    """Hypervolume of the measured proposals over the worst of them."""
    measured = pd.DataFrame(evidence.proposals).dropna(subset=["throughput"])
    worst = (float(measured["predicted_loss"].max()), float(measured["throughput"].min()))
    return hypervolume(measured["predicted_loss"].tolist(), measured["throughput"].tolist(), worst)


def write_report(folder: Path) -> Path:
    """Write ``law.png``, ``pareto.png`` and ``report.html``; returns the path of the last.

    Raises
    ------
    InputError
        The folder lacks ``runs.csv``, ``fit.json`` or ``proposals.json``.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that `shapelaw quickstart` wrote")
    evidence = gather(folder)
    fitted_runs = evidence.runs[evidence.runs["run_id"].isin(evidence.fit.run_ids)]
    if fitted_runs.empty:
        raise InputError(f"{folder}/fit.json was fitted on other runs than runs.csv; fit again")
    save(plot_law(evidence.fit, fitted_runs), folder / "law.png")
    figure = pareto_plot.plot_pareto(
        evidence.proposals,
        evidence.confirmed,
        baseline_name=str(evidence.about.get("baseline", "baseline")),
        workload=str(evidence.about.get("workload", "")),
    )
    save(figure, folder / "pareto.png")
    path = folder / "report.html"
    write_text(path, _page(evidence, folder))
    return path


def _page(evidence: Evidence, folder: Path) -> str:
    fitted = evidence.fit
    parts = {
        "title": _title(evidence),
        "verdict": bullets(verdict(evidence)),
        "comparison": table(comparison(evidence)),
        "pareto": picture(folder / "pareto.png", "Loss against throughput"),
        "law": picture(folder / "law.png", "Effect of each shape ratio on the loss"),
        "status": html.escape(f"{fitted.status}. {fitted.noise_in_words()}."),
        "notes": bullets(fitted.notes),
        "coefficients": table(_coefficients(fitted)),
        "effects": table(_effects(fitted)),
        "common": bullets([w for w in evidence.proposals[0]["warnings"] if _of_all(w, evidence)]),
        "proposals": table(_proposals(evidence)),
        "volume": f"{front_volume(evidence):.4f}",
        "runs": table(_runs(evidence)),
        "record": table(_record(evidence)),
    }
    return TEMPLATE.substitute(parts)


def _title(evidence: Evidence) -> str:
    about = evidence.about
    size, tokens = about.get("parameters"), about.get("tokens")
    if not size or not tokens:
        return "shapelaw: proposals"
    return f"Which shape for {format_count(size)} parameters and {format_count(tokens)} tokens?"


def _coefficients(fitted: Fit) -> pd.DataFrame:
    rows = [
        {
            "parameter": name,
            "value": f"{found['value']:.4g}",
            "95 % interval": f"{found['low']:.4g} to {found['high']:.4g}",
            "": "held" if name in fitted.held else "fitted",
        }
        for name, found in fitted.parameters().items()
    ]
    return pd.DataFrame(rows)


def _effects(fitted: Fit) -> pd.DataFrame:
    optima = fitted.optima()
    noise = fitted.replicate_noise
    rows = []
    for column, effect in fitted.effects.items():
        best = optima.get(column, {})
        ends = [best.get(key) for key in ("low", "high")]
        shown = " to ".join("open" if end is None else f"{end:.3g}" for end in ends)
        value = best.get("value")
        rows.append(
            {
                "ratio": LABELS.get(column, column),
                "effect over the runs": f"{100 * effect['size']:.2f} %",
                "noise between seeds": "unknown" if noise is None else f"{100 * noise:.2f} %",
                "best value": "–" if value is None else f"{value:.3g} ({shown})",
                "status": best.get("status", _slope_status(fitted, column)),
            }
        )
    return pd.DataFrame(rows)


def _slope_status(fitted: Fit, column: str) -> str:
    held = fitted.held.get(f"{column}_slope")
    return f"not resolved: {held.why}" if held else "a straight line in ln x, no optimum"


def _proposals(evidence: Evidence) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "role": row["role"],
                "shape": row["name"],
                "N": format_count(row["n_non_embedding"]),
                "d/√N": f"{row['hidden_over_sqrt_n']:.3f}",
                "MLP/attention": f"{row['mlp_to_attention']:.2f}",
                "GQA": f"{row['gqa']:.0f}",
                "KV bytes/token": f"{row['kv_bytes']:,}",
                "predicted loss": (
                    f"{row['predicted_loss']:.4f} [{row['loss_low']:.4f}, {row['loss_high']:.4f}]"
                ),
                "output tokens/s": (
                    "–"
                    if row["throughput"] is None
                    else f"{row['throughput']:,.0f} ({row['throughput_kind']})"
                ),
                "front": "yes" if row["on_front"] else "",
                "warnings": "; ".join(w for w in row["warnings"] if not _of_all(w, evidence)),
            }
            for row in evidence.proposals
        ]
    )


def _of_all(warning: str, evidence: Evidence) -> bool:
    """Whether every proposal has a warning about the same column: it is then said once."""
    column = warning.split()[0] + " "
    return all(any(w.startswith(column) for w in row["warnings"]) for row in evidence.proposals)


def _runs(evidence: Evidence) -> pd.DataFrame:
    runs, fitted = evidence.runs, evidence.fit
    wanted = [name for name in ("run_id", "role") if name in runs]
    shown = runs[wanted].copy()
    shown["N"] = [format_count(size) for size in runs["n_non_embedding"]]
    shown["tokens"] = [format_count(tokens) for tokens in runs["tokens"]]
    for name, label in (("hidden_over_sqrt_n", "d/√N"), ("mlp_to_attention", "MLP/att")):
        shown[label] = runs[name].map("{:.3f}".format)
    shown["GQA"] = runs["gqa"].map("{:.0f}".format)
    shown["loss"] = runs["loss"].map("{:.4f}".format)
    shown["law"] = [f"{loss:.4f}" for loss in fitted.central(runs)]
    for name, label, form in (
        ("bits_per_byte", "bits/byte", "{:.4f}"),
        ("seconds", "seconds", "{:.0f}"),
        ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ):
        if name in runs:
            shown[label] = runs[name].map(form.format)
    return shown


def _record(evidence: Evidence) -> pd.DataFrame:
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
            name: round(seconds) for name, seconds in record.get("stage_seconds", {}).items()
        },
    }
    return pd.DataFrame([{"what": name, "value": _flat(value)} for name, value in rows.items()])


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)
