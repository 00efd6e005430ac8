import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting import fit_law
from shapelaw.scaling.fitting.factor_tests import is_below_noise
from shapelaw.scaling.fitting.law_problem import parse_delta
from shapelaw.scaling.runs.catalog import MIRROR, load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.solver.identifiability import DRIFT, EXPONENTS, NO_TERM
from shapelaw.scaling.solver.multistart import HUBER, SMALLEST_DELTA
from support.paths import SHARED
from support.synthetic import (
    RATIOS,
    SIZES,
    TOKENS,
    TRUTH,
    synthetic_chinchilla,
    synthetic_runs,
    true_loss,
    with_replicates,
)

fit = partial(fit_law.fit, prior="none")  # robust fits, which hold what a table cannot tell

# The drifts of the conditional law's optima: fitted where three sizes have three shapes each.
DRIFTS = {"hidden_over_sqrt_n_drift", "mlp_to_attention_drift"}


def quick(law: str, runs: pd.DataFrame, **settings):
    return fit(law, runs, **({"starts": 8, "resamples": 0} | settings))


@pytest.fixture(scope="module")
def published():
    """Return the Chinchilla points; skip the test if they are missing."""
    folder = Path(os.environ.get(MIRROR, SHARED / "datasets"))
    if not folder.is_dir():
        pytest.skip(f"the public tables are not here: set {MIRROR} to a folder that holds them")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MIRROR, str(folder))
        return load_runs("chinchilla").frame


@pytest.fixture(scope="module")
def golden_fit(published):
    runs = published[~published["outlier"]].drop(columns="outlier")
    return fit("chinchilla", runs, delta=1e-3, starts=32, resamples=0)


@pytest.fixture(scope="module")
def recovered():
    """Return a fit of the conditional law to synthetic runs with known true values."""
    return fit("conditional", synthetic_runs(seed=1), starts=16, resamples=80)


# What the literature found on the Chinchilla data (arXiv 2404.10102).


def test_objective_of_chinchilla_data_equals_the_golden_value(golden_fit):
    assert len(golden_fit.run_ids) == 240
    assert golden_fit.objective == pytest.approx(0.001018274017801, abs=1e-12)


def test_parameters_of_chinchilla_data_equal_the_golden_values(golden_fit):
    found = {name: one["value"] for name, one in golden_fit.parameters().items()}
    golden = {
        "E": 1.8172181,
        "A": 477.8259,
        "alpha": 0.3473105,
        "B": 2143.4174,
        "beta": 0.3671724,
    }
    assert found == pytest.approx(golden, rel=1e-6)
    share = found["beta"] / (found["alpha"] + found["beta"])
    assert share == pytest.approx(0.51390, abs=5e-6)


def test_most_starts_reach_the_optimum_and_none_a_better_one(golden_fit):
    assert golden_fit.basins[0]["starts"] >= 8
    objectives = [basin["objective"] for basin in golden_fit.basins]
    assert objectives == sorted(objectives)
    assert golden_fit.objective <= objectives[0] * (1 + 1e-9)
    assert golden_fit.gradient_norm < 1e-8
    reached = golden_fit.basins[0]["starts"]
    assert golden_fit.status.startswith(f"converged; {reached} of 32 starts reach the best")


@pytest.mark.parametrize(
    ("delta", "beta", "floor", "share"),
    [
        (1e-4, 0.3654, 1.8158, 0.5126),
        (1e-3, 0.3672, 1.8172, 0.5139),
        (1e-2, 0.3815, 1.8381, 0.5184),
        (1e-1, 0.4059, 1.8646, 0.5298),  # no residual is as large: least squares
    ],
)
def test_delta_sweep_of_chinchilla_data_equals_published_values(
    golden_fit, delta, beta, floor, share
):
    rows = [row for row in golden_fit.delta_sweep if row["delta"] == delta]
    assert len(rows) == 1
    found = rows[0]
    assert found["beta"] == pytest.approx(beta, abs=6e-5)
    assert found["E"] == pytest.approx(floor, abs=6e-5)
    assert found["beta"] / (found["alpha"] + found["beta"]) == pytest.approx(share, abs=6e-5)


