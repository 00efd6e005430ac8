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
from shapelaw.scaling.runs.levels import level_of
from shapelaw.scaling.runs.table import RunTable
from support.synthetic import SHARE, SIZES, isoflop_runs, synthetic_chinchilla, synthetic_runs

QUICK = {"starts": 4, "delta": 1e-2}


@pytest.fixture(scope="module")
def runs():
    """Synthetic runs of a known conditional law."""
    return synthetic_runs(shapes=6, sizes=(1e5, 2e5, 4e5, 8e5, 1.6e6))


@pytest.fixture(scope="module")
def checked(runs):
    return check("conditional", runs, resamples=20, **QUICK)


# Scores.


def test_perfect_predictions_have_no_error_and_every_rank():
    found = scores([2.0, 3.0, 4.0], [2.0, 3.0, 4.0])
    assert (found.mse, found.mae, found.mape, found.mean_error) == (0, 0, 0, 0)
    assert (found.r2, found.spearman, found.rows) == (1, pytest.approx(1), 3)


def test_scores_are_those_of_the_definitions():
    found = scores([2.0, 4.0], [2.5, 3.9])
    assert found.mse == pytest.approx((0.25 + 0.01) / 2)
    assert found.mae == pytest.approx(0.3)
    assert found.mape == pytest.approx(100 * (0.25 + 0.025) / 2)
    assert found.mean_error == pytest.approx(0.2)  # predicted minus observed
    assert found.r2 == pytest.approx(1 - 0.26 / 2)
    assert found.spearman is None  # two points have no rank to speak of


def test_equal_losses_have_neither_r2_nor_ranks():
    found = scores([3.0, 3.0, 3.0], [3.0, 3.1, 2.9])
    assert found.r2 is found.spearman is None
    assert json.loads(json.dumps(found.as_json()))["r2"] is None


@given(st.lists(st.floats(0.5, 10), min_size=3, max_size=20), st.floats(0.9, 1.1))
def test_errors_scale_with_the_loss_as_their_units_say(losses, factor):
    seen = np.array(losses)
    one, doubled = scores(seen, seen * factor), scores(2 * seen, 2 * seen * factor)
    assert doubled.mse == pytest.approx(4 * one.mse)
    assert doubled.mae == pytest.approx(2 * one.mae)
    assert doubled.mape == pytest.approx(one.mape)


@pytest.mark.parametrize(
    ("observed", "predicted", "words"),
    [
        ([], [], "must be as many losses, at least one"),
        ([1.0, 2.0], [1.0], "must be as many losses"),
        ([1.0, np.nan], [1.0, 1.0], "`observed > 0` and finite must hold, but got nan"),
        ([1.0, 2.0], [1.0, -3.0], "`predicted > 0` and finite must hold, but got -3.0"),
    ],
)
def test_what_cannot_be_scored_is_refused(observed, predicted, words):
    with pytest.raises(InputError, match=words):
        scores(observed, predicted)


# Levels.


def test_a_level_that_scatters_around_its_value_stays_whole():
    values = [0.96, 1.0, 1.03, 1.05, 2.0, 2.1, 0.5]
    assert level_of(np.array(values)).tolist() == [1, 1, 1, 1, 2, 2, 0]


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=60))
def test_levels_are_ordered_narrow_and_number_from_zero(values):
    values = np.array(values)
    level = level_of(values)
    assert set(level) == set(range(level.max() + 1))
    order = np.argsort(values, kind="stable")
    assert (np.diff(level[order]) >= 0).all()
    for one in set(level):
        inside = values[level == one]
        assert inside.max() <= 1.1 * inside.min() * (1 + 1e-6)


def test_many_distinct_values_are_binned_fast():
    level = level_of(np.geomspace(1, 1e3, 20_000))
    assert 70 <= level.max() + 1 <= 75


# Decision regret.


