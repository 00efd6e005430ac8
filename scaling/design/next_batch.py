"""Designs of the runs to train next: a greedy, cost-aware choice for a stated goal.

Optimal design of experiments (c-optimal for one target, I-optimal for several) on the law
linearised at the fit, with noise that depends on N and with misfit that neighbouring runs share
(:mod:`shapelaw.scaling.design.greedy` has the criterion).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.design.candidates import (
    Limits,
    costs,
    grid_candidates,
    inside,
    passes_per_token,
)
from shapelaw.scaling.design.goals import Decision, Goal, GoalRanking, Optimum, Prediction
from shapelaw.scaling.design.greedy import Selection
from shapelaw.scaling.design.linearised import (
    SAME_PLACE,
    law_columns,
    points_at,
    prior_deviations,
    scatter_of,
)
from shapelaw.scaling.design.noise import Scatter
from shapelaw.scaling.design.regret import DecisionSelection
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit, as_fit
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.table import RunsLike, RunTable, as_frame, as_run_table
from shapelaw.scaling.runs.validation import check_numbers, require_columns

UNITS = {
    "cost_flops": "FLOP",
    "deviation_before": "ln units (0.01 is 1 %), expected error of the target, root mean square; "
    "expected regret of a decision",
    "deviation_after": "ln units (0.01 is 1 %), expected error of the target, root mean square; "
    "expected regret of a decision",
    "share_removed": "of the target's expected squared error, or of a decision's regret, before it",
    "share_per_exaflop": "share_removed per 1e18 FLOP",
}
EXA = 1e18


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A run to train, with the expected error of the target before and after it, in ln units.

    ``candidate`` is the position among the candidates, ``kind`` is new or replicate, and
    ``repeats`` names the earlier run of the same place. For a decision (``regret``), the expected
    regret stands in place of the error.
    """

    candidate: int
    kind: str
    repeats: str | None
    cost_flops: float
    deviation_before: float
    deviation_after: float
    regret: bool = False

    @property
    def share_removed(self) -> float:
        """Share of the target's expected squared error, or of the regret, that the run removes."""
        left = self.deviation_after / self.deviation_before
        return 1 - (left if self.regret else left**2)

    @property
    def why(self) -> str:
        """Effect of the run as a sentence."""
        measure = "expected regret" if self.regret else "squared error"
        effect = f"removes {100 * self.share_removed:.2g} % of the {measure} left"
        return effect + (f"; repeats {self.repeats}" if self.repeats else "")


@dataclass(frozen=True, kw_only=True, repr=False)
class Design(Result):
    """The runs to train next, in order.

    ``rows`` are the chosen rows of the candidates, in order; ``deviation_before`` is the expected
    error of the target, root mean square in ln units; ``rule`` is the greedy rule of the choice,
    ``stopped`` the reason why there are no more runs. A decision has its expected
    regret in place of the error, and ``p_right``: the probability that the favoured shape is the
    best one before the runs, and its expectation after them.
    """

    goal: str
    picks: tuple[Pick, ...]
    rows: pd.DataFrame
    deviation_before: float
    budget_flops: float
    box: dict[str, tuple[float, float]]
    candidates: int
    outside_box: int
    scatter: Scatter
    rule: str
    stopped: str
    p_right: tuple[float, float] | None = None

    @property
    def deviation_after(self) -> float:
        """Expected error of the target after all runs, root mean square in ln units."""
        return self.picks[-1].deviation_after if self.picks else self.deviation_before

    @property
    def spent_flops(self) -> float:
        """Cost of all chosen runs, FLOP."""
        return sum(pick.cost_flops for pick in self.picks)

    def frame(self) -> pd.DataFrame:
        """Return one row per run: columns, cost, and the expected error before and after the run.

        Units are in ``frame.attrs["units"]``.
        """
        about = pd.DataFrame(
            {
                "order": np.arange(1, len(self.picks) + 1),
                "kind": [pick.kind for pick in self.picks],
                "cost_flops": [pick.cost_flops for pick in self.picks],
                "deviation_before": [pick.deviation_before for pick in self.picks],
                "deviation_after": [pick.deviation_after for pick in self.picks],
                "share_removed": [pick.share_removed for pick in self.picks],
                "share_per_exaflop": [
                    pick.share_removed / pick.cost_flops * EXA for pick in self.picks
                ],
                "why": [pick.why for pick in self.picks],
            }
        )
        left = self.rows.drop(columns=[name for name in self.rows if name in about])
        frame = pd.concat((about, left.reset_index(drop=True)), axis=1)
        frame.attrs["units"] = dict(UNITS)
        return frame

    def view(self) -> View:
        """Return the runs and their cost, the expected error of the goal, and the rule used."""
        new = sum(pick.kind == "new" for pick in self.picks)
        shown = ["order", "kind", *(name for name in self.box if name in self.rows), "cost_flops"]
        table = self.frame()[shown].assign(
            error_after_percent=[100 * pick.deviation_after for pick in self.picks],
            why=[pick.why for pick in self.picks],
        )
        return View(
            title=f"{counted(len(self.picks), 'run')} ({new} new, "
            f"{counted(len(self.picks) - new, 'replicate')}) for {self.spent_flops:.3g} of "
            f"{self.budget_flops:.3g} FLOP",
            tables={"runs to train, in order": table},
            notes=[
                self._gain_in_words(),
                self.scatter.summary(),
                f"{counted(self.candidates, 'candidate')} inside the box, {self.outside_box} "
                f"outside; chosen {self.rule}; stopped: {self.stopped}",
            ],
        )

    def _gain_in_words(self) -> str:
        """Describe the error, or the regret and the probability of a decision, before and after."""
        ends = f"{100 * self.deviation_before:.3g} % -> {100 * self.deviation_after:.3g} %"
        if self.p_right is None:
            return f"expected error of {self.goal}: {ends}"
        before, after = self.p_right
        return (
            f"expected regret of {self.goal}: {ends} of the loss; probability that the favoured "
            f"shape is the best: {before:.2f} -> {after:.2f} expected"
        )

    def document(self) -> dict[str, Any]:
        """Return the stable document that ``next-runs --json`` prints."""
        return {
            "goal": self.goal,
            "budget_flops": self.budget_flops,
            "spent_flops": self.spent_flops,
            "deviation_before": self.deviation_before,
            "deviation_after": self.deviation_after,
            "p_right_before": self.p_right[0] if self.p_right else None,
            "p_right_after": self.p_right[1] if self.p_right else None,
            "rule": self.rule,
            "stopped": self.stopped,
            "candidates": self.candidates,
            "outside_box": self.outside_box,
            "box": self.box,
            "noise": self.scatter.noise,
            "noise_slope": self.scatter.noise_slope,
            "misfit": self.scatter.misfit,
            "misfit_at_runs": self.scatter.misfit_at_runs,
            "units": UNITS,
            "runs": self.frame(),
        }


