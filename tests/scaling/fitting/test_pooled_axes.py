"""Terms of depth and head dimension in pools, on synthetic sources whose truth is known."""

import numpy as np
import pandas as pd
import pytest

import shapelaw
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.fitting.pooled import REFERENCE_SIZE, PooledFit
from shapelaw.scaling.fitting.priors import (
    OPTIMA,
    PUBLISHED_SHAPES,
    weak_prior,
    weak_shape_prior,
)
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import as_run_table
from support.posteriors import small_table

LAYERS, HEAD = "num_hidden_layers", "head_dim"
LAW = (
    shapelaw.Chinchilla() * shapelaw.UShape(LAYERS, drift=True) * shapelaw.UShape(HEAD, drift=True)
)
# Best layers 14 (N/1e8)^0.2 with curvature 0.06, best head dimension 70 (N/1e8)^0.15 with 0.05.
TRUTH = {LAYERS: (0.06, 14.0, 0.2), HEAD: (0.05, 70.0, 0.15)}
SCALES = {"small": 1.0, "middle": 10.0, "large": 60.0}


def deep_table(scale: float, seed: int) -> pd.DataFrame:
    """Draw 24 runs of the truth in layers and head dimension, with 0.2 % of noise."""
    table = small_table(noise=0.002, scale=scale, floor=1.8, seed=seed)
    generator = np.random.default_rng(seed)
    for ratio, (curvature, optimum, drift) in TRUTH.items():
        best = optimum * (table[N] / 1e8) ** drift
        x = np.exp(generator.uniform(np.log(0.3), np.log(3.5), len(table)))
        table[ratio] = best * x
        table["loss"] *= 1 + curvature * (np.log(x) + 1 / x - 1)
    # Take the effects of the ratios that the law lacks out of the loss.
    for name, k, optimum in (("mlp_to_attention", 0.05, 1.3), ("hidden_over_sqrt_n", 0.08, 0.1)):
        x = table.pop(name) / optimum
        table["loss"] /= 1 + k * (np.log(x) + 1 / x - 1)
    return table


def sources() -> dict[str, pd.DataFrame]:
    return {name: deep_table(scale, seed) for seed, (name, scale) in enumerate(SCALES.items())}


def z_scores(pooled: PooledFit, expected: dict[str, float]) -> dict[str, float]:
    """Return the distance of shared parameters from expected values in standard deviations."""
    places = {name: pooled.names.index(name) for name in expected}
    return {
        name: float(
            (pooled.shared[:, place].mean() - expected[name]) / pooled.shared[:, place].std()
        )
        for name, place in places.items()
    }


@pytest.mark.slow
def test_pool_recovers_depth_and_head_dimension_of_synthetic_sources():
    pooled = shapelaw.fit(LAW, sources(), pool="source", starts=8, resamples=64)
    expected = {}
    for ratio, (curvature, optimum, drift) in TRUTH.items():
        expected[f"{ratio}_curvature"] = np.log(curvature)
        expected[f"{ratio}_optimum"] = np.log(optimum)
        expected[f"{ratio}_drift"] = drift
    scores = z_scores(pooled, expected)
    assert max(map(abs, scores.values())) < 3, scores
    drift = pooled.names.index(f"{LAYERS}_drift")
    assert pooled.shared[:, drift].std() < 0.08  # the weak prior has 0.15
    rows = pooled.frame().set_index("parameter")
    assert rows.loc[f"{HEAD}_optimum", "sources that vary it"] == "small, middle, large"
    assert not [note for note in pooled.notes if "essentially its prior" in note]


