"""Predicted against measured losses of a quickstart, and its conclusion in one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import new_run_intervals
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D
from shapelaw.scaling.units import short_unit
from shapelaw.search.proposals.probabilities import (
    UncertainSpeed,
    probability_of_less_loss,
    probability_text,
)
from shapelaw.search.proposals.proposal import (
    BASELINE,
    EVEN,
    FAST,
    LOSS_OPTIMAL,
    SHAPE_KEY,
    read_proposals,
)
from shapelaw.search.reports.html import formatted
from shapelaw.search.reports.loop_record import LoopRecord, SeedNoise, read_loop_record
from shapelaw.search.reports.recommendation import (
    Recommendation,
    confidence_of,
    recommend_proposal,
    recommend_trained,
)

SURE = 0.95  # least probability of the promised speed
NAMED_ROLES = (LOSS_OPTIMAL, FAST, EVEN, BASELINE)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Contents of a quickstart's folder, joined.

    ``confirmed`` has a row for each named proposal that was trained: measured loss, a mean over its
    seeds, the current law's prediction with its interval, and throughput.
    """

    fit: Fit
    runs: pd.DataFrame
    proposals: list[dict[str, Any]]
    about: dict[str, Any]
    record: LoopRecord
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
    record = read_loop_record(path) if path.exists() else LoopRecord()
    return Evidence(
        fit=fitted,
        runs=runs,
        proposals=rows,
        about=about,
        record=record,
        confirmed=_join_confirmations(fitted, runs, rows, record.get("seed_noise")),
    )


def _join_confirmations(
    fitted: Fit,
    runs: pd.DataFrame,
    proposals: list[dict[str, Any]],
    seed_noise: SeedNoise | None,
) -> pd.DataFrame:
    """Join the named proposals with the runs that confirm them and the law's predictions.

    ``seed_noise`` has the ``deviation`` of ln loss between seeds and its ``degrees`` of freedom;
    None: the noise around the law is taken.
    """
    named = pd.DataFrame([row for row in proposals if row["role"] in NAMED_ROLES])
    if named.empty or "role" not in runs:
        return pd.DataFrame()
    trained = runs[runs["role"] == "confirmation"]
    columns = [*SHAPE_KEY, "run_id", "loss", "loss_se", D]
    if trained.empty or not set(columns) <= set(trained.columns):
        return pd.DataFrame()
    kept = ["role", "name", "throughput", "throughput_low", "throughput_high", *SHAPE_KEY]
    kept += [name for name in ("throughput_repeats", "throughput_kind") if name in named]
    joined = named[kept].merge(_mean_over_seeds(trained[columns]), on=list(SHAPE_KEY))
    if joined.empty:
        return joined
    features = trained.set_index("run_id").loc[[names[0] for names in joined["run_id"]]]
    predicted = fitted.predict(features).reset_index(drop=True)
    joined = pd.concat([joined, predicted], axis=1)
    joined["error_percent"] = 100 * (joined["loss"] / joined["predicted_loss"] - 1)
    joined["inside"] = [
        sum(row["loss_low"] <= loss <= row["loss_high"] for loss in row["losses"])
        for row in joined.to_dict("records")
    ]
    joined = joined.join(_differences(fitted, features, joined, seed_noise))
    order = {role: position for position, role in enumerate(NAMED_ROLES)}
    return joined.sort_values("role", key=lambda role: role.map(order)).reset_index(drop=True)


def _mean_over_seeds(trained: pd.DataFrame) -> pd.DataFrame:
    """Average the losses of every shape over its seeds, as a geometric mean.

    ``run_id`` and ``losses`` list the runs. The text is the same for all seeds, so that averaging
    does not reduce ``loss_se``, the standard error of the text.
    """
    groups = trained.groupby([*SHAPE_KEY, D], as_index=False, sort=False)
    return groups.agg(
        run_id=("run_id", list),
        losses=("loss", list),
        loss=("loss", lambda losses: float(np.exp(np.log(losses).mean()))),
        loss_se=("loss_se", "mean"),
    )