def test_fit_at_another_delta_agrees_with_the_sweep(published, golden_fit):
    runs = published[~published["outlier"]]
    fitted = fit("chinchilla", runs, delta=1e-2, starts=16, resamples=0).parameters()
    swept = next(row for row in golden_fit.delta_sweep if row["delta"] == 1e-2)
    for name, one in fitted.items():
        assert one["value"] == pytest.approx(swept[name], rel=1e-5), name


def test_five_outliers_change_the_fit_as_published(published):
    fitted = fit("chinchilla", published, delta=1e-3, starts=16, resamples=0).parameters()
    assert fitted["E"]["value"] == pytest.approx(1.8913, abs=1e-4)
    assert fitted["B"]["value"] == pytest.approx(12846, rel=1e-3)
    assert fitted["beta"]["value"] == pytest.approx(0.4530, abs=1e-4)


@pytest.mark.parametrize(
    ("compute", "beta", "floor"), [(1e20, 0.470, 1.864), (3e20, 0.453, 1.884), (1e21, 0.396, 1.821)]
)
def test_omission_of_the_largest_compute_changes_the_fit_as_published(
    published, compute, beta, floor
):
    runs = published[~published["outlier"] & (published["flops_6nd"] < compute)]
    fitted = fit("chinchilla", runs, delta=1e-3, starts=16, resamples=0).parameters()
    assert fitted["beta"]["value"] == pytest.approx(beta, abs=6e-4)
    assert fitted["E"]["value"] == pytest.approx(floor, abs=6e-4)


def test_fit_notes_total_parameters_when_table_lacks_non_embedding_counts(golden_fit):
    assert golden_fit.size_convention == "total"
    assert "N is total parameters" in golden_fit.notes


# What is recovered where the truth is known.


def test_synthetic_truth_is_recovered_within_its_uncertainty(recovered):
    public = pd.DataFrame(
        [recovered.law.public(draw, recovered.reference) for draw in recovered.draws]
    )
    assert recovered.held == {}
    for name, found in recovered.parameters().items():
        assert abs(found["value"] - TRUTH.get(name, 0)) <= 4 * public[name].std(), name
        assert found["low"] < found["high"], name


@pytest.mark.parametrize(
    ("column", "truth"), [("hidden_over_sqrt_n", 0.15), ("mlp_to_attention", 2.0)]
)
def test_synthetic_optimum_lies_in_its_interval(recovered, column, truth):
    optimum = recovered.optima()[column]
    assert optimum["status"] == "inside the observed range"
    assert optimum["low"] <= truth <= optimum["high"]
    assert optimum["value"] == pytest.approx(truth, rel=0.05)
    assert optimum["high"] / optimum["low"] < 1.2


def test_noise_of_synthetic_runs_is_recovered(recovered):
    assert recovered.noise == pytest.approx(0.003, rel=0.25)  # its standard error is 9 %
    assert recovered.noise_degrees == 144 - 12
    assert recovered.replicate_noise is None
    assert recovered.replicate_degrees == 0


def test_effects_equal_the_change_of_loss_over_the_ratios(recovered):
    runs = synthetic_runs(seed=1)
    for column in RATIOS:
        flat = {f"{column}_curvature": 0.0, f"{column}_slope": 0.0}
        moved = np.log(true_loss(runs, TRUTH) / true_loss(runs, TRUTH | flat))
        assert recovered.effects[column]["size"] == pytest.approx(np.ptp(moved), rel=0.1)