@pytest.mark.slow
def test_sources_of_one_depth_leave_its_term_at_the_weak_prior():
    given = {name: table.assign(**{LAYERS: 12.0}) for name, table in list(sources().items())[:2]}
    pooled = shapelaw.fit(LAW, given, pool="source", starts=8, resamples=128)
    problems = [problem_of(LAW, as_run_table(table, "auto")) for table in given.values()]
    prior = weak_shape_prior(problems)
    for name in (f"{LAYERS}_curvature", f"{LAYERS}_optimum", f"{LAYERS}_drift"):
        place = pooled.names.index(name)
        mean, deviation = prior.mean[place], np.sqrt(prior.covariance[place, place])
        draws = pooled.shared[:, place]
        assert abs(draws.mean() - mean) < 0.5 * deviation, name
        assert 0.6 < draws.std() / deviation < 1.6, name
    assert any(note.startswith(f"{LAYERS}: 0 sources vary it") for note in pooled.notes)
    assert any(note.startswith(f"{HEAD}: 2 sources vary it") for note in pooled.notes)


def problems_of(law: str, *tables: pd.DataFrame) -> list:
    return [problem_of(law_named(law), as_run_table(table, "auto")) for table in tables]


def test_shared_prior_does_not_depend_on_the_order_of_the_tables():
    small, large = deep_table(1.0, 0), deep_table(1000.0, 1)
    first, second = (
        weak_shape_prior(problems_of(repr(LAW), *tables))
        for tables in ((small, large), (large, small))
    )
    assert second.mean == pytest.approx(first.mean)
    assert second.covariance == pytest.approx(first.covariance)


def test_shared_prior_of_published_ratios_is_that_of_models_of_0_1b():
    """GPT-3 Small: 12 layers of width 768 with heads of 64; MobileLLM-125M: 30 layers of 576."""
    prior = weak_shape_prior([problems_of(repr(LAW), deep_table(1.0, 0))[0]])
    deviations = np.sqrt(np.diag(prior.covariance))
    moments = {
        name: (prior.mean[place], deviations[place]) for place, name in enumerate(prior.names)
    }
    mean, deviation = moments[f"{LAYERS}_optimum"]
    assert REFERENCE_SIZE == 1e8
    assert mean - deviation < np.log(12) < np.log(30) < mean + deviation
    assert moments[f"{HEAD}_optimum"] == pytest.approx((np.log(64), 0.7))
    # From 0.1B to 175B GPT-3 has 8 times the layers and twice the head dimension.
    steps = np.log(175e9 / 1e8)
    for ratio, growth in ((LAYERS, 8), (HEAD, 2)):
        mean, deviation = moments[f"{ratio}_drift"]
        assert abs(np.log(growth) / steps - mean) < 1.5 * deviation
    names = [name for name in prior.names if name.endswith(("optimum", "drift"))]
    assert {prior.sources[name] for name in names} == {PUBLISHED_SHAPES}


def test_shared_prior_of_other_ratios_spans_the_range_over_all_tables():
    law = shapelaw.Chinchilla() * shapelaw.UShape("granularity")
    tables = [deep_table(1.0, 0).assign(granularity=value) for value in ((1.0), (64.0))]
    prior = weak_shape_prior(problems_of(repr(law), *tables))
    place = prior.names.index("granularity_optimum")
    assert prior.mean[place] == pytest.approx(np.log(8))
    assert prior.covariance[place, place] == pytest.approx(np.log(8) ** 2)


def test_weak_prior_of_one_table_keeps_its_own_range_of_layers():
    table = deep_table(1.0, 0)
    prior = weak_prior(problems_of(repr(LAW), table)[0])
    logs = np.log(table[LAYERS])
    place = prior.names.index(f"{LAYERS}_optimum")
    assert prior.mean[place] == pytest.approx((logs.min() + logs.max()) / 2)
    assert LAYERS not in OPTIMA


@pytest.mark.parametrize(
    ("name", "ratios"),
    [("conditional+head", [HEAD]), ("conditional+depth+head", [LAYERS, HEAD])],
)
def test_named_laws_add_factors_with_drift_to_the_conditional_law(name, ratios):
    law = law_named(name)
    plain = law_named("conditional")
    added = law.factors[len(plain.factors) :]
    assert law.factors[: len(plain.factors)] == plain.factors
    assert [factor.of for factor in added] == ratios
    assert all(factor.drift for factor in added)


def test_head_dimension_has_the_letter_h_in_equations():
    assert "ln(h/" in law_named("conditional+head").describe()