def next_runs(
    fit: Fit,
    candidates: pd.DataFrame | None,
    budget_flops: float,
    *,
    goal: Goal,
    runs: RunsLike,
    limits: Limits | None = None,
    scatter: Scatter | None = None,
) -> Design:
    """Choose the runs to train next under a budget.

    Runs are chosen greedily by squared error removed per FLOP^s, once for each s from 1 to 0, and
    the choice with the smallest final error is returned. The choice with s = 0 begins with the best
    single run, so the design is never worse than that run.

    Parameters
    ----------
    fit
        The fitted law.
    candidates
        Runs that could be trained: the columns of the law, or the fields of shapes and
        ``tokens``; cost 6·N·D unless there is a column ``flops_counted``. None: a grid over the
        observed ranges (:func:`shapelaw.scaling.design.candidates.grid_candidates`).
    budget_flops
        The cost of all runs together, FLOP.
    goal
        A :class:`~shapelaw.scaling.design.goals.Prediction`, ``Optimum`` or ``GoalRanking``, or a
        :class:`~shapelaw.scaling.design.goals.Decision` with two or more shapes.
    runs
        The runs that were fitted.
    limits
        The box of allowed values, the number of runs, and the number of repeats of a run.
    scatter
        Noise and misfit; None: estimated from the residuals of the runs. A decision takes both
        from the draws of the fit.

    Returns
    -------
    The chosen runs, with the expected error of the goal before and after each of them.

    Raises
    ------
    InputError
        No candidate lies inside the box, the budget pays for none, or the law does not have the
        goal.
    """
    fit, limits = as_fit(fit), limits or Limits()
    _check(goal, budget_flops)
    runs = _checked(fit, runs)
    everything = (
        _trained_alike(grid_candidates(fit, within=limits.within), runs)
        if candidates is None
        else as_frame(candidates)
    )
    allowed = _allowed(fit, everything, limits.box(fit.columns(runs)), budget_flops)
    return _design(fit, goal, runs, allowed, budget_flops, limits, scatter)


def _trained_alike(grid: pd.DataFrame, runs: RunTable) -> pd.DataFrame:
    """Give a grid the objective and context of runs of block diffusion, which decide its cost."""
    if (passes_per_token(runs.frame) == 1).all():
        return grid
    same = {name: runs.frame[name].unique() for name in ("objective", "context_length")
            if name in runs.frame}  # fmt: skip
    return grid.assign(**{name: values[0] for name, values in same.items() if len(values) == 1})


