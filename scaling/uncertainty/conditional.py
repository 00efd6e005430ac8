"""Density of a law's coordinates given the precisions of the noise and the scales.

Deviations from the law and effects of clusters are integrated over in closed form, so that a chain
moves in the coordinates alone and draws all else afterwards.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from shapelaw.scaling.uncertainty.posterior import SourcePosterior


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedSums:
    """Sums over rows, weighted with the rows' precisions at σ = 1, that the scales leave alone.

    ``gram`` (S, m, m), ``moment`` (S, m) and ``total`` (S,) are second moments of the factors of ψ
    and z and of the bare residuals; ``by_cluster`` (S, c), ``rows_by_cluster`` (S, c, m) and
    ``bare_by_cluster`` (S, c) are sums within each cluster.
    """

    gram: np.ndarray
    moment: np.ndarray
    total: np.ndarray
    by_cluster: np.ndarray
    rows_by_cluster: np.ndarray
    bare_by_cluster: np.ndarray

    @classmethod
    def of(
        cls, source: "SourcePosterior", precision: np.ndarray, bare: np.ndarray
    ) -> "WeightedSums":
        """Sum the rows of a source with precisions and bare residuals (S, n)."""
        rows, members = source.rows[:, : source.misfit.size], source.members
        weighted = precision * bare
        return cls(
            gram=np.matmul(rows.T * precision[:, None, :], rows),
            moment=weighted @ rows,
            total=(weighted * bare).sum(axis=1),
            by_cluster=precision @ members,
            rows_by_cluster=np.matmul(members.T * precision[:, None, :], rows),
            bare_by_cluster=weighted @ members,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditional:
    """Density of the coordinates t given precisions and scales, without the prior of t.

    Attributes
    ----------
    source
        Table and law.
    precision
        Precision of each row's noise, (S, n).
    shrunk
        Variance of each cluster's effect given all else, (S, c).
    factors
        Amplitudes of ψ and z, (S, m).
    root
        Cholesky root of the precision of ψ and z, (S, m, m).
    logs
        Logarithms of the scales, (S, 2 or 3).
    """

    source: "SourcePosterior"
    precision: np.ndarray
    shrunk: np.ndarray
    factors: np.ndarray
    root: np.ndarray
    logs: np.ndarray

    @cached_property
    def _inverse(self) -> np.ndarray:
        inverse = np.linalg.inv(self.root)
        return np.asarray(np.matmul(inverse.transpose(0, 2, 1), inverse))

    @property
    def _rows(self) -> np.ndarray:
        return self.source.rows[:, : self.source.misfit.size]

    def _weighted(self, residual: np.ndarray) -> np.ndarray:
        """Multiply residuals (S, n) with the inverse covariance of noise and cluster effects."""
        weighted = np.asarray(self.precision * residual)
        members = self.source.members
        if not members.shape[1]:
            return weighted
        common = ((weighted @ members) * self.shrunk) @ members.T
        return np.asarray(weighted - self.precision * common)

    def __call__(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate the log density (S,) and its gradient (S, f) at coordinates (S, f)."""
        source = self.source
        theta, slope = source.coordinates.theta(t)
        complete = source.problem.complete(theta)
        with np.errstate(all="ignore"):  # a trajectory may leave the finite numbers
            logs, gradient = source.problem.program.value_and_gradient(complete)
            bare = source.problem.log_loss - logs
            weighted = self._weighted(bare)
            right = (weighted @ self._rows) * self.factors
            mean = np.matmul(self._inverse, right[:, :, None])[:, :, 0]
            value = -0.5 * ((weighted * bare).sum(axis=1) - (right * mean).sum(axis=1))
            pull = weighted - self._weighted((mean * self.factors) @ self._rows.T)
            by_theta = np.matmul(gradient, pull[:, :, None])[:, :, 0]
            by_t = by_theta[:, source.problem.free] * slope
        good = np.isfinite(value) & np.isfinite(by_t).all(axis=1)
        return np.where(good, value, -np.inf), np.where(good[:, None], by_t, 0.0)

    def latent(self, t: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw the latent values at t (S, f); return them with the scales, (S, latent)."""
        source = self.source
        complete = source.problem.complete(source.coordinates.theta(t)[0])
        bare = source.problem.log_loss - source.problem.program.log_loss(complete)
        right = (self._weighted(bare) @ self._rows) * self.factors
        mean = np.matmul(self._inverse, right[:, :, None])
        noise = generator.standard_normal((*right.shape, 1))
        drawn = (mean + np.linalg.solve(self.root.transpose(0, 2, 1), noise))[:, :, 0]
        parts = [drawn]
        if source.clusters is not None:
            rest = self.precision * (bare - (drawn * self.factors) @ self._rows.T)
            effect = self.shrunk * (rest @ source.members)
            effect += np.sqrt(self.shrunk) * generator.standard_normal(effect.shape)
            parts.append(effect * np.exp(-self.logs[:, 2:3]))
        return np.hstack([*parts, self.logs])
