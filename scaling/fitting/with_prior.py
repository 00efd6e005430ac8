"""Fits with a prior: which prior, of one table or of several sources, and their record."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder, read_json
from shapelaw.scaling.fitting.fit_record import notes_of, optimum_fields, run_fields, status_line
from shapelaw.scaling.fitting.law_problem import law_name, problem_of
from shapelaw.scaling.fitting.pooled import PooledFit, PoolMember, fit_pool, with_sources
from shapelaw.scaling.fitting.posterior_fit import (
    PosteriorFit,
    fit_posterior,
    prior_of,
    resolution_notes,
    without_weak_holds,
)
from shapelaw.scaling.fitting.priors import Prior, prior_from_fit, shape_names
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Base, Law
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.table import RunsLike, RunTable, as_run_table
from shapelaw.scaling.solver.identifiability import split_note
from shapelaw.scaling.solver.multistart import (
    residual_scale,
    solve_at,
)
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.posterior import DEGREES

PriorLike = str | Path | Fit | Prior | PooledFit | None


POOLED_LAW = data_folder() / "laws" / "pooled.json"  # the shipped pool


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


def fit_with_prior(
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
        **run_fields(runs, found.problem.columns),
        **optimum_fields(found.problem, best, []),
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
        noise_by_size=runs.noise_by_size.to_dict("records"),  # type: ignore[arg-type]
        prior=found.prior,  # type: ignore[arg-type]
        posterior=found.state,
        ends=found.ends,
    )
    notes = [*resolution_notes(found.prior), *notes_of(fitted, [], None), *runs.remarks]
    notes = [text for text in (split_note(found.problem.columns), *notes, found.note) if text]
    return replace(fitted, notes=notes, status=status_line(fitted, best))


def _posterior_noise(found: PosteriorFit) -> float:
    """Return the typical standard deviation of ln loss of a new run around the true loss."""
    spread = DEGREES / (DEGREES - 2)
    if found.state is None:
        return float(found.problem.objective.delta * np.sqrt(spread))
    return float(np.sqrt(np.median(spread * found.state.sigma**2 + found.state.tau**2)))


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
    if len(tables) < 2 or not shape_names(law):
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
