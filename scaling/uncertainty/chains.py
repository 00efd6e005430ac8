"""Draws of the posterior of one or several sources by many Markov chains in one batch.

Each iteration draws the precisions and scales of every source, moves the parameters by Hamiltonian
Monte Carlo with the latent values integrated out, and draws the latent values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from shapelaw.scaling.display.progress import track
from shapelaw.scaling.uncertainty.hamiltonian import (
    StepSize,
    covariance_root,
    ensemble_move,
    move,
    r_hat,
    root_of,
)
from shapelaw.scaling.uncertainty.posterior import SourcePosterior

CHAINS = 128
WARM_UP = (15, 15)  # iterations before each new estimate of the covariance
SETTLING = 10  # iterations of the step's adaptation after the last estimate
TARGET_R_HAT, MAX_ROUNDS = 1.2, 2  # rounds of twice the length, until the chains agree
THINNING = 2  # iterations for each kept draw of a chain
POOLED = 6  # last iterations of a warm-up whose points give the covariance


class Hierarchy(Protocol):
    """Prior of global coordinates g and their map to the coordinates of every source."""

    @property
    def sources(self) -> Sequence[SourcePosterior]:
        """Density of every source."""

    def split(self, g: np.ndarray) -> list[np.ndarray]:
        """Return the coordinates of every source, (S, f) each, at g (S, q)."""

    def log_density(
        self, g: np.ndarray, by_source: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add the prior of g to the log densities of the sources, given with their gradients."""


@dataclass(frozen=True, kw_only=True)
class PosteriorSample:
    """Draws of the posterior.

    Attributes
    ----------
    g
        Global coordinates, (S, q).
    latent
        Latent values and scales of every source, (S, latent) each.
    r_hat
        R-hat of every global coordinate, (q,).
    """

    g: np.ndarray
    latent: list[np.ndarray]
    r_hat: np.ndarray


def sample_posterior(
    hierarchy: Hierarchy,
    centre: np.ndarray,
    covariance: np.ndarray,
    latent: Sequence[np.ndarray],
    *,
    draws: int,
    seed: int,
    chains: int = CHAINS,
    warm_up: Sequence[int] = WARM_UP,
) -> PosteriorSample:
    """Draw from a posterior.

    Parameters
    ----------
    hierarchy
        Sources with the prior of their coordinates.
    centre, covariance
        Normal approximation of the global coordinates, (q,) and (q, q).
    latent
        Latent values and scales of every source at the centre, (latent,) each.
    draws
        Number of draws.
    seed
        Seed of the chains.
    chains
        Number of chains.
    warm_up
        Iterations before each new estimate of the covariance.

    Returns
    -------
    PosteriorSample
        Draws after the warm-up, with their convergence.
    """
    chains = min(chains, draws)
    state = _Chains(
        hierarchy=hierarchy,
        generator=np.random.default_rng(seed),
        root=covariance_root(covariance),
        g=np.empty((0, 0)),
        states=[np.repeat(values[None], chains, axis=0) for values in latent],
    )
    state.g = centre + state.generator.standard_normal((chains, len(centre))) @ state.root.T
    for length in track(warm_up, "warm-up of the draws"):
        history, _ = state.run(length, adapt=True)
        state.root = root_of(np.concatenate(history[-POOLED:]))
    kept = -(-draws // chains)
    for place in track(range(MAX_ROUNDS), "draws of the posterior"):
        settling, _ = state.run(SETTLING, adapt=True)
        history, saved = state.run(THINNING * kept * 2**place, adapt=False)
        converged = r_hat(np.concatenate([settling, history]))
        if converged.max() <= TARGET_R_HAT:
            break
        state.root = root_of(np.concatenate(history[-POOLED:]))
    step = len(history) // kept
    return PosteriorSample(
        g=history[step - 1 :: step].reshape(-1, len(centre))[:draws],
        latent=[
            np.concatenate([states[source] for states in saved[step - 1 :: step]])[:draws]
            for source in range(len(latent))
        ],
        r_hat=converged,
    )


@dataclass
class _Chains:
    """Chains of a posterior: points (S, q), latent values of every source, step and whitening."""

    hierarchy: Hierarchy
    generator: np.random.Generator
    root: np.ndarray
    g: np.ndarray
    states: list[np.ndarray]
    step: StepSize = field(default_factory=StepSize)

    def run(self, iterations: int, *, adapt: bool) -> tuple[np.ndarray, list[list[np.ndarray]]]:
        """Iterate; return all points (T, S, q) and the latent values of every iteration."""
        history, saved = np.empty((iterations, *self.g.shape)), []
        for iteration in range(iterations):
            self.g, self.states, accepted = _iterate(
                self.hierarchy, self.g, self.states, self.root, self.step.step, self.generator
            )
            history[iteration] = self.g
            if adapt:
                self.step.adapt(accepted)
            else:
                saved.append(self.states)
        if adapt:
            self.step = self.step.settled()
        return history, saved


def _iterate(
    hierarchy: Hierarchy,
    g: np.ndarray,
    states: list[np.ndarray],
    root: np.ndarray,
    step: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Draw precisions and scales, move the parameters, and draw the latent values."""
    conditionals = [
        source.conditional(t, state, generator)
        for source, t, state in zip(
            hierarchy.sources, hierarchy.split(g), states, strict=True
        )
    ]  # fmt: skip

    def density(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = zip(conditionals, hierarchy.split(points), strict=True)
        return hierarchy.log_density(points, [given(t) for given, t in parts])

    g, value, probability = move(density, g, root, step, generator)
    g = ensemble_move(density, g, value, generator)
    parts = zip(conditionals, hierarchy.split(g), strict=True)
    return g, [given.latent(t, generator) for given, t in parts], probability
