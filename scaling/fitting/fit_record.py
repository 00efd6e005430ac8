"""Record of a fit: optimum, draws, noise, notes and status."""

from dataclasses import replace
from typing import Any

import numpy as np

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.fitting.factor_tests import (
    UnresolvedFactor,
    effects_of,
)
from shapelaw.scaling.fitting.interval_ends import (
    MIN_DRAWS,
    allows_profiles,
    drawn_ends,
    profile_ends,
)
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.laws.part import Columns
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.diagnosis import list_warnings, residual_warnings
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.solver.identifiability import NO_TERM, optimum_status
from shapelaw.scaling.solver.multistart import (
    new_run_scale,
    residual_scale,
)
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.resampling import bootstrap, method_for
from shapelaw.scaling.uncertainty.robust_covariance import sandwich

DELTA_SWEEP = (1e-4, 1e-3, 1e-2, 1e-1)


MIN_MOVE = 0.5  # of a parameter, in half widths of its interval, that is worth a word
MAX_MOVES = 3  # parameters that are named


MIN_TERM_SHARE = 1e-6  # of the loss; a term below it everywhere has no effect


RESAMPLING_NAMES = {
    "rows": "rows (iid)",
    "cluster": "clusters of rows of one run",
    "residuals": "residuals at the same design",
    "wild": "residuals with random signs",
    "wild-cluster": "clusters of residuals with random factors",
}


def run_fields(runs: RunTable, columns: Columns) -> dict[str, Any]:
    """Return the fields of a fit that name its runs: names, omissions, ranges and hash."""
    return {
        "run_ids": runs.run_ids.tolist(),
        "left_out": dict(runs.left_out),
        "loss_unit": runs.loss_unit,
        "loss_kind": runs.loss_kind,
        "ranges": {name: (float(c.min()), float(c.max())) for name, c in columns.items()},
        "data_sha256": runs.fingerprint,
        "table_warnings": list(runs.warnings),
    }


def optimum_fields(
    problem: Problem, best: Solution, unresolved: list[UnresolvedFactor]
) -> dict[str, Any]:
    """Return the fields of a fit that describe its optimum and the solver's end."""
    return {
        "names": list(problem.law.names),
        "theta": best.theta,
        "reference": dict(problem.reference),
        "held": dict(problem.held),
        "objective": best.cost,
        "minimised": problem.objective,
        "basins": best.basins,
        "gradient_norm": best.gradient_norm,
        "at_bounds": _at_bounds(problem, best.theta),
        "dead_terms": _dead_terms(problem, best.theta),
        "effects": effects_of(problem, best.theta) | {h.column: h.effect for h in unresolved},
        "delta_sweep": _sweep(problem, best),
    }


