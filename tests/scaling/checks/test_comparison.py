import json

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.checks.comparison import SAME_ERROR, compare, spread_over_laws
from shapelaw.scaling.checks.conditioning import identifiability_report
from shapelaw.scaling.checks.precision import interval_widths
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.columns import D, N
from support.synthetic import SIZES, TRUTH, synthetic_chinchilla, synthetic_runs, true_loss

QUICK = {"starts": 4, "delta": 1e-2}
FIVE = (1e5, 2e5, 4e5, 8e5, 1.6e6)
LAWS = ["chinchilla", "conditional-steady"]


@pytest.fixture(scope="module")
def conditional():
    """Synthetic runs in which shape matters."""
    return synthetic_runs(shapes=6, sizes=FIVE)


@pytest.fixture(scope="module")
def compared(conditional):
    return compare(LAWS, conditional, by="size", cutoffs=[4e5, 8e5], **QUICK)


# Comparison.


def test_the_true_law_of_two_is_preferred(compared):
    assert compared.best == "conditional-steady"
    assert compared.table["verdict"].tolist() == ["best", "worse"]
    first, second = compared.table.to_dict("records")
    assert first["extrapolation_percent"] < 0.5 * second["extrapolation_percent"]
    assert first["regret_nats"] < second["regret_nats"]
    assert second["low"] > 0
    assert second["low"] < second["worse_by_percent"] < second["high"]


def test_errors_are_those_of_the_runs_left_out(compared, conditional):
    line = compared.table.set_index("law").loc["chinchilla"]
    errors = compared.hold_outs["chinchilla"].errors()
    off = 100 * (errors["predicted_loss"] / errors["loss"] - 1).abs().mean()
    assert line["extrapolation_percent"] == pytest.approx(off)
    held = sum((conditional[N] >= cutoff).sum() for cutoff in (4e5, 8e5))
    assert len(errors) == held


@pytest.mark.slow
def test_a_law_that_only_fits_better_does_not_win():
    # Without an effect of shape, the larger law fits noise: held out, it gains nothing.
    runs = synthetic_chinchilla(0.01, shapes=5, sizes=FIVE)
    found = compare(LAWS, runs, by="size", cutoffs=[4e5, 8e5], **QUICK)
    lines = found.table.set_index("law")
    assert set(lines["verdict"]) <= {"best", "tied with the best"}
    assert lines["low"].max() <= SAME_ERROR
    assert "tied with it" in found.view().title


@pytest.mark.slow
def test_a_law_that_fits_best_and_extrapolates_worse_is_named():
    # A curvature that turns around above the cut-off: the flexible law follows it and is wrong.
    runs = synthetic_chinchilla(0.001, shapes=8, sizes=FIVE)
    bend = 0.05 * np.log(runs["mlp_to_attention"] / 2) ** 2
    runs["loss"] *= np.where(runs[N] < 7e5, 1 + bend, 1 / (1 + bend))
    found = compare(LAWS, runs, by="size", cutoffs=[8e5], **QUICK)
    assert found.best == "chinchilla"
    assert (
        "conditional-steady fits the runs best, and does not extrapolate best" in found.view().notes
    )


def test_few_sizes_are_not_resampled_and_it_says_so(compared):
    assert compared.clusters.startswith("run: 3 sizes are too few to resample")
    many = synthetic_chinchilla(0.01, shapes=1, sizes=tuple(np.geomspace(1e5, 1e7, 12)))
    found = compare(LAWS, many, by="size", cutoffs=[1e6], **QUICK)
    assert found.clusters == "size (6 sizes)"


def test_a_law_that_cannot_be_fitted_stands_last_with_the_reason(conditional):
    table = conditional.drop(columns="gqa")
    found = compare([*LAWS], table, by="size", cutoffs=[8e5], **QUICK)
    assert found.best == "chinchilla"
    assert found.table["verdict"].iloc[-1].startswith("not available: the run table lacks the col")


def test_a_comparison_shows_itself(compared):
    document = json.loads(json.dumps(compared.as_json(), allow_nan=False))
    assert document["best"] == "conditional-steady"
    assert [line["law"] for line in document["laws"]] == ["conditional-steady", "chinchilla"]
    assert "<table" in compared._repr_html_()
    assert compared.summary().startswith("conditional-steady extrapolates best by size")