def _design(
    fit: Fit,
    goal: Goal,
    runs: RunTable,
    allowed: "_Allowed",
    budget_flops: float,
    limits: Limits,
    scatter: Scatter | None,
) -> Design:
    """Linearise the law at the fit, choose the runs, and describe the choice."""
    observed, loss = fit.columns(runs), runs.losses
    deviations = prior_deviations(fit, observed, loss)
    trained = points_at(fit, observed, deviations)
    points = points_at(fit, allowed.columns, deviations)
    scatter = scatter or scatter_of(fit, observed, loss)
    selection: Selection | DecisionSelection
    if isinstance(goal, Decision):
        description = goal.description
        selection = DecisionSelection.of(*goal.draws(fit, allowed.columns), allowed.price)
    else:
        targets = goal.targets(fit, deviations)
        description = targets.description
        selection = Selection.of(trained, targets, points, allowed.price, scatter)
    chosen, rule, stopped = selection.best(budget_flops, limits)
    picks = _picks(chosen, selection, points.place, (trained.place, runs.run_ids.tolist()))
    p_right, before = None, selection.first_error
    if isinstance(selection, DecisionSelection):
        ends = (selection.begin, selection.after(chosen))
        p_right = (selection.probability_right(ends[0]), selection.probability_right(ends[1]))
    return Design(
        goal=description,
        picks=tuple(picks),
        p_right=p_right,
        rows=allowed.frame.iloc[[position for position, _ in chosen]],
        deviation_before=before if p_right else float(np.sqrt(before)),
        budget_flops=float(budget_flops),
        box=allowed.box,
        candidates=len(allowed.frame),
        outside_box=allowed.outside,
        scatter=scatter,
        rule=rule,
        stopped=stopped,
    )


@dataclass(frozen=True, kw_only=True)
class _Allowed:
    """Candidates inside the box: their rows, columns of the law, costs in FLOP, and the box."""

    frame: pd.DataFrame
    columns: dict[str, np.ndarray]
    price: np.ndarray
    box: dict[str, tuple[float, float]]
    outside: int


def _allowed(
    fit: Fit, candidates: pd.DataFrame, box: dict[str, tuple[float, float]], budget_flops: float
) -> _Allowed:
    """Select the candidates inside the box; refuse a budget that pays for none of them."""
    if candidates.empty:
        raise InputError("`len(candidates) >= 1` must hold, but got 0; give at least one run")
    columns = law_columns(fit, candidates, "the candidates")
    mask = inside(columns, box)
    price = costs(with_ratios(candidates[mask]))
    if price.min() > budget_flops:
        raise InputError(
            f"`budget_flops >= {price.min():.3g}` must hold, the cost of the cheapest of "
            f"{mask.sum()} candidates, but got {budget_flops:.3g}; raise it or shrink the runs"
        )
    return _Allowed(
        frame=candidates[mask],
        columns={name: values[mask] for name, values in columns.items()},
        price=price,
        box=box,
        outside=int((~mask).sum()),
    )


def _check(goal: Goal, budget_flops: float) -> None:
    if not isinstance(goal, Prediction | Optimum | GoalRanking | Decision):
        raise InputError(
            "`goal` must be a Prediction, an Optimum, a GoalRanking or a Decision, but got "
            f"{goal!r}"
        )
    if not 0 < budget_flops < np.inf:
        raise InputError(f"`budget_flops > 0` must hold, but got {budget_flops}")


def _checked(fit: Fit, runs: RunsLike) -> RunTable:
    """Add ratios of shapes, and refuse runs whose loss or columns of the law are not positive."""
    if isinstance(runs, str | Path):
        runs = as_run_table(runs)
    if not isinstance(runs, RunTable):
        runs = RunTable(frame=with_ratios(as_frame(runs).reset_index(drop=True), "the runs"))
    names = ("loss", *fit.source_columns)
    require_columns(runs.frame, names, "the runs")
    check_numbers(runs.frame, names, "the runs")
    return runs


def _picks(
    chosen: list[tuple[int, float]],
    selection: Selection | DecisionSelection,
    candidates: np.ndarray,
    trained: tuple[np.ndarray, list[str]],
) -> list[Pick]:
    """Describe the chosen runs: cost, expected errors, and the earlier run that each repeats."""
    places, names = trained
    before, picks = selection.first_error, []
    regret = isinstance(selection, DecisionSelection)
    names = list(names)
    for number, (position, after) in enumerate(chosen, start=1):
        place = candidates[position]
        near = np.flatnonzero(np.abs(places - place).max(axis=1) <= SAME_PLACE)
        repeats = names[near[0]] if len(near) else None
        picks.append(
            Pick(
                candidate=position,
                kind="new" if repeats is None else "replicate",
                repeats=repeats,
                cost_flops=float(selection.price[position]),
                deviation_before=before if regret else float(np.sqrt(before)),
                deviation_after=after if regret else float(np.sqrt(after)),
                regret=regret,
            )
        )
        places, before = np.vstack((places, place)), after
        names.append(f"choice {number}")
    return picks
