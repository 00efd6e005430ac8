import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.checks.holdout import leave_largest_out
from shapelaw.scaling.checks.metrics import decision_regret, scores
from shapelaw.scaling.checks.misfit_checklist import checklist
from shapelaw.scaling.checks.report import check
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from support.synthetic import SHARE, SIZES, isoflop_runs, synthetic_chinchilla, synthetic_runs

QUICK = {"starts": 4, "delta": 1e-2}


@pytest.fixture(scope="module")
def runs():
    """Return synthetic runs of a known conditional law."""
    return synthetic_runs(shapes=6, sizes=(1e5, 2e5, 4e5, 8e5, 1.6e6))


@pytest.fixture(scope="module")
def checked(runs):
    return check("conditional", runs, resamples=20, **QUICK)


# Scores.


def test_scores_of_perfect_predictions_have_no_error_and_full_correlation():
    errors = scores([2.0, 3.0, 4.0], [2.0, 3.0, 4.0])
    assert (errors.mse, errors.mae, errors.mape, errors.mean_error) == (0, 0, 0, 0)
    assert (errors.r2, errors.spearman, errors.rows) == (1, pytest.approx(1), 3)


def test_scores_equal_their_definitions():
    errors = scores([2.0, 4.0], [2.5, 3.9])
    assert errors.mse == pytest.approx((0.25 + 0.01) / 2)
    assert errors.mae == pytest.approx(0.3)
    assert errors.mape == pytest.approx(100 * (0.25 + 0.025) / 2)
    assert errors.mean_error == pytest.approx(0.2)  # predicted minus observed
    assert errors.r2 == pytest.approx(1 - 0.26 / 2)
    assert errors.spearman is None  # a rank correlation needs three points


def test_scores_of_equal_losses_have_neither_r2_nor_rank_correlation():
    errors = scores([3.0, 3.0, 3.0], [3.0, 3.1, 2.9])
    assert errors.r2 is errors.spearman is None
    assert json.loads(json.dumps(errors.as_json()))["r2"] is None


@given(st.lists(st.floats(0.5, 10), min_size=3, max_size=20), st.floats(0.9, 1.1))
def test_errors_scale_with_the_loss_according_to_their_units(losses, factor):
    observed = np.array(losses)
    single = scores(observed, observed * factor)
    doubled = scores(2 * observed, 2 * observed * factor)
    assert doubled.mse == pytest.approx(4 * single.mse)
    assert doubled.mae == pytest.approx(2 * single.mae)
    assert doubled.mape == pytest.approx(single.mape)


@pytest.mark.parametrize(
    ("observed", "predicted", "message"),
    [
        ([], [], "must have the same length, at least one, but have"),
        ([1.0, 2.0], [1.0], "must have the same length, at least one, but have"),
        ([1.0, np.nan], [1.0, 1.0], "`observed > 0` and finite must hold, but got nan"),
        ([1.0, 2.0], [1.0, -3.0], "`predicted > 0` and finite must hold, but got -3.0"),
    ],
)
def test_scores_raises_on_unequal_lengths_or_losses_that_are_not_positive(
    observed, predicted, message
):
    with pytest.raises(InputError, match=message):
        scores(observed, predicted)


# Decision regret.


def test_scores_and_regret_are_displayed_as_text_and_html():
    errors = scores([2.0, 4.0], [2.5, 3.9])
    assert errors.summary().startswith("error of 2 predicted losses: 13.8 % on average")
    runs = synthetic_runs()
    assert "mape_percent" in errors._repr_html_()
    assert "regret_nats" in decision_regret(runs, runs["loss"])._repr_html_()


