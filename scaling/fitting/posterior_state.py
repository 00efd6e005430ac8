"""Draws of a posterior beside the parameters of the law: deviation, noise and cluster effects."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shapelaw.scaling.laws.part import Columns
from shapelaw.scaling.schema import PositiveFloat
from shapelaw.scaling.uncertainty.misfit import Misfit
from shapelaw.scaling.uncertainty.posterior import DEGREES

ARRAYS = ("latent", "amplitude", "sigma", "tau")  # fields with one row or number for each draw


@dataclass(frozen=True, kw_only=True)
class PosteriorState:
    """Draws of everything in a posterior but the parameters of the law.

    Parameters
    ----------
    misfit
        Prior of the deviation of the true loss from the law.
    latent
        Draws of its latent values, (S, m).
    amplitude, sigma, tau
        Draws of the amplitude of the deviation, of the scale of Student's t, and of the standard
        deviation between clusters, (S,) each.
    degrees
        Degrees of freedom of Student's t.
    """

    misfit: Misfit
    latent: np.ndarray
    amplitude: np.ndarray
    sigma: np.ndarray
    tau: np.ndarray
    degrees: PositiveFloat = DEGREES

    def deviations(self, columns: Columns, seed: int, *, joint: bool) -> np.ndarray:
        """Draw the deviation of the true loss from the law at rows, (S, n)."""
        return self.misfit.draws(columns, self.latent, self.amplitude, seed, joint=joint)

    def mean_deviation(self, columns: Columns) -> np.ndarray:
        """Compute the mean of the deviation over all draws at rows, (n,)."""
        return self.misfit.mean(columns, self.latent, self.amplitude)

    def run_noise(self, runs: np.ndarray, seed: int) -> np.ndarray:
        """Draw the deviation of the mean of new runs from the true loss, (S, n).

        Parameters
        ----------
        runs
            Number of new runs of each row, (n,).
        seed
            Seed of the draws.
        """
        generator = np.random.default_rng([seed, 1])
        size = (len(self.sigma), len(runs))
        noise = np.zeros(size)
        for index in range(int(runs.max())):
            noise += np.where(index < runs, generator.standard_t(self.degrees, size), 0.0)
        noise *= self.sigma[:, None] / runs
        effect = generator.standard_normal(size) / np.sqrt(runs)
        return np.asarray(noise + self.tau[:, None] * effect)

    def document(self) -> dict[str, Any]:
        """Return the plain content of the state, which `fit.json` holds."""
        arrays = {name: getattr(self, name).tolist() for name in ARRAYS}
        misfit = {name: np.asarray(value).tolist() for name, value in asdict(self.misfit).items()}
        return {"misfit": misfit, **arrays, "degrees": self.degrees}