def _differences(
    fitted: Fit,
    features: pd.DataFrame,
    joined: pd.DataFrame,
    seed_noise: SeedNoise | None,
) -> pd.DataFrame:
    """Compute the difference of each loss to the baseline's, in per cent; empty without a baseline.

    ``difference_low`` and ``difference_high`` are the 95 % interval of the difference of the means
    over the seeds of both shapes, from the uncertainty of the law, in which common errors cancel,
    and from the noise of the runs; ``predicted_difference`` is the median. ``noise`` is half the
    interval that the noise alone would have. ``p_less_loss`` is the probability of a lower true
    loss, a share and not in per cent.
    """
    if BASELINE not in set(joined["role"]):
        return pd.DataFrame(index=joined.index)
    base = int((joined["role"] == BASELINE).to_numpy().argmax())
    logs = fitted.log_loss_draws(features)
    deviation, degrees = fitted.noise, fitted.noise_degrees
    if seed_noise is not None:
        deviation, degrees = seed_noise["deviation"], seed_noise["degrees"]
    seeds = joined["run_id"].str.len().to_numpy()
    noise = deviation * np.sqrt(1 / seeds + 1 / seeds[base])
    ends = np.concatenate(
        [
            new_run_intervals((logs[:, [i]] - logs[:, [base]]), noise[i], degrees)
            for i in range(len(joined))
        ]
    )
    half = noise * student.ppf(0.975, max(degrees, 1))
    percent = 100 * pd.DataFrame(
        {
            "difference": joined["loss"] / joined["loss"].iloc[base] - 1,
            "predicted_difference": np.expm1(np.median(logs - logs[:, [base]], axis=0)),
            "difference_low": np.expm1(ends[:, 0]),
            "difference_high": np.expm1(ends[:, 1]),
            "noise": half,
        }
    )
    return percent.assign(p_less_loss=probability_of_less_loss(logs, base))


def verdict(evidence: Evidence) -> list[str]:
    """Describe how the trained proposals' losses and throughput agree with their predictions."""
    confirmed, fitted = evidence.confirmed, evidence.fit
    if confirmed.empty:
        return ["No confirmatory model has been trained yet: the predictions are untested."]
    sentences = []
    trained = confirmed["run_id"].explode()
    shared = set(trained) & set(fitted.run_ids)
    if shared:
        sentences.append(
            f"The law was fitted with {len(shared)} of the confirmatory runs: the comparison below "
            "does not test it. For a test, fit with --where \"role == 'proxy'\"."
        )
    hits = int(confirmed["inside"].sum())
    worst = confirmed.iloc[int(confirmed["error_percent"].abs().argmax())]
    sentences.append(
        f"{hits} of {len(trained)} confirmatory losses lie inside their 95 % intervals; "
        f"the largest error is {worst['error_percent']:+.2f} % ({worst['role']})."
    )
    sentences += [
        f"The prediction for the {_title(row)} shape failed: measured {row['loss']:.4f} "
        f"{short_unit(fitted.loss_unit)}, {abs(row['error_percent']):.2f} % "
        f"{'above' if row['error_percent'] > 0 else 'below'} the predicted "
        f"{format_prediction(row)}."
        for row in confirmed.to_dict("records")
        if not row["loss_low"] <= row["loss"] <= row["loss_high"]
    ]
    rows = {row["role"]: row for row in confirmed.to_dict("records")}
    if BASELINE in rows:
        others = [rows[role] for role in NAMED_ROLES[:-1] if role in rows]
        sentences += [_compare_with_baseline(row, rows[BASELINE]) for row in others]
    return sentences


def _title(row: Mapping[Any, Any]) -> str:
    """Return a role as an adjective."""
    return str(row["role"]).replace(" ", "-")


