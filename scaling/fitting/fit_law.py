"""Fitting of a law to a run table: many starts, a robust loss on ln loss, and diagnostics.

By default the objective is the sum over runs of Huber(ln L - ln L_predicted), without rounding and
without weights (arXiv 2203.15556, appendix D.4, with the sum instead of the mean).
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder, read_json
from shapelaw.scaling.fitting.factor_tests import (
    UnresolvedFactor,
    effects_of,
    solve_with_factor_tests,
)
from shapelaw.scaling.fitting.pooled import PooledFit, PoolMember, fit_pool, with_sources
from shapelaw.scaling.fitting.posterior_fit import (
    PosteriorFit,
    fit_posterior,
    prior_of,
    resolution_notes,
    without_weak_holds,
)
from shapelaw.scaling.fitting.priors import Prior, prior_from_fit, shape_parameters
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.laws.law import Base, Law, reference_of
from shapelaw.scaling.laws.part import Columns
from shapelaw.scaling.laws.registry import LAWS, law_named
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import SOURCE, RunsLike, RunTable, as_run_table
from shapelaw.scaling.runs.validation import require_comparable_losses
from shapelaw.scaling.solver.identifiability import NO_TERM, hold, optimum_status
from shapelaw.scaling.solver.multistart import (
    SMALLEST_DELTA,
    new_run_scale,
    residual_scale,
    solve_at,
)
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.posterior import DEGREES
from shapelaw.scaling.uncertainty.resampling import bootstrap, method_for
from shapelaw.scaling.uncertainty.robust_covariance import sandwich

DELTA_SWEEP = (1e-4, 1e-3, 1e-2, 1e-1)
STARTING_DELTA = 1e-2
MIN_TERM_SHARE = 1e-6  # of the loss; a term below it everywhere has no effect


PriorLike = str | Path | Fit | Prior | PooledFit | None
POOLED_LAW = data_folder() / "laws" / "pooled.json"  # the shipped pool


@overload
def fit(
    law: str | Law | Base,
    runs: RunsLike,
    *,
    objective: str | FitObjective = ...,
    delta: float | str = ...,
    size: str = ...,
    starts: int | np.ndarray = ...,
    resamples: int = ...,
    seed: int = ...,
    prior: PriorLike = ...,
    pool: None = ...,
) -> Fit: ...


@overload
def fit(
    law: str | Law | Base,
    runs: Mapping[str, RunsLike],
    *,
    size: str = ...,
    starts: int | np.ndarray = ...,
    resamples: int = ...,
    seed: int = ...,
    pool: str,
) -> PooledFit: ...


def fit(
    law: str | Law | Base,
    runs: RunsLike | Mapping[str, RunsLike],
    *,
    objective: str | FitObjective = "huber",
    delta: float | str = "auto",
    size: str = "auto",
    starts: int | np.ndarray = 1024,
    resamples: int = 1000,
    seed: int = 0,
    prior: PriorLike = None,
    pool: str | None = None,
) -> Fit | PooledFit:
    """Fit a law to the runs of a table.

    With a prior, the fit is the posterior of
    :mod:`shapelaw.scaling.uncertainty.posterior`: its mode, and draws for all intervals and
    probabilities. Without one, it is a robust minimum with a bootstrap, and parameters that the
    table cannot identify are held.

    Parameters
    ----------
    law
        Law or base, its name in :data:`shapelaw.scaling.laws.registry.LAWS`, or an expression.
    runs
        Run table, or the file or the name of one, which is loaded as by
        :func:`shapelaw.scaling.runs.catalog.load_runs`. A data frame is used without validation.
        Several tables by name, with ``pool="source"``, are fitted as :func:`fit_pooled` describes.
    objective
        One of :data:`shapelaw.scaling.solver.objectives.KINDS`, or an
        :class:`~shapelaw.scaling.solver.objectives.FitObjective`.
    delta
        Threshold or scale of the objective. ``"auto"`` takes 1.345 times the robust scale of the
        residuals (for Student-t the maximum-likelihood scale).
    size
        Parameters that N counts: ``non-embedding``, ``total`` or ``active``. ``"auto"`` takes the
        convention of the table.
    starts
        Number of starts, or the starts as internal parameters, (S, p).
    resamples
        Number of draws of the posterior, or of bootstrap resamples, for the intervals.
    seed
        Seed of the starts and of the draws.
    prior
        ``"weak"``: wide priors from the literature; ``"pooled"``: the shipped pooled law; a fit, a
        pooled fit, or the path of its file: the shape parameters of that fit, widened by the
        variance between sources; ``"none"``: no prior.
        By default weak, and none where an objective or a threshold is given or the law has
        brackets, as for the reproduction of published fits.
    pool
        ``"source"`` for several tables; None for one.

    Returns
    -------
    Fit
        Parameters with intervals, status and notes.

    Raises
    ------
    InputError
        A column is missing, losses are not comparable, or there are too few rows.
    """
    start_time = time.perf_counter()
    law = law_named(law)
    if isinstance(runs, Mapping):
        if pool != "source" or prior is not None:
            raise InputError(
                "`pool` must be source for several tables, and `prior` must be left out, but got "
                f'{pool!r} and {prior!r}; write pool="source"'
            )
        return fit_pooled(law, runs, size=size, starts=starts, resamples=resamples, seed=seed)
    if pool is not None:
        raise InputError(
            f"`pool` needs several tables by name, but got one table with {pool!r}; give a "
            "dictionary of tables"
        )
    minimised = objective if isinstance(objective, FitObjective) else FitObjective(kind=objective)
    runs = as_run_table(runs, size)
    problem = problem_of(law, runs, minimised, delta)
    if wants_prior(law, minimised, delta, prior):
        fitted = _fit_with_prior(problem, runs, starts, resamples, seed, prior)
        return replace(fitted, seconds=time.perf_counter() - start_time)
    problem, best, unresolved = solve_with_factor_tests(problem, delta, starts, seed, runs.noise)
    clusters = runs.run_groups
    fitted = Fit(
        law_name=law_name(law),
        delta_rule=_delta_rule(minimised, delta),
        starts=starts if isinstance(starts, int) else len(starts),
        seed=seed,
        size_convention=runs.size,
        status="",
        notes=[],
        seconds=0.0,
        **_run_fields(runs, problem.columns),
        **_optimum_fields(problem, best, unresolved),
        **_resample_fields(problem, best, clusters, resamples, seed),
        **_noise_fields(problem, best, runs.noise),
        noise_by_size=runs.noise_by_size.to_dict("records"),
    )
    notes, status = _notes(fitted, unresolved, clusters), _status(fitted, best)
    return replace(fitted, notes=notes, status=status, seconds=time.perf_counter() - start_time)


def wants_prior(law: Law, minimised: FitObjective, delta: float | str, prior: PriorLike) -> bool:
    """Decide whether a fit has a prior; refuse a prior with an objective of its own."""
    plain = minimised == FitObjective() and delta == "auto"
    if prior is None:
        return plain and all(factor.optional for factor in law.shapes)
    if prior == "none":
        return False
    if not plain:
        raise InputError(
            "`objective` and `delta` must be left out with a prior, whose likelihood is Student-t, "
            f"but got {minimised.kind}, delta {delta}; leave them out, or give --prior none"
        )
    return True


def _fit_with_prior(
    problem: Problem,
    runs: RunTable,
    starts: int | np.ndarray,
    resamples: int,
    seed: int,
    prior: PriorLike,
) -> Fit:
    """Fit the posterior, starting at the robust minimum with the parameters held that lack runs."""
    _, best = solve_at(problem, "auto", starts, seed)
    given, name = given_prior(prior, problem)
    freed = without_weak_holds(problem)
    found = fit_posterior(
        freed, best.theta, prior_of(freed, given), clusters=clusters_of(runs), draws=resamples,
        seed=seed,
    )  # fmt: skip
    counts = starts if isinstance(starts, int) else len(starts)
    return posterior_result(runs, found, best, starts=counts, seed=seed, prior_name=name)


def clusters_of(runs: RunTable) -> np.ndarray | None:
    """Return the training run of every row, (n,); None if every row is a run of its own."""
    groups = runs.run_groups
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def posterior_result(
    runs: RunTable, found: PosteriorFit, best: Solution, *, starts: int, seed: int, prior_name: str
) -> Fit:
    """Return the fit of a posterior with its record.

    Parameters
    ----------
    runs
        Run table of the fit.
    found
        Mode and draws.
    best
        Robust minimum from which the mode was searched.
    starts, seed
        Number of starts of that minimum, and seed of starts and draws.
    prior_name
        Name of the prior.

    Returns
    -------
    Fit
        Parameters with intervals, status and notes.
    """
    best = replace(best, theta=found.theta, cost=found.cost)
    fitted = Fit(
        law_name=law_name(found.problem.law),
        delta_rule="scale from its posterior",
        starts=starts,
        seed=seed,
        size_convention=runs.size,
        status="",
        notes=[],
        seconds=0.0,
        **_run_fields(runs, found.problem.columns),
        **_optimum_fields(found.problem, best, []),
        draws=found.draws,
        covariance=found.covariance,
        bootstrap=f"{counted(len(found.draws), 'draw')} of the posterior, prior {prior_name}",
        scatter=residual_scale(
            found.problem.log_residuals(found.theta), int(found.problem.free.sum())
        ),
        noise=_posterior_noise(found),
        noise_degrees=max(len(found.problem.log_loss) - int(found.problem.free.sum()), 1),
        replicate_noise=runs.noise[0] if runs.noise[1] else None,
        replicate_degrees=runs.noise[1],
        noise_by_size=runs.noise_by_size.to_dict("records"),
        prior=found.prior,
        posterior=found.state,
    )
    notes = [*resolution_notes(found.prior), *_notes(fitted, [], None)]
    notes += [found.note] if found.note else []
    return replace(fitted, notes=notes, status=_status(fitted, best))


def _posterior_noise(found: PosteriorFit) -> float:
    """Return the typical standard deviation of ln loss of a new run around the true loss."""
    spread = DEGREES / (DEGREES - 2)
    if found.state is None:
        return float(found.problem.objective.delta * np.sqrt(spread))
    return float(np.sqrt(np.median(spread * found.state.sigma**2 + found.state.tau**2)))


def given_prior(prior: PriorLike, problem: Problem) -> tuple[Prior | None, str]:
    """Return a prior as given, or that of a fit, with its name; None for the weak prior alone."""
    if prior is None or (isinstance(prior, str) and prior == "weak"):
        return None, "weak"
    if isinstance(prior, Prior):
        return prior, "given"
    if isinstance(prior, PooledFit):
        return prior.prior(problem), "of a pooled law"
    if isinstance(prior, Fit):
        return prior_from_fit(prior, problem, f"a fit of {prior.law_name}"), "of a fit"
    path = POOLED_LAW if prior == "pooled" else Path(prior)
    if not path.is_file():
        raise InputError(
            f"`prior` must be weak, pooled, none or the file of a fit, but got {str(prior)!r}; "
            "write --prior weak"
        )
    if "pool_version" in read_json(path):
        return PooledFit.load(path).prior(problem, path.stem), path.stem
    return prior_from_fit(Fit.load(path), problem, path.name), path.name


def fit_pooled(
    law: str | Law | Base,
    tables: Mapping[str, RunsLike],
    *,
    size: str = "auto",
    starts: int | np.ndarray = 1024,
    resamples: int = 1000,
    seed: int = 0,
) -> PooledFit:
    """Fit one law to several sources: a base for each, shared shape parameters.

    Parameters
    ----------
    law
        As in :func:`fit`; it needs a shape factor.
    tables
        Run table of every source by name.
    size, starts, resamples, seed
        As in :func:`fit`.

    Returns
    -------
    PooledFit
        Shared shape parameters, deviations between sources, and the fit of every source.

    Raises
    ------
    InputError
        There are fewer than two sources, the law has no shape factor, or a table is refused.
    """
    law = law_named(law)
    if len(tables) < 2 or not shape_parameters(law):
        raise InputError(
            "a pooled fit needs two sources or more and a law with a shape factor, but got "
            f"{counted(len(tables), 'source')} and `{law_name(law)}`; name more tables, or fit "
            "without --pool"
        )
    runs = {name: as_run_table(table, size) for name, table in tables.items()}
    solved = {
        name: solve_at(problem_of(law, table), "auto", starts, seed) for name, table in runs.items()
    }
    members = {
        name: PoolMember(
            problem=without_weak_holds(problem),
            clusters=clusters_of(runs[name]),
            start=best.theta,
        )
        for name, (problem, best) in solved.items()
    }
    pooled, found = fit_pool(members, draws=resamples, seed=seed)
    counts = starts if isinstance(starts, int) else len(starts)
    fits = {
        name: posterior_result(
            runs[name], found[name], solved[name][1], starts=counts, seed=seed, prior_name="pooled"
        )
        for name in runs
    }
    return with_sources(replace(pooled, law_name=law_name(law)), fits)


def _delta_rule(minimised: FitObjective, delta: float | str) -> str:
    """Describe how the threshold of the objective was chosen."""
    if not minimised.robust:
        return "without a threshold"
    return "scale from the residuals" if delta == "auto" else "as given"


RESAMPLING_NAMES = {
    "rows": "rows (iid)",
    "cluster": "clusters of rows of one run",
    "residuals": "residuals at the same design",
    "wild": "residuals with random signs",
    "wild-cluster": "clusters of residuals with random factors",
}


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
        basins=fitted.basins,
        others=fitted.theta[None],
    )
    return problem, best


def _run_fields(runs: RunTable, columns: Columns) -> dict[str, Any]:
    return {
        "run_ids": runs.run_ids.tolist(),
        "left_out": dict(runs.left_out),
        "ranges": {name: (float(c.min()), float(c.max())) for name, c in columns.items()},
        "data_sha256": runs.fingerprint,
    }


def _optimum_fields(
    problem: Problem, best: Solution, unresolved: list[UnresolvedFactor]
) -> dict[str, Any]:
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


def _resample_fields(
    problem: Problem, best: Solution, clusters: np.ndarray | None, resamples: int, seed: int
) -> dict[str, Any]:
    method = method_for(len(problem.log_loss), int(problem.free.sum()), clusters)
    return {
        "draws": bootstrap(
            problem, best, method=method, resamples=resamples, seed=seed, clusters=clusters
        ),
        "covariance": sandwich(problem, best.theta, clusters),
        "bootstrap": f"{counted(resamples, 'resample')} by {RESAMPLING_NAMES[method]}",
    }


def _noise_fields(problem: Problem, best: Solution, between: tuple[float, int]) -> dict[str, Any]:
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


def _require_enough_rows(problem: Problem, law_name: str) -> None:
    free, rows = int(problem.free.sum()), len(problem.log_loss)
    if rows < free:
        raise InputError(
            f"a fit of `{law_name}` to this table needs at least "
            f"{counted(free, 'finished run')}, but got {rows}; train more, or choose a smaller law "
            "with --law chinchilla"
        )


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


def _notes(
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


def _status(fitted: Fit, best: Solution) -> str:
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
