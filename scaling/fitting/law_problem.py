"""Minimisation problem of a law on a run table, and of a finished fit."""

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Law, reference_of
from shapelaw.scaling.laws.registry import LAWS
from shapelaw.scaling.runs.table import SOURCE, RunTable
from shapelaw.scaling.runs.validation import require_comparable_losses
from shapelaw.scaling.solver.identifiability import hold
from shapelaw.scaling.solver.multistart import (
    SMALLEST_DELTA,
)
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.solver.problem import Problem, Solution

STARTING_DELTA = 1e-2


def law_name(law: Law) -> str:
    """Return the name of a law, or its expression if it has none.

    Parameters
    ----------
    law
        Law to name.

    Returns
    -------
    str
        Text that :func:`shapelaw.scaling.laws.registry.law_named` reads.
    """
    return next((name for name, make in LAWS.items() if make() == law), repr(law))


def problem_of(
    law: Law,
    runs: RunTable,
    objective: FitObjective | None = None,
    delta: float | str = "auto",
) -> Problem:
    """Set up the minimisation problem of a fit.

    Parameters
    ----------
    law
        Law to fit.
    runs
        Run table with the columns of the law and loss.
    objective
        Objective; by default Huber.
    delta
        Threshold or scale, or ``"auto"`` for a first threshold that the solver refines.

    Returns
    -------
    Problem
        Columns, ln loss, weights and held parameters.

    Raises
    ------
    InputError
        As :func:`fit`.
    """
    columns = runs.law_columns(("loss", *law.columns))
    losses = columns.pop("loss")
    require_comparable_losses(runs.frame, SOURCE)
    minimised = objective or FitObjective()
    mean = float(losses.mean()) if minimised.on == "raw" else 1.0
    threshold = STARTING_DELTA * mean if delta == "auto" else float(delta)
    reference = reference_of(columns)
    weights = _weights_of(runs, minimised.weights) if minimised.weights else None
    problem = Problem(
        law=law,
        columns=columns,
        log_loss=np.log(losses),
        reference=reference,
        held=hold(law, columns, reference),
        objective=minimised.at(threshold),
        weights=weights,
    )
    _require_enough_rows(problem, law_name(law))
    return problem


def _weights_of(runs: RunTable, name: str) -> np.ndarray:
    """Read the weights of the runs from a column, (n,)."""
    weights = pd.to_numeric(runs[name], errors="coerce").to_numpy(dtype=float)
    if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise InputError(
            f"`{name}` must be a finite weight >= 0 for every run, and not 0 for all of them; "
            "correct the column, or fit without weights"
        )
    return weights


def _require_enough_rows(problem: Problem, law_name: str) -> None:
    free, rows = int(problem.free.sum()), len(problem.log_loss)
    if rows < free:
        raise InputError(
            f"a fit of `{law_name}` to this table needs at least "
            f"{counted(free, 'finished run')}, but got {rows}; train more, or choose a smaller law "
            "with --law chinchilla"
        )


def reconstruct_problem(fitted: Fit, runs: RunTable | pd.DataFrame) -> tuple[Problem, Solution]:
    """Reconstruct the problem of a fit and its optimum, for further intervals on the same runs.

    Parameters
    ----------
    fitted
        Fit to reconstruct.
    runs
        Run table of the fit.

    Returns
    -------
    problem
        Problem with the parameters held that the fit holds.
    solution
        Optimum of the fit.

    Raises
    ------
    InputError
        The runs are not those of the fit.
    """
    runs = fitted.count_as_fitted(runs)
    if runs.fingerprint != fitted.data_sha256:
        raise InputError(
            f"`fit` and `runs` must belong together, but the fit has {len(fitted.run_ids)} runs "
            f"of other content (SHA-256 {fitted.data_sha256[:12]}); give the run table of the fit"
        )
    objective = fitted.minimised
    problem = problem_of(fitted.law, runs, objective, objective.delta).but(held=fitted.held)
    best = Solution(
        theta=fitted.theta,
        cost=float(problem.data.cost(fitted.theta[None])[0]),
        gradient_norm=fitted.gradient_norm,
        converged=True,
        basins=fitted.basins,  # type: ignore[arg-type]
        others=fitted.theta[None],
    )
    return problem, best


def parse_delta(text: str) -> float | str:
    """Parse the threshold of an objective.

    Parameters
    ----------
    text
        ``auto`` or a positive number.

    Returns
    -------
    float or str
        Number, or ``auto``.

    Raises
    ------
    InputError
        The text is neither ``auto`` nor a number of at least 1e-12.
    """
    if text == "auto":
        return text
    try:
        delta = float(text)
    except ValueError:
        delta = float("nan")
    if not SMALLEST_DELTA**2 <= delta < float("inf"):
        raise InputError(
            f"`--delta` must be auto or a positive number of at least 1e-12, but got {text!r}"
        )
    return delta
