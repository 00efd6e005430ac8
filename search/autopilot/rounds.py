"""Rounds of the autopilot: train, fit, decide, stop or choose the next runs.

A round is a function of the measurements and of the decisions recorded before it. A killed
autopilot therefore repeats at most the round that it was in, and decides alike.
"""

from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from shapelaw.scaling.decisions.decide import decide
from shapelaw.scaling.decisions.near_best import near_best
from shapelaw.scaling.design.candidates import Limits
from shapelaw.scaling.design.goals import GoalRanking
from shapelaw.scaling.design.next_batch import next_runs
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.errors import WorkError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import RunTable
from shapelaw.search.autopilot.record import DECISIONS, DecisionRecord
from shapelaw.search.autopilot.stopping import StoppingRule

HOUR = 3600.0  # seconds
ROUND_SHARE = 0.25  # FLOPs of a round's new runs over the FLOPs of all runs before
STRETCH = 2.5  # factor beyond the trained sizes and tokens up to which runs may be chosen
Line = dict[str, Any]  # a recorded decision
Run = dict[str, Any]  # a run as it stands in the record


class DecisionProblem(Protocol):
    """Shapes to decide between, and the runs that can tell them apart."""

    def first_runs(self) -> list[Run]:
        """Plan the runs of the first round."""

    def train(self, runs: list[Run]) -> RunTable:
        """Train all runs that are not trained yet, and return the table of all."""

    def fit(self, runs: RunTable) -> Fit:
        """Fit the law."""

    def choices(self, number: int, fitted: Fit, runs: RunTable) -> "Choices":
        """Return the shapes that may be proposed."""

    def candidates(self, shapes: pd.DataFrame, runs: list[Run]) -> pd.DataFrame:
        """Return the runs that could be trained next, with their ``flops_counted``.

        ``shapes`` are the allowed ones.
        """

    def runs_of(self, candidates: pd.DataFrame, runs: list[Run]) -> list[Run]:
        """Return chosen candidates as runs that differ from all runs so far."""

    def decided(self, lines: list[Line]) -> None:
        """Show the last of the decisions so far."""


class Choices(Protocol):
    """The shapes that may be proposed.

    Attributes
    ----------
    frame
        One row for each shape, the columns of the law and ``tokens`` among its columns.
    baseline
        A row of the same columns, with which the proposed shape is compared.
    """

    frame: pd.DataFrame
    baseline: pd.DataFrame

    def about(self, row: int) -> dict[str, Any] | None:
        """Return the record's fields of a proposed shape; None if it is not allowed after all."""

    def name(self, row: int) -> str:
        """Return the name of a shape."""


def run_rounds(problem: DecisionProblem, rule: StoppingRule, folder: Path) -> list[Line]:
    """Run rounds until the rule stops them, and return the recorded decisions.

    Parameters
    ----------
    folder
        Folder of the record, ``decisions.jsonl``. A record that exists there is continued.
    """
    record = DecisionRecord(folder / DECISIONS)
    lines = record.lines()
    for number in range(len(lines)):
        problem.decided(lines[: number + 1])
    while not lines or not lines[-1]["stop"]:
        if lines:
            decision = _decide(problem, rule, lines)
        else:
            decision = {"stop": "", "runs": problem.first_runs()}
        record.append({"round": len(lines), **json_ready(decision)})
        lines = record.lines()
        problem.decided(lines)
    return lines


def _decide(problem: DecisionProblem, rule: StoppingRule, lines: list[Line]) -> dict[str, Any]:
    """Train the chosen runs, decide, and stop or choose the next runs."""
    chosen = [run for line in lines for run in line["runs"]]
    runs = problem.train(chosen)
    fitted = problem.fit(runs)
    choices = problem.choices(len(lines), fitted, runs)
    flops, hours = cost_of(runs)
    while True:
        best = near_best(fitted.log_loss_draws(choices.frame), rule.indifference)
        about = choices.about(best.row)
        if about is not None:
            break
        choices.frame = choices.frame.drop(index=choices.frame.index[best.row])
        if choices.frame.empty:
            raise WorkError("no allowed shape is left: each one measured serves too slowly")
    proposed = choices.frame.iloc[[best.row]]
    against = decide(fitted, pd.concat([choices.baseline, proposed], ignore_index=True)).iloc[1]
    decision = {
        **about,
        "certainty": best.certainty,
        "rival": None if best.rival is None else choices.name(best.rival),
        "choices": len(choices.frame),
        "trained": len(chosen),
        "flops": flops,
        "core_hours": hours,
        "law_sha256": fitted.data_sha256,
        **{name: against[name] for name in ("p_best", "p_best_run", *DIFFERENCE)},
        "stop": rule.reason([*certainties(lines), best.certainty], hours),
        "runs": [],
    }
    if decision["stop"] or best.rival is None:
        return decision
    candidates = problem.candidates(choices.frame, chosen)
    left = flops * (rule.budget_hours / hours - 1)
    cheapest = candidates["flops_counted"].min() if len(candidates) else float("inf")
    if cheapest > left:
        return decision | {"stop": "the budget pays for no further run"}
    design = next_runs(
        fitted,
        candidates,
        min(left, max(ROUND_SHARE * flops, cheapest)),
        goal=GoalRanking(first=proposed, second=choices.frame.iloc[[best.rival]]),
        runs=runs,
        limits=Limits(smallest_gain=0.0, stretch=STRETCH),
    )
    if not design.picks:
        return decision | {"stop": "no further run tells the shapes apart"}
    return decision | {"runs": problem.runs_of(design.rows, chosen)}


DIFFERENCE = ("difference_nats", "difference_nats_low", "difference_nats_high")


def certainties(lines: list[Line]) -> list[float]:
    """Return the certainty of every recorded decision, oldest first."""
    return [line["certainty"] for line in lines if "certainty" in line]


def cost_of(runs: RunTable) -> tuple[float, float]:
    """Return the FLOPs and the core-hours of runs; branches of one run are counted once."""
    groups = runs.frame.groupby("run_group" if "run_group" in runs else "run_id")
    longest = groups[["flops_counted", "seconds"]].max().sum()
    return float(longest["flops_counted"]), float(longest["seconds"]) / HOUR