def test_regret_is_zero_for_the_truth_and_largest_for_the_worst_choice():
    runs = synthetic_runs(noise=0.0)
    right = decision_regret(runs, runs["loss"])
    assert right.mean == right.largest == 0
    wrong = decision_regret(runs, 10 - runs["loss"])
    spread = runs.groupby([N, D])["loss"].agg(lambda loss: loss.max() - loss.min())
    assert wrong.largest == pytest.approx(spread.max())
    assert 0 < wrong.random < wrong.mean
    assert len(wrong.groups) == 9
    assert "over 9 groups of equal N and D: mean" in wrong.summary()


def test_regret_equals_random_choice_when_predictions_are_equal():
    runs = synthetic_runs()
    regret = decision_regret(runs, np.full(len(runs), 3.0))
    assert regret.mean == pytest.approx(regret.random)


def test_regret_is_loss_of_picked_shape_minus_best_loss():
    runs = pd.DataFrame({N: 1e6, D: 1e8, "hidden_size": [1, 2, 3], "loss": [3.0, 2.5, 2.8]})
    regret = decision_regret(runs, [2.0, 2.1, 1.9])  # picks the third
    assert regret.mean == pytest.approx(0.3)
    assert regret.random == pytest.approx((3.0 + 2.5 + 2.8) / 3 - 2.5)


def test_replicates_of_a_shape_count_once():
    shapes = [1, 1, 1, 2, 3]
    runs = pd.DataFrame({N: 1e6, D: 1e8, "hidden_size": shapes, "loss": [2.0, 4.0, 3.0, 2.9, 3.5]})
    regret = decision_regret(runs, [1.0, 1.0, 1.0, 1.1, 1.2])
    assert regret.groups["shapes"].tolist() == [3]
    assert regret.mean == pytest.approx(3.0 - 2.9)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": [1, 2, 2]}, "no 3 shapes have the same N and D within 10 %"),
        ({D: [1e8, 2e8, 4e8]}, "no 3 shapes have the same N and D"),
        ({"hidden_size": None}, "no column of the table describes a shape"),
    ],
)
def test_regret_gives_the_reason_when_no_group_allows_a_choice(change, why):
    runs = pd.DataFrame({N: 1e6, D: 1e8, "hidden_size": [1, 2, 3], "loss": [3.0, 2.5, 2.8]})
    runs = runs.assign(**change)
    runs = runs.drop(columns="hidden_size") if change.get("hidden_size", 0) is None else runs
    regret = decision_regret(runs, runs["loss"])
    assert regret.mean is regret.largest is regret.random is None
    assert why in regret.summary()


def test_decision_regret_raises_when_predictions_have_another_length():
    with pytest.raises(InputError, match=r"`predicted` must have 144 losses, but has shape \(3,\)"):
        decision_regret(synthetic_runs(), [1.0, 2.0, 3.0])


# Leave-largest-out.


def test_each_cutoff_fits_the_rows_below_and_scores_the_others(runs):
    hold_out = leave_largest_out("conditional", runs, by="size", **QUICK)
    table = hold_out.frame()
    assert table["cutoff"].tolist() == [2e5, 4e5, 8e5, 1.6e6]
    assert table["status"].iloc[0].startswith("below it, A is held at no effect: all runs have one")
    for cutoff in hold_out.fitted:
        fitted = runs[runs[N] < cutoff.value]
        assert cutoff.rows_in == len(fitted) == len(cutoff.fit.run_ids)
        assert cutoff.largest_fitted == fitted[N].max()
        assert set(cutoff.held_out["run_id"]) == set(runs["run_id"]) - set(fitted["run_id"])
        distance = np.log10(cutoff.held_out[N] / cutoff.largest_fitted)
        np.testing.assert_allclose(cutoff.held_out["distance_decades"], distance)
        recomputed = scores(cutoff.held_out["loss"], cutoff.held_out["predicted_loss"])
        assert recomputed == cutoff.scores


def test_true_law_predicts_held_out_sizes_and_picks_their_shapes(runs):
    hold_out = leave_largest_out("conditional", runs, by="size", cutoffs=[8e5], **QUICK)
    (cutoff,) = hold_out.fitted
    assert cutoff.scores.mape < 1
    assert cutoff.scores.spearman > 0.95
    assert cutoff.regret.mean < 0.2 * cutoff.regret.random


