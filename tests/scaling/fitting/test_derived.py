"""Derived quantities of fits to synthetic runs with known true values."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.derived import (
    WAYS,
    difference,
    intervals,
    optimal,
    parameter,
    predicted_loss,
)
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.columns import D, N
from support.synthetic import synthetic_chinchilla, synthetic_runs

TRUTH = {"E": 1.8, "A": 40.0, "alpha": 0.34, "B": 300.0, "beta": 0.37}
FLOPS = 1e15
SMALL = pd.DataFrame({N: [2e5], D: [4e6]})
LARGE = pd.DataFrame({N: [8e5], D: [2e7]})


def loss_at(n: float, d: float) -> float:
    return TRUTH["E"] + TRUTH["A"] / n ** TRUTH["alpha"] + TRUTH["B"] / d ** TRUTH["beta"]


@pytest.fixture(scope="module")
def runs():
    return synthetic_chinchilla(0.003, shapes=8, seed=3)


@pytest.fixture(scope="module")
def fitted(runs):
    return fit("chinchilla", runs, starts=32, resamples=50)


@pytest.mark.parametrize("way", [way for way in WAYS if "cluster" not in way])
def test_interval_of_every_method_contains_the_truth_and_the_estimate(fitted, runs, way):
    quantities = [parameter(fitted, name) for name in TRUTH]
    quantities += [predicted_loss(fitted, LARGE), difference(fitted, SMALL, LARGE)]
    table = intervals(fitted, runs, quantities, way=way, level=99.9, resamples=400)
    truth = TRUTH | {
        "predicted loss": loss_at(8e5, 2e7),
        "difference of losses": loss_at(2e5, 4e6) - loss_at(8e5, 2e7),
    }
    for name, row in table.iterrows():
        assert row["low"] < row["value"] < row["high"], name
        assert row["low"] < truth[name] < row["high"], name
    assert (table["level"] == 99.9).all()
    assert table.loc["E", "unit"] == "nats/token"


def test_compute_optimum_has_the_lowest_loss_of_its_budget(fitted):
    public = fitted.law.public(fitted.theta, fitted.reference)

    def loss(log_size: float) -> float:
        size = np.exp(log_size)
        return fitted.central(pd.DataFrame({N: [size], D: [FLOPS / 6 / size]}))[0]

    best = np.exp(minimize_scalar(loss, bounds=(8, 22), method="bounded").x)
    size, tokens, ratio, share = (
        float(quantity.function(fitted.theta[None])[0]) for quantity in optimal(fitted, FLOPS)
    )
    assert size == pytest.approx(best, rel=1e-3)
    assert 6 * size * tokens == pytest.approx(FLOPS)
    assert ratio == pytest.approx(tokens / size)
    assert share == pytest.approx(public["beta"] / (public["alpha"] + public["beta"]))


def test_interval_of_a_difference_is_narrower_when_shapes_share_errors(fitted, runs):
    close = pd.DataFrame({N: [2.1e5], D: [4e6]})
    table = intervals(
        fitted, runs, [predicted_loss(fitted, SMALL), difference(fitted, SMALL, close)]
    )
    widths = table["high"] - table["low"]
    assert widths["difference of losses"] < 0.2 * widths["predicted loss"]


def test_auto_intervals_without_a_prior_are_bca_for_clustered_rows_and_profile_otherwise(runs):
    robust = fit("chinchilla", runs, starts=32, resamples=50, prior="none")
    alone = intervals(robust, runs, [parameter(robust, "alpha")])
    assert alone.loc["alpha", "method"] == "profile"
    grouped = runs.assign(checkpoint_of=np.arange(len(runs)) // 4)
    again = fit("chinchilla", grouped, starts=32, resamples=0, prior="none")
    table = intervals(
        again, grouped, [parameter(again, "alpha")], clusters="checkpoint_of", resamples=300
    )
    assert table.loc["alpha", "method"] == "BCa"
    wild = intervals(
        again, grouped, [parameter(again, "alpha")], way="wild-cluster", clusters="checkpoint_of"
    )
    assert wild.loc["alpha", "low"] < again.parameters()["alpha"]["value"]
    with pytest.raises(InputError, match="the wild-cluster bootstrap needs `clusters`"):
        intervals(robust, runs, [parameter(robust, "alpha")], way="wild-cluster")


def test_optimal_raises_when_base_is_not_chinchilla():
    runs = synthetic_runs(shapes=2)
    with pytest.raises(InputError, match="`base` must be Chinchilla or OuterExponent for a"):
        optimal(fit("power", runs, starts=8, resamples=0), FLOPS)


@pytest.mark.parametrize("flops", [0.0, -1.0, np.nan, np.inf])
def test_optimal_raises_when_budget_is_not_positive(fitted, flops):
    with pytest.raises(InputError, match="`flops > 0` and finite must hold"):
        optimal(fitted, flops)


def test_intervals_and_quantities_raise_on_bad_input(fitted, runs):
    quantity = parameter(fitted, "alpha")
    with pytest.raises(InputError, match="`way` must be one of auto, posterior, profile, bca"):
        intervals(fitted, runs, [quantity], way="guess")
    with pytest.raises(InputError, match="`clusters` must be a column of the runs, but got 'x'"):
        intervals(fitted, runs, [quantity], clusters="x")
    with pytest.raises(InputError, match="`fit` and `runs` must belong together"):
        intervals(fitted, runs.head(20), [quantity])
    with pytest.raises(InputError, match="a parameter must be one of E, A, alpha"):
        parameter(fitted, "gamma")
    with pytest.raises(InputError, match=r"`len\(row\) == 1` must hold"):
        predicted_loss(fitted, pd.concat([SMALL, LARGE]))


@pytest.mark.parametrize("way", ["profile", "sandwich"])
def test_interval_of_a_parameter_held_in_a_range_spans_the_range(way):
    runs = synthetic_chinchilla(0.003, sizes=(1e5, 4e5), tokens=(1e6, 8e6), shapes=8)
    fitted = fit("chinchilla", runs, starts=16, resamples=0, prior="none")
    assert {"alpha", "beta"} <= set(fitted.held)
    table = intervals(fitted, runs, [parameter(fitted, "alpha")], way=way, resamples=200)
    held = fitted.held["alpha"]
    assert held.low <= table.loc["alpha", "low"] < held.low + 0.03
    assert held.high - 0.03 < table.loc["alpha", "high"] <= held.high


def test_intervals_of_a_fit_with_a_prior_are_percentiles_of_its_draws():
    runs = synthetic_chinchilla(0.003, sizes=(1e5, 4e5, 1e6), tokens=(1e6, 4e6, 8e6), shapes=2)
    fitted = fit("chinchilla", runs, starts=16, resamples=200)
    rows = runs.iloc[[0]], runs.iloc[[-1]]
    wanted = [parameter(fitted, "alpha"), difference(fitted, *rows)]
    table = intervals(fitted, runs, wanted)
    assert set(table["method"]) == {"draws of the posterior"}
    alpha = fitted.parameters()["alpha"]
    assert table.loc["alpha", ["low", "high"]].tolist() == pytest.approx(
        [alpha["low"], alpha["high"]]
    )
    losses = np.exp(fitted.log_loss_draws(pd.concat(rows)))
    ends = np.percentile(losses[:, 0] - losses[:, 1], [2.5, 97.5])
    assert table.loc["difference of losses", ["low", "high"]].tolist() == pytest.approx(ends)
    robust = fit("chinchilla", runs, starts=16, resamples=20, prior="none")
    with pytest.raises(InputError, match="with a prior"):
        intervals(robust, runs, wanted, way="posterior")
