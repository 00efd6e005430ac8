"""Deviation from a law: covariance of its draws against the kernel."""

import numpy as np
import pytest

from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.uncertainty.misfit import INTERACTION, MAX_POINTS, Misfit
from support.posteriors import HIDDEN, MLP

LENGTHS = np.array([2.0, 2.0, 0.7, 0.7])
NAMES = (N, D, MLP, HIDDEN)
DRAWS = 40_000


def columns(logs):
    return dict(zip(NAMES, np.exp(logs).T, strict=True))


def kernel(first, second):
    gaps = (first[:, None] - second[None]) / LENGTHS
    return np.exp(-0.5 * (gaps**2).sum(axis=-1))


@pytest.fixture
def design():
    """Return ln of the columns at 15 rows, (15, 4)."""
    return np.random.default_rng(0).normal([14, 17, 0.5, -2], [1.5, 1.5, 0.6, 0.6], (15, 4))


@pytest.fixture
def misfit(design):
    return Misfit.of(columns(design))


def draws(misfit, rows, *, given=None, seed=1, amplitude=1.0, joint=True, interactions=False):
    """Draw deviations with latent values from their prior, or with the given ones."""
    generator = np.random.default_rng(2)
    latent = generator.standard_normal((DRAWS, misfit.size)) if given is None else given
    latent = latent.copy()
    if not interactions:
        latent[:, : len(misfit.pairs)] = 0.0
    scales = np.full(len(latent), amplitude)
    return misfit.draws(columns(rows), latent, scales, seed, joint=joint)


def test_deviation_at_rows_of_the_table_has_no_variance_given_latent_values(design, misfit):
    given = np.repeat(np.random.default_rng(3).standard_normal((1, misfit.size)), 500, axis=0)
    drawn = draws(misfit, design, given=given)
    assert drawn.std(axis=0).max() < 1e-3
    assert np.abs(drawn.mean(axis=0)).max() > 0.1  # the latent values themselves count


def test_mean_deviation_is_mean_of_draws_that_share_latent_values(design, misfit):
    """Away from the table too: what the inducing points leave open has mean 0."""
    generator = np.random.default_rng(4)
    latent = generator.standard_normal((3, misfit.size))
    amplitude = np.array([0.004, 0.01, 0.002])
    rows = design + generator.normal(0, 1.0, design.shape)
    repeated = misfit.draws(
        columns(rows), np.repeat(latent, 4000, axis=0), np.repeat(amplitude, 4000), 1
    )
    mean = misfit.mean(columns(rows), latent, amplitude)
    error = repeated.std(axis=0) / np.sqrt(len(repeated))
    assert (np.abs(repeated.mean(axis=0) - mean) < 4 * error + 1e-6).all()
    assert np.abs(mean).max() > 20 * error.max()


def test_variance_grows_with_distance_from_the_table_up_to_the_amplitude(design, misfit):
    given = np.zeros((5000, misfit.size))
    steps = np.array([0.0, 0.3, 1.0, 3.0, 10.0])
    away = design[:1] + steps[:, None] * np.array([0, 0, -1.0, -1.0]) * 0.7
    spread = draws(misfit, away, given=given, amplitude=0.005).std(axis=0)
    assert (np.diff(spread) > -0.04 * 0.005).all()
    assert spread[0] < 1e-3 * 0.005
    assert spread[-1] == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize("joint", [True, False])
def test_variance_of_draws_equals_amplitude_squared(design, misfit, joint):
    rows = np.vstack([design[:2], design[:2] + 0.4, design[:2] + 9.0])
    drawn = draws(misfit, rows, amplitude=0.5, joint=joint)
    assert drawn.var(axis=0) == pytest.approx(0.25, rel=0.05)


def test_joint_covariance_of_draws_equals_kernel(design, misfit):
    rows = np.vstack([design[:3], design[:3] + 0.3, design[:2] + 1.5])
    drawn = draws(misfit, rows)
    assert np.abs(np.cov(drawn, rowvar=False) - kernel(rows, rows)).max() < 6 / np.sqrt(DRAWS)


def test_equal_rows_have_equal_deviations(design, misfit):
    rows = np.vstack([design[:1] + 2.0, design[:2], design[:1] + 2.0])
    drawn = draws(misfit, rows)
    assert np.array_equal(drawn[:, 0], drawn[:, 3])
    assert not np.allclose(drawn[:, 0], drawn[:, 1])


def test_interaction_is_product_of_centred_logarithms_of_the_ratios(design, misfit):
    latent = np.zeros((1, misfit.size))
    latent[0, 0] = 2.0
    drawn = draws(misfit, design, given=latent, amplitude=0.0, interactions=True)
    centred = design[:, 2:] - design[:, 2:].mean(axis=0)
    assert drawn[0] == pytest.approx(2.0 * INTERACTION * centred[:, 0] * centred[:, 1])


def test_inducing_points_are_distinct_rows_up_to_a_limit(design):
    repeated = np.vstack([design, design])
    assert len(Misfit.of(columns(repeated)).points) == len(design)
    many = np.random.default_rng(5).normal(0, 1, (200, 4))
    points = Misfit.of(columns(many)).points
    assert len(points) == MAX_POINTS
    rows = {tuple(np.round(row, 9)) for row in many}
    assert all(tuple(np.round(point, 9)) in rows for point in points)


def test_dense_design_and_many_near_rows_have_finite_draws():
    generator = np.random.default_rng(6)
    for spread in (1e-3, 1e-2, 0.1):
        near = np.array([14, 17, 0.5, -2]) + spread * generator.standard_normal((60, 4))
        misfit = Misfit.of(columns(near))
        rows = np.vstack([near, near + 1e-6, near + 0.1 * spread])
        assert np.isfinite(
            misfit.draws(columns(rows), np.zeros((3, misfit.size)), np.ones(3), 0)
        ).all()