@settings(max_examples=6)
@given(
    floor=st.floats(1.0, 2.5),
    beta=st.floats(0.3, 0.5),
    hidden=st.floats(0.09, 0.25),
    mlp=st.floats(1.0, 4.0),
    slope=st.floats(0.004, 0.03),
)
def test_truth_is_recovered_exactly_without_noise(floor, beta, hidden, mlp, slope):
    truth = {
        "E": floor,
        "beta": beta,
        "hidden_over_sqrt_n_optimum": hidden,
        "mlp_to_attention_optimum": mlp,
        "gqa_slope": slope,
    }
    runs = synthetic_runs(noise=0.0, shapes=6, **truth)
    fitted = fit("conditional", runs, delta=1e-2, starts=16, resamples=0)
    values = {name: one["value"] for name, one in fitted.parameters().items()}
    expected = TRUTH | truth | dict.fromkeys(DRIFTS, 0.0)
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert fitted.status.startswith("converged")


def test_drift_of_optimal_depth_is_recovered():
    runs = synthetic_runs(shapes=20)
    generator = np.random.default_rng(9)
    layers = generator.integers(2, 33, len(runs)).astype(float)
    size = runs[N] / np.exp(np.log(runs[N]).mean())
    x = layers / (8.0 * size**0.3)
    factor = 1 + 0.05 * (np.log(x) + 1 / x - 1)
    fitted = quick(
        "conditional+depth", runs.assign(num_hidden_layers=layers, loss=runs["loss"] * factor)
    ).parameters()
    assert fitted["num_hidden_layers_optimum"]["value"] == pytest.approx(8.0, rel=0.1)
    assert fitted["num_hidden_layers_drift"]["value"] == pytest.approx(0.3, abs=0.06)
    assert fitted["num_hidden_layers_curvature"]["value"] == pytest.approx(0.05, rel=0.15)


def test_outlier_barely_changes_a_robust_fit():
    runs = synthetic_runs(shapes=8)
    runs.loc[5, "loss"] *= 1.5
    robust, squares = (
        quick("conditional", runs, delta=delta).parameters() for delta in ("auto", 10)
    )
    name = "mlp_to_attention_optimum"
    clean = quick("conditional", synthetic_runs(shapes=8)).parameters()[name]["value"]
    assert robust[name]["value"] == pytest.approx(clean, rel=0.02)
    assert abs(squares[name]["value"] - clean) > 3 * abs(robust[name]["value"] - clean)


# Delta.


@pytest.mark.parametrize("noise", [0.002, 0.02])
def test_automatic_delta_is_proportional_to_the_noise(noise):
    fitted = quick("chinchilla", synthetic_chinchilla(noise))
    assert fitted.delta_rule == "scale from the residuals"
    assert fitted.delta == pytest.approx(HUBER * noise, rel=0.25)
    assert fitted.delta == pytest.approx(HUBER * fitted.noise, rel=0.02)


def test_automatic_delta_is_positive_without_noise():
    fitted = quick("chinchilla", synthetic_chinchilla(0.0, shapes=3))
    assert fitted.delta == SMALLEST_DELTA
    assert fitted.parameters()["beta"]["value"] == pytest.approx(TRUTH["beta"], rel=1e-5)


def test_given_delta_is_kept():
    fitted = quick("chinchilla", synthetic_chinchilla(0.01, shapes=3), delta=5e-3)
    assert fitted.delta == 5e-3
    assert fitted.delta_rule == "as given"


@pytest.mark.parametrize(("text", "delta"), [("auto", "auto"), ("1e-3", 1e-3), ("0.5", 0.5)])
def test_parse_delta_reads_auto_or_a_number(text, delta):
    assert parse_delta(text) == delta


@pytest.mark.parametrize("text", ["", "automatic", "0", "-1e-3", "nan", "inf"])
def test_parse_delta_raises_on_other_texts(text):
    with pytest.raises(
        InputError, match=f"must be auto or a positive number of at least 1e-12, but got '{text}'"
    ):
        parse_delta(text)