def test_drift_table_ends_with_the_fit_to_all_rows(runs):
    hold_out = leave_largest_out("conditional", runs, by="tokens", **QUICK)
    drift = hold_out.drift()
    assert drift["cutoff"].iloc[-1] == np.inf
    assert drift["rows_in"].iloc[-1] == len(runs)
    last = hold_out.complete.parameters()
    for name in ("E", "alpha", "beta", "mlp_to_attention_optimum", "gqa_slope"):
        assert drift[name].iloc[-1] == last[name]["value"]
    share = last["beta"]["value"] / (last["alpha"]["value"] + last["beta"]["value"])
    assert drift["a_opt"].iloc[-1] == pytest.approx(share)


def test_intervals_cover_held_out_runs_of_the_true_law():
    runs = synthetic_chinchilla(0.01, shapes=8, tokens=(1e6, 4e6, 1.6e7, 6.4e7))
    arguments = {"by": "compute", "cutoffs": [1e14]}
    hold_out = leave_largest_out("chinchilla", runs, resamples=60, **arguments, **QUICK)
    assert hold_out.fitted[0].coverage > 0.85
    assert leave_largest_out("chinchilla", runs, **arguments, **QUICK).fitted[0].coverage is None


def test_compute_is_taken_from_the_table_if_given_else_6nd(runs):
    plain = leave_largest_out("chinchilla", runs, by="compute", cutoffs=[1e13], **QUICK)
    assert plain.cutoffs[0].rows_in == (6 * runs[N] * runs[D] < 1e13).sum()
    given = runs.assign(flops_6nd=12 * runs[N] * runs[D])
    hold_out = leave_largest_out("chinchilla", given, by="compute", cutoffs=[1e13], **QUICK)
    assert hold_out.cutoffs[0].rows_in == (12 * runs[N] * runs[D] < 1e13).sum()


def test_default_cutoffs_of_a_dense_table_fit_half_to_nine_tenths_of_it():
    runs = synthetic_chinchilla(0.01, shapes=1, sizes=tuple(np.geomspace(1e5, 1e8, 20)))
    hold_out = leave_largest_out("chinchilla", runs, by="size", **QUICK)
    shares = hold_out.frame()["rows_in"] / len(runs)
    assert len(shares) == 4
    assert shares.iloc[0] == pytest.approx(0.5, abs=0.05)
    assert shares.iloc[-1] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "loss"}, "`by` must be one of size, compute, tokens, but got 'loss'"),
        ({"cutoffs": 0}, "`cutoffs >= 1` must hold, but got 0"),
        ({"cutoffs": []}, "`cutoffs` must contain at least one cut-off"),
        (
            {"cutoffs": [1.0]},
            r"must lie above 1e\+05 and at most at 1.6e\+06 parameters, but got 1",
        ),
        ({"cutoffs": [float("nan")]}, "a cut-off must lie above"),
        ({"cutoffs": [2e5]}, "needs a cut-off below which `conditional` can be fitted, but: below"),
    ],
)
def test_leave_largest_out_raises_on_unusable_cutoffs(runs, arguments, message):
    with pytest.raises(InputError, match=message):
        leave_largest_out("conditional", runs, **arguments, **QUICK)


def test_leave_largest_out_raises_when_runs_have_one_size():
    with pytest.raises(InputError, match="by size needs at least 2 levels of parameters"):
        leave_largest_out("conditional", synthetic_runs(sizes=SIZES[:1]), by="size", **QUICK)


def test_leave_largest_out_raises_when_table_lacks_tokens():
    with pytest.raises(InputError, match="the run table lacks the column `tokens`"):
        leave_largest_out("chinchilla", synthetic_runs().drop(columns=D))