@pytest.mark.parametrize(
    ("laws", "words"),
    [
        (["chinchilla"], "`compare` needs at least 2 different laws, but got"),
        (["chinchilla", "chinchilla"], "`compare` needs at least 2 different laws"),
        (["nonsense", "other"], "none of the laws can be compared: `--law` must be one of"),
    ],
)
def test_what_cannot_be_compared_is_refused(conditional, laws, words):
    with pytest.raises(InputError, match=words):
        compare(laws, conditional, **QUICK)


def test_a_reason_that_all_laws_share_stands_once(conditional):
    with pytest.raises(InputError, match="`by` must be one of") as error:
        compare(LAWS, conditional, by="depth", **QUICK)
    assert str(error.value).count("`by` must be one of") == 1


def test_the_spread_over_laws_is_the_range_of_their_predictions(conditional):
    found = spread_over_laws(LAWS, conditional, conditional.head(4), **QUICK)
    table = found.frame()
    one = fit("conditional-steady", conditional, resamples=0, **QUICK).central(conditional.head(4))
    np.testing.assert_allclose(table["conditional-steady"], one, rtol=1e-6)
    assert (table["lowest"] == table[LAWS].min(axis=1)).all()
    assert (table["range_percent"] > 0).all()
    missing = spread_over_laws([*LAWS, "nonsense"], conditional, conditional.head(4), **QUICK)
    assert missing.view().notes[0].startswith("nonsense: not available: `--law` must be one of")


def test_a_spread_of_no_law_is_refused(conditional):
    with pytest.raises(InputError, match="none of the laws can be fitted"):
        spread_over_laws(["nonsense"], conditional, conditional.head(4))


# Identifiability.


def designed(slope: float) -> pd.DataFrame:
    """Synthetic runs whose ln D moves with ln N by a slope, beside a spread of its own."""
    generator = np.random.default_rng(0)
    size = np.exp(generator.uniform(np.log(1e5), np.log(1e7), 60))
    own = np.exp((1 - slope) * generator.uniform(np.log(0.05), np.log(20), 60))
    runs = pd.DataFrame({N: size, D: 1e7 * (size / 1e6) ** slope * own})
    for name in ("hidden_over_sqrt_n", "mlp_to_attention", "gqa"):
        runs[name] = 1.0
    none = {"hidden_over_sqrt_n_curvature": 0, "mlp_to_attention_curvature": 0, "gqa_slope": 0}
    runs["loss"] = true_loss(runs, TRUTH | none) * np.exp(1e-3 * generator.standard_normal(60))
    return runs


def test_the_condition_number_grows_as_tokens_move_with_size():
    found = [
        identifiability_report("chinchilla", designed(slope), **QUICK).condition
        for slope in (0.0, 0.6, 0.95)
    ]
    assert found[0] < found[1] < 100 < found[2]


def test_the_condition_number_is_that_of_the_jacobian_with_columns_of_length_one():
    runs = designed(0.3)
    fitted = fit("chinchilla", runs, resamples=0, **QUICK)

    def log_loss(theta):
        columns = {name: runs[name].to_numpy() for name in (N, D)}
        return fitted.law.log_loss(theta, columns, fitted.reference)[0]

    steps = 1e-6 * np.eye(5)
    by_steps = [(log_loss(fitted.theta + h) - log_loss(fitted.theta - h)) / 2e-6 for h in steps]
    jacobian = np.stack([column / np.linalg.norm(column) for column in by_steps], axis=1)
    report = identifiability_report(fitted, runs)
    assert report.condition == pytest.approx(np.linalg.cond(jacobian), rel=1e-3)


def test_tokens_that_move_with_size_are_named_with_a_remedy():
    report = identifiability_report("chinchilla", designed(0.95), **QUICK)
    finding = next(one for one in report.findings if one.what.startswith("D moves with N"))
    assert "alpha and beta trade places" in finding.what
    assert finding.remedy == "vary tokens at fixed size, or hold alpha = beta"
    assert report.status in ("poorly conditioned", "not identifiable")
    assert len(report.directions) >= 1
    first = report.directions["combination"].iloc[-1]
    assert any(name in first for name in ("A ", "B ", "alpha", "beta"))