# What the table cannot tell.


def test_exponents_are_held_and_noted_for_two_sizes_and_two_token_counts():
    fitted = quick("conditional", synthetic_runs(sizes=SIZES[:2], tokens=TOKENS[:2]), resamples=40)
    assert set(fitted.held) == {"alpha", "beta"} | DRIFTS
    assert "held: alpha, beta" in fitted.status
    for name in DRIFTS:
        drift = fitted.parameters()[name]
        assert drift["value"] == 0
        assert -0.25 <= drift["low"] < -0.1 < 0.1 < drift["high"] <= 0.25
        interval = f"intervals span {DRIFT[0]} to {DRIFT[1]} per ln N"
        words = f"2 sizes cannot identify a drift with N; {interval}"
        assert f"{name} held at 0: {words}" in fitted.notes
    for name, column, what in (("alpha", N, "sizes"), ("beta", D, "token counts")):
        value, low, high = EXPONENTS[column]
        words = (
            f"2 {what} cannot identify it separately from its scale; intervals span {low} to {high}"
        )
        assert f"{name} held at {value:g}: {words}" in fitted.notes
        one = fitted.parameters()[name]
        assert one["value"] == value
        assert low <= one["low"] < value < one["high"] <= high
    assert fitted.optima()["mlp_to_attention"]["value"] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "names", "drifts", "message"),
    [
        ({"sizes": SIZES[:1]}, {"A", "alpha"}, DRIFTS, "all runs have one size"),
        ({"tokens": TOKENS[:1]}, {"B", "beta"}, set(), "all runs have one token count"),
    ],
)
def test_term_is_held_when_runs_have_one_size_or_one_token_count(settings, names, drifts, message):
    fitted = quick("conditional", synthetic_runs(**settings))
    assert set(fitted.held) == names | drifts
    assert all(message in fitted.held[name].why for name in names)
    scale = min(names)
    assert fitted.theta[fitted.names.index(scale)] == NO_TERM
    assert any(note.startswith(f"{scale} held at no effect: {message}") for note in fitted.notes)
    assert fitted.optima()["hidden_over_sqrt_n"]["value"] == pytest.approx(0.15, rel=0.1)
    runs = synthetic_runs(**settings, noise=0.0)
    np.testing.assert_allclose(fitted.central(runs), runs["loss"], rtol=0.005)


def test_fit_keeps_one_term_when_tokens_are_proportional_to_size():
    runs = synthetic_runs(tokens=(1e6,), shapes=20)
    runs[D] = 20 * runs[N]
    runs["loss"] = true_loss(runs, TRUTH) * (1 + 1e-3 * np.sin(np.arange(len(runs))))
    fitted = quick("conditional", runs)
    assert set(fitted.held) == {"B", "beta"}
    assert "tokens are proportional to size" in fitted.held["beta"].why
    assert any("tokens are proportional to size" in note for note in fitted.notes)
    np.testing.assert_allclose(fitted.central(runs), runs["loss"], rtol=0.01)


def test_constant_ratio_is_held_at_no_effect_and_named():
    runs = synthetic_runs().assign(mlp_to_attention=2.0)
    fitted = quick("conditional", runs)
    kinds = ("curvature", "optimum", "drift")
    assert set(fitted.held) == {f"mlp_to_attention_{kind}" for kind in kinds}
    assert fitted.effects["mlp_to_attention"]["size"] == 0.0
    assert "mlp_to_attention_curvature" in fitted.status
    why = "all runs have nearly the same mlp_to_attention"
    assert f"mlp_to_attention_curvature held at no effect: {why}" in fitted.notes
    optimum = fitted.optima()["mlp_to_attention"]
    assert optimum == {
        "value": None,
        "low": None,
        "high": None,
        "status": f"not resolved: {why}",
    }