def test_scores_and_regret_show_themselves():
    found = scores([2.0, 4.0], [2.5, 3.9])
    assert found.summary().startswith("error of 2 predicted losses: 13.8 % on average")
    runs = synthetic_runs()
    assert "mape_percent" in found._repr_html_()
    assert "regret_nats" in decision_regret(runs, runs["loss"])._repr_html_()


def test_the_truth_has_no_regret_and_the_worst_choice_has_the_most():
    runs = synthetic_runs(noise=0.0)
    right = decision_regret(runs, runs["loss"])
    assert right.mean == right.largest == 0
    wrong = decision_regret(runs, 10 - runs["loss"])
    spread = runs.groupby([N, D])["loss"].agg(lambda loss: loss.max() - loss.min())
    assert wrong.largest == pytest.approx(spread.max())
    assert 0 < wrong.random < wrong.mean
    assert len(wrong.groups) == 9
    assert "over 9 groups of equal N and D: mean" in wrong.summary()


def test_a_law_without_shape_chooses_at_random():
    runs = synthetic_runs()
    found = decision_regret(runs, np.full(len(runs), 3.0))
    assert found.mean == pytest.approx(found.random)


def test_regret_is_the_loss_of_the_picked_shape_minus_the_best():
    runs = pd.DataFrame({N: 1e6, D: 1e8, "hidden_size": [1, 2, 3], "loss": [3.0, 2.5, 2.8]})
    found = decision_regret(runs, [2.0, 2.1, 1.9])  # picks the third
    assert found.mean == pytest.approx(0.3)
    assert found.random == pytest.approx((3.0 + 2.5 + 2.8) / 3 - 2.5)


def test_replicates_of_a_shape_count_once():
    shapes = [1, 1, 1, 2, 3]
    runs = pd.DataFrame({N: 1e6, D: 1e8, "hidden_size": shapes, "loss": [2.0, 4.0, 3.0, 2.9, 3.5]})
    found = decision_regret(runs, [1.0, 1.0, 1.0, 1.1, 1.2])
    assert found.groups["shapes"].tolist() == [3]
    assert found.mean == pytest.approx(3.0 - 2.9)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": [1, 2, 2]}, "no 3 shapes have the same N and D within 10 %"),
        ({D: [1e8, 2e8, 4e8]}, "no 3 shapes have the same N and D"),
        ({"hidden_size": None}, "no column of the table describes a shape"),
    ],
)
def test_without_a_choice_there_is_no_regret_and_it_says_why(change, why):
    runs = pd.DataFrame({N: 1e6, D: 1e8, "hidden_size": [1, 2, 3], "loss": [3.0, 2.5, 2.8]})
    runs = runs.assign(**change)
    runs = runs.drop(columns="hidden_size") if change.get("hidden_size", 0) is None else runs
    found = decision_regret(runs, runs["loss"])
    assert found.mean is found.largest is found.random is None
    assert why in found.summary()


def test_predictions_of_another_table_are_refused():
    with pytest.raises(InputError, match=r"`predicted` must have 144 losses, but has shape \(3,\)"):
        decision_regret(synthetic_runs(), [1.0, 2.0, 3.0])


# Leave-largest-out.


def test_each_cutoff_fits_what_lies_below_and_judges_the_rest(runs):
    found = leave_largest_out("conditional", runs, by="size", **QUICK)
    table = found.frame()
    assert table["cutoff"].tolist() == [2e5, 4e5, 8e5, 1.6e6]
    assert table["status"].iloc[0].startswith("below it, A is held at no effect: all runs have one")
    for cutoff in found.fitted:
        fitted = runs[runs[N] < cutoff.value]
        assert cutoff.rows_in == len(fitted) == len(cutoff.fit.run_ids)
        assert cutoff.largest_fitted == fitted[N].max()
        assert set(cutoff.held_out["run_id"]) == set(runs["run_id"]) - set(fitted["run_id"])
        apart = np.log10(cutoff.held_out[N] / cutoff.largest_fitted)
        np.testing.assert_allclose(cutoff.held_out["distance_decades"], apart)
        again = scores(cutoff.held_out["loss"], cutoff.held_out["predicted_loss"])
        assert again == cutoff.scores


