"""Priors of a fit, and fits with a prior."""

import numpy as np
import pytest

import shapelaw
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.factor_tests import solve_with_factor_tests
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.fitting.priors import Prior, prior_from_fit, weak_prior
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.uncertainty.resampling import bootstrap, method_for
from support.posteriors import HIDDEN, MLP, ONE_RATIO, TWO_RATIOS, problem, small_table

QUICK = {"starts": 16, "resamples": 200}
DRIFTING = {"drift": -0.15, "noise": 0.002, "rows": 60}


@pytest.fixture(scope="module")
def fitted():
    """Return a fit with drift, on small sizes."""
    return shapelaw.fit(TWO_RATIOS, small_table(**DRIFTING), **QUICK)


def test_every_parameter_has_a_weak_prior_with_its_source():
    made = problem(TWO_RATIOS, small_table())
    prior = weak_prior(made)
    assert prior.names == TWO_RATIOS.names
    assert set(prior.sources) == set(prior.names)
    assert (np.diag(prior.covariance) > 0).all()
    alpha = prior.names.index("alpha")
    ends = prior.mean[alpha] + np.array([-1.96, 1.96]) * np.sqrt(prior.covariance[alpha, alpha])
    assert np.exp(ends) == pytest.approx([0.13, 0.93], abs=0.005)


def test_prior_of_a_fit_moves_the_optimum_with_its_drift_to_the_size_of_the_table(fitted):
    """The truth is x* = 0.1 (N/1e8)^-0.15 at all sizes."""
    larger = problem(TWO_RATIOS, small_table(scale=100, **DRIFTING))
    prior = prior_from_fit(fitted, larger, "synthetic")
    optimum = prior.names.index(f"{HIDDEN}_optimum")
    truth = np.log(0.1 * (larger.reference[N] / 1e8) ** -0.15)
    deviation = np.sqrt(prior.covariance[optimum, optimum])
    step = np.log(larger.reference[N] / fitted.reference[N])
    own = fitted.draws[:, fitted.names.index(f"{HIDDEN}_optimum")]
    drift = fitted.draws[:, fitted.names.index(f"{HIDDEN}_drift")]
    assert prior.mean[optimum] == pytest.approx((own + drift * step).mean())
    assert abs(prior.mean[optimum] - truth) < 2 * deviation
    assert prior.mean[optimum] < own.mean() - 0.3  # it did move
    assert deviation > np.std(own)  # the drift is uncertain, and sources differ


def test_prior_of_a_fit_narrows_the_same_parameters_of_a_poor_table(fitted):
    poor = small_table(rows=12, noise=0.01, drift=-0.15, seed=7)
    weak = shapelaw.fit(TWO_RATIOS, poor, **QUICK)
    told = shapelaw.fit(TWO_RATIOS, poor, prior=fitted, **QUICK)
    ends = {}
    for name, each in (("weak", weak), ("told", told)):
        about = each.parameters()[f"{HIDDEN}_optimum"]
        ends[name] = np.log(about["high"] / about["low"])
    assert ends["told"] < 0.7 * ends["weak"]
    assert told.prior[f"{HIDDEN}_optimum"]["source"] != weak.prior[f"{HIDDEN}_optimum"]["source"]


def test_fit_without_common_shape_parameters_is_refused_as_prior(fitted):
    made = problem(shapelaw.Chinchilla() * shapelaw.UShape("num_hidden_layers"), small_table(
        rows=12).assign(num_hidden_layers=np.resize([2, 4, 8], 12)))  # fmt: skip
    with pytest.raises(InputError, match="no shape parameter in common"):
        prior_from_fit(fitted, made, "synthetic")


def test_block_of_another_prior_replaces_moments_and_correlations():
    wide = Prior(
        names=("a", "b", "c"), mean=np.zeros(3), covariance=np.ones((3, 3)) + np.eye(3),
        sources=dict.fromkeys("abc", "wide"),
    )  # fmt: skip
    block = Prior(
        names=("c", "x", "a"), mean=np.array([3.0, 9.0, 1.0]),
        covariance=np.array([[0.3, 0, 0.1], [0, 9, 0], [0.1, 0, 0.2]]),
        sources=dict.fromkeys("cxa", "block"),
    )  # fmt: skip
    joined = wide.with_block(block)
    assert joined.mean.tolist() == [1, 0, 3]
    assert joined.covariance.tolist() == [[0.2, 0, 0.1], [0, 2, 0], [0.1, 0, 0.3]]
    assert joined.sources == {"a": "block", "b": "wide", "c": "block"}