def test_optimum_of_a_ratio_that_only_rounding_varies_is_not_fitted():
    rounded = np.resize([2.0, 2.04, 2.13, 2.25], len(synthetic_runs()))
    runs = synthetic_runs().assign(mlp_to_attention=rounded)
    runs["loss"] *= 1 + 0.05 * (rounded - 2.0)  # a slope, which an optimum at a bound would fit
    fitted = quick("conditional", runs)
    why = "mlp_to_attention varies by a factor of 1.12 only"
    assert f"mlp_to_attention_curvature held at no effect: {why}" in fitted.notes
    optimum = fitted.optima()["mlp_to_attention"]
    assert (optimum["value"], optimum["status"]) == (None, f"not resolved: {why}")
    assert not fitted.at_bounds
    wide = quick("conditional", synthetic_runs())
    assert "mlp_to_attention_curvature" not in wide.held


def test_collinear_ratio_is_held_at_no_effect_and_named():
    runs = synthetic_runs()
    runs["gqa"] = 40 * runs["hidden_over_sqrt_n"]
    fitted = quick("conditional", runs)
    assert set(fitted.held) == {"gqa_slope"}
    assert "it moves with hidden_over_sqrt_n (correlation 1.000)" in fitted.held["gqa_slope"].why


@pytest.mark.parametrize(
    ("optimum", "side", "message"),
    [
        (12.0, "low", "loss falls up to the largest value seen: optimum above"),
        (0.05, "high", "loss rises from the smallest value seen: optimum below"),
    ],
)
def test_optimum_of_monotonic_losses_is_one_sided(optimum, side, message):
    truth = {"hidden_over_sqrt_n_optimum": 0.15, "mlp_to_attention_optimum": optimum}
    ranges = RATIOS | {"mlp_to_attention": (0.5, 3.0)}
    runs = synthetic_runs(ranges=ranges, mlp_to_attention_curvature=0.08, **truth)
    fitted = quick("conditional", runs, resamples=20)
    answer = fitted.optima()["mlp_to_attention"]
    assert answer["value"] is None
    assert message in answer["status"]
    other = "high" if side == "low" else "low"
    assert answer[other] is None
    # An end of the interval is stated as far as there are data, and no farther.
    assert runs["mlp_to_attention"].min() <= answer[side] <= runs["mlp_to_attention"].max()
    assert f"mlp_to_attention: {answer['status']}" in fitted.notes


