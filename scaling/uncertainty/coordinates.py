"""Smooth, unbounded coordinates of the internal parameters of a law, for priors and samplers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Internal parameter θ from coordinate t: θ = t; θ = e^t for a parameter that is positive; or
# θ = c - ln(1 + e^-t), the logarithm of a share 1/(1 + e^-t) of e^c.
PLAIN, POSITIVE, SHARE = "plain", "positive", "share"
SMALLEST = 1e-12  # positive parameter, or distance of a share from 0 and from 1
LARGEST = 50.0  # coordinate of a positive parameter or of a share, before the exponential


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Kinds of coordinates, (p,), with the ceilings c of the shares, (p,)."""

    kinds: tuple[str, ...]
    ceilings: np.ndarray

    def theta(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return internal parameters and their derivatives dθ/dt, (S, p) each, at t (S, p)."""
        theta, slope = np.array(t, dtype=float), np.ones_like(t)
        inside = np.clip(theta, -LARGEST, LARGEST)  # a trajectory may leave all bounds
        for place, kind in enumerate(self.kinds):
            if kind == POSITIVE:
                theta[:, place] = slope[:, place] = np.exp(inside[:, place])
            elif kind == SHARE:
                theta[:, place] = self.ceilings[place] - np.logaddexp(0.0, -inside[:, place])
                slope[:, place] = 1.0 / (1.0 + np.exp(inside[:, place]))
        return theta, slope

    def t(self, theta: np.ndarray) -> np.ndarray:
        """Return the coordinates of internal parameters (S, p); values at a bound are moved off."""
        t = np.array(theta, dtype=float)
        for place, kind in enumerate(self.kinds):
            if kind == POSITIVE:
                t[:, place] = np.log(np.maximum(t[:, place], SMALLEST))
            elif kind == SHARE:
                share = np.clip(np.exp(t[:, place] - self.ceilings[place]), SMALLEST, 1 - SMALLEST)
                t[:, place] = np.log(share / (1 - share))
        return t

    def take(self, places: Sequence[int] | np.ndarray) -> "Coordinates":
        """Restrict the coordinates to some parameters."""
        return Coordinates(
            kinds=tuple(np.array(self.kinds, dtype=object)[places]), ceilings=self.ceilings[places]
        )
