"""Deviation of the true loss from a law: interactions of ratios, and a Gaussian process.

The deviation in ln loss is Σ ψ_jk (x_j - m_j)(x_k - m_k) over pairs of ratios, x = ln ratio, plus a
Gaussian process over the logarithms of all columns of the law with the squared-exponential kernel
and length scales fixed in advance. The process is represented by its values at inducing points
chosen from the design (projected process; Rasmussen & Williams 2006, section 8.3.4); predictions
add the variance that the inducing points leave, so that a deviation grows away from the data and
does not cancel in a difference of distant shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist

from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.uncertainty.hamiltonian import covariance_root

# Fixed in advance: a misfit of 0.5 % is that of the shipped ladder around its law.
AMPLITUDE = 0.005  # of the process in ln loss: scale of its half-normal prior
INTERACTION = 0.03  # standard deviation of ψ: 0.7 % of the loss at a factor 1.6 of both ratios
LENGTHS = {N: 2.0, D: 2.0}  # length scales of ln N and ln D
RATIO_LENGTH = 0.7  # length scale of the logarithm of a ratio: a factor of 2
MAX_POINTS = 24  # inducing points
JITTER = 1e-8
MAX_JOINT_ROWS = 3000  # rows whose deviations are drawn jointly
ROWS_PER_CHUNK = 1024  # rows of a mean computed at once, to bound memory


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """Prior of the deviation of the true loss from a law, on the design of one table.

    Parameters
    ----------
    columns
        Columns of the law.
    centre
        Means of ln column, (k,).
    points
        Inducing points, ln column, (m, k).
    """

    columns: tuple[str, ...]
    centre: np.ndarray
    points: np.ndarray

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> "Misfit":
        """Choose the centre and the inducing points of a table: (n,) values by column."""
        logs = _logs(columns)
        names = tuple(columns)
        return cls(
            columns=names, centre=logs.mean(axis=0), points=_spread_points(logs / _lengths(names))
            * _lengths(names),
        )  # fmt: skip

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of columns that are ratios."""
        ratios = [place for place, name in enumerate(self.columns) if name not in (N, D)]
        return list(combinations(ratios, 2))

    @property
    def size(self) -> int:
        """Number of latent values: one per pair and one per inducing point."""
        return len(self.pairs) + len(self.points)

    @cached_property
    def _root(self) -> np.ndarray:
        kernel = self._kernel(self.points, self.points)
        return covariance_root(kernel + JITTER * np.eye(len(kernel)))

    def _kernel(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        gaps = (first[:, None] - second[None]) / _lengths(self.columns)
        return np.asarray(np.exp(-0.5 * (gaps**2).sum(axis=-1)))

    def features(self, columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Compute the factors of the latent values at rows.

        Parameters
        ----------
        columns
            Values by column, (n,) each.

        Returns
        -------
        interactions
            Factors of ψ/INTERACTION, (n, pairs).
        process
            Factors of the standard normal values of the inducing points, for an amplitude of 1,
            (n, m).
        """
        logs = _logs({name: columns[name] for name in self.columns})
        centred = logs - self.centre
        products = [centred[:, j] * centred[:, k] for j, k in self.pairs]
        interactions = np.array(products).reshape(len(self.pairs), len(logs)).T * INTERACTION
        process = solve_triangular(self._root, self._kernel(self.points, logs), lower=True).T
        return interactions, process

    def mean(
        self, columns: Mapping[str, np.ndarray], latent: np.ndarray, amplitude: np.ndarray
    ) -> np.ndarray:
        """Compute the mean of the deviation at rows over draws, as :meth:`draws` describes them.

        Returns
        -------
        numpy.ndarray
            Deviations in ln loss, (n,).
        """
        logs = _logs({name: columns[name] for name in self.columns})
        lengths, pairs = _lengths(self.columns), len(self.pairs)
        middle = (amplitude[:, None] * latent[:, pairs:]).mean(axis=0)
        weights = solve_triangular(self._root, middle, lower=True, trans="T")
        points, rows = self.points / lengths, logs / lengths
        known = np.concatenate(
            [
                np.exp(-0.5 * cdist(part, points, "sqeuclidean")) @ weights
                for part in np.array_split(rows, len(rows) // ROWS_PER_CHUNK + 1)
            ]
        )
        centred = logs - self.centre
        for (j, k), factor in zip(self.pairs, latent[:, :pairs].mean(axis=0), strict=True):
            known += INTERACTION * factor * centred[:, j] * centred[:, k]
        return np.asarray(known)

    def draws(
        self,
        columns: Mapping[str, np.ndarray],
        latent: np.ndarray,
        amplitude: np.ndarray,
        seed: int,
        *,
        joint: bool = True,
    ) -> np.ndarray:
        """Draw the deviation at rows.

        Parameters
        ----------
        columns
            Values by column, (n,) each.
        latent
            Draws of the latent values, (S, :attr:`size`).
        amplitude
            Draws of the amplitude, (S,).
        seed
            Seed of the part that the inducing points leave open.
        joint
            Draw that part jointly for all rows; otherwise independently, for intervals of single
            rows.

        Returns
        -------
        numpy.ndarray
            Deviations in ln loss, (S, n).
        """
        interactions, process = self.features(columns)
        pairs = len(self.pairs)
        known = latent[:, :pairs] @ interactions.T
        known += amplitude[:, None] * (latent[:, pairs:] @ process.T)
        logs = _logs({name: columns[name] for name in self.columns})
        generator = np.random.default_rng(seed)
        if joint and len(logs) <= MAX_JOINT_ROWS:
            distinct, place = np.unique(logs, axis=0, return_inverse=True)
            basis = process[np.unique(place, return_index=True)[1]]
            left = self._kernel(distinct, distinct) - basis @ basis.T
            root = covariance_root(left + JITTER * np.eye(len(left)))
            rest = generator.standard_normal((len(latent), len(distinct))) @ root.T
            return np.asarray(known + amplitude[:, None] * rest[:, place.ravel()])
        variance = np.maximum(1.0 - (process**2).sum(axis=1), 0.0)
        rest = generator.standard_normal(known.shape) * np.sqrt(variance)
        return np.asarray(known + amplitude[:, None] * rest)


def _logs(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Stack the logarithms of the columns, (n, k)."""
    return np.stack([np.log(values) for values in columns.values()], axis=-1)


def _lengths(names: tuple[str, ...]) -> np.ndarray:
    return np.array([LENGTHS.get(name, RATIO_LENGTH) for name in names])


def _spread_points(scaled: np.ndarray) -> np.ndarray:
    """Choose distinct rows that cover the design: the farthest from those chosen, one by one."""
    rows = np.unique(scaled, axis=0)
    chosen = [int(np.argmin(((rows - rows.mean(axis=0)) ** 2).sum(axis=1)))]
    gaps = ((rows - rows[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(MAX_POINTS, len(rows)) and gaps.max() > JITTER:
        chosen.append(int(np.argmax(gaps)))
        gaps = np.minimum(gaps, ((rows - rows[chosen[-1]]) ** 2).sum(axis=1))
    return np.asarray(rows[chosen])