def test_fits_record_total_size_convention_when_table_has_total_parameters():
    runs = synthetic_chinchilla(0.002, shapes=4).rename(columns={N: "n_total"})
    hold_out = leave_largest_out("chinchilla", runs, by="size", cutoffs=[1e6], **QUICK)
    assert hold_out.complete.size_convention == "total"
    assert hold_out.fitted[0].fit.size_convention == "total"
    assert (
        hold_out.fitted[0].held_out[N].tolist() == runs["n_total"][runs["n_total"] > 1e6].tolist()
    )
    assert N not in runs


# The whole check.


def test_check_returns_every_part(checked, runs):
    assert set(checked.hold_outs) == {"size", "compute"}
    assert checked.in_sample.rows == len(runs)
    assert checked.in_sample.mape < 0.5
    assert checked.regret.mean < checked.regret.random
    assert checked.valley.allocation.compute == pytest.approx(6 * runs[N].max() * runs[D].max())
    table = checked.frame()
    assert table["by"].iloc[0] == "fitted runs"
    assert len(table) == 1 + sum(len(part.cutoffs) for part in checked.hold_outs.values())


def test_check_is_displayed_as_text_html_and_json(checked):
    text = checked.summary()
    assert text.startswith(f"conditional on {len(checked.fit.run_ids)} runs: ")
    for part in ("drift of the parameters", "flat valley", "condition number", "decision regret"):
        assert part in text
    html = checked._repr_html_()
    assert html.count("<table") == len(checked.view().tables)
    assert "(Mis)Fitting checklist" in html
    document = json.loads(json.dumps(checked.as_json(), allow_nan=False))
    assert document["leave_largest_out"]["size"]["drift"][-1]["cutoff"] is None
    assert document["regret"]["mean_nats"] == checked.regret.mean
    assert document["warnings"] == list(checked.warnings)


def test_check_of_isoflop_runs_shows_all_three_approaches():
    report = check("chinchilla", isoflop_runs(0.002), resamples=10, **QUICK)
    table = report.approaches.frame()
    assert table["status"].tolist() == ["fitted"] * 3
    fitted = report.valley.allocation
    assert table["n"].iloc[2] == fitted.n["value"]
    assert table["a_low"].iloc[2] == fitted.exponent["low"]
    title = "Chinchilla's approaches: N* ∝ C^a, N* at 1e+16 FLOPs, 95 % intervals"
    assert report.view().tables[title]["approach"].tolist() == table["approach"].tolist()
    assert title in report.summary()
    assert title.replace("'", "&#x27;") in report._repr_html_()
    assert not [line for line in report.view().notes if "approach 1 " in line]


def test_check_gives_the_reason_in_one_line_when_an_approach_is_not_available(checked):
    lines = [line for line in checked.view().notes if line.startswith("Chinchilla's approach 2")]
    assert len(lines) == 1
    assert "not available: 0 levels of compute have a minimum" in lines[0]
    assert lines[0] in checked.summary()
    _, second, third = checked.as_json()["chinchilla_approaches"]["approaches"]
    assert second["a"] is None
    assert second["status"] in lines[0]
    assert third["status"] == "fitted"


def test_approaches_of_a_check_use_the_size_convention_of_its_fit():
    runs = isoflop_runs()
    runs = runs.assign(n_total=runs[N], **{N: 0.5 * runs[N] ** 0.95})
    report = check("chinchilla", runs, size="total", resamples=0, **QUICK)
    np.testing.assert_allclose(report.approaches.frame()["a"], SHARE, atol=0.01)


def test_check_of_a_fit_uses_the_settings_of_the_fit():
    runs = synthetic_chinchilla(0.005, shapes=4)
    fitted = fit("chinchilla", runs, delta=3e-3, starts=4, resamples=0)
    report = check(fitted, runs)
    assert report.fit is fitted
    part = report.hold_outs["size"].fitted[0].fit
    assert (part.delta, part.delta_rule, part.starts, len(part.draws)) == (3e-3, "as given", 4, 0)


