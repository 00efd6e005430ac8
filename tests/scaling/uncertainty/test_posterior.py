"""Density of the posterior against finite differences, scipy.stats and dense normal densities."""

import numpy as np
import pytest
from scipy.stats import halfnorm, multivariate_normal, norm, t

from shapelaw.scaling.uncertainty.conditional import WeightedSums
from shapelaw.scaling.uncertainty.posterior import Posterior
from support.posteriors import ONE_RATIO, TWO_RATIOS, density_of, numeric_gradient, points_of
from support.posteriors import small_table as table

CASES = {
    "one ratio, independent rows": (ONE_RATIO, {"rows": 12}),
    "two ratios, independent rows": (TWO_RATIOS, {"rows": 30}),
    "two ratios, four rows a run": (TWO_RATIOS, {"rows": 20, "checkpoints": 4}),
}


@pytest.fixture(params=CASES)
def case(request):
    """Return a density, its prior, and points as coordinates and latent values."""
    law, settings = CASES[request.param]
    source, prior = density_of(law, table(**settings))
    return source, prior, *points_of(source, prior, 5)


def test_log_density_gradient_equals_finite_differences(case):
    source, _, at, latent = case
    points = np.hstack([at, latent])
    _, by_t, by_latent = source.log_density(at, latent)

    def value(points):
        return source.log_density(points[:, : source.free], points[:, source.free :])[0]

    expected = numeric_gradient(value, points)
    assert np.hstack([by_t, by_latent]) == pytest.approx(expected, rel=2e-4, abs=2e-2)


