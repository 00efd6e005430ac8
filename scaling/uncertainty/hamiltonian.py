"""Hamiltonian Monte Carlo with many chains in one batch, in whitened coordinates.

Sources: Neal (2011), Handbook of Markov Chain Monte Carlo, chapter 5; dual averaging of the step
from Hoffman & Gelman (2014), section 3.2; R-hat of Gelman & Rubin (1992).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

# Points (S, q) -> log density (S,) and its gradient (S, q).
LogDensity = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
ACCEPTANCE = 0.8  # share of accepted proposals at which the step is adapted
FIRST_STEP, STEPS = 0.3, (1e-3, 1.0)  # step in whitened coordinates, and its bounds
LENGTHS = (0.3 * np.pi, 0.6 * np.pi)  # of a trajectory: half a period of a normal density
MAX_STEPS = 24  # of one trajectory
SHRINKAGE = 0.05  # of the estimated covariance towards its diagonal
MIN_ENSEMBLE = 20  # chains from which moves by differences start
SHARE_OF_JUMPS = 0.2  # of these moves with the whole difference: from one mode to another
JITTERS = (1e-12, 1e-9, 1e-6, 1e-3)  # added to a correlation that is not positive definite
OUTLYING = 6.0  # robust standard deviations at which a chain's point is clipped


@dataclass
class StepSize:
    """Step of the leapfrog integration, adapted by dual averaging."""

    step: float = FIRST_STEP
    _count: int = 0
    _error: float = 0.0
    _mean_log: float = field(default_factory=lambda: float(np.log(FIRST_STEP)))
    _centre: float = field(default_factory=lambda: float(np.log(2 * FIRST_STEP)))

    def adapt(self, accepted: float) -> None:
        """Move the step after an iteration with a share of accepted proposals."""
        self._count += 1
        self._error += (ACCEPTANCE - accepted - self._error) / (self._count + 5)
        log = self._centre - 10 * np.sqrt(self._count) * self._error
        log = float(np.clip(log, *np.log(STEPS)))
        weight = self._count**-0.75
        self._mean_log = weight * log + (1 - weight) * self._mean_log
        self.step = float(np.exp(log))

    def settled(self) -> "StepSize":
        """Return the averaged step, from which adaptation may start anew."""
        step = float(np.exp(self._mean_log))
        return StepSize(step=step, _mean_log=np.log(step), _centre=np.log(2 * step))


def move(
    density: LogDensity,
    points: np.ndarray,
    root: np.ndarray,
    step: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Move every chain by one trajectory.

    Parameters
    ----------
    density
        Log density up to a constant, with its gradient.
    points
        Points of the chains, (S, q).
    root
        Cholesky root of the covariance that whitens the coordinates, (q, q).
    step
        Step of the integration.
    generator
        Random numbers.

    Returns
    -------
    points
        Points after the trajectories, (S, q).
    value
        Log density there, (S,).
    accepted
        Mean probability of acceptance.
    """
    before, gradient = density(points)
    momentum = generator.standard_normal(points.shape)
    steps = int(np.clip(round(generator.uniform(*LENGTHS) / step), 1, MAX_STEPS))
    start_energy = before - 0.5 * (momentum**2).sum(axis=1)
    at, moving = points, momentum + 0.5 * step * (gradient @ root)
    for number in range(steps):
        at = at + step * (moving @ root.T)
        value, gradient = density(at)
        moving = moving + (step if number < steps - 1 else 0.5 * step) * (gradient @ root)
    change = value - 0.5 * (moving**2).sum(axis=1) - start_energy
    change = np.where(np.isfinite(change), change, -np.inf)
    probability = np.exp(np.minimum(change, 0.0))
    accept = generator.random(len(points)) < probability
    points = np.where(accept[:, None], at, points)
    return points, np.where(accept, value, before), float(probability.mean())


def ensemble_move(
    density: LogDensity, points: np.ndarray, value: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Move each half of the chains by differences of points of the other half.

    Such moves follow curved and separate modes, which one covariance does not describe. Source:
    differential evolution, ter Braak (2006), with complementary halves.

    Parameters
    ----------
    density
        Log density of every chain, with its gradient.
    points, value
        Points of the chains, (S, q), and the log density there, (S,).
    generator
        Random numbers.

    Returns
    -------
    numpy.ndarray
        Points after one proposal for each chain, (S, q).
    """
    count, size = points.shape
    if count < MIN_ENSEMBLE:
        return points
    order = generator.permutation(count)
    halves = np.array_split(order, 2)
    for mine, others in (halves, halves[::-1]):
        first = generator.integers(len(others), size=len(mine))
        second = (first + 1 + generator.integers(len(others) - 1, size=len(mine))) % len(others)
        length = 2.38 / np.sqrt(2 * size) * generator.uniform(0.4, 1.2, (len(mine), 1))
        length[generator.random(len(mine)) < SHARE_OF_JUMPS] = 1.0
        proposed = points.copy()
        gap = points[others[first]] - points[others[second]]
        proposed[mine] += length * gap + 1e-4 * np.std(points, axis=0) * generator.standard_normal(
            gap.shape
        )
        new_value, _ = density(proposed)
        accept = np.log(generator.random(count)) < new_value - value
        points = np.where(accept[:, None], proposed, points)
        value = np.where(accept, new_value, value)
    return points


def root_of(points: np.ndarray) -> np.ndarray:
    """Estimate the Cholesky root of the covariance of points (k, q), robust against outliers."""
    centre = np.median(points, axis=0)
    spread = 1.4826 * np.median(np.abs(points - centre), axis=0) + 1e-12
    scaled = np.clip((points - centre) / spread, -OUTLYING, OUTLYING)
    covariance = np.cov(scaled, rowvar=False).reshape(len(centre), -1)
    diagonal = np.diag(np.diag(covariance)) + 1e-9 * np.eye(len(centre))
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal
    return np.asarray(spread[:, None] * covariance_root(shrunk))


def covariance_root(covariance: np.ndarray) -> np.ndarray:
    """Return the Cholesky root of a covariance (q, q), with jitter where rounding requires it."""
    diagonal = np.sqrt(np.maximum(np.nan_to_num(np.diag(covariance), nan=1.0, posinf=1.0), 1e-24))
    correlation = np.nan_to_num(covariance / np.outer(diagonal, diagonal))
    for jitter in (0.0, *JITTERS):
        try:
            root = np.linalg.cholesky(correlation + jitter * np.eye(len(diagonal)))
        except np.linalg.LinAlgError:
            continue
        return np.asarray(diagonal[:, None] * root)
    return np.diag(diagonal)


def r_hat(history: np.ndarray) -> np.ndarray:
    """Compute R-hat, (q,), from the points of all chains after warm-up, (T, S, q)."""
    length = len(history)
    if length < 2:
        return np.full(history.shape[2], np.nan)
    within = history.var(axis=0, ddof=1).mean(axis=0)
    between = history.mean(axis=0).var(axis=0, ddof=1)
    return np.asarray(np.sqrt((length - 1) / length + between / np.maximum(within, 1e-300)))