def test_the_true_law_predicts_the_sizes_left_out_and_picks_their_shapes(runs):
    found = leave_largest_out("conditional", runs, by="size", cutoffs=[8e5], **QUICK)
    (cutoff,) = found.fitted
    assert cutoff.scores.mape < 1
    assert cutoff.scores.spearman > 0.95
    assert cutoff.regret.mean < 0.2 * cutoff.regret.random


def test_the_drift_table_ends_with_the_fit_to_all_rows(runs):
    found = leave_largest_out("conditional", runs, by="tokens", **QUICK)
    drift = found.drift()
    assert drift["cutoff"].iloc[-1] == np.inf
    assert drift["rows_in"].iloc[-1] == len(runs)
    last = found.complete.parameters()
    for name in ("E", "alpha", "beta", "mlp_to_attention_optimum", "gqa_slope"):
        assert drift[name].iloc[-1] == last[name]["value"]
    share = last["beta"]["value"] / (last["alpha"]["value"] + last["beta"]["value"])
    assert drift["a_opt"].iloc[-1] == pytest.approx(share)


def test_intervals_cover_held_out_runs_of_the_true_law():
    runs = synthetic_chinchilla(0.01, shapes=8, tokens=(1e6, 4e6, 1.6e7, 6.4e7))
    asked = {"by": "compute", "cutoffs": [1e14]}
    found = leave_largest_out("chinchilla", runs, resamples=60, **asked, **QUICK)
    assert found.fitted[0].coverage > 0.85
    assert leave_largest_out("chinchilla", runs, **asked, **QUICK).fitted[0].coverage is None


def test_compute_is_counted_as_the_table_says_or_else_as_6nd(runs):
    plain = leave_largest_out("chinchilla", runs, by="compute", cutoffs=[1e13], **QUICK)
    assert plain.cutoffs[0].rows_in == (6 * runs[N] * runs[D] < 1e13).sum()
    given = runs.assign(flops_6nd=12 * runs[N] * runs[D])
    found = leave_largest_out("chinchilla", given, by="compute", cutoffs=[1e13], **QUICK)
    assert found.cutoffs[0].rows_in == (12 * runs[N] * runs[D] < 1e13).sum()


def test_default_cutoffs_of_a_dense_table_fit_half_to_nine_tenths_of_it():
    runs = synthetic_chinchilla(0.01, shapes=1, sizes=tuple(np.geomspace(1e5, 1e8, 20)))
    found = leave_largest_out("chinchilla", runs, by="size", **QUICK)
    shares = found.frame()["rows_in"] / len(runs)
    assert len(shares) == 4
    assert shares.iloc[0] == pytest.approx(0.5, abs=0.05)
    assert shares.iloc[-1] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"by": "loss"}, "`by` must be one of size, compute, tokens, but got 'loss'"),
        ({"cutoffs": 0}, "`cutoffs >= 1` must hold, but got 0"),
        ({"cutoffs": []}, "`cutoffs` must name at least one cut-off"),
        (
            {"cutoffs": [1.0]},
            r"must lie above 1e\+05 and at most at 1.6e\+06 parameters, but got 1",
        ),
        ({"cutoffs": [float("nan")]}, "a cut-off must lie above"),
        ({"cutoffs": [2e5]}, "needs a cut-off below which `conditional` can be fitted, but: below"),
    ],
)
def test_cutoffs_that_cannot_be_are_refused(runs, asked, words):
    with pytest.raises(InputError, match=words):
        leave_largest_out("conditional", runs, **asked, **QUICK)


def test_one_size_cannot_be_left_out():
    with pytest.raises(InputError, match="by size needs at least 2 levels of parameters"):
        leave_largest_out("conditional", synthetic_runs(sizes=SIZES[:1]), by="size", **QUICK)


