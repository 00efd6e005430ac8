"""Fit of a law with a prior: the mode of its posterior, and draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.fitting.fit_parts import ParameterEnds
from shapelaw.scaling.fitting.interval_ends import LONG_SAMPLE, drawn_ends
from shapelaw.scaling.fitting.interval_ends import MIN_DRAWS as ENOUGH_DRAWS
from shapelaw.scaling.fitting.posterior_state import ARRAYS, PosteriorState
from shapelaw.scaling.fitting.priors import Prior, coordinates_of, weak_prior
from shapelaw.scaling.laws.part import Factor
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.solver.identifiability import NO_TERM, hold_pins, move_together, neutral
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.solver.problem import Problem
from shapelaw.scaling.uncertainty.chains import sample_posterior
from shapelaw.scaling.uncertainty.hamiltonian import covariance_root
from shapelaw.scaling.uncertainty.misfit import Misfit
from shapelaw.scaling.uncertainty.posterior import DEGREES, Posterior, SourcePosterior

MIN_SAMPLE = 256  # draws that give the centre and the covariance of a posterior
MIN_DRAWS = 2  # below it a fit has the mode alone
DIGITS = 7  # of stored latent values and scales
UNRESOLVED = 0.5  # share of a prior's variance above which a parameter rests on the prior
MIN_RANGE = float(np.log(1.25))  # of a ratio, below which only rounding varies it
MAX_R_HAT = 1.3  # with a few dozen points per chain; above it the draws have not converged
UNSEEN = "the table does not vary its ratio"
PIN_DEVIATIONS = 4.0  # standard deviations in the range of a pinned parameter


@dataclass(frozen=True, kw_only=True)
class PosteriorFit:
    """Mode and draws of a posterior.

    Attributes
    ----------
    problem
        Problem whose held parameters are only those without meaning for the table.
    theta
        Internal parameters at the mode, (p,).
    draws
        Draws of the internal parameters, (S, p).
    cost
        Negative log density at the mode.
    covariance
        Covariance of the internal parameters, (p, p).
    state
        Draws of deviation and noise; None without draws.
    prior
        Prior of every free parameter in its coordinates: mean, deviation and source, with the share
        of the prior's variance that is left in the posterior.
    note
        Doubt about the convergence of the draws; empty if there is none.
    ends
        Ends of the intervals of the public parameters; empty for a short sample.
    """

    problem: Problem
    theta: np.ndarray
    draws: np.ndarray
    cost: float
    covariance: np.ndarray
    state: PosteriorState | None
    prior: dict[str, dict[str, Any]]
    note: str
    ends: dict[str, ParameterEnds] = field(default_factory=dict)


def without_weak_holds(problem: Problem) -> Problem:
    """Free the parameters that only a lack of evidence holds; their prior takes over.

    Where tokens are proportional to size, the terms of both are free: their priors split the loss
    between them, and intervals of other ratios span every split. Terms that the table cannot have
    (all runs of one size or one token count) and pinned parameters without a range stay held. The
    factor of a ratio that varies by rounding only is held at no effect during the fit, and
    :func:`with_unseen` then gives it its prior.
    """
    law = problem.law
    absent = {name for name, held in problem.held.items() if held.value == NO_TERM}
    if "E" in law.base.names and move_together(problem.columns):
        absent -= {scale for scale, (_, column) in law.base.scales.items() if column in (N, D)}
    exponents = {law.names[law.index[law.scales[name][0]]] for name in absent & set(law.scales)}
    pinned = {law.names[law.index[pin.name]] for pin in law.pins}
    fixed = absent | exponents | pinned
    kept = {name: h for name, h in problem.held.items() if h.low == h.high and name in fixed}
    for factor in unseen_factors(problem):
        effectless = neutral(law, factor, problem.columns, UNSEEN)
        kept |= {name: held for name, held in effectless.items() if name not in pinned}
    return problem.but(held=kept)


def unseen_factors(problem: Problem) -> list[Factor]:
    """List the factors of ratios that vary by rounding only: what moves with it is not theirs."""
    return [
        factor
        for factor in problem.law.shapes
        if factor.optional and np.ptp(np.log(problem.columns[factor.of])) < MIN_RANGE
    ]


def with_unseen(found: "PosteriorFit", prior: Prior, seed: int) -> "PosteriorFit":
    """Give the factors that the table does not vary their prior, at the level of the table.

    The parameters are drawn from the prior. The scales of the base are divided by the effect that
    the factor then has at the table's mean, so that predictions there stay as fitted.

    Parameters
    ----------
    found
        Posterior with these factors held at no effect.
    prior
        Prior of all parameters.
    seed
        Seed of the draws.

    Returns
    -------
    PosteriorFit
        Posterior with the parameters of these factors.
    """
    problem, law = found.problem, found.problem.law
    names = [name for name, held in problem.held.items() if held.why == UNSEEN]
    if not names:
        return found
    places = [law.names.index(name) for name in names]
    own = prior.take(names)
    coordinates = coordinates_of(law, float(np.exp(problem.log_loss.min()))).take(places)
    generator = np.random.default_rng([seed, 2])
    t = generator.multivariate_normal(own.mean, own.covariance, size=len(found.draws))
    middle = {name: np.exp([np.log(values).mean()]) for name, values in problem.columns.items()}
    program = law.program(middle, problem.reference)
    levels = [law.names.index(name) for name in ("E", *law.base.scales) if name in law.names]

    def filled(theta: np.ndarray, own_t: np.ndarray) -> np.ndarray:
        complete = theta.copy()
        complete[:, places] = coordinates.theta(own_t)[0]
        shift = program.log_loss(complete) - program.log_loss(theta)
        complete[:, levels] -= shift
        return complete

    covariance = found.covariance.copy()
    slope = coordinates.theta(own.mean[None])[1][0]
    covariance[np.ix_(places, places)] = own.covariance * np.outer(slope, slope)
    moments = zip(names, own.mean, np.diag(own.covariance), coordinates.kinds, strict=True)
    return replace(
        found,
        problem=problem.but(held={k: v for k, v in problem.held.items() if k not in names}),
        theta=filled(found.theta[None], own.mean[None])[0],
        draws=filled(found.draws, t) if len(found.draws) else found.draws,
        covariance=covariance,
        prior=found.prior
        | {
            name: {
                "mean": float(mean),
                "deviation": float(np.sqrt(variance)),
                "kind": kind,
                "source": own.sources[name],
                "share_left": 1.0,
            }
            for name, mean, variance, kind in moments
        },
    )


def prior_of(problem: Problem, given: Prior | None) -> Prior:
    """Combine the weak prior, a given one, and the ranges of pinned parameters."""
    prior = weak_prior(problem)
    if given is not None:
        prior = prior.with_block(given)
    pinned = [problem.law.names[problem.law.index[pin.name]] for pin in problem.law.pins]
    return prior if not pinned else _with_pins(problem, prior, pinned)


def _with_pins(problem: Problem, prior: Prior, pinned: list[str]) -> Prior:
    """Give a pinned parameter with a range a normal prior on it."""
    held = hold_pins(problem.law, problem.reference)
    coordinates = coordinates_of(problem.law, float(np.exp(problem.log_loss.min())))
    means, deviations, sources = [], [], {}
    for name in pinned:
        ends = np.repeat(np.array([[held[name].low], [held[name].high]]), len(prior.names), axis=1)
        low, high = coordinates.t(ends)[:, prior.names.index(name)]
        means.append((low + high) / 2)
        deviations.append(max((high - low) / PIN_DEVIATIONS, 1e-6))
        sources[name] = held[name].why
    block = Prior(
        names=tuple(pinned),
        mean=np.array(means),
        covariance=np.diag(np.square(deviations)),
        sources=sources,
    )
    return prior.with_block(block)


def fit_posterior(
    problem: Problem,
    start: np.ndarray,
    prior: Prior,
    *,
    clusters: np.ndarray | None,
    draws: int,
    seed: int,
) -> PosteriorFit:
    """Find the mode of the posterior of a law and draw from it.

    Parameters
    ----------
    problem
        Problem as :func:`without_weak_holds` returns it.
    start
        Internal parameters of a robust fit, (p,), where the search for the mode starts.
    prior
        Prior of all parameters of the law.
    clusters
        Cluster of each row, (n,), or None.
    draws
        Number of draws; 0 for the mode alone.
    seed
        Seed of the draws.

    Returns
    -------
    PosteriorFit
        Mode and draws.
    """
    source, given = source_of(problem, prior, clusters)
    posterior = Posterior(
        source=source, mean=given.mean, precision=np.linalg.inv(given.covariance)
    )  # fmt: skip
    point = posterior_mode(posterior, start)
    count = source.free
    normal = posterior.covariance(point)[:count, :count]
    cost = -float(posterior(point[None])[0][0])
    if draws < MIN_DRAWS:
        return with_unseen(finished(source, given, point, normal, cost=cost), prior, seed)
    length = max(draws, LONG_SAMPLE if draws >= ENOUGH_DRAWS else MIN_SAMPLE)
    sample = sample_posterior(
        posterior, point[:count], normal, [point[count:]], draws=length, seed=seed
    )  # fmt: skip
    found = finished(
        source, given, point, np.cov(sample.g, rowvar=False).reshape(count, count), cost=cost,
        t=sample.g, latent=sample.latent[0], note=convergence_note(sample.r_hat, given.names),
    )  # fmt: skip
    found = with_unseen(found, prior, seed)
    if draws >= ENOUGH_DRAWS:
        drawn = problem.law.public(found.draws, problem.reference)
        found = replace(found, ends=drawn_ends(drawn))
    return thinned_draws(found, draws)


def source_of(
    problem: Problem, prior: Prior, clusters: np.ndarray | None
) -> tuple[SourcePosterior, Prior]:
    """Build the density of a table, and restrict the prior to the free parameters."""
    free = np.flatnonzero(problem.free)
    coordinates = coordinates_of(problem.law, float(np.exp(problem.log_loss.min())))
    source = SourcePosterior(
        problem=problem,
        coordinates=coordinates.take(free),
        misfit=Misfit.of(problem.columns),
        clusters=clusters,
    )
    return source, prior.take([problem.law.names[place] for place in free])


def thinned_draws(found: PosteriorFit, draws: int) -> PosteriorFit:
    """Keep some evenly spaced draws of a posterior."""
    if found.state is None or len(found.draws) <= draws:
        return found
    kept = np.linspace(0, len(found.draws) - 1, draws).astype(int)
    arrays = {name: getattr(found.state, name)[kept] for name in ARRAYS}
    return replace(found, draws=found.draws[kept], state=replace(found.state, **arrays))


def posterior_mode(posterior: Posterior, start: np.ndarray) -> np.ndarray:
    """Find the mode from internal parameters (p,), moved towards the prior, and from its mean."""
    source, mean = posterior.source, posterior.mean
    deviation = 1 / np.sqrt(np.diag(posterior.precision))
    t = source.coordinates.t(start[source.problem.free][None])[0]
    near = np.clip(t, mean - 3 * deviation, mean + 3 * deviation)
    return posterior.mode(np.stack([near, mean]))


def convergence_note(r_hat: np.ndarray, names: Sequence[str]) -> str:
    """Say if the chains disagree; return an empty text if they agree."""
    worst = int(np.argmax(np.nan_to_num(r_hat)))
    if r_hat[worst] <= MAX_R_HAT:
        return ""
    return (
        f"the draws have not converged (R-hat of {names[worst]} is {r_hat[worst]:.2f}): intervals "
        "are rough"
    )


def finished(
    source: SourcePosterior,
    prior: Prior,
    point: np.ndarray,
    covariance: np.ndarray,
    *,
    cost: float,
    t: np.ndarray | None = None,
    latent: np.ndarray | None = None,
    note: str = "",
) -> PosteriorFit:
    """Convert a mode and draws from coordinates to internal parameters.

    Parameters
    ----------
    source
        Density of the table.
    prior
        Prior of the free parameters, (f,).
    point
        Coordinates and latent values at the mode, (f + latent,).
    covariance
        Covariance of the coordinates, (f, f).
    cost
        Negative log density at the mode.
    t, latent
        Draws of coordinates, (S, f), and of latent values, (S, latent); None without draws.
    note
        Doubt about the draws.

    Returns
    -------
    PosteriorFit
        Mode, draws and the share of the prior's variance that is left.
    """
    problem, count = source.problem, source.free
    coordinates = source.coordinates
    if t is not None:
        point = np.concatenate([_centre_of(source, t), point[count:]])
    theta, slope = coordinates.theta(point[None, :count])
    free = np.flatnonzero(problem.free)
    full = np.zeros((len(problem.free), len(problem.free)))
    full[np.ix_(free, free)] = covariance * np.outer(slope[0], slope[0])
    left = np.diag(covariance) / np.diag(prior.covariance)
    sigma = float(source.scales(point[None, count:])[0][0])
    draws = np.empty((0, len(problem.free)))
    return PosteriorFit(
        problem=problem.but(objective=FitObjective(kind="student", delta=sigma, degrees=DEGREES)),
        theta=problem.complete(theta)[0],
        draws=draws if t is None else problem.complete(coordinates.theta(t)[0]),
        cost=cost,
        covariance=full,
        state=None if latent is None else _state(source, latent),
        prior={
            name: {
                "mean": float(prior.mean[place]),
                "deviation": float(np.sqrt(prior.covariance[place, place])),
                "kind": coordinates.kinds[place],
                "source": prior.sources[name],
                "share_left": float(left[place]),
            }
            for place, name in enumerate(prior.names)
        },
        note=note,
    )


def _centre_of(source: SourcePosterior, t: np.ndarray) -> np.ndarray:
    """Find the coordinates whose predictions and values are nearest to the means of the draws.

    The mean of draws along a curved ridge lies beside the ridge, where the law predicts other
    losses. Distances of predictions and of coordinates count in standard deviations of the draws.
    """

    def predict(points: np.ndarray) -> np.ndarray:
        complete = source.problem.complete(source.coordinates.theta(points)[0])
        return source.problem.program.log_loss(complete)

    drawn = predict(t)
    mean, deviation = drawn.mean(axis=0), drawn.std(axis=0) + 1e-9
    centre = t.mean(axis=0)
    root = covariance_root(np.cov(t, rowvar=False).reshape(len(centre), -1))

    def distances(z: np.ndarray) -> np.ndarray:
        logs = predict((centre + root @ z)[None])[0]
        return np.concatenate([(logs - mean) / deviation / np.sqrt(len(mean)), z / np.sqrt(len(z))])

    return np.asarray(centre + root @ least_squares(distances, np.zeros(len(centre))).x)


def _state(source: SourcePosterior, latent: np.ndarray) -> PosteriorState:
    """Keep the draws that predictions need, with seven digits."""
    values, amplitude = source.split(latent)
    sigma, _, tau = source.scales(latent)
    return PosteriorState(
        misfit=source.misfit,
        latent=_rounded(values),
        amplitude=_rounded(amplitude),
        sigma=_rounded(sigma),
        tau=_rounded(tau),
    )


def _rounded(values: np.ndarray) -> np.ndarray:
    """Round to seven significant digits, so that a saved fit is short and equal to this one."""
    with np.errstate(divide="ignore"):
        places = DIGITS - 1 - np.floor(np.log10(np.abs(values)))
    factor = 10.0 ** np.where(np.isfinite(places), places, 0.0)
    return np.asarray(np.round(values * factor) / factor)


def resolution_notes(prior: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which shape parameters the table hardly informs: half of the prior or more is left."""
    rows = [
        f"{name} ({100 * about['share_left']:.0f} % of the prior's variance is left)"
        for name, about in prior.items()
        if about["share_left"] > UNRESOLVED and name != "E"
    ]
    if not rows:
        return []
    verb = "rests" if len(rows) == 1 else "rest"
    return [f"{counted(len(rows), 'parameter')} {verb} on the prior: {', '.join(rows)}"]
