"""Priors of the parameters of a law: weak ones from the literature, and those of another fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.laws.part import Columns, Parameter
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.solver.problem import Problem
from shapelaw.scaling.uncertainty.coordinates import PLAIN, POSITIVE, SHARE, Coordinates

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit

# Mean and standard deviation of the weak priors, in the coordinates of each kind of parameter, and
# the source of both. Logarithms where the coordinate is one.
LITERATURE = "arXiv 2203.15556, 2404.10102, 2510.18245 and refits of public tables; wide"
TABLE_RANGE, STARTS_RANGE = "the range of the table", "the range of the starts"
# Shapes of arXiv 2005.14165: 12 layers, width 768 and heads of 64 at 0.1B parameters, 96, 12288 and
# 128 at 175B. arXiv 2402.14905: 30 layers of width 576 at 0.1B.
PUBLISHED_SHAPES = "shapes of arXiv 2005.14165 and 2402.14905; wide"
WEAK_SOURCES = (LITERATURE, TABLE_RANGE, STARTS_RANGE, PUBLISHED_SHAPES)
EXPONENT = (float(np.log(0.35)), 0.5)  # ln of an exponent of N or D: 0.13 to 0.93
SCALE = (-1.5, 1.0)  # ln of a term at the middle of the table over the lowest loss: 3 % to 160 %
FLOOR = (0.8, 1.3)  # logit of E over the lowest loss: 0.15 to 0.97
CURVATURE = (float(np.log(0.03)), 1.2)  # ln of a curvature: 0.003 to 0.3 of the loss
# ln of an optimum by ratio; other ratios have the middle of the table's range.
OPTIMA = {
    "hidden_over_sqrt_n": (float(np.log(0.09)), 0.7),
    "mlp_to_attention": (float(np.log(1.5)), 0.7),
    "head_dim": (float(np.log(64)), 0.7),
}
OPTIMUM_DEVIATION = 0.7
# Of ratios whose best value depends on size: ln of the optimum at 1e8 parameters, for tables that
# are fitted together and have no range in common.
OPTIMA_AT_REFERENCE = {
    "num_hidden_layers": (float(np.log(16)), 0.7),
    "aspect_ratio": (float(np.log(40)), 0.7),
}
# Drift of an optimum per ln N: three public tables give -0.17 to -0.26 for hidden size, the paper's
# models about -0.04.
DRIFTS = {
    "hidden_over_sqrt_n": (-0.1, 0.1),
    "num_hidden_layers": (0.1, 0.15),
    "aspect_ratio": (0.1, 0.15),
    "head_dim": (0.1, 0.1),
}
SOURCES_OF_RATIOS = dict.fromkeys(
    ("num_hidden_layers", "aspect_ratio", "head_dim"), PUBLISHED_SHAPES
)
DRIFT = (0.0, 0.1)
PLAIN_KINDS = {"bend": (0.0, 0.3), "slope": (0.0, 0.008), "square": (0.0, 0.003)}
POSITIVE_NAMES = ("alpha", "beta", "gamma", "zeta")


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Joint normal distribution of the coordinates of some parameters of a law.

    Parameters
    ----------
    names
        Internal parameters, k of them.
    mean, covariance
        Moments of their coordinates (:mod:`shapelaw.scaling.uncertainty.coordinates`), (k,) and
        (k, k).
    sources
        Origin of the prior by parameter.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray
    sources: Mapping[str, str] = field(default_factory=dict)

    def with_block(self, other: "Prior") -> "Prior":
        """Replace the distribution of the parameters of another prior, as one joint block."""
        mean, covariance = self.mean.copy(), self.covariance.copy()
        names = [name for name in other.names if name in self.names]
        mine = [self.names.index(name) for name in names]
        theirs = [other.names.index(name) for name in names]
        covariance[mine, :] = 0.0
        covariance[:, mine] = 0.0
        mean[mine] = other.mean[theirs]
        covariance[np.ix_(mine, mine)] = other.covariance[np.ix_(theirs, theirs)]
        sources = {**self.sources, **{name: other.sources[name] for name in names}}
        return Prior(names=self.names, mean=mean, covariance=covariance, sources=sources)

    def take(self, names: list[str]) -> "Prior":
        """Restrict the distribution to some parameters."""
        places = [self.names.index(name) for name in names]
        return Prior(
            names=tuple(names),
            mean=self.mean[places],
            covariance=self.covariance[np.ix_(places, places)],
            sources={name: self.sources[name] for name in names},
        )


def kind_of(name: str) -> str:
    """Return the last word of the name of a parameter: its kind, such as ``optimum``."""
    return name.rsplit("_", 1)[-1]


def coordinates_of(law: Law, lowest_loss: float) -> Coordinates:
    """Choose the coordinates of the internal parameters of a law.

    Parameters
    ----------
    law
        The law.
    lowest_loss
        Lowest observed loss, nats per token; E lies below it.

    Returns
    -------
    Coordinates
        Share for E, positive for exponents and curvatures, plain for all others.
    """
    kinds = []
    for name in law.names:
        if name == "E" and "E" in law.base.names:
            kinds.append(SHARE)
        elif name in POSITIVE_NAMES or kind_of(name) == "curvature":
            kinds.append(POSITIVE)
        else:
            kinds.append(PLAIN)
    return Coordinates(kinds=tuple(kinds), ceilings=np.full(len(kinds), np.log(lowest_loss)))


def weak_prior(problem: Problem) -> Prior:
    """Build the weak prior of every parameter of a law.

    Parameters
    ----------
    problem
        Law and table, whose ranges give the priors of parameters that the literature does not.

    Returns
    -------
    Prior
        Independent normal distributions.
    """
    law = problem.law
    lowest = float(problem.log_loss.min())
    moments = [_weak(law, each, problem.columns, lowest) for each in problem.parameters]
    mean, deviation = np.array([moment[:2] for moment in moments], dtype=float).reshape(-1, 2).T
    return Prior(
        names=law.names,
        mean=mean,
        covariance=np.diag(deviation**2),
        sources={name: moment[2] for name, moment in zip(law.names, moments, strict=True)},
    )


def _weak(
    law: Law, parameter: Parameter, columns: Columns, lowest: float
) -> tuple[float, float, str]:
    """Return mean, standard deviation and source of the weak prior of one parameter."""
    name, kind = parameter.name, kind_of(parameter.name)
    ratio = name.removesuffix(f"_{kind}")
    if name == "E":
        return (*FLOOR, LITERATURE)
    if name in law.base.scales and "E" in law.base.names:
        return lowest + SCALE[0], SCALE[1], LITERATURE
    if name in POSITIVE_NAMES:
        return (*EXPONENT, LITERATURE)
    if kind == "curvature":
        return (*CURVATURE, LITERATURE)
    if kind == "drift":
        return (*DRIFTS.get(ratio, DRIFT), SOURCES_OF_RATIOS.get(ratio, LITERATURE))
    if kind == "optimum":
        if ratio in OPTIMA:
            return (*OPTIMA[ratio], SOURCES_OF_RATIOS.get(ratio, LITERATURE))
        return (*_moments_of_range(np.log(columns[ratio])), TABLE_RANGE)
    if kind in PLAIN_KINDS:
        return (*PLAIN_KINDS[kind], LITERATURE)
    low, high = parameter.starts
    return (low + high) / 2, high - low, STARTS_RANGE


def _moments_of_range(logs: np.ndarray) -> tuple[float, float]:
    """Return the middle of the range of ln ratio, and a standard deviation that covers it."""
    middle = float(logs.min() + logs.max()) / 2
    return middle, max(OPTIMUM_DEVIATION, float(np.ptp(logs)) / 2)


SHAPE_KINDS = ("curvature", "optimum", "drift", "bend", "slope", "square")
# Standard deviation between sources, by kind, that widens the prior of one other fit.
BETWEEN = {
    "curvature": 0.4, "optimum": 0.1, "drift": 0.04, "bend": 0.1, "slope": 0.003, "square": 0.001,
}  # fmt: skip
MIN_DRAWS = 20


def shape_names(law: Law) -> list[str]:
    """List the internal parameters of the shape factors, which sources may share."""
    names = [name for factor in law.shapes for name in factor.names if name in law.names]
    return [name for name in names if kind_of(name) in SHAPE_KINDS]


def weak_shape_prior(problems: Sequence[Problem]) -> Prior:
    """Build the weak prior of the shape parameters that tables share, at 1e8 parameters.

    It does not depend on the order of the tables. An optimum for which there is no published value
    lies in the range over all tables.

    Parameters
    ----------
    problems
        One law and the table of every source.

    Returns
    -------
    Prior
        Independent normal distributions.
    """
    prior = weak_prior(problems[0]).take(shape_names(problems[0].law))
    mean, covariance, sources = prior.mean.copy(), prior.covariance.copy(), dict(prior.sources)
    for place, name in enumerate(prior.names):
        if sources[name] != TABLE_RANGE:
            continue
        ratio = name.removesuffix("_optimum")
        if ratio in OPTIMA_AT_REFERENCE:
            moments, sources[name] = OPTIMA_AT_REFERENCE[ratio], PUBLISHED_SHAPES
        else:
            moments = _moments_of_range(
                np.log(np.concatenate([problem.columns[ratio] for problem in problems]))
            )
        mean[place], covariance[place, place] = moments[0], moments[1] ** 2
    return Prior(names=prior.names, mean=mean, covariance=covariance, sources=sources)


def moved_to(
    law: Law,
    names: list[str],
    draws: np.ndarray,
    old: Mapping[str, float],
    new: Mapping[str, float],
) -> np.ndarray:
    """Move draws of coordinates from the reference of one table to that of another.

    The optimum of a U-shape with drift moves with the reference size N0.

    Parameters
    ----------
    law
        The law.
    names
        Parameters of the columns of ``draws``.
    draws
        Coordinates, (S, k).
    old, new
        Geometric means by column.

    Returns
    -------
    numpy.ndarray
        Coordinates, (S, k).
    """
    moved = draws.copy()
    for factor in law.shapes:
        drift, optimum = f"{factor.of}_drift", f"{factor.of}_optimum"
        if isinstance(factor, UShape) and factor.drift and {drift, optimum} <= set(names):
            step = np.log(new[N] / old[N])
            moved[:, names.index(optimum)] += draws[:, names.index(drift)] * step
    return moved


def prior_from_fit(fitted: "Fit", problem: Problem, source: str) -> Prior:
    """Take the shape parameters of another fit as a joint prior, widened between sources.

    Parameters
    ----------
    fitted
        Fit with draws, of a law that shares shape parameters with that of the problem.
    problem
        Law and table that the prior is for; its size N0 is that of the optima.
    source
        Name of the fit, for the record.

    Returns
    -------
    Prior
        Joint normal distribution of the shared shape parameters. Its covariance is that of the
        draws plus the variance between sources.

    Raises
    ------
    InputError
        The fit has fewer than 20 draws, or no shape parameter in common.
    """
    names = [n for n in shape_names(problem.law) if n in shape_names(fitted.law)]
    if not names or len(fitted.draws) < MIN_DRAWS:
        what = "no shape parameter in common" if not names else counted(len(fitted.draws), "draw")
        raise InputError(
            f"a prior must be a fit with {MIN_DRAWS} draws or more and shape parameters of the "
            f"law, but {source} has {what}; fit the same law with resamples"
        )
    theta = fitted.draws[:, [fitted.names.index(name) for name in names]]
    kinds = tuple(POSITIVE if kind_of(name) == "curvature" else PLAIN for name in names)
    t = Coordinates(kinds=kinds, ceilings=np.zeros(len(names))).t(theta)
    t = moved_to(problem.law, names, t, fitted.reference, problem.reference)
    between = np.diag([BETWEEN[kind_of(name)] ** 2 for name in names])
    return Prior(
        names=tuple(names),
        mean=t.mean(axis=0),
        covariance=np.cov(t, rowvar=False).reshape(len(names), -1) + between,
        sources=dict.fromkeys(names, source),
    )


def recorded_prior(fitted: "Fit") -> Prior | str:
    """Return the prior that a fit records, for refits: weak, or independent normal priors."""
    given = [name for name, about in fitted.prior.items() if about["source"] not in WEAK_SOURCES]
    if not given:
        return "weak"
    about = [fitted.prior[name] for name in given]
    return Prior(
        names=tuple(given),
        mean=np.array([each["mean"] for each in about]),
        covariance=np.diag([each["deviation"] ** 2 for each in about]),
        sources={name: fitted.prior[name]["source"] for name in given},
    )