def test_log_density_equals_sum_of_scipy_densities_up_to_a_constant(case):
    source, _, at, latent = case
    columns, logs = source.problem.columns, source.problem.log_loss
    interactions, process = source.misfit.features(columns)
    pairs, points, rows = interactions.shape[1], process.shape[1], len(logs)
    clustered = source.clusters is not None
    expected = []
    for coordinates, values in zip(at, latent, strict=True):
        theta = source.problem.complete(source.coordinates.theta(coordinates[None])[0])
        scales = np.exp(values[-3:] if clustered else values[-2:])
        psi, z = values[:pairs], values[pairs : pairs + points]
        predicted = source.problem.law.program(columns, source.problem.reference).log_loss(theta)[0]
        predicted = predicted + interactions @ psi + scales[1] * (process @ z)
        score = norm.logpdf(np.log(scales[0]), np.log(0.004), 0.8)
        score += halfnorm.logpdf(scales[1], scale=0.005) + np.log(scales[1])
        score += norm.logpdf(np.concatenate([psi, z])).sum()
        if clustered:
            effects = values[pairs + points : -3]
            predicted = predicted + scales[2] * np.repeat(effects, rows // len(effects))
            score += norm.logpdf(effects).sum()
            score += halfnorm.logpdf(scales[2], scale=0.01) + np.log(scales[2])
        expected.append(score + t.logpdf(logs, 4, predicted, scales[0]).sum())
    got = source.log_density(at, latent)[0]
    assert got - got[0] == pytest.approx(np.array(expected) - expected[0], rel=1e-9)


def dense_covariance(source, precision, logs):
    """Build the covariance of the bare residuals, (n, n), from precisions at σ = 1 and scales."""
    interactions, process = source.misfit.features(source.problem.columns)
    covariance = np.diag(np.exp(2 * logs[0]) / precision) + interactions @ interactions.T
    covariance += np.exp(2 * logs[1]) * process @ process.T
    if source.clusters is not None:
        same = source.clusters[:, None] == source.clusters[None]
        covariance += np.exp(2 * logs[2]) * same
    return covariance


def bare_residual(source, coordinates):
    theta = source.problem.complete(source.coordinates.theta(coordinates)[0])
    return source.problem.log_loss - source.problem.program.log_loss(theta)


def test_conditional_equals_dense_normal_density_up_to_a_constant(case):
    source, _, at, latent = case
    given = source.conditional(at, latent, np.random.default_rng(1))
    precision = given.precision * np.exp(2 * given.logs[:, :1])
    shifts = np.random.default_rng(2).normal(0, 0.02, (3, at.shape[1]))
    values = np.stack([given(at + shift)[0] for shift in shifts])
    expected = np.empty_like(values)
    for chain in range(len(at)):
        covariance = dense_covariance(source, precision[chain], given.logs[chain])
        for row, shift in enumerate(shifts):
            bare = bare_residual(source, (at + shift)[chain : chain + 1])[0]
            expected[row, chain] = multivariate_normal(cov=covariance).logpdf(bare)
    assert values[1:] - values[0] == pytest.approx(expected[1:] - expected[0], rel=1e-6, abs=1e-6)


def test_conditional_gradient_equals_finite_differences(case):
    source, _, at, latent = case
    given = source.conditional(at, latent, np.random.default_rng(1))
    expected = numeric_gradient(lambda points: given(points)[0], at)
    assert given(at)[1] == pytest.approx(expected, rel=2e-4, abs=2e-2)


def test_density_of_scales_equals_dense_normal_density_and_prior_up_to_a_constant(case):
    source, _, at, latent = case
    generator = np.random.default_rng(3)
    count = source.latent - source.rows.shape[1]
    logs = latent[:, -count:] + generator.normal(0, 0.7, (len(at), count))
    precision = generator.gamma(2.5, 0.4, (len(at), len(source.problem.log_loss)))
    bare = bare_residual(source, at)

    def expected(logs):
        values = []
        for chain, row in enumerate(logs):
            covariance = dense_covariance(source, precision[chain], row)
            value = multivariate_normal(cov=covariance).logpdf(bare[chain])
            value += norm.logpdf(row[0], np.log(0.004), 0.8)
            widths = np.array([0.005, 0.01])[: count - 1]
            values.append(value + (halfnorm.logpdf(np.exp(row[1:]), scale=widths) + row[1:]).sum())
        return np.array(values)

    sums, first = WeightedSums.of(source, precision, bare), latent[:, -count:]
    change = source._marginal(logs, sums)[0] - source._marginal(first, sums)[0]
    assert change == pytest.approx(expected(logs) - expected(first), rel=1e-6, abs=1e-5)


def test_conditional_keeps_the_root_of_its_scales(case):
    source, _, at, latent = case
    given = source.conditional(at, latent, np.random.default_rng(1))
    precision = given.precision * np.exp(2 * given.logs[:, :1])
    sums = WeightedSums.of(source, precision, bare_residual(source, at))
    moved = (given.logs != latent[:, -given.logs.shape[1] :]).any(axis=1)
    _, root, shrunk = source._marginal(given.logs, sums)
    assert moved.any()
    assert given.root == pytest.approx(root, rel=1e-9, abs=1e-12)
    assert given.shrunk == pytest.approx(shrunk, rel=1e-9)


def test_latent_draws_have_mean_and_covariance_of_dense_normal(case):
    source, prior, *_ = case
    chains = 5000
    at = np.repeat(prior.mean[None], 1, axis=0)
    given = source.conditional(at, source.first_latent()[None], np.random.default_rng(1))
    many = type(given)(
        source=source,
        **{
            name: np.repeat(getattr(given, name), chains, axis=0)
            for name in ("precision", "shrunk", "factors", "root", "logs")
        },
    )
    drawn = many.latent(np.repeat(at, chains, axis=0), np.random.default_rng(2))
    size = source.rows.shape[1]
    rows = source.rows * np.exp(given.logs[0, 1])
    interactions = source.misfit.features(source.problem.columns)[0].shape[1]
    rows[:, :interactions] = source.rows[:, :interactions]
    if source.clusters is not None:
        effects = source.members.shape[1]
        rows[:, -effects:] = source.members * np.exp(given.logs[0, 2])
    covariance = np.linalg.inv(np.eye(size) + rows.T * given.precision[0] @ rows)
    mean = covariance @ rows.T @ (given.precision[0] * bare_residual(source, at)[0])
    deviation = np.sqrt(np.diag(covariance))
    error = (drawn[:, :size].mean(axis=0) - mean) / deviation
    assert np.abs(error).max() < 5 / np.sqrt(chains)
    gap = (np.cov(drawn[:, :size], rowvar=False) - covariance) / np.outer(deviation, deviation)
    assert np.abs(gap).max() < 6 / np.sqrt(chains)
    assert drawn[:, size:] == pytest.approx(many.logs)


def test_mode_has_no_slope_in_coordinates_and_latent_values():
    source, prior = density_of(TWO_RATIOS, table(rows=24))
    posterior = Posterior(
        source=source, mean=prior.mean, precision=np.linalg.inv(prior.covariance)
    )  # fmt: skip
    point = posterior.mode(prior.mean[None])
    inner = source.free + source.rows.shape[1]
    _, gradient = posterior(point[None])
    covariance = posterior.covariance(point)[:inner, :inner]
    step = gradient[0, :inner] @ covariance  # Newton's step, in standard deviations
    assert (np.abs(step) < 0.05 * np.sqrt(np.diag(covariance))).all()


def test_infinite_coordinates_have_no_density_and_no_slope():
    source, prior = density_of(ONE_RATIO, table(rows=12))
    at, latent = points_of(source, prior, 2)
    at[0] = 1e6
    value, by_t, by_latent = source.log_density(at, latent)
    assert value[0] == -np.inf
    assert np.isfinite(value[1])
    assert not by_t[0].any()
    assert not by_latent[0].any()
