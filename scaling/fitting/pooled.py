"""One law from several sources: a base for each source, shape parameters that all share.

Every source has its own base (E, A, α, B, β), noise and misfit. A shape parameter of a source is
the shared one plus a deviation with standard deviation ω, in the coordinates of
:mod:`shapelaw.scaling.uncertainty.coordinates`; each ω has a half-normal prior and is drawn with
all other parameters, never plugged in. Optima are shared at one reference size and move to the mean
size of each source with the shared drift.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.scaling.fitting.pool_density import Pool, normal_start
from shapelaw.scaling.fitting.posterior_fit import (
    PosteriorFit,
    convergence_note,
    finished,
    posterior_mode,
    prior_of,
    source_of,
    with_unseen,
)
from shapelaw.scaling.fitting.priors import (
    BETWEEN,
    Prior,
    kind_of,
    moved_to,
    shape_names,
    weak_shape_prior,
)
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.saved_fit import MAX_INTERNAL
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.schema import Name, PositiveFloat, conform
from shapelaw.scaling.solver.problem import Problem
from shapelaw.scaling.uncertainty.chains import PosteriorSample, sample_posterior
from shapelaw.scaling.uncertainty.posterior import Posterior

SCHEMA_VERSION = 1
REFERENCE_SIZE = 1e8  # parameters at which optima are shared
MIN_SOURCES = 3  # sources that vary a ratio, below which its ω is essentially its prior
WIDE = np.log(1.5)  # range of ln ratio from which a source varies a ratio
WARM_UP = (40, 40, 40)  # iterations: the first normal approximation is rough


class PoolDraws(TypedDict):
    """Draws of a pool in its file, (S, k) each."""

    shared: np.ndarray
    between: np.ndarray


class PoolDocument(TypedDict):
    """Content of the file of a pool that :meth:`PooledFit.load` reads."""

    pool_version: Literal[1]
    law: Name
    names: list[Name]
    reference_size: PositiveFloat
    sources: dict[str, dict[str, Any]]
    notes: list[str]
    draws: PoolDraws


@dataclass(frozen=True, kw_only=True, repr=False)
class PooledFit(Result):
    """Law of several sources: shared shape parameters, deviations between sources, provenance.

    Parameters
    ----------
    law_name
        Name or expression of the law.
    names
        Shared shape parameters, k of them.
    reference_size
        N at which optima are shared, parameters.
    shared
        Draws of the shared parameters in their coordinates, (S, k).
    between
        Draws of the standard deviations between sources, (S, k).
    sources
        Record of every source: runs, ranges, hash, own estimates, and the ratios that it varies.
    notes
        Doubts and remarks.
    fits
        Fit of every source within the pool; empty for a pool that was read from a file.
    """

    law_name: str
    names: list[str]
    reference_size: float
    shared: np.ndarray
    between: np.ndarray
    sources: dict[str, dict[str, Any]]
    notes: list[str]
    fits: dict[str, Fit]

    @property
    def law(self) -> Law:
        """Law of the pool."""
        return law_named(self.law_name)

    def prior(self, problem: Problem, name: str = "pooled") -> Prior:
        """Return the predictive distribution of a new source's shape parameters as a prior.

        Parameters
        ----------
        problem
            Law and table of the new source; its mean size N0 is that of the optima.
        name
            Name of the pool, for the record.

        Returns
        -------
        Prior
            Joint normal distribution of the shape parameters that the law and the pool share.

        Raises
        ------
        InputError
            They share none.
        """
        names = [each for each in shape_names(problem.law) if each in self.names]
        if not names:
            raise InputError(
                f"a prior must share shape parameters with the law, but {name} has "
                f"{', '.join(self.names)}; fit a law with one of these, or --prior weak"
            )
        moved = moved_to(
            self.law, self.names, self.shared, {N: self.reference_size}, problem.reference
        )
        variance = (self.between**2).mean(axis=0)
        covariance = np.cov(moved, rowvar=False).reshape(len(self.names), -1) + np.diag(variance)
        places = [self.names.index(each) for each in names]
        return Prior(
            names=tuple(names),
            mean=moved.mean(axis=0)[places],
            covariance=covariance[np.ix_(places, places)],
            sources=dict.fromkeys(names, name),
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per shared parameter: estimate, deviation between sources, sources."""
        rows = []
        for place, name in enumerate(self.names):
            exponential = kind_of(name) in ("optimum", "curvature")
            value = np.exp(self.shared[:, place]) if exponential else self.shared[:, place]
            low, middle, high = np.percentile(value, [2.5, 50, 97.5])
            ratio = name.removesuffix(f"_{kind_of(name)}")
            telling = [key for key, about in self.sources.items() if ratio in about["varies"]]
            rows.append(
                {
                    "parameter": name,
                    "value": middle,
                    "low": low,
                    "high": high,
                    "between sources": float(np.median(self.between[:, place])),
                    "sources that vary it": ", ".join(telling) or "none",
                }
            )
        return pd.DataFrame(rows)

    def view(self) -> View:
        """Return the shared parameters, the estimates of every source, and the notes."""
        rows = [{"source": name, **about["estimates"]} for name, about in self.sources.items()]
        runs = sum(about["runs"] for about in self.sources.values())
        return View(
            title=f"{self.law_name} on {counted(len(self.sources), 'source')}, "
            f"{counted(runs, 'run')}; optima at N = {self.reference_size:.3g}",
            tables={
                "shared shape parameters, 95 % intervals": self.frame(),
                "estimates of every source at its mean N": pd.DataFrame(rows),
            },
            notes=self.notes,
        )

    def document(self) -> dict[str, Any]:
        """Return the content of the file, without the fits of the sources."""
        return {
            "law": self.law_name,
            "names": self.names,
            "reference_size": self.reference_size,
            "parameters": self.frame(),
            "sources": self.sources,
            "notes": self.notes,
        }

    def save(self, path: Path) -> None:
        """Write the pool to a JSON file: shared draws, deviations and provenance, no rows."""
        draws = {"shared": self.shared.tolist(), "between": self.between.tolist()}
        write_json(path, {"kind": "pooled law", **self.as_json(), "pool_version": SCHEMA_VERSION,
                          "draws": draws})  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> "PooledFit":
        """Read a pool from its file.

        Raises
        ------
        InputError
            The file is not a pool, or is damaged.
        """
        document = read_json(path)
        try:
            stored = conform(document, PoolDocument)
            law, draws = law_named(stored["law"]), stored["draws"]
            shape = (len(draws["shared"]), len(stored["names"]))
            if list(stored["names"]) != list(shape_names(law)) or shape[0] < 2:
                raise InputError("`names` must be the shape parameters of its law")
            if any(part.shape != shape for part in draws.values()):
                raise InputError("`draws` must be rows of one number for each parameter")
            if (draws["between"] <= 0).any() or np.abs(draws["shared"]).max() > MAX_INTERNAL:
                raise InputError("`draws` must be positive deviations and parameters in range")
        except InputError as error:
            raise InputError(
                f"{path} must be a pooled law, but is not ({error}); write it with `shapelaw fit "
                "TABLE... --pool --out`"
            ) from None
        return cls(
            law_name=stored["law"], names=stored["names"], fits={}, notes=stored["notes"],
            reference_size=stored["reference_size"], sources=stored["sources"], **draws,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PoolMember:
    """One source of a pool: its problem without weak holds, clusters and robust start (p,)."""

    problem: Problem
    clusters: np.ndarray | None
    start: np.ndarray


def fit_pool(
    members: Mapping[str, PoolMember], *, draws: int, seed: int
) -> tuple[PooledFit, dict[str, PosteriorFit]]:
    """Draw from the joint posterior of several sources.

    Parameters
    ----------
    members
        Sources by name, all with one law.
    draws
        Number of draws.
    seed
        Seed of the draws.

    Returns
    -------
    pooled
        Shared parameters, without the records of the sources.
    posteriors
        Posterior of every source within the pool, by name.
    """
    pool = pool_of(members)
    law, names = pool.sources[0].problem.law, list(pool.shared.names)
    modes = [
        posterior_mode(
            Posterior(source=source, mean=prior.mean, precision=np.linalg.inv(prior.covariance)),
            member.start,
        )
        for source, prior, member in zip(pool.sources, pool.priors, members.values(), strict=True)
    ]
    centre, covariance = normal_start(pool, modes)
    sample = sample_posterior(
        pool,
        centre,
        covariance,
        [mode[source.free :] for mode, source in zip(modes, pool.sources, strict=True)],
        draws=draws,
        seed=seed,
        warm_up=WARM_UP,
    )
    k = pool.count
    labels = [*names, *(f"deviation of {name}" for name in names)]
    for name, (base, own) in zip(members, pool.blocks, strict=True):
        labels += [f"a parameter of {name}"] * (own.stop - base.start)
    note = convergence_note(sample.r_hat, labels)
    pooled = PooledFit(
        law_name=repr(law),
        names=names,
        reference_size=REFERENCE_SIZE,
        shared=sample.g[:, :k],
        between=np.exp(sample.g[:, k : 2 * k]),
        sources={},
        notes=[note] if note else [],
        fits={},
    )
    posteriors = dict(zip(members, _posteriors(pool, modes, sample, seed), strict=True))
    return pooled, posteriors


def pool_of(members: Mapping[str, PoolMember]) -> Pool:
    """Build the joint density of several sources with the weak prior."""
    problems = [member.problem for member in members.values()]
    law = problems[0].law
    names = shape_names(law)
    parts = [
        source_of(member.problem, prior_of(member.problem, None), member.clusters)
        for member in members.values()
    ]
    identity = np.eye(len(names))
    return Pool(
        sources=[source for source, _ in parts],
        priors=[prior for _, prior in parts],
        shared=weak_shape_prior(problems),
        moves=[
            moved_to(law, names, identity, {N: REFERENCE_SIZE}, problem.reference).T
            for problem in problems
        ],
        widths=np.array([BETWEEN[kind_of(name)] for name in names]),
    )


def _posteriors(
    pool: Pool, modes: list[np.ndarray], sample: PosteriorSample, seed: int
) -> Iterator[PosteriorFit]:
    """Return the posterior of every source within a pool; the pool is the prior of unseen terms."""
    names = pool.shared.names
    fields = zip(
        pool.sources, pool.priors, modes, pool.split(sample.g), sample.latent,
        pool.shapes(sample.g), strict=True,
    )  # fmt: skip
    for source, prior, mode, t, latent, shape in fields:
        point = np.concatenate([np.median(t, axis=0), mode[source.free :]])
        part = finished(
            source, prior, point, np.cov(t, rowvar=False), cost=0.0, t=t, latent=latent
        )  # fmt: skip
        predictive = Prior(
            names=names,
            mean=shape.mean(axis=0),
            covariance=np.cov(shape, rowvar=False).reshape(pool.count, pool.count),
            sources=dict.fromkeys(names, "the other sources"),
        )
        yield with_unseen(part, predictive, seed)


def with_sources(pooled: PooledFit, fits: dict[str, Fit]) -> PooledFit:
    """Add the records and fits of the sources to a pool, with notes on what they can tell."""
    sources = {name: _record(fitted) for name, fitted in fits.items()}
    notes = list(pooled.notes)
    for factor in pooled.law.shapes:
        telling = [name for name, about in sources.items() if factor.of in about["varies"]]
        if len(telling) < MIN_SOURCES:
            verb = "varies" if len(telling) == 1 else "vary"
            notes.append(
                f"{factor.of}: {counted(len(telling), 'source')} {verb} it, so its deviation "
                "between sources is essentially its prior"
            )
    return replace(pooled, sources=sources, fits=fits, notes=notes)


def _record(fitted: Fit) -> dict[str, Any]:
    """Return the provenance of a source: runs, ranges, hash and its own estimates, no rows."""
    law = fitted.law
    varies = [
        factor.of for factor in law.shapes
        if np.log(fitted.ranges[factor.of][1] / fitted.ranges[factor.of][0]) > WIDE
    ]  # fmt: skip
    parameters = fitted.parameters()
    return {
        "runs": len(fitted.run_ids),
        "size_convention": fitted.size_convention,
        "mean_size": fitted.reference.get(N),
        "ranges": {name: list(ends) for name, ends in fitted.ranges.items()},
        "data_sha256": fitted.data_sha256,
        "varies": varies,
        "estimates": {name: parameters[name]["value"] for name in shape_names(law)},
    }