def test_factor_of_a_constant_ratio_keeps_predictions_at_the_mean_of_the_table():
    constant = small_table().assign(**{HIDDEN: 0.1})
    law = ONE_RATIO * shapelaw.UShape(HIDDEN)
    one, both = (shapelaw.fit(each, constant, **QUICK) for each in (ONE_RATIO, law))
    names = [f"{HIDDEN}_curvature", f"{HIDDEN}_optimum"]
    assert [both.prior[name]["share_left"] for name in names] == [1.0, 1.0]
    middle = {name: np.exp([np.log(constant[name]).mean()]) for name in both.law.columns}
    here = both.draws.copy()
    here[:, both.names.index(names[0])] = 0.0  # no effect, and the base as it was without it
    program = both.law.program(middle, both.reference)
    x = 0.1 / np.exp(both.draws[:, both.names.index(names[1])])
    effect = 1 + both.draws[:, both.names.index(names[0])] * (np.log(x) + 1 / x - 1)
    levels = [both.names.index(name) for name in ("E", "A", "B")]
    here[:, levels] += np.log(effect)[:, None]
    without = program.log_loss(here)[:, 0]
    assert program.log_loss(both.draws)[:, 0] == pytest.approx(without, abs=1e-12)
    assert effect.std() > 1e-3  # the factor counts
    expected = one.predict(constant)
    assert both.predict(constant)["predicted_loss"].to_numpy() == pytest.approx(
        expected["predicted_loss"].to_numpy(), rel=4e-3
    )


def test_saved_fit_with_posterior_predicts_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "fit.json")
    loaded = Fit.load(tmp_path / "fit.json")
    rows = small_table(seed=3, scale=3)
    assert loaded.predict(rows).to_numpy() == pytest.approx(
        fitted.predict(rows).to_numpy(), rel=1e-12
    )
    assert loaded.log_loss_draws(rows) == pytest.approx(fitted.log_loss_draws(rows), rel=1e-12)
    assert loaded.run_noise_draws((200, 2)) == pytest.approx(fitted.run_noise_draws((200, 2)))
    assert loaded.prior == fitted.prior


def test_fit_file_is_taken_as_prior(fitted, tmp_path):
    fitted.save(tmp_path / "fit.json")
    table = small_table(rows=12, seed=7)
    from_file = shapelaw.fit(TWO_RATIOS, table, prior=tmp_path / "fit.json", **QUICK)
    given = shapelaw.fit(TWO_RATIOS, table, prior=fitted, **QUICK)
    assert from_file.draws == pytest.approx(given.draws)
    assert from_file.prior[f"{MLP}_optimum"]["source"] == "fit.json"


def test_fit_without_prior_is_robust_minimum_with_bootstrap():
    table = small_table(rows=30)
    found = shapelaw.fit(ONE_RATIO, table, prior="none", starts=16, resamples=20)
    runs = as_run_table(table, "auto")
    made, best, _ = solve_with_factor_tests(problem_of(ONE_RATIO, runs), "auto", 16, 0, runs.noise)
    method = method_for(30, int(made.free.sum()), None)
    expected = bootstrap(made, best, method=method, resamples=20, seed=0, clusters=None)
    assert found.theta == pytest.approx(best.theta)
    assert found.draws == pytest.approx(expected)
    assert found.posterior is None
    assert found.prior == {}


@pytest.mark.parametrize("given", [{"objective": "squares"}, {"delta": 0.01}])
def test_objective_of_its_own_has_no_prior_and_refuses_one(given):
    table = small_table(rows=30)
    assert shapelaw.fit(ONE_RATIO, table, starts=4, resamples=2, **given).posterior is None
    with pytest.raises(InputError, match="must be left out with a prior"):
        shapelaw.fit(ONE_RATIO, table, prior="weak", **given)


def test_unknown_prior_is_refused():
    with pytest.raises(InputError, match="must be weak, pooled, none or the file of a fit"):
        shapelaw.fit(ONE_RATIO, small_table(rows=30), prior="strong", **QUICK)


def test_checkpoints_of_runs_have_an_effect_of_their_run():
    found = shapelaw.fit(ONE_RATIO, small_table(rows=40, checkpoints=4), **QUICK)
    plain = shapelaw.fit(ONE_RATIO, small_table(rows=40), **QUICK)
    assert (found.posterior.tau > 0).all()
    assert not plain.posterior.tau.any()


def test_interval_ends_are_stable_over_seeds():
    table = small_table(rows=15)
    rows = small_table(rows=3, seed=5)
    predictions = [
        shapelaw.fit(ONE_RATIO, table, starts=16, resamples=1000, seed=seed).predict(rows)
        for seed in range(3)
    ]
    ends = np.array([np.log(each[["mean_low", "mean_high"]]) for each in predictions])
    width = (ends[:, :, 1] - ends[:, :, 0]).mean(axis=0)
    assert (ends.std(axis=0) < 0.1 * width[:, None]).all()
