"""Back-test of decisions: probabilities stated from smaller models against measured losses.

A law is fitted to the smaller models of a table and states the probability that one of two shapes
of nearly equal N and D has the lower loss at a larger size, where both were trained. All decisions
together show if decisions stated at 90 % hold nine times out of ten.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
from scipy.stats import norm

from shapelaw.scaling.checks.calibration import (
    SURE,
    brier_score,
    favoured,
    log_score,
    reliability_table,
    sharpness,
    wilson_interval,
)
from shapelaw.scaling.checks.decision_cases import DecisionCase, decision_cases
from shapelaw.scaling.decisions.decide import decide, difference_column
from shapelaw.scaling.display.progress import track
from shapelaw.scaling.display.tables import Result, View, counted, text_cells
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.refits import FitSettings, LawLike, fit_quickly, law_label
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.units import NATS, loss_column

RESAMPLES = 1000  # a probability from S draws has a standard error of up to 0.5 / √S
MIN_NOISE_DEGREES = 3  # of freedom, from which the noise between seeds is known
COLUMNS = (
    *("table", "cut", "sizes_fitted", "rows_fitted", "first", "second", "n", "tokens", "distance"),
    *("p_best", "p_best_run", "first_lower", "predicted", "predicted_low", "predicted_high"),
    *("measured", "noise", "noise_from", "p_oracle"),
)
LOSSES = ("predicted", "measured", "noise")  # columns whose names end in the unit of the losses
ORACLE = (
    "the oracle takes the measured difference for the true one and knows the noise of a difference "
    "(between seeds where the table has replicates, else the scatter around the fitted law): it "
    "states Φ(|difference| / noise); noise widens measured differences, so it is sharper than any "
    "honest statement could be"
)


@dataclass(frozen=True, kw_only=True, repr=False)
class DecisionReport(Result):
    """Report of decisions stated from smaller models and of their measured outcomes.

    Parameters
    ----------
    law_name
        Name or expression of the law.
    decisions
        One row per decision. ``cut`` is the largest fitted N; ``first`` and ``second`` name the
        runs of the two shapes. ``p_best`` is the stated probability that the first shape is truly
        better, ``p_best_run`` that its measured loss (one run, or the mean of its replicates) is
        lower; ``first_lower`` is the outcome (0.5 for a tie). Differences are the loss of the
        second minus that of the first shape in ``loss_unit``, which ends their names:
        ``predicted_nats`` with the 95 % interval of the true difference, and ``measured_nats``.
        ``noise_nats`` is the standard deviation of the measured difference that the oracle uses,
        and ``p_oracle`` its statement.
    unavailable
        Reason by table, or by table and cut, for decisions that could not be made.
    loss_unit
        Unit of the losses of all tables.
    """

    law_name: str
    decisions: pd.DataFrame
    unavailable: dict[str, str]
    loss_unit: str = NATS

    def frame(self) -> pd.DataFrame:
        """Return one row per decision."""
        return self.decisions

    def reliability(self, column: str = "p_best_run") -> pd.DataFrame:
        """Return the share that held in bins of the stated probability.

        :func:`shapelaw.scaling.checks.calibration.reliability_table` describes the columns.
        """
        return reliability_table(self.decisions[column], self.decisions["first_lower"])

    def scores(self, column: str = "p_best_run") -> dict[str, float]:
        """Score one column of stated probabilities against the outcomes.

        Returns
        -------
        dict
            ``decisions``, ``hits`` (the favoured shape was lower), ``share_right``, ``brier``,
            ``log_score``, ``sure`` (stated at 90 % or more), ``share_sure``, ``sure_held``,
            ``sure_mean_stated``, ``sure_low`` and ``sure_high`` (90 % Wilson interval of the share
            that held), ``sharpness`` (mean of 2 max(p, 1 − p) − 1), ``oracle_sharpness``,
            ``oracle_share_sure`` and ``sharpness_of_oracle`` (share of the oracle's sharpness).
        """
        rows = self.decisions
        if not len(rows):
            return {"decisions": 0}
        outcome = rows["first_lower"]
        probability, held = favoured(rows[column], outcome)
        oracle, _ = favoured(rows["p_oracle"], outcome)
        sure = probability >= SURE
        count = int(sure.sum())
        low, high = wilson_interval(float(held[sure].sum()), count) if count else (np.nan, np.nan)
        ours, best = sharpness(rows[column]), sharpness(rows["p_oracle"])
        return {
            "decisions": len(rows),
            "hits": float(held.sum()),
            "share_right": float(held.mean()),
            "brier": brier_score(rows[column], outcome),
            "log_score": log_score(rows[column], outcome),
            "sure": count,
            "share_sure": float(sure.mean()),
            "sure_held": float(held[sure].sum()),
            "sure_mean_stated": float(probability[sure].mean()) if count else np.nan,
            "sure_low": low,
            "sure_high": high,
            "sharpness": ours,
            "oracle_sharpness": best,
            "oracle_share_sure": float((oracle >= SURE).mean()),
            "sharpness_of_oracle": ours / best if best else np.nan,
        }

    def by_table(self) -> pd.DataFrame:
        """Return the scores of ``p_best_run`` for each table."""
        lines = []
        for name, rows in self.decisions.groupby("table", sort=False):
            part = replace(self, decisions=rows).scores()
            kept = ("decisions", "hits", "brier", "sure", "sure_held", "sharpness_of_oracle")
            line = {"table": name, "cuts": rows["cut"].nunique()}
            lines.append(line | {key: part[key] for key in kept})
        return pd.DataFrame(lines)

    def view(self) -> View:
        """Return the scores, the reliability table, the scores by table and the decisions."""
        scored = self.scores()
        if not len(self.decisions):
            return View(title=f"{self.law_name}: no decision could be tested", notes=self._notes())
        return View(
            title=f"{self.law_name}: {scored['hits']:g} of "
            f"{counted(len(self.decisions), 'decision')} right, Brier score {scored['brier']:.3f}",
            tables={
                "reliability of stated probabilities": self.reliability(),
                "by table": self.by_table(),
                f"decisions (second minus first shape, {self.loss_unit})": self._shown_decisions(),
            },
            notes=[self._sure_in_words(scored), self._sharpness_in_words(scored), *self._notes()],
        )

    def document(self) -> dict[str, Any]:
        """Return scores, reliability tables and decisions."""
        return {
            "law": self.law_name,
            "scores": self.scores(),
            "scores_of_p_best": self.scores("p_best"),
            "reliability": self.reliability(),
            "by_table": self.by_table(),
            "oracle": ORACLE,
            "not_available": self.unavailable,
            "decisions": self.decisions,
        }

    def markdown(self) -> str:
        """Return the reliability table and the scores by table as Markdown."""
        tables = {"Reliability": self.reliability(), "By table": self.by_table()}
        return "\n".join(f"{title}\n\n{_markdown(frame)}\n" for title, frame in tables.items())

    def _shown_decisions(self) -> pd.DataFrame:
        """Return the decisions with the columns and names that fit a terminal."""
        predicted, measured = (loss_column(name, self.loss_unit) for name in LOSSES[:2])
        names = {"p_best_run": "P(first lower)", predicted: "predicted"}
        names |= {"predicted_low": "low", "predicted_high": "high", measured: "measured"}
        shown = self.decisions.assign(
            **{
                side: [_shorten(text) for text in self.decisions[side]]
                for side in ("first", "second")
            }
        )
        return shown.rename(columns=names)[["table", "cut", "first", "second", *names.values()]]

    def _sure_in_words(self, scored: dict[str, float]) -> str:
        """Describe the decisions that are stated at 90 % or more."""
        if not scored["sure"]:
            return f"no decision is stated at {100 * SURE:g} % or more"
        return (
            f"{scored['sure']} of {scored['decisions']} are stated at {100 * SURE:g} % or more "
            f"(mean {100 * scored['sure_mean_stated']:.0f} %): {scored['sure_held']:g} held, 90 % "
            f"Wilson interval {100 * scored['sure_low']:.0f} to {100 * scored['sure_high']:.0f} %"
        )

    def _sharpness_in_words(self, scored: dict[str, float]) -> str:
        """Describe the scores and the sharpness against the oracle."""
        return (
            f"log score {scored['log_score']:.3f} (0.693 without knowledge); sharpness "
            f"{scored['sharpness']:.2f}, {100 * scored['sharpness_of_oracle']:.0f} % of the "
            f"oracle's; the oracle states {100 * scored['oracle_share_sure']:.0f} % of the "
            f"decisions at {100 * SURE:g} % or more"
        )

    def _notes(self) -> list[str]:
        """Return the assumptions of the oracle and the decisions that are not available."""
        missing = [f"{name}: not available: {why}" for name, why in self.unavailable.items()]
        return [ORACLE, *missing]


def backtest_decisions(
    law: LawLike, tables: Mapping[str, RunTable], **settings: Unpack[FitSettings]
) -> DecisionReport:
    """Decide between shapes from the smaller models of run tables, and compare with the losses.

    Parameters
    ----------
    law
        Law by name or as an object.
    tables
        Run tables by name, with losses in one unit. Their conventions of N define which shapes
        have nearly equal N.
    settings
        Settings of every fit, by default 64 starts and 1000 resamples; ``size`` is the N of the
        law, by default that of the tables.

    Returns
    -------
    DecisionReport
        One row per decision of :func:`shapelaw.scaling.checks.decision_cases.decision_cases`.

    Raises
    ------
    InputError
        The law is unknown, a table lacks columns of shapes, or the tables differ in the unit of
        their losses.
    """
    units = dict.fromkeys(runs.loss_unit for runs in tables.values()) or {NATS: None}
    if len(units) > 1:
        raise InputError(
            f"decisions of several tables need losses in one unit, but they are in "
            f"{' and '.join(units)}; test the tables of each unit apart"
        )
    (unit,) = units
    chosen: FitSettings = {"resamples": RESAMPLES, **settings}
    rows: list[dict[str, object]] = []
    unavailable: dict[str, str] = {}
    cuts: list[tuple[RunTable, list[DecisionCase]]] = []  # with the same fitted runs
    for name, runs in tables.items():
        cases = decision_cases(runs, name)
        if not cases:
            unavailable[name] = "no two larger shapes have nearly equal N and D"
        cuts += [
            (runs, [c for c in cases if c.cut == cut]) for cut in sorted({c.cut for c in cases})
        ]
    for runs, cases in track(cuts, "cuts", total=len(cuts)):
        try:
            fitted = fit_quickly(law, runs.take(cases[0].fitted), **chosen)
        except InputError as error:
            unavailable[f"{cases[0].table} up to {cases[0].cut:.4g} parameters"] = str(error)
            continue
        rows += [_decided(fitted, runs, case) for case in cases]
    return DecisionReport(
        law_name=law_label(law),
        decisions=pd.DataFrame(rows, columns=list(COLUMNS)).rename(
            columns={name: loss_column(name, unit) for name in LOSSES}
        ),
        unavailable=unavailable,
        loss_unit=unit,
    )


def _decided(fitted: Fit, runs: RunTable, case: DecisionCase) -> dict[str, object]:
    """State the probabilities of one decision, and read its outcome."""
    pair = runs.frame.iloc[[case.first[0], case.second[0]]]
    replicates = [len(case.first), len(case.second)]
    stated = decide(fitted, pair, runs=replicates)
    first, second = (runs.losses[rows].mean() for rows in (case.first, case.second))
    between, degrees = runs.noise
    known = degrees >= MIN_NOISE_DEGREES
    # Noise of the mean of k runs is smaller by √k.
    share = np.sqrt(np.sum(1 / np.array(replicates)))
    noise = (between if known else fitted.noise) * share * (first + second) / 2
    difference, name = stated.iloc[1], difference_column(fitted)
    return {
        "table": case.table,
        "cut": case.cut,
        "sizes_fitted": case.sizes,
        "rows_fitted": len(case.fitted),
        "first": ", ".join(runs.run_ids[case.first]),
        "second": ", ".join(runs.run_ids[case.second]),
        "n": float(runs.sizes[case.first[0]]),
        "tokens": float(runs.tokens[case.first[0]]),
        "distance": case.distance,
        "p_best": float(stated["p_best"].iloc[0]),
        "p_best_run": float(stated["p_best_run"].iloc[0]),
        "first_lower": 0.5 + 0.5 * float(np.sign(second - first)),
        "predicted": float(difference[name]),
        "predicted_low": float(difference[f"{name}_low"]),
        "predicted_high": float(difference[f"{name}_high"]),
        "measured": float(second - first),
        "noise": float(noise),
        "noise_from": "replicates" if known else "scatter around the law",
        "p_oracle": float(norm.cdf((second - first) / noise)),
    }


def _shorten(runs: str) -> str:
    """Replace the names of the second and further replicates by their number."""
    first, *others = runs.split(", ")
    return f"{first} and {counted(len(others), 'replicate')}" if others else first


def _markdown(frame: pd.DataFrame) -> str:
    """Return a data frame as a Markdown table."""
    cells = text_cells(frame)
    lines = [list(map(str, cells)), ["---"] * cells.shape[1], *cells.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