def test_a_good_design_has_no_finding():
    report = identifiability_report("chinchilla", designed(0.0), **QUICK)
    assert report.findings == ()
    assert report.status == "identified"
    assert report.directions.empty
    assert report.levels[N] > 10


def test_the_correlations_are_those_of_the_jacobian(conditional):
    report = identifiability_report("conditional-steady", conditional, **QUICK)
    table = report.correlation
    np.testing.assert_allclose(np.diag(table), 1)
    assert (table.abs() <= 1 + 1e-9).all(axis=None)
    extreme = report.extremes(1).iloc[0]
    strict = table.where(~np.eye(len(table), dtype=bool)).abs()
    assert abs(extreme["correlation"]) == pytest.approx(strict.max(axis=None))


@pytest.mark.parametrize(
    ("runs", "what", "remedy"),
    [
        (synthetic_runs(sizes=SIZES[:2]), "2 distinct sizes", "train 1 more size"),
        (
            synthetic_runs().assign(gqa=2.0),
            "gqa is the same in all runs",
            "train runs that differ in gqa at the same N and D",
        ),
        (
            synthetic_runs().assign(gqa=lambda t: 40 * t["hidden_over_sqrt_n"]),
            "hidden_over_sqrt_n moves with gqa (correlation 1.000)",
            "train runs that differ in gqa at the same hidden_over_sqrt_n",
        ),
        (
            synthetic_runs(shapes=2),
            "18 rows for 10 free parameters, fewer than 3 each",
            "train 12 more runs, choose a smaller law, or hold alpha = beta",
        ),
    ],
)
def test_each_gap_of_a_table_has_a_remedy(runs, what, remedy):
    report = identifiability_report("conditional-steady", runs, **QUICK)
    found = [finding.remedy for finding in report.findings if finding.what.startswith(what)]
    assert found == [remedy]
    assert what in report.summary()


def test_what_a_fit_held_is_a_finding():
    report = identifiability_report("conditional-steady", synthetic_runs(tokens=(1e6,)), **QUICK)
    held = [finding for finding in report.findings if finding.what.startswith("B, beta held")]
    assert len(held) == 1
    assert held[0].remedy == "vary tokens at fixed size: three token counts or more"


# Intervals that are too narrow.


@pytest.fixture(scope="module")
def fitted():
    runs = synthetic_chinchilla(0.01, shapes=8)
    return fit("chinchilla", runs, resamples=60, seed=1, **QUICK), runs


def test_the_intervals_of_a_bootstrap_are_wide_enough(fitted):
    found = interval_widths(*fitted)
    assert found.too_narrow == []
    assert found.widths["ratio"].between(0.6, 1.8).all()
    assert "60 resamples are too few for the ends of an interval" in found.view().notes


def test_an_interval_k_times_too_narrow_needs_k_squared_times_the_runs(fitted):
    one, runs = fitted
    possible = interval_widths(one, runs).widths.set_index("parameter").loc["beta", "possible_se"]
    middle, half = one.parameters()["beta"]["value"], 1.96 * possible / 10
    found = interval_widths(one, runs, claimed={"beta": (middle - half, middle + half)})
    assert found.too_narrow == ["beta"]
    assert found.widths["points_needed"].iloc[0] == pytest.approx(100 * len(runs), rel=1e-3)


def test_the_possible_error_falls_with_the_root_of_the_runs(fitted):
    one, runs = fitted
    twice = pd.concat([runs] * 4, ignore_index=True)
    few, many = (
        interval_widths(one, table, claimed={"beta": (0.3, 0.4)}).widths["possible_se"].iloc[0]
        for table in (runs, twice)
    )
    assert many == pytest.approx(few / 2)


@pytest.mark.parametrize("claimed", [{"gamma": (0.1, 0.2)}, {"beta": (0.4, 0.3)}])
def test_claims_that_cannot_be_judged_are_refused(fitted, claimed):
    with pytest.raises(InputError, match="`claimed` must give intervals low < high of E, A, alpha"):
        interval_widths(*fitted, claimed=claimed)