def _compare_with_baseline(row: dict[Any, Any], base: dict[Any, Any]) -> str:
    """Compare the loss and the throughput of a trained shape with those of the baseline."""
    sentence = (
        f"Against the baseline the {_title(row)} shape has {row['difference']:+.2f} % loss "
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
    stated = f"P(less loss) {probability_text(row['p_less_loss'])}"
    if pd.notna(row["throughput"]) and pd.notna(base["throughput"]):
        faster = UncertainSpeed.of_row(row).probability_above(UncertainSpeed.of_row(base))
        stated += f", P(faster) {probability_text(faster)}"
    return f"{sentence}. From proxies and search alone: {stated}."


@dataclass(frozen=True, kw_only=True)
class Promise:
    """Prediction of a search for one trained shape, with its speed after training.

    Attributes
    ----------
    row
        Row of the shape in the confirmations.
    tenths
        Promised speed in tenths of the baseline's.
    probability
        Probability of that speed at no more loss than the baseline's.
    ratio
        Speed over the baseline's, measured again after training where the record has it.
    """

    row: dict[str, Any]
    tenths: int
    probability: float
    ratio: float

    def __str__(self) -> str:
        row = self.row
        return (
            f"The {_title(row)} shape {row['name']} serves at least {self.tenths / 10:.1f} times "
            f"as fast as the baseline at no more loss with probability {self.probability:.2f}; "
            f"trained: {self.ratio:.2f} times, loss {row['difference']:+.1f} % ± "
            f"{row['noise']:.1f} %."
        )


def promise_of(evidence: Evidence) -> Promise | None:
    """Return what the search promised of one trained shape.

    The shape is the fast one, or else the fastest at even odds, or else the loss-optimal one. The
    promised speed is the largest tenth of the baseline's that is exceeded with at least 95 %
    probability. Errors of the loss and of the speed are independent.

    Returns
    -------
    The promise; None if neither shape or no baseline was trained, or one has no speed.
    """
    records = evidence.confirmed.to_dict("records")
    rows = {row["role"]: {str(name): value for name, value in row.items()} for row in records}
    role = next((role for role in (FAST, EVEN, LOSS_OPTIMAL) if role in rows), "")
    row, base = rows.get(role), rows.get(BASELINE)
    if row is None or base is None or pd.isna([row["throughput"], base["throughput"]]).any():
        return None
    speed, reference = UncertainSpeed.of_row(row), UncertainSpeed.of_row(base)
    tenths = max(int(10 * speed.rate / reference.rate), 1)
    while tenths > 1 and speed.probability_above(reference, tenths / 10) < SURE:
        tenths -= 1
    probability = row["p_less_loss"] * speed.probability_above(reference, tenths / 10)
    served = evidence.record.get("served", {})
    if {row["name"], base["name"]} <= set(served):
        ratio = served[row["name"]] / served[base["name"]]
    else:
        ratio = row["throughput"] / base["throughput"]
    return Promise(row=row, tenths=tenths, probability=probability, ratio=ratio)


def conclusion(evidence: Evidence) -> str:
    """State what the search promised of one shape, and what training gave, in one sentence.

    Returns
    -------
    The sentence; empty where :func:`promise_of` returns None.
    """
    return str(promise_of(evidence) or "")


def recommendation(evidence: Evidence) -> Recommendation:
    """Recommend the baseline or the trained shape; without training, by the proposals alone."""
    promise, about = promise_of(evidence), evidence.about
    if promise is None:
        return recommend_proposal(evidence.proposals, about)
    return recommend_trained(
        promise.row,
        baseline=str(about.get("baseline", "the baseline")),
        conclusion=str(promise),
        probability=promise.probability,
        ratio=promise.ratio,
        confidence=confidence_of(about),
    )


def judge_difference(row: Mapping[Any, Any]) -> str:
    """Compare a predicted difference of two losses, with its interval, with the measured one."""
    measured, predicted, noise = (row[k] for k in ("difference", "predicted_difference", "noise"))
    if not row["difference_low"] <= measured <= row["difference_high"]:
        error = "the prediction failed, the measured difference is outside the interval"
        return error if predicted * measured > 0 else f"{error}, and the sign is wrong"
    if abs(measured - predicted) > noise:
        return (
            f"off by more than the noise of the runs (± {noise:.2f} %), but inside the interval, "
            "which contains the uncertainty of the law"
        )
    if abs(measured) < noise:
        return f"as predicted, but within the noise of the runs (± {noise:.2f} %)"
    return "as predicted"


def format_prediction(row: dict[Any, Any]) -> str:
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
                "predicted loss": format_prediction(row),
                "measured loss": f"{row['loss']:.4f} ± {row['loss_se']:.4f}",
                "error": f"{row['error_percent']:+.2f} %",
                "inside": f"{row['inside']} of {counted(len(row['run_id']), 'run')}",
                "output tokens/s": f"{row['throughput']:,.0f} "
                f"[{row['throughput_low']:,.0f}, {row['throughput_high']:,.0f}]",
                "against baseline": formatted("times", reference and row["throughput"] / reference),
            }
            for row in confirmed.to_dict("records")
        ]
    )