def test_ratio_without_an_effect_is_held_and_noted_as_not_resolved():
    found = quick("conditional", synthetic_runs(gqa_slope=0.0, seed=4), resamples=5)
    assert found.held["gqa_slope"].value == 0.0
    assert found.parameters()["gqa_slope"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    notes = [note for note in found.notes if note.startswith("gqa: effect of ")]
    assert len(notes) == 1
    size = found.effects["gqa"]["size"]  # as it was when it was fitted
    words = f"effect of {100 * size:.2f} % over the 144 runs is not resolved (p = 0."
    assert words in notes[0]
    assert 0 < size < 0.005
    assert notes[0].endswith("; held at no effect")
    assert found.optima()["mlp_to_attention"]["value"] == pytest.approx(2.0, rel=0.1)


def test_unresolved_ratio_keeps_its_uncertainty_in_the_draws_of_a_fit_with_a_prior():
    runs = synthetic_runs(gqa_slope=0.0, seed=4)
    held = quick("conditional", runs, resamples=20)
    free = fit_law.fit("conditional", runs, starts=16, resamples=200)
    place = free.names.index("gqa_slope")
    assert "gqa_slope" in held.held
    assert "gqa_slope" not in free.held
    assert held.draws[:, place].std() == 0 < free.draws[:, place].std()
    low, high = (free.parameters()["gqa_slope"][end] for end in ("low", "high"))
    assert low < 0.005
    assert high > -0.005


def test_u_shape_without_an_effect_has_no_optimum():
    fitted = quick("conditional", synthetic_runs(mlp_to_attention_curvature=0.0, seed=2))
    assert fitted.held["mlp_to_attention_curvature"].value == 0.0
    answer = fitted.optima()["mlp_to_attention"]
    assert answer["value"] is answer["low"] is answer["high"] is None
    assert answer["status"].startswith("not resolved: effect of ")


def test_effect_below_the_noise_between_seeds_is_held_at_no_effect():
    truth = {"gqa_slope": 0.002}
    runs = with_replicates(synthetic_runs(shapes=6, noise=0.0, **truth), seeds=3, noise=0.01)
    fitted = quick("conditional", runs)
    assert fitted.replicate_degrees == 2 * 54
    assert fitted.replicate_noise == pytest.approx(0.01, rel=0.15)
    assert set(fitted.held) == {"gqa_slope"}
    note = next(note for note in fitted.notes if note.startswith("gqa: "))
    assert re.search(r"is not resolved \(noise between seeds 0\.9\d % with 108 degrees of", note)
    assert note.endswith("; held at no effect")


@pytest.mark.parametrize("degrees", [1, 3, 30])
def test_effect_as_large_as_the_noise_is_rarely_called_smaller(degrees):
    generator = np.random.default_rng(degrees)
    deviations = 0.01 * np.sqrt(generator.chisquare(degrees, 20_000) / degrees)
    share = np.mean([is_below_noise(0.01, (deviation, degrees)) for deviation in deviations])
    assert share == pytest.approx(0.05, abs=0.006)


def test_noise_of_one_pair_of_seeds_hides_no_effect_that_it_may_lie_below():
    assert not is_below_noise(0.008, (0.01, 1))
    assert is_below_noise(0.008, (0.01, 200))
    assert is_below_noise(0.004, (0.01, 1))
    assert not is_below_noise(0.004, (np.nan, 0))


def test_noise_of_a_run_is_at_least_the_noise_between_seeds():
    runs = with_replicates(synthetic_runs(shapes=4, noise=0.0), seeds=2, noise=0.0005)
    runs.loc[::18, "loss"] *= 1.04  # a few seeds go astray: robust residuals do not see them
    fitted = quick("conditional", runs)
    residuals = np.log(runs["loss"] / fitted.central(runs))
    assert fitted.replicate_noise > 5 * np.median(np.abs(residuals))
    assert fitted.noise >= fitted.replicate_noise


def test_noise_of_a_run_that_comes_from_four_pairs_has_their_degrees_of_freedom():
    runs = synthetic_chinchilla(0.0005, shapes=4)
    pairs = with_replicates(runs.iloc[:4], seeds=2, noise=0.02)
    single = with_replicates(runs.iloc[4:], seeds=1, noise=0.0)
    single = single.assign(hidden_size=1000 + single["hidden_size"])
    table = pd.concat([pairs, single], ignore_index=True)
    fitted = quick("chinchilla", table.assign(run_id=[f"run-{row}" for row in range(len(table))]))
    assert fitted.noise == fitted.replicate_noise > 5 * fitted.scatter
    assert fitted.noise_degrees == fitted.replicate_degrees == 4


def test_noise_around_the_law_is_robust_and_counts_fitted_parameters():
    runs = synthetic_chinchilla(0.01, shapes=1)
    fitted = quick("chinchilla", runs)
    residuals = np.log(runs["loss"] / fitted.central(runs))
    apart = np.median(np.abs(residuals - np.median(residuals)))
    assert fitted.noise == pytest.approx(1.4826 * apart * np.sqrt(9 / (9 - 5)), rel=1e-6)
    assert fitted.noise_degrees == 9 - 5
    assert fitted.noise_degrees == 9 - 5


def test_fit_raises_with_the_number_needed_when_rows_are_too_few():
    text = (
        r"a fit of `conditional` to this table needs at least 12 finished runs, but got 9; "
        r"train more, or choose a smaller law with --law chinchilla"
    )
    with pytest.raises(InputError, match=text):
        fit("conditional", synthetic_runs(shapes=1))
    assert len(quick("chinchilla", synthetic_chinchilla(0.01, shapes=1)).run_ids) == 9


@pytest.mark.parametrize("column", ["loss", D, "gqa"])
def test_fit_raises_with_the_name_of_a_missing_column(column):
    with pytest.raises(InputError, match=f"the run table lacks the column `{column}`; it has"):
        fit("conditional", synthetic_runs(shapes=2).drop(columns=column))


def test_fit_raises_when_runs_are_of_two_corpora():
    runs = synthetic_runs(shapes=2)
    runs["corpus"] = ["one", "two"] * (len(runs) // 2)
    with pytest.raises(InputError, match="`corpus` must be the same for all rows of a fit"):
        fit("chinchilla", runs)


def test_fit_raises_on_unknown_law():
    with pytest.raises(InputError, match="`--law` must be one of chinchilla"):
        fit("unknown", synthetic_runs(shapes=2))


# What is recorded.


def test_same_seed_gives_the_same_fit_and_another_seed_the_same_optimum():
    runs = synthetic_runs(shapes=6)
    first, again, other = (
        quick("conditional", runs, seed=seed, resamples=20) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.theta, again.theta)
    np.testing.assert_array_equal(first.draws, again.draws)
    assert first.basins == again.basins
    assert first.parameters() == again.parameters()
    np.testing.assert_allclose(other.theta, first.theta, rtol=1e-4, atol=1e-6)
    assert not np.allclose(other.draws, first.draws, rtol=1e-3)


def test_optimum_does_not_depend_on_the_order_of_rows():
    runs = synthetic_runs(shapes=6)
    first, shuffled = (
        quick("conditional", table) for table in (runs, runs.sample(frac=1, random_state=0))
    )
    assert shuffled.objective == pytest.approx(first.objective, rel=1e-6)


def test_fit_records_its_data():
    left_out = {"bad-1": "diverged", "bad-2": "excluded by name"}
    runs = RunTable(frame=synthetic_runs(shapes=4), left_out=left_out)
    fitted = quick("conditional", runs, seed=7, resamples=5)
    assert fitted.run_ids == runs["run_id"].tolist()
    assert fitted.left_out == left_out
    assert "2 rows left out: bad-1 (diverged), bad-2 (excluded by name)" in fitted.notes
    assert fitted.seed == 7
    assert fitted.starts == 8
    assert fitted.draws.shape == (5, 12)
    assert fitted.size_convention == "non-embedding"
    assert fitted.ranges[N] == (1e5, 1.6e6)
    assert fitted.ranges["gqa"] == (runs["gqa"].min(), runs["gqa"].max())
    assert fitted.reference[D] == pytest.approx(8e6)
    other = runs.assign(loss=runs["loss"] * (1 + 1e-15))
    assert quick("conditional", other).data_sha256 != fitted.data_sha256


def test_runs_are_numbered_when_table_has_no_run_ids():
    runs = synthetic_chinchilla(0.01, shapes=2).drop(columns="run_id")
    fitted = quick("chinchilla", runs)
    assert fitted.as_json()["n_runs"] == 18
    assert "on 18 runs" in fitted.summary()


def test_fit_does_not_change_the_given_table():
    runs = synthetic_chinchilla(0.01, shapes=2).rename(columns={N: "n_total"})
    before = runs.copy()
    quick("chinchilla", runs)
    pd.testing.assert_frame_equal(runs, before)


@pytest.mark.parametrize("rows", [24, 144])
def test_bootstrap_method_depends_on_the_number_of_rows(rows):
    fitted = quick("conditional", synthetic_runs().iloc[:: 144 // rows], resamples=3)
    method = "rows (iid)" if rows == 144 else "residuals at the same design"
    assert fitted.bootstrap == f"3 resamples by {method}"
