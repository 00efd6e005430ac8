import json

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.checks.comparison import NEGLIGIBLE_DIFFERENCE, compare
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
    """Return synthetic runs with an effect of shape."""
    return synthetic_runs(shapes=6, sizes=FIVE)


@pytest.fixture(scope="module")
def compared(conditional):
    return compare(LAWS, conditional, by="size", cutoffs=[4e5, 8e5], **QUICK)


# Comparison.


def test_compare_ranks_true_law_first(compared):
    assert compared.best == "conditional-steady"
    assert compared.table["verdict"].tolist() == ["best", "worse"]
    first, second = compared.table.to_dict("records")
    assert first["extrapolation_percent"] < 0.5 * second["extrapolation_percent"]
    assert first["regret_nats"] < second["regret_nats"]
    assert second["low"] > 0
    assert second["low"] < second["worse_by_percent"] < second["high"]


def test_extrapolation_error_is_computed_from_held_out_runs(compared, conditional):
    line = compared.table.set_index("law").loc["chinchilla"]
    errors = compared.hold_outs["chinchilla"].errors()
    off = 100 * (errors["predicted_loss"] / errors["loss"] - 1).abs().mean()
    assert line["extrapolation_percent"] == pytest.approx(off)
    held = sum((conditional[N] >= cutoff).sum() for cutoff in (4e5, 8e5))
    assert len(errors) == held


def test_compare_says_where_the_count_of_n_matters_more_than_the_law():
    runs = synthetic_chinchilla(0.002, shapes=3, sizes=FIVE)
    # The law holds for the total count, of which embeddings are the larger share at small sizes.
    runs = runs.assign(n_total=runs[N], **{N: runs[N] - 9e4})
    runs["n_active"] = 2 * runs["n_total"]  # proportional: the same predictions
    by_body = compare(["chinchilla", "width"], runs, by="tokens", cutoffs=[6e7], **QUICK)
    by_total = compare(
        ["chinchilla", "width"], runs, by="tokens", cutoffs=[6e7], size="total", **QUICK
    )
    errors = by_body.sizes.set_index("size")["extrapolation_percent"]
    assert errors.index.tolist() == ["non-embedding", "total"]
    law = by_body.best
    lines = by_total.table.set_index("law")["extrapolation_percent"]
    assert errors["total"] == pytest.approx(lines[law], rel=1e-3)
    assert errors["non-embedding"] > 1.5 * errors["total"]
    (note,) = (note for note in by_body.view().notes if note.startswith("the choice of N"))
    assert f"{law} errs by {errors['non-embedding']:.3g} % where N counts non-embedding" in note
    assert f"by {errors['total']:.3g} % where it counts total parameters" in note
    assert by_body.as_json()["sizes"][1]["size"] == "total"


def test_compare_is_silent_where_the_law_matters_more_than_the_count_of_n(conditional):
    near = conditional.assign(n_total=1.001 * conditional[N] + 1)
    comparison = compare(LAWS, near, by="tokens", cutoffs=[6e7], **QUICK)
    assert comparison.sizes["size"].tolist() == ["non-embedding", "total"]
    assert not any("choice of N" in note for note in comparison.view().notes)
    scaled = compare(
        LAWS, conditional.assign(n_total=2 * conditional[N]), by="tokens", cutoffs=[6e7], **QUICK
    )
    assert scaled.sizes.empty


@pytest.mark.slow
def test_larger_law_does_not_win_when_shape_has_no_effect():
    # Without an effect of shape the larger law fits noise and gains nothing on held-out runs.
    runs = synthetic_chinchilla(0.01, shapes=5, sizes=FIVE)
    comparison = compare(LAWS, runs, by="size", cutoffs=[4e5, 8e5], **QUICK)
    lines = comparison.table.set_index("law")
    assert set(lines["verdict"]) <= {"best", "tied with the best"}
    assert lines["low"].max() <= NEGLIGIBLE_DIFFERENCE
    assert comparison.view().title.startswith("no law extrapolates clearly better by size: ")
    assert "contains 0 or less than 0.01 % of the loss" in comparison.view().notes[0]


