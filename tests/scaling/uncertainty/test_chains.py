"""Markov chains on densities with known moments; no table is needed."""

from dataclasses import dataclass

import numpy as np
import pytest

from shapelaw.scaling.uncertainty.chains import sample_posterior
from shapelaw.scaling.uncertainty.hamiltonian import (
    MIN_ENSEMBLE,
    STEPS,
    StepSize,
    covariance_root,
    ensemble_move,
    move,
    r_hat,
    root_of,
)

NORMAL_MEAN = np.array([1.0, -2.0, 0.5])
NORMAL_COVARIANCE = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.3], [0.0, 0.3, 4.0]])


@dataclass
class Known:
    """Hierarchy without tables: a density of the global coordinates alone."""

    density: object
    sources = ()

    def split(self, g):
        return []

    def log_density(self, g, by_source):
        return self.density(g)


def normal(g):
    pull = np.linalg.solve(NORMAL_COVARIANCE, (g - NORMAL_MEAN).T).T
    return -0.5 * (pull * (g - NORMAL_MEAN)).sum(axis=1), -pull


def two_modes(g):
    """Evaluate a mixture of two normal densities at ±4, with weights 1/4 and 3/4."""
    logs = np.stack([np.log(w) - 0.5 * ((g[:, 0] - c) ** 2) for w, c in ((0.25, -4), (0.75, 4))])
    value = np.logaddexp(*logs)
    shares = np.exp(logs - value)
    slope = shares[0] * (-4 - g[:, 0]) + shares[1] * (4 - g[:, 0])
    return value, slope[:, None]


def sample(density, size, *, seed=0, draws=4000, spread=1.0):
    return sample_posterior(
        Known(density), np.zeros(size), spread**2 * np.eye(size), [], draws=draws, seed=seed
    )


def test_draws_of_correlated_normal_have_its_mean_and_covariance():
    found = sample(normal, 3)
    deviation = np.sqrt(np.diag(NORMAL_COVARIANCE))
    assert found.g.shape == (4000, 3)
    assert found.r_hat.max() < 1.2
    assert found.g.mean(axis=0) == pytest.approx(NORMAL_MEAN, abs=0.15)
    gap = np.cov(found.g, rowvar=False) - NORMAL_COVARIANCE
    assert np.abs(gap / np.outer(deviation, deviation)).max() < 0.15


def test_ends_of_intervals_of_normal_draws_are_stable_over_seeds():
    ends = [np.percentile(sample(normal, 3, seed=seed).g, [2.5, 97.5], axis=0) for seed in range(4)]
    expected = NORMAL_MEAN + np.array([[-1.96], [1.96]]) * np.sqrt(np.diag(NORMAL_COVARIANCE))
    width = expected[1] - expected[0]
    assert (np.abs(np.array(ends) - expected) < 0.1 * width).all()


def test_separate_modes_get_their_shares():
    found = sample(two_modes, 1, spread=5.0)
    assert (found.g[:, 0] > 0).mean() == pytest.approx(0.75, abs=0.12)


def test_same_seed_gives_same_draws_and_other_seed_others():
    first, again, other = (sample(normal, 3, seed=seed, draws=50).g for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_moved_points_come_with_their_density():
    points = np.random.default_rng(0).standard_normal((200, 3))
    root = np.linalg.cholesky(NORMAL_COVARIANCE)
    moved, value, _ = move(normal, points, root, 1.5, np.random.default_rng(1))
    stayed = (moved == points).all(axis=1)
    assert 0 < stayed.sum() < len(points)
    assert value == pytest.approx(normal(moved)[0], rel=1e-12)


def test_ensemble_move_leaves_few_chains_where_they_are():
    points = np.random.default_rng(0).standard_normal((MIN_ENSEMBLE - 1, 3))
    assert ensemble_move(normal, points, normal(points)[0], np.random.default_rng(1)) is points


def test_r_hat_of_independent_draws_is_1_and_of_apart_chains_large():
    draws = np.random.default_rng(0).standard_normal((500, 20, 2))
    apart = draws.copy()
    apart[:, :, 1] += np.arange(20)
    assert r_hat(draws) == pytest.approx(1.0, abs=0.01)
    assert r_hat(apart)[1] > 3
    assert np.isnan(r_hat(draws[:1])).all()


def test_step_falls_where_nothing_is_accepted_and_rises_where_all_is():
    low, high = StepSize(), StepSize()
    for _ in range(50):
        low.adapt(0.0)
        high.adapt(1.0)
    assert low.settled().step == pytest.approx(STEPS[0], rel=0.5)
    assert high.settled().step == pytest.approx(STEPS[1], rel=0.5)


def test_singular_covariance_has_a_root():
    singular = np.ones((2, 2))
    root = covariance_root(singular)
    assert root @ root.T == pytest.approx(singular, abs=1e-2)


def test_root_of_points_ignores_one_distant_chain():
    points = np.random.default_rng(0).standard_normal((400, 2))
    points[0] = 1e6
    root = root_of(points)
    assert root @ root.T == pytest.approx(np.eye(2), abs=0.25)
