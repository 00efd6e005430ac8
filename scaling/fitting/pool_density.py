"""Joint density of several sources with shared shape parameters and deviations between sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from shapelaw.scaling.fitting.priors import Prior
from shapelaw.scaling.uncertainty.posterior import Posterior, SourcePosterior

LOG_OMEGA = (-30.0, 5.0)  # bounds of ln ω, for trajectories that leave them
FIRST_DEVIATION = 0.5  # of ln ω and of the standard normal deviations, at the start of the chains


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """Prior of the shared parameters and deviations of several sources.

    Global coordinates are the shared shape parameters (k,), ln ω (k,), and for each source its base
    (b,) and its standard normal deviations (k,).

    Attributes
    ----------
    sources
        Density of every source.
    priors
        Prior of the free parameters of every source; its base counts.
    shared
        Prior of the shared shape parameters at the reference size.
    moves
        Matrix from the shared parameters to those at the mean size of every source, (k, k) each.
    widths
        Scales of the half-normal priors of ω, (k,).
    """

    sources: Sequence[SourcePosterior]
    priors: Sequence[Prior]
    shared: Prior
    moves: Sequence[np.ndarray]
    widths: np.ndarray

    @cached_property
    def count(self) -> int:
        """Number of shape parameters, k."""
        return len(self.shared.names)

    @cached_property
    def places(self) -> list[tuple[list[int], list[int], list[int]]]:
        """Places of base and shape parameters among a source's coordinates, and of the latter in k.

        A source lacks the shape parameters of the ratios that it does not vary.
        """
        shape = self.shared.names
        return [
            (
                [i for i, name in enumerate(prior.names) if name not in shape],
                [i for i, name in enumerate(prior.names) if name in shape],
                [shape.index(name) for name in prior.names if name in shape],
            )
            for prior in self.priors
        ]

    @cached_property
    def blocks(self) -> list[tuple[slice, slice]]:
        """Places of every source's base and deviations among the global coordinates."""
        blocks, start = [], 2 * self.count
        for base, *_ in self.places:
            middle = start + len(base)
            blocks.append((slice(start, middle), slice(middle, middle + self.count)))
            start = middle + self.count
        return blocks

    @cached_property
    def size(self) -> int:
        """Number of global coordinates."""
        return int(self.blocks[-1][1].stop)

    @cached_property
    def _precision(self) -> np.ndarray:
        return np.linalg.inv(self.shared.covariance)

    def split(self, g: np.ndarray) -> list[np.ndarray]:
        """Return the coordinates of every source, (S, f) each, at g (S, q)."""
        parts = []
        for source, (base, shape, seen), (block, _), of_source in zip(
            self.sources, self.places, self.blocks, self.shapes(g), strict=True
        ):
            t = np.empty((len(g), source.free))
            t[:, base] = g[:, block]
            t[:, shape] = of_source[:, seen]
            parts.append(t)
        return parts

    def shapes(self, g: np.ndarray) -> list[np.ndarray]:
        """Return all shape parameters at the mean size of every source, (S, k) each."""
        k = self.count
        shared, omega = g[:, :k], np.exp(np.clip(g[:, k : 2 * k], *LOG_OMEGA))
        return [
            shared @ move.T + omega * g[:, own]
            for (_, own), move in zip(self.blocks, self.moves, strict=True)
        ]

    def log_density(
        self, g: np.ndarray, by_source: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the prior of g to the log densities of the sources, given with their gradients."""
        k = self.count
        omega = np.exp(np.clip(g[:, k : 2 * k], *LOG_OMEGA))
        gradient = np.zeros_like(g)
        gap = g[:, :k] - self.shared.mean
        pull = gap @ self._precision
        value = -0.5 * (pull * gap).sum(axis=1)
        gradient[:, :k] -= pull
        value += (g[:, k : 2 * k] - 0.5 * (omega / self.widths) ** 2).sum(axis=1)
        gradient[:, k : 2 * k] += 1 - (omega / self.widths) ** 2
        for (part, by_t), prior, (base, shape, seen), (block, own), move in zip(
            by_source, self.priors, self.places, self.blocks, self.moves, strict=True
        ):
            mean, variance = prior.mean[base], np.diag(prior.covariance)[base]
            value = value + part
            value -= 0.5 * ((g[:, block] - mean) ** 2 / variance).sum(axis=1)
            gradient[:, block] += by_t[:, base] - (g[:, block] - mean) / variance
            by_shape = np.zeros((len(g), k))
            by_shape[:, seen] = by_t[:, shape]
            gradient[:, :k] += by_shape @ move
            gradient[:, k : 2 * k] += by_shape * omega * g[:, own]
            value -= 0.5 * (g[:, own] ** 2).sum(axis=1)
            gradient[:, own] += by_shape * omega - g[:, own]
        return value, gradient


def normal_start(pool: Pool, modes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return a rough normal approximation of the global coordinates from the sources' modes."""
    k = pool.count
    own = np.full((len(modes), k), np.nan)
    for row, mode, (_, shape, seen), move in zip(own, modes, pool.places, pool.moves, strict=True):
        local = move @ pool.shared.mean
        local[seen] = mode[shape]
        row[seen] = np.linalg.solve(move, local)[seen]
    centre = np.zeros(pool.size)
    told = np.isfinite(own).any(axis=0)
    shared = pool.shared.mean.copy()
    shared[told] = np.nanmedian(own[:, told], axis=0)
    weight = 1 / np.diag(pool.shared.covariance)
    centre[:k] = shared
    centre[k : 2 * k] = np.log(0.6745 * pool.widths)
    deviation = np.full(pool.size, FIRST_DEVIATION)
    deviation[:k] = 0.2 / np.sqrt(weight)
    for mode, source, prior, (base, shape, seen), (block, part), move in zip(
        modes, pool.sources, pool.priors, pool.places, pool.blocks, pool.moves, strict=True
    ):
        posterior = Posterior(
            source=source, mean=prior.mean, precision=np.linalg.inv(prior.covariance)
        )
        covariance = posterior.covariance(mode)
        centre[block] = mode[base]
        deviation[block] = np.sqrt(np.diag(covariance)[base])
        gap = (mode[shape] - (move @ shared)[seen]) / np.exp(centre[k : 2 * k])[seen]
        centre[np.arange(part.start, part.stop)[seen]] = np.clip(gap, -1.5, 1.5)
    return centre, np.diag(deviation**2)