@pytest.mark.slow
def test_law_that_fits_best_but_extrapolates_worse_is_named():
    # A curvature that reverses above the cut-off: the flexible law extrapolates it wrongly.
    runs = synthetic_chinchilla(0.001, shapes=8, sizes=FIVE)
    bend = 0.05 * np.log(runs["mlp_to_attention"] / 2) ** 2
    runs["loss"] *= np.where(runs[N] < 7e5, 1 + bend, 1 / (1 + bend))
    comparison = compare(LAWS, runs, by="size", cutoffs=[8e5], **QUICK)
    assert comparison.best == "chinchilla"
    assert (
        "conditional-steady fits the runs best, but does not extrapolate best"
        in comparison.view().notes
    )


def test_runs_are_resampled_instead_of_sizes_when_sizes_are_few(compared):
    assert compared.clusters.startswith("run: 3 sizes are too few to resample")
    many = synthetic_chinchilla(0.01, shapes=1, sizes=tuple(np.geomspace(1e5, 1e7, 12)))
    comparison = compare(LAWS, many, by="size", cutoffs=[1e6], **QUICK)
    assert comparison.clusters == "size (6 sizes)"


def test_law_that_cannot_be_fitted_comes_last_with_the_reason(conditional):
    table = conditional.drop(columns="gqa")
    comparison = compare([*LAWS], table, by="size", cutoffs=[8e5], **QUICK)
    assert comparison.best == "chinchilla"
    assert (
        comparison.table["verdict"]
        .iloc[-1]
        .startswith("not available: the run table lacks the col")
    )


def test_comparison_is_displayed_as_text_html_and_json(compared):
    document = json.loads(json.dumps(compared.as_json(), allow_nan=False))
    assert document["best"] == "conditional-steady"
    assert [line["law"] for line in document["laws"]] == ["conditional-steady", "chinchilla"]
    assert "<table" in compared._repr_html_()
    assert compared.summary().startswith("conditional-steady extrapolates best by size")


@pytest.mark.parametrize(
    ("laws", "message"),
    [
        (["chinchilla"], "`compare` needs at least 2 different laws, but got"),
        (["chinchilla", "chinchilla"], "`compare` needs at least 2 different laws"),
        (["nonsense", "other"], "none of the laws can be compared: `--law` must be one of"),
    ],
)
def test_compare_raises_when_laws_are_too_few_equal_or_unknown(conditional, laws, message):
    with pytest.raises(InputError, match=message):
        compare(laws, conditional, **QUICK)


def test_reason_shared_by_all_laws_is_printed_once(conditional):
    with pytest.raises(InputError, match="`by` must be one of") as error:
        compare(LAWS, conditional, by="depth", **QUICK)
    assert str(error.value).count("`by` must be one of") == 1


# Identifiability.


def designed(slope: float) -> pd.DataFrame:
    """Return synthetic runs with ln D linear in ln N by a slope, plus independent variation."""
    generator = np.random.default_rng(0)
    size = np.exp(generator.uniform(np.log(1e5), np.log(1e7), 60))
    variation = np.exp((1 - slope) * generator.uniform(np.log(0.05), np.log(20), 60))
    runs = pd.DataFrame({N: size, D: 1e7 * (size / 1e6) ** slope * variation})
    for name in ("hidden_over_sqrt_n", "mlp_to_attention", "gqa"):
        runs[name] = 1.0
    none = {"hidden_over_sqrt_n_curvature": 0, "mlp_to_attention_curvature": 0, "gqa_slope": 0}
    runs["loss"] = true_loss(runs, TRUTH | none) * np.exp(1e-3 * generator.standard_normal(60))
    return runs


def test_condition_number_grows_when_tokens_correlate_with_size():
    conditions = [
        identifiability_report("chinchilla", designed(slope), **QUICK).condition
        for slope in (0.0, 0.6, 0.95)
    ]
    assert conditions[0] < conditions[1] < 100 < conditions[2]


def test_condition_number_equals_that_of_jacobian_with_unit_columns():
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


def test_tokens_that_correlate_with_size_are_a_finding_with_a_remedy():
    report = identifiability_report("chinchilla", designed(0.95), **QUICK)
    finding = next(part for part in report.findings if part.what.startswith("D varies with N"))
    assert "alpha and beta are confounded" in finding.what
    assert finding.remedy == "vary tokens at fixed size, or hold alpha = beta"
    assert report.status in ("poorly conditioned", "not identifiable")
    assert len(report.directions) >= 1
    first = report.directions["combination"].iloc[-1]
    assert any(name in first for name in ("A ", "B ", "alpha", "beta"))