def test_a_table_without_tokens_is_refused():
    with pytest.raises(InputError, match="the run table lacks the column `tokens`"):
        leave_largest_out("chinchilla", synthetic_runs().drop(columns=D))


def test_total_parameters_stand_in_for_n_and_the_fits_say_so():
    runs = synthetic_chinchilla(0.002, shapes=4).rename(columns={N: "n_total"})
    found = leave_largest_out("chinchilla", runs, by="size", cutoffs=[1e6], **QUICK)
    assert found.complete.size_convention == "total"
    assert found.fitted[0].fit.size_convention == "total"
    assert found.fitted[0].held_out[N].tolist() == runs["n_total"][runs["n_total"] > 1e6].tolist()
    assert N not in runs


# The whole check.


def test_a_check_gathers_every_part(checked, runs):
    assert set(checked.hold_outs) == {"size", "compute"}
    assert checked.in_sample.rows == len(runs)
    assert checked.in_sample.mape < 0.5
    assert checked.regret.mean < checked.regret.random
    assert checked.valley.allocation.compute == pytest.approx(6 * runs[N].max() * runs[D].max())
    table = checked.frame()
    assert table["by"].iloc[0] == "fitted runs"
    assert len(table) == 1 + sum(len(one.cutoffs) for one in checked.hold_outs.values())


def test_a_check_shows_itself_as_text_html_and_json(checked):
    text = checked.summary()
    assert text.startswith(f"conditional on {len(checked.fit.run_ids)} runs: ")
    for words in ("drift of the parameters", "flat valley", "condition number", "decision regret"):
        assert words in text
    html = checked._repr_html_()
    assert html.count("<table") == len(checked.view().tables)
    assert "(Mis)Fitting checklist" in html
    document = json.loads(json.dumps(checked.as_json(), allow_nan=False))
    assert document["leave_largest_out"]["size"]["drift"][-1]["cutoff"] is None
    assert document["regret"]["mean_nats"] == checked.regret.mean
    assert document["warnings"] == list(checked.warnings)


def test_check_of_isoflop_runs_shows_all_three_approaches():
    found = check("chinchilla", isoflop_runs(0.002), resamples=10, **QUICK)
    table = found.approaches.frame()
    assert table["status"].tolist() == ["fitted"] * 3
    fitted = found.valley.allocation
    assert table["n"].iloc[2] == fitted.n["value"]
    assert table["a_low"].iloc[2] == fitted.exponent["low"]
    title = "Chinchilla's approaches: N* ∝ C^a, N* at 1e+16 FLOPs, 95 % intervals"
    assert found.view().tables[title]["approach"].tolist() == table["approach"].tolist()
    assert title in found.summary()
    assert title.replace("'", "&#x27;") in found._repr_html_()
    assert not [line for line in found.view().notes if "approach 1 " in line]


def test_check_says_in_one_line_why_an_approach_is_not_available(checked):
    lines = [line for line in checked.view().notes if line.startswith("Chinchilla's approach 2")]
    assert len(lines) == 1
    assert "not available: 0 levels of compute have a minimum" in lines[0]
    assert lines[0] in checked.summary()
    _, second, third = checked.as_json()["chinchilla_approaches"]["approaches"]
    assert second["a"] is None
    assert second["status"] in lines[0]
    assert third["status"] == "fitted"


def test_approaches_of_a_check_count_parameters_as_its_fit_does():
    runs = isoflop_runs()
    runs = runs.assign(n_total=runs[N], **{N: 0.5 * runs[N] ** 0.95})
    found = check("chinchilla", runs, size="total", resamples=0, **QUICK)
    np.testing.assert_allclose(found.approaches.frame()["a"], SHARE, atol=0.01)