def test_check_raises_when_fit_is_of_other_runs(checked, runs):
    with pytest.raises(InputError, match="`check` needs the runs of the fit"):
        check(checked.fit, runs.iloc[1:])


def test_check_names_unavailable_parts_and_returns_the_others():
    runs = synthetic_runs(sizes=SIZES[:1], shapes=8)
    report = check("conditional", runs, resamples=0, **QUICK)
    assert "needs at least 2 levels of parameters" in report.unavailable["size"]
    assert "by size: not available: " in report.summary()
    assert any("all runs have one size" in warning for warning in report.warnings)
    assert "no best N: the law has A held at no effect" in report.valley.view().title


def test_check_warns_of_constant_schedules_dependent_rows_and_counted_flops():
    runs = synthetic_chinchilla(0.005, shapes=4)
    flops = 6 * runs[N] * runs[D]
    runs = runs.assign(
        schedule="constant", curve=np.arange(len(runs)) // 2, flops_6nd=flops,
        flops_counted=5 * flops,
    )  # fmt: skip
    warned = check("chinchilla", runs, resamples=0, **QUICK).warnings
    assert "some schedules are constant: losses before a decay are not final losses" in warned
    assert "several rows belong to one run (column curve): rows are not independent" in warned
    assert any("counted FLOPs differ from 6ND by more than 5%" in text for text in warned)


# The checklist.


def test_checklist_is_filled_from_the_fit_and_the_table(runs):
    table = runs.assign(
        optimizer="muon", schedule="wsd", learning_rate=np.linspace(0.01, 0.02, len(runs)),
        corpus="text:1", seed=0,
    )  # fmt: skip
    table = RunTable(frame=table, left_out={"bad-1": "diverged"})
    fitted = fit("conditional", table, starts=4, resamples=5, seed=3, delta=1e-2)
    answers = checklist(fitted, table)
    training, fitting = answers.sections["Training"], answers.sections["Fitting"]
    assert training["optimiser"] == "muon"
    assert training["learning rate"] == "0.01 to 0.02"
    assert training["models"] == f"{len(table)} runs; 5 sizes, 1e+05 to 1.6e+06"
    assert training["tokenizer"] == "not recorded"
    assert fitting["starts"].startswith("4 scrambled Sobol points, seed 3")
    assert fitting["delta"] == "0.01 (as given)"
    assert fitting["uncertainty"].startswith("5 resamples by ")
    assert fitting["hold-out"].startswith("not recorded")
    assert answers.sections["Data collection"]["rows left out"] == "1: bad-1 (diverged)"
    assert answers.sections["Data collection"]["data hash"] == f"sha256 {fitted.data_sha256}"
    assert "E + A/N^alpha + B/D^beta" in answers.sections["Scaling law"]["form"]
    assert {"tokenizer", "hold-out"} <= set(answers.missing)
    assert "optimiser" not in answers.missing


def test_checklist_is_exported_as_markdown_and_dictionary(checked):
    found = checked.checklist
    block = found.markdown()
    assert block.startswith("### (Mis)Fitting checklist (arXiv 2502.18969)\n")
    assert all(f"**{section}**" in block for section in found.sections)
    assert block.count("\n- ") == len(found.frame())
    assert "leave-largest-out by size" in found.sections["Fitting"]["hold-out"]
    assert found.as_json()["sections"] == found.sections


def test_checklist_counts_runs_that_lack_a_value(runs):
    table = runs.assign(optimizer=["adamw", None] * (len(runs) // 2))
    fitted = fit("chinchilla", table, starts=4, resamples=0, delta=1e-2)
    answer = checklist(fitted, table).sections["Training"]["optimiser"]
    assert answer == f"adamw (not recorded for {len(runs) // 2} runs)"