def test_report_of_good_design_has_no_finding():
    report = identifiability_report("chinchilla", designed(0.0), **QUICK)
    assert report.findings == ()
    assert report.status == "identified"
    assert report.directions.empty
    assert report.levels[N] > 10


def test_extreme_correlation_is_the_largest_of_the_matrix(conditional):
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
            "hidden_over_sqrt_n varies with gqa (correlation 1.000)",
            "train runs that differ in gqa at the same hidden_over_sqrt_n",
        ),
        (
            synthetic_runs(shapes=2),
            "18 rows for 10 free parameters, fewer than 3 each",
            "train 12 more runs, choose a smaller law, or hold alpha = beta",
        ),
    ],
)
def test_each_gap_of_a_table_is_reported_with_its_remedy(runs, what, remedy):
    report = identifiability_report("conditional-steady", runs, **QUICK)
    remedies = [finding.remedy for finding in report.findings if finding.what.startswith(what)]
    assert remedies == [remedy]
    assert what in report.summary()


def test_held_parameter_is_a_finding():
    report = identifiability_report("conditional-steady", synthetic_runs(tokens=(1e6,)), **QUICK)
    held = [finding for finding in report.findings if finding.what.startswith("B, beta held")]
    assert len(held) == 1
    assert held[0].remedy == "vary tokens at fixed size: three token counts or more"


@pytest.mark.parametrize(
    ("sizes", "values", "what", "remedy"),
    [
        (
            tuple(np.geomspace(1e5, 1e7, 6)), (1.0, 2.0), "0 of 6 sizes (neighbours pooled) have",
            "train three or more values of hidden_over_sqrt_n at each of three sizes",
        ),
        (
            (1e5, 1e6), (0.5, 1.0, 2.0), "2 sizes cannot identify a drift with N",
            "train more sizes: three or more, a factor of two apart",
        ),
    ],
)  # fmt: skip
def test_remedy_for_a_held_drift_is_what_the_table_lacks(sizes, values, what, remedy):
    runs = synthetic_runs(sizes=sizes, shapes=6)
    factors = np.resize(values, len(runs))
    runs = runs.assign(hidden_over_sqrt_n=0.15 * factors).assign(loss=lambda t: true_loss(t, TRUTH))
    law = "Chinchilla() * UShape('hidden_over_sqrt_n', drift=True)"
    report = identifiability_report(law, runs, **QUICK)
    held = [finding for finding in report.findings if "hidden_over_sqrt_n_drift" in finding.what]
    assert [finding.remedy for finding in held if what in finding.what] == [remedy]


# Intervals that are too narrow.


@pytest.fixture(scope="module")
def fitted():
    runs = synthetic_chinchilla(0.01, shapes=8)
    return fit("chinchilla", runs, resamples=60, seed=1, **QUICK), runs


def test_bootstrap_intervals_are_not_flagged_as_too_narrow(fitted):
    intervals = interval_widths(*fitted)
    assert intervals.too_narrow == []
    assert intervals.widths["ratio"].between(0.6, 1.8).all()
    assert "60 resamples are too few for the ends of an interval" in intervals.view().notes


def test_interval_k_times_too_narrow_needs_k_squared_times_the_runs(fitted):
    law_fit, runs = fitted
    possible = (
        interval_widths(law_fit, runs).widths.set_index("parameter").loc["beta", "possible_se"]
    )
    middle, half = law_fit.parameters()["beta"]["value"], 1.96 * possible / 10
    intervals = interval_widths(law_fit, runs, claimed={"beta": (middle - half, middle + half)})
    assert intervals.too_narrow == ["beta"]
    assert intervals.widths["points_needed"].iloc[0] == pytest.approx(100 * len(runs), rel=1e-3)


def test_possible_error_falls_with_square_root_of_number_of_runs(fitted):
    law_fit, runs = fitted
    fourfold = pd.concat([runs] * 4, ignore_index=True)
    few, many = (
        interval_widths(law_fit, table, claimed={"beta": (0.3, 0.4)}).widths["possible_se"].iloc[0]
        for table in (runs, fourfold)
    )
    assert many == pytest.approx(few / 2)


@pytest.mark.parametrize("claimed", [{"gamma": (0.1, 0.2)}, {"beta": (0.4, 0.3)}])
def test_interval_widths_raises_on_unknown_parameter_or_empty_interval(fitted, claimed):
    with pytest.raises(InputError, match="`claimed` must give intervals low < high of E, A, alpha"):
        interval_widths(*fitted, claimed=claimed)