def resample_fields(
    problem: Problem, best: Solution, clusters: np.ndarray | None, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the fields of a fit that a bootstrap gives: draws, ends, covariance and method."""
    method = method_for(len(problem.log_loss), int(problem.free.sum()), clusters)
    draws = bootstrap(
        problem, best, method=method, resamples=resamples, seed=seed, clusters=clusters
    )
    ends = {}
    if resamples >= MIN_DRAWS:
        ends = drawn_ends(problem.law.public(draws, problem.reference))
        if allows_profiles(problem, clusters):
            ends = profile_ends(problem, best, clusters, ends)
    return {
        "draws": draws,
        "ends": ends,
        "covariance": sandwich(problem, best.theta, clusters),
        "bootstrap": f"{counted(resamples, 'resample')} by {RESAMPLING_NAMES[method]}",
    }


def noise_fields(problem: Problem, best: Solution, between: tuple[float, int]) -> dict[str, Any]:
    """Estimate the noise of a new run: around the law, or between seeds if known and larger."""
    deviation, degrees = between
    free = int(problem.free.sum())
    residuals = problem.log_residuals(best.theta)
    noise, noise_degrees = new_run_scale(residuals, free), max(len(problem.log_loss) - free, 0)
    if degrees > 2 and deviation > noise:
        noise, noise_degrees = deviation, min(degrees, noise_degrees)
    return {
        "scatter": residual_scale(residuals, free),
        "noise": noise,
        "noise_degrees": noise_degrees,
        "replicate_noise": deviation if degrees else None,
        "replicate_degrees": degrees,
    }


def _at_bounds(problem: Problem, theta: np.ndarray) -> list[str]:
    """List the free parameters that ended at a bound."""
    bounds = problem.bounds
    margin = 1e-6 * (bounds.upper - bounds.lower)
    at = (theta <= bounds.lower + margin) | (theta >= bounds.upper - margin)
    return [name for name, bound in zip(problem.law.names, at & problem.free, strict=True) if bound]


def _dead_terms(problem: Problem, theta: np.ndarray) -> list[str]:
    """List the scales of the base whose term is below 1e-6 of the loss at all runs."""
    logs = problem.program.log_loss(theta[None])[0]
    terms = problem.law.base.terms(problem.columns, problem.reference, problem.law.index)
    dead = []
    for place, value in (summand for term in terms for summand in term.summands(theta[None])):
        share = value[0] / np.exp(logs)
        if problem.law.names[place] not in problem.held and share.max() < MIN_TERM_SHARE:
            dead.append(problem.law.names[place])
    return dead


def _sweep(problem: Problem, best: Solution) -> list[dict[str, float]]:
    """Refit at other thresholds from the optimum, for the sensitivity to the robust loss."""
    if problem.objective.kind not in ("huber", "asymmetric") or problem.objective.on == "raw":
        return []
    rows = []
    for delta in DELTA_SWEEP:
        changed = problem.but(objective=problem.objective.at(delta))
        minima = changed.minimise(best.others)
        theta = minima.theta[int(np.argmin(minima.cost))]
        rows.append({"delta": delta, **problem.law.public(theta, problem.reference)})
    return rows


def notes_of(
    fitted: Fit, unresolved: list[UnresolvedFactor], clusters: np.ndarray | None
) -> list[str]:
    """List held parameters, unclear optima and doubts about the fit, one sentence each."""
    notes = [f"{factor.column}: {factor.why}; held at no effect" for factor in unresolved]
    notes += [f"{name} ended at its bound" for name in fitted.at_bounds]
    notes += [
        f"the term of {name} has died out (below 1e-6 of the loss)" for name in fitted.dead_terms
    ]
    explained = {name for factor in unresolved for name in factor.factor.names}
    pinned = {fitted.law.names[fitted.law.index[pin.name]] for pin in fitted.law.pins}
    parameters = fitted.parameters()
    for name, held in fitted.held.items():
        flat = name.endswith("_optimum")  # of a U-shape that is held at no effect
        steady = name.endswith(("_drift", "_bend")) and held.low == held.high
        if name in pinned or not (name in explained or flat or steady):
            no_effect = held.low == held.high and held.value in (0.0, NO_TERM)
            shown = "no effect" if no_effect else f"{parameters[name]['value']:g}"
            notes.append(f"{name} held at {shown}: {held.why}")
    for factor in fitted.law.shapes:
        name = f"{factor.of}_optimum"
        if isinstance(factor, UShape) and name not in fitted.held:
            optimum = parameters[name]
            ends = (optimum["value"], optimum["low"], optimum["high"])
            note = optimum_status(factor.of, *ends, fitted.ranges[factor.of])[1]
            notes += [note] if note else []
    if clusters is not None and 1 < (groups := len(np.unique(clusters))) < min(30, len(clusters)):
        notes.append(
            f"only {groups} clusters of rows: the cluster bootstrap keeps its level, profile and "
            "sandwich intervals are too narrow"
        )
    if fitted.noise_degrees == 0:
        notes.append("as many runs as free parameters: the noise is unknown, intervals too narrow")
    if fitted.size_convention == "total" and N in fitted.law.columns:
        notes.append("N is total parameters")
    if fitted.left_out:
        shown = ", ".join(f"{name} ({why})" for name, why in list(fitted.left_out.items())[:8])
        notes.append(f"{counted(len(fitted.left_out), 'row')} left out: {shown}")
    return notes


def with_fit_warnings(fitted: Fit, runs: RunTable, sound: Fit | None) -> Fit:
    """Add what a fit shows to the warnings of its table.

    Parameters
    ----------
    fitted
        Fit of the runs.
    runs
        Run table.
    sound
        Fit without the rows that the table marks as outliers; None without such a fit.

    Returns
    -------
    Fit
        Fit with warnings of a column outside of the law that explains its residuals, and of the
        change that marked rows make.
    """
    residuals = np.log(runs.losses) - np.log(fitted.central(runs))
    unexplained = residual_warnings(runs.frame, fitted.columns(runs), residuals)
    change = "" if sound is None else changed_parameters(fitted, sound)
    warnings = list_warnings(runs.frame, runs.size_column, unexplained, change)
    return replace(fitted, table_warnings=warnings)


def changed_parameters(fitted: Fit, other: Fit) -> str:
    """Say which parameters another fit of the same law moves, scales of its terms left out."""
    parameters, others = fitted.parameters(), other.parameters()
    moves = {}
    for name in set(parameters) - set(fitted.law.base.scales):
        ends, value = parameters[name], others[name]["value"]
        half = max(ends["high"] - ends["low"], np.finfo(float).tiny) / 2
        moves[name] = abs(value - ends["value"]) / half
    names = sorted((n for n in moves if moves[n] > MIN_MOVE), key=lambda name: -moves[name])
    if not names:
        return "every parameter then stays well within its interval"
    changes = [
        f"{name} is then {others[name]['value']:.3g} instead of {parameters[name]['value']:.3g}"
        for name in names[:MAX_MOVES]
    ]
    return ", ".join(changes)


def status_line(fitted: Fit, best: Solution) -> str:
    """Summarize in one line how the fit ended."""
    solved = "converged" if best.converged else "stopped before it converged: do not trust it"
    reached = best.basins[0]["starts"] if best.basins else 0
    status = f"{solved}; {reached:.0f} of {counted(fitted.starts, 'start')} reach the best optimum"
    status += " in the first stages"
    if best.disagreement:
        status = f"{best.disagreement}; {status}"
    for state, names in (("at a bound", fitted.at_bounds), ("died out", fitted.dead_terms)):
        status += f"; {state}: {', '.join(names)}" if names else ""
    if fitted.held:
        status += f"; held: {', '.join(fitted.held)}"
    return status
