"""Posterior of a law given a run table: prior, Student-t noise, cluster effects and misfit.

    ln L_i = f(θ, x_i) + m(x_i) + u_c(i) + ε_i

f is ln of the law; m is the deviation of :mod:`shapelaw.scaling.uncertainty.misfit`; u ~ N(0, τ²)
is the effect of a cluster of rows (checkpoints of one run); ε follows Student's t with four degrees
of freedom and scale σ. Coordinates of θ have a normal prior; ln σ is normal around ln 0.004 with
standard deviation 0.8; the amplitude of the process and τ have half-normal priors with scales 0.005
and 0.01. All interval ends and probabilities of a fit come from one set of draws of this density.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize

from shapelaw.scaling.solver.problem import Problem
from shapelaw.scaling.uncertainty.conditional import Conditional, WeightedSums
from shapelaw.scaling.uncertainty.coordinates import Coordinates
from shapelaw.scaling.uncertainty.hamiltonian import covariance_root
from shapelaw.scaling.uncertainty.misfit import AMPLITUDE, Misfit
from shapelaw.scaling.uncertainty.robust_covariance import cluster_numbers

DEGREES = 4.0  # of Student's t
LOG_SCALE, LOG_SCALE_DEVIATION = float(np.log(0.004)), 0.8  # prior of ln σ
CLUSTER_SCALE = 0.01  # scale of the half-normal prior of τ
MEDIAN_HALF_NORMAL = 0.6745
SCALE_STEPS = (0.8, 0.15, 0.35)  # Metropolis steps of the logarithms of the scales
ROUNDS = 6  # alternations of parameters and scale


@dataclass(frozen=True, kw_only=True, eq=False)
class SourcePosterior:
    """Density of the coordinates of a law and of the latent values of one table.

    A point is (t, ψ, z, v, ln σ, ln a, ln τ): coordinates of the free parameters, standard normal
    values of interactions, inducing points and clusters, and the logarithms of the three scales
    (ln τ only with clusters).

    Attributes
    ----------
    problem
        Law and table; its held parameters keep their values.
    coordinates
        Coordinates of the free parameters, (f,).
    misfit
        Prior of the deviation from the law.
    clusters
        Cluster of each row, (n,); None for independent rows.
    """

    problem: Problem
    coordinates: Coordinates
    misfit: Misfit
    clusters: np.ndarray | None = None

    @cached_property
    def rows(self) -> np.ndarray:
        """Factors of ψ, z and v: interactions and process (n, m), without their amplitudes."""
        interactions, process = self.misfit.features(self.problem.columns)
        return np.hstack([interactions, process, self.members])

    @cached_property
    def members(self) -> np.ndarray:
        """Membership of the rows in the clusters, 0 or 1, (n, c); c = 0 without clusters."""
        rows = len(self.problem.log_loss)
        if self.clusters is None:
            return np.empty((rows, 0))
        number = cluster_numbers(self.clusters, rows)
        return np.asarray(number[:, None] == np.arange(number.max() + 1), dtype=float)

    @property
    def free(self) -> int:
        """Number of free parameters."""
        return len(self.coordinates.kinds)

    @cached_property
    def latent(self) -> int:
        """Number of latent values and scales."""
        return int(self.rows.shape[1]) + 2 + (self.clusters is not None)

    @cached_property
    def _blocks(self) -> tuple[slice, slice, slice]:
        """Places of ψ, z and v among the latent values."""
        pairs, points = len(self.misfit.pairs), len(self.misfit.points)
        return (
            slice(0, pairs),
            slice(pairs, pairs + points),
            slice(pairs + points, self.rows.shape[1]),
        )

    def scales(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return σ, the amplitude and τ (0 without clusters), (S,) each."""
        values = np.exp(latent[:, self.rows.shape[1] :])
        tau = values[:, 2] if self.clusters is not None else np.zeros(len(latent))
        return values[:, 0], values[:, 1], tau

    def split(self, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the draws of ψ and z, (S, misfit.size), and of the amplitude, (S,)."""
        return latent[:, : self.misfit.size], self.scales(latent)[1]

    def _factors(self, latent: np.ndarray) -> np.ndarray:
        """Amplitude of each latent value: 1, a or τ, (S, m)."""
        _, amplitude, tau = self.scales(latent)
        factors = np.ones((len(latent), self.rows.shape[1]))
        factors[:, self._blocks[1]] = amplitude[:, None]
        factors[:, self._blocks[2]] = tau[:, None]
        return factors

    def log_density(
        self, t: np.ndarray, latent: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluate the log density without the prior of t, with its gradients.

        Parameters
        ----------
        t
            Coordinates of the free parameters, (S, f).
        latent
            Latent values and logarithms of the scales, (S, :attr:`latent`).

        Returns
        -------
        Log density (S,), gradient by t (S, f), gradient by latent values (S, latent).
        """
        theta, slope = self.coordinates.theta(t)
        complete = self.problem.complete(theta)
        with np.errstate(all="ignore"):
            logs, gradient = self.problem.program.value_and_gradient(complete)
        values = latent[:, : self.rows.shape[1]]
        factors = self._factors(latent)
        residual = self.problem.log_loss - logs - (values * factors) @ self.rows.T
        sigma, amplitude, tau = self.scales(latent)
        square = (residual / sigma[:, None]) ** 2
        count = residual.shape[1]
        with np.errstate(all="ignore"):  # a trajectory may leave the finite numbers
            value = -0.5 * (DEGREES + 1) * np.log1p(square / DEGREES).sum(axis=1)
            value -= count * np.log(sigma)
            pull = (DEGREES + 1) * residual / (DEGREES * sigma[:, None] ** 2 + residual**2)
            by_theta = np.matmul(gradient, pull[:, :, None])[:, :, 0]
        by_t = by_theta[:, self.problem.free] * slope
        projected = pull @ self.rows
        by_values = projected * factors - values
        value -= 0.5 * (values**2).sum(axis=1)
        by_scales = np.empty((len(t), self.latent - self.rows.shape[1]))
        gap = (np.log(sigma) - LOG_SCALE) / LOG_SCALE_DEVIATION
        value -= 0.5 * gap**2
        by_scales[:, 0] = (pull * residual).sum(axis=1) - count - gap / LOG_SCALE_DEVIATION
        for place, scale, width, block in (
            (1, amplitude, AMPLITUDE, self._blocks[1]),
            (2, tau, CLUSTER_SCALE, self._blocks[2]),
        )[: by_scales.shape[1] - 1]:
            value += latent[:, self.rows.shape[1] + place] - 0.5 * (scale / width) ** 2
            by_scales[:, place] = 1.0 - (scale / width) ** 2
            by_scales[:, place] += (projected * factors * values)[:, block].sum(axis=1)
        bad = ~np.isfinite(value)
        value = np.where(bad, -np.inf, value)
        by_latent = np.hstack([by_values, by_scales])
        by_t[bad] = by_latent[bad] = 0.0
        return value, np.nan_to_num(by_t), np.nan_to_num(by_latent)

    def conditional(
        self, t: np.ndarray, latent: np.ndarray, generator: np.random.Generator
    ) -> Conditional:
        """Draw the precisions of the rows and the scales anew.

        Student's t is a normal distribution whose precision follows a gamma distribution. Given
        the precisions, the latent values have a normal distribution, so the scales are updated by
        Metropolis steps with the latent values integrated out. This mixes where the data determine
        some latent values and leave others to their prior.

        Parameters
        ----------
        t, latent
            As in :meth:`log_density`.
        generator
            Random numbers.

        Returns
        -------
        Conditional
            Density of t given precisions and scales, with the latent values integrated out.
        """
        values = self.rows.shape[1]
        complete = self.problem.complete(self.coordinates.theta(t)[0])
        bare = self.problem.log_loss - self.problem.program.log_loss(complete)
        residual = bare - (latent[:, :values] * self._factors(latent)) @ self.rows.T
        square = (residual / self.scales(latent)[0][:, None]) ** 2
        precision = generator.gamma((DEGREES + 1) / 2, 2 / (DEGREES + square))
        sums = WeightedSums.of(self, precision, bare)
        logs = latent[:, values:].copy()
        score, root, shrunk = self._marginal(logs, sums)
        for step in SCALE_STEPS:
            proposed = logs + step * generator.standard_normal(logs.shape)
            new = self._marginal(proposed, sums)
            accept = np.log(generator.random(len(t))) < new[0] - score
            for kept, found in zip((logs, score, root, shrunk), (proposed, *new), strict=True):
                kept[accept] = found[accept]
        return Conditional(
            source=self,
            precision=precision * np.exp(-2 * logs[:, :1]),
            shrunk=shrunk,
            factors=self._factors(self._without_values(logs))[:, : self.misfit.size],
            root=root,
            logs=logs,
        )

    def _without_values(self, logs: np.ndarray) -> np.ndarray:
        """Return latent values of 0 with the given logarithms of the scales, (S, latent)."""
        return np.hstack([np.zeros((len(logs), self.rows.shape[1])), logs])

    def _marginal(
        self, logs: np.ndarray, sums: WeightedSums
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integrate the latent values out at given precisions of the rows.

        Returns the log density of the scales (S,), the Cholesky root of the precision of ψ and z
        (S, m, m), and the posterior variance of each cluster's effect given all else (S, c).
        """
        inverse = np.exp(-2 * logs[:, :1])
        variance = np.exp(2 * logs[:, 2:3]) if self.clusters is not None else np.zeros_like(inverse)
        shrunk = variance / (1 + variance * inverse * sums.by_cluster)
        matrix, moment = inverse[:, :, None] * sums.gram, inverse * sums.moment
        total = inverse[:, 0] * sums.total
        if self.clusters is not None:
            pulled = (sums.rows_by_cluster * (shrunk * inverse**2)[:, :, None]).transpose(0, 2, 1)
            matrix -= np.matmul(pulled, sums.rows_by_cluster)
            moment -= np.matmul(pulled, sums.bare_by_cluster[:, :, None])[:, :, 0]
            total -= (shrunk * inverse**2 * sums.bare_by_cluster**2).sum(axis=1)
        factors = self._factors(self._without_values(logs))[:, : self.misfit.size]
        matrix *= factors[:, :, None]
        matrix *= factors[:, None, :]
        diagonal = np.arange(self.misfit.size)
        matrix[:, diagonal, diagonal] += 1.0
        root = _stable_roots(matrix)
        solved = _forward_substitution(root, factors * moment)
        score = 0.5 * (solved**2).sum(axis=1) - 0.5 * total
        score -= np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        score -= 0.5 * np.log1p(variance * inverse * sums.by_cluster).sum(axis=1)
        score -= len(self.problem.log_loss) * logs[:, 0]
        score -= 0.5 * ((logs[:, 0] - LOG_SCALE) / LOG_SCALE_DEVIATION) ** 2
        for place, width in enumerate((AMPLITUDE, CLUSTER_SCALE)[: logs.shape[1] - 1]):
            log = logs[:, place + 1]
            score += log - 0.5 * np.exp(2 * log) / width**2
        return np.where(np.isfinite(score), score, -np.inf), root, shrunk

    def first_latent(self) -> np.ndarray:
        """Return latent values of 0 with every scale at the median of its prior, (latent,)."""
        scales = [LOG_SCALE, np.log(MEDIAN_HALF_NORMAL * AMPLITUDE)]
        if self.clusters is not None:
            scales.append(np.log(MEDIAN_HALF_NORMAL * CLUSTER_SCALE))
        return np.concatenate([np.zeros(self.rows.shape[1]), scales])

    def curvature(self, t: np.ndarray, latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the Gauss-Newton matrix without the prior of t, and the Jacobian of the residuals.

        The matrix, (f + latent,) squared, is positive semidefinite; the block of the logarithms of
        the scales is diagonal.
        """
        theta, slope = self.coordinates.theta(t[None])
        gradient = self.problem.program.gradient(self.problem.complete(theta))[0]
        values = self.rows.shape[1]
        residual = self.residuals(t, latent)
        sigma = float(self.scales(latent[None])[0][0])
        jacobian = np.vstack(
            [
                np.nan_to_num(gradient[self.problem.free] * slope.T),
                (self.rows * self._factors(latent[None])).T,
            ]
        )
        weights = (DEGREES + 1) / (DEGREES * sigma**2 + residual**2)
        size = self.free + self.latent
        matrix = np.zeros((size, size))
        inner = self.free + values
        matrix[:inner, :inner] = (jacobian * weights) @ jacobian.T
        matrix[np.arange(self.free, inner), np.arange(self.free, inner)] += 1.0
        scale = 2 * len(residual) * DEGREES / (DEGREES + 3) + LOG_SCALE_DEVIATION**-2
        matrix[inner, inner] = scale
        matrix[np.arange(inner + 1, size), np.arange(inner + 1, size)] = 2.0
        return matrix, jacobian

    def residuals(self, t: np.ndarray, latent: np.ndarray) -> np.ndarray:
        """Return observed minus predicted ln loss at one point, (n,)."""
        complete = self.problem.complete(self.coordinates.theta(t[None])[0])
        values = (latent[None, : self.rows.shape[1]] * self._factors(latent[None])) @ self.rows.T
        return np.asarray(
            self.problem.log_loss - self.problem.program.log_loss(complete)[0] - values[0]
        )


def _stable_roots(matrices: np.ndarray) -> np.ndarray:
    """Return the Cholesky roots of precisions (S, m, m), with jitter where rounding requires it."""
    try:
        return np.asarray(np.linalg.cholesky(matrices))
    except np.linalg.LinAlgError:
        return np.stack([covariance_root(matrix) for matrix in matrices])


def _forward_substitution(roots: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve L x = b for lower triangular matrices (S, m, m) and vectors (S, m)."""
    solved = right.copy()
    for row in range(right.shape[1]):
        solved[:, row] -= np.einsum("sk,sk->s", roots[:, row, :row], solved[:, :row])
        solved[:, row] /= roots[:, row, row]
    return solved


@dataclass(frozen=True, kw_only=True, eq=False)
class Posterior:
    """Density of one source with a normal prior of its coordinates: mean (f,), precision (f, f)."""

    source: SourcePosterior
    mean: np.ndarray
    precision: np.ndarray

    @property
    def sources(self) -> list[SourcePosterior]:
        """The one source."""
        return [self.source]

    def split(self, g: np.ndarray) -> list[np.ndarray]:
        """Return the coordinates of the source, which are the global ones."""
        return [g]

    def log_density(
        self, g: np.ndarray, by_source: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the prior to the log density of the source and to its gradient."""
        value, gradient = by_source[0]
        pull = (g - self.mean) @ self.precision
        return value - 0.5 * (pull * (g - self.mean)).sum(axis=1), gradient - pull

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate the log density (S,) and its gradient (S, q) at points (S, q)."""
        t, latent = points[:, : self.source.free], points[:, self.source.free :]
        value, by_t, by_latent = self.source.log_density(t, latent)
        pull = (t - self.mean) @ self.precision
        value = value - 0.5 * (pull * (t - self.mean)).sum(axis=1)
        return value, np.hstack([by_t - pull, by_latent])

    def mode(self, starts: np.ndarray) -> np.ndarray:
        """Find the mode of coordinates and latent values, the scales estimated by EM.

        The joint mode over the scales too need not exist (σ may go to 0), so σ is estimated from
        the residuals and their posterior variance, and the other scales stay at their medians.

        Parameters
        ----------
        starts
            Coordinates of the starts, (k, f); the best end is taken.

        Returns
        -------
        numpy.ndarray
            The point, (q,).
        """
        ends = [
            self._climb(np.concatenate([start, self.source.first_latent()])) for start in starts
        ]
        point = max(ends, key=lambda end: float(self(end[None])[0][0]))
        place = self.source.free + self.source.rows.shape[1]
        for _ in range(ROUNDS):
            updated = self._scale_of(point)
            settled = abs(updated - point[place]) < 0.01
            point[place] = updated
            point = self._climb(point)
            if settled:
                break
        return point

    def _climb(self, point: np.ndarray) -> np.ndarray:
        """Maximise the density over all but the scales, by quasi-Newton steps in whitened space."""
        inner = self.source.free + self.source.rows.shape[1]
        for _ in range(3):
            root = covariance_root(self.covariance(point)[:inner, :inner])
            start = point.copy()

            def falling(
                z: np.ndarray, start: np.ndarray = start, root: np.ndarray = root
            ) -> tuple[float, np.ndarray]:
                moved = start.copy()
                moved[:inner] += root @ z
                value, gradient = self(moved[None])
                if not np.isfinite(value[0]):
                    return 1e300, np.zeros(inner)
                return -float(value[0]), -(gradient[0, :inner] @ root)

            found = minimize(
                falling, np.zeros(inner), jac=True, method="L-BFGS-B", options={"maxiter": 80}
            )
            point = start.copy()
            point[:inner] += root @ found.x
            if np.abs(found.x).max() < 1e-3:
                break
        return point

    def _scale_of(self, point: np.ndarray) -> float:
        """Update ln σ by one step of expectation and maximisation."""
        source = self.source
        t, latent = point[: source.free], point[source.free :]
        _, jacobian = source.curvature(t, latent)
        inner = len(jacobian)
        covariance = self.covariance(point)[:inner, :inner]
        squares = source.residuals(t, latent) ** 2
        squares += np.einsum("in,ij,jn->n", jacobian, covariance, jacobian)
        log_sigma = latent[source.rows.shape[1]]
        for _ in range(50):
            shares = (DEGREES + 1) / (DEGREES + squares / np.exp(2 * log_sigma))
            ratio = (shares * squares).sum() / np.exp(2 * log_sigma)
            slope = ratio - len(squares) - (log_sigma - LOG_SCALE) / LOG_SCALE_DEVIATION**2
            step = slope / (2 * len(squares) + LOG_SCALE_DEVIATION**-2)
            log_sigma += float(np.clip(step, -0.5, 0.5))
            if abs(step) < 1e-6:
                break
        return float(log_sigma)

    def covariance(self, point: np.ndarray) -> np.ndarray:
        """Return the covariance of the normal approximation at a point, (q, q)."""
        free = self.source.free
        matrix, _ = self.source.curvature(point[:free], point[free:])
        matrix[:free, :free] += self.precision
        covariance = np.linalg.inv(matrix)
        return np.asarray((covariance + covariance.T) / 2)