def test_a_fit_is_checked_as_it_was_made():
    runs = synthetic_chinchilla(0.005, shapes=4)
    fitted = fit("chinchilla", runs, delta=3e-3, starts=4, resamples=0)
    found = check(fitted, runs)
    assert found.fit is fitted
    part = found.hold_outs["size"].fitted[0].fit
    assert (part.delta, part.delta_rule, part.starts, len(part.draws)) == (3e-3, "as given", 4, 0)


def test_a_fit_of_other_runs_is_refused(checked, runs):
    with pytest.raises(InputError, match="`check` needs the runs of the fit"):
        check(checked.fit, runs.iloc[1:])


def test_what_the_table_does_not_allow_is_named_and_the_rest_goes_on():
    runs = synthetic_runs(sizes=SIZES[:1], shapes=8)
    found = check("conditional", runs, resamples=0, **QUICK)
    assert "needs at least 2 levels of parameters" in found.unavailable["size"]
    assert "by size: not available: " in found.summary()
    assert any("all runs have one size" in words for words in found.warnings)
    assert "no best N: the law has A held at no effect" in found.valley.view().title


def test_doubts_about_the_table_are_warnings():
    runs = synthetic_chinchilla(0.005, shapes=4)
    flops = 1.5 * 6 * runs[N] * runs[D]
    runs = runs.assign(schedule="constant", curve=np.arange(len(runs)) // 2, flops_counted=flops)
    warned = check("chinchilla", runs, resamples=0, **QUICK).warnings
    assert "some schedules are constant: losses before a decay are not final losses" in warned
    assert "several rows are one run (curve): rows are not independent" in warned
    assert "counted FLOPs and 6ND differ by a factor 1.50 (median)" in warned


# The checklist.


def test_the_checklist_is_filled_from_the_fit_and_the_table(runs):
    table = runs.assign(
        optimizer="muon", schedule="wsd", learning_rate=np.linspace(0.01, 0.02, len(runs)),
        corpus="text:1", seed=0,
    )  # fmt: skip
    table = RunTable(frame=table, left_out={"bad-1": "diverged"})
    fitted = fit("conditional", table, starts=4, resamples=5, seed=3, delta=1e-2)
    found = checklist(fitted, table)
    training, fitting = found.sections["Training"], found.sections["Fitting"]
    assert training["optimiser"] == "muon"
    assert training["learning rate"] == "0.01 to 0.02"
    assert training["models"] == f"{len(table)} runs; 5 sizes, 1e+05 to 1.6e+06"
    assert training["tokenizer"] == "not recorded"
    assert fitting["starts"].startswith("4 scrambled Sobol points, seed 3")
    assert fitting["delta"] == "0.01 (as given)"
    assert fitting["uncertainty"].startswith("5 resamples by ")
    assert fitting["hold-out"].startswith("not recorded")
    assert found.sections["Data collection"]["rows left out"] == "1: bad-1 (diverged)"
    assert found.sections["Data collection"]["data hash"] == f"sha256 {fitted.data_sha256}"
    assert "E + A/N^alpha + B/D^beta" in found.sections["Scaling law"]["form"]
    assert {"tokenizer", "hold-out"} <= set(found.missing)
    assert "optimiser" not in found.missing


def test_the_checklist_is_a_markdown_block_and_a_dictionary(checked):
    found = checked.checklist
    block = found.markdown()
    assert block.startswith("### (Mis)Fitting checklist (arXiv 2502.18969)\n")
    assert all(f"**{section}**" in block for section in found.sections)
    assert block.count("\n- ") == len(found.frame())
    assert "leave-largest-out by size" in found.sections["Fitting"]["hold-out"]
    assert found.as_json()["sections"] == found.sections


def test_values_that_some_runs_lack_are_said_to_be_missing(runs):
    table = runs.assign(optimizer=["adamw", None] * (len(runs) // 2))
    fitted = fit("chinchilla", table, starts=4, resamples=0, delta=1e-2)
    answer = checklist(fitted, table).sections["Training"]["optimiser"]
    assert answer == f"adamw (not recorded for {len(runs) // 2} runs)"
