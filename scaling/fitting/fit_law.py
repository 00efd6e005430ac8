"""Fitting of a law to a run table: many starts, a robust loss on ln loss, and diagnostics.

By default the objective is the sum over runs of Huber(ln L - ln L_predicted), without rounding and
without weights (arXiv 2203.15556, appendix D.4, with the sum instead of the mean).
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, overload

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.factor_tests import solve_with_factor_tests
from shapelaw.scaling.fitting.fit_record import (
    noise_fields,
    notes_of,
    optimum_fields,
    resample_fields,
    run_fields,
    status_line,
    with_fit_warnings,
)
from shapelaw.scaling.fitting.law_problem import law_name, problem_of
from shapelaw.scaling.fitting.pooled import PooledFit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.with_prior import PriorLike, fit_pooled, fit_with_prior, wants_prior
from shapelaw.scaling.laws.law import Base, Law
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.diagnosis import flagged_rows
from shapelaw.scaling.runs.table import RunsLike, RunTable, as_run_table
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.solver.problem import Problem

SOUND_STARTS, SOUND_DRAWS = 64, 256  # of the fit without the rows that are marked as outliers


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

    With a prior, the fit is the mode and draws of a posterior
    (:mod:`shapelaw.scaling.uncertainty.posterior`). Without one, it is a robust minimum with a
    bootstrap, and parameters that the table cannot identify are held.

    Parameters
    ----------
    law
        Law or base, its name in :data:`shapelaw.scaling.laws.registry.LAWS`, or an expression.
    runs
        Run table, or its file or name for :func:`shapelaw.scaling.runs.catalog.load_runs`. A data
        frame is used without validation. Several tables by name, with ``pool="source"``, are
        fitted by :func:`fit_pooled`.
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
        ``"weak"``: wide priors from the literature; ``"pooled"``: the shipped pooled law; a fit,
        pooled fit or its file: its shape parameters, widened by the variance between sources;
        ``"none"``: no prior. By default weak, and none where an objective or a threshold is given
        or the law has brackets, as for the reproduction of published fits.
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
    sound = _fit_without_flagged(
        law, runs, resamples, objective=minimised, delta=delta, seed=seed, prior=prior
    )
    if wants_prior(law, minimised, delta, prior):
        fitted = fit_with_prior(problem, runs, starts, resamples, seed, prior)
    else:
        fitted = _fit_without_prior(problem, runs, starts, resamples, seed, delta)
    fitted = with_fit_warnings(fitted, runs, sound)
    return replace(fitted, seconds=time.perf_counter() - start_time)


def _fit_without_prior(
    problem: Problem,
    runs: RunTable,
    starts: int | np.ndarray,
    resamples: int,
    seed: int,
    delta: float | str,
) -> Fit:
    """Minimise the objective from many starts, and resample for the intervals."""
    rule = _delta_rule(problem.objective, delta)
    problem, best, unresolved = solve_with_factor_tests(problem, delta, starts, seed, runs.noise)
    clusters = runs.run_groups
    fitted = Fit(
        law_name=law_name(problem.law),
        delta_rule=rule,
        starts=starts if isinstance(starts, int) else len(starts),
        seed=seed,
        size_convention=runs.size,
        status="",
        notes=[],
        seconds=0.0,
        **run_fields(runs, problem.columns),
        **optimum_fields(problem, best, unresolved),
        **resample_fields(problem, best, clusters, resamples, seed),
        **noise_fields(problem, best, runs.noise),
        noise_by_size=runs.noise_by_size.to_dict("records"),  # type: ignore[arg-type]
    )
    notes = [*notes_of(fitted, unresolved, clusters), *runs.remarks]
    return replace(fitted, notes=notes, status=status_line(fitted, best))


def _fit_without_flagged(law: Law, runs: RunTable, resamples: int, **settings: Any) -> Fit | None:
    """Fit the rows that no column marks as outliers; None if none is marked or without resamples.

    Resamples give the intervals against which a change is judged.
    """
    kept = ~flagged_rows(runs.frame)
    if kept.all() or not resamples:
        return None
    draws = min(resamples, SOUND_DRAWS)
    try:
        return fit(law, runs.take(kept), starts=SOUND_STARTS, resamples=draws, **settings)
    except InputError:
        return None


def _delta_rule(minimised: FitObjective, delta: float | str) -> str:
    """Describe how the threshold of the objective was chosen."""
    if not minimised.robust:
        return "without a threshold"
    return "scale from the residuals" if delta == "auto" else "as given"
