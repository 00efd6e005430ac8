"""Reproduction of published findings on the Chinchilla data by the checks."""

import os

import numpy as np
import pytest

from shapelaw.scaling.checks.chinchilla import approaches
from shapelaw.scaling.checks.conditioning import identifiability_report
from shapelaw.scaling.checks.holdout import leave_largest_out
from shapelaw.scaling.checks.precision import interval_widths
from shapelaw.scaling.checks.report import check
from shapelaw.scaling.fitting.compute_optimal import allocation
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import MIRROR, load_runs

CUTOFFS = (1e20, 3e20, 6e20, 1e21)


@pytest.fixture(scope="module")
def runs():
    """Return the 240 Chinchilla points; skip the test if they are missing."""
    if not os.environ.get(MIRROR):
        pytest.skip(f"the public tables are not here: set {MIRROR} to a folder that holds them")
    table = load_runs("chinchilla").frame
    return table[~table["outlier"]].drop(columns="outlier").reset_index(drop=True)


@pytest.fixture(scope="module")
def golden(runs):
    return fit("chinchilla", runs, delta=1e-3, starts=16, resamples=100)


@pytest.fixture(scope="module")
def by_compute(runs):
    return leave_largest_out("chinchilla", runs, by="compute", cutoffs=CUTOFFS, delta=1e-3)


def test_parameters_drift_with_the_largest_compute_that_is_fitted(by_compute):
    drift = by_compute.drift()
    assert drift["cutoff"].tolist() == [*CUTOFFS, np.inf]
    assert drift["rows_in"].tolist() == [136, 177, 198, 217, 240]
    assert drift["beta"].round(3).tolist() == [0.470, 0.453, 0.427, 0.396, 0.367]
    assert drift["E"].round(3).tolist() == [1.864, 1.884, 1.849, 1.821, 1.817]
    assert drift["a_opt"].iloc[-1] == pytest.approx(0.51390, abs=5e-6)


def test_held_out_error_stays_near_one_percent_while_parameters_drift(by_compute):
    table = by_compute.frame()
    assert table["mape_percent"].round(2).tolist() == [0.89, 1.00, 1.04, 1.05]
    assert (table["rows_in"] + table["rows_out"] == 240).all()
    assert "by compute, beta drifts most: 0.47 at the first cut-off, 0.367 on all rows" in (
        by_compute.notes()
    )


def test_held_out_error_grows_with_distance(by_compute):
    near_to_far = by_compute.by_distance()["mape_percent"].tolist()
    assert near_to_far == sorted(near_to_far)
    assert near_to_far[-1] > 2 * near_to_far[0]


def test_condition_number_of_chinchilla_data_is_33_with_centred_logarithms(golden, runs):
    report = identifiability_report(golden, runs)
    assert report.condition == pytest.approx(33, abs=0.1)
    assert report.status == "identified"
    assert report.findings == ()
    pairs = {
        frozenset((row["first"], row["second"])) for row in report.extremes(2).to_dict("records")
    }
    assert pairs == {frozenset(("A", "alpha")), frozenset(("B", "beta"))}


def test_published_intervals_of_the_exponent_would_need_far_more_runs(golden, runs):
    # arXiv 2203.15556, table A3: 0.454 to 0.455 for approach 3; arXiv 2404.10102 notes its width.
    flagged = interval_widths(golden, runs, claimed={"a_opt": (0.454, 0.455)})
    assert flagged.too_narrow == ["a_opt"]
    assert flagged.widths["points_needed"].iloc[0] > 100_000
    assert "too narrow for 240 runs: a_opt" in flagged.view().title
    assert interval_widths(golden, runs).too_narrow == []


def test_three_approaches_agree_on_an_exponent_of_one_half(runs):
    result = approaches(runs, delta=1e-3, resamples=60)
    table = result.frame().set_index("approach")
    assert result.compute == runs["flops_6nd"].max()
    assert set(table["status"]) == {"fitted"}
    assert table.loc["3 (parametric law)", "a"] == pytest.approx(0.51390, abs=5e-6)
    assert ((table["a_low"] < 0.5) & (table["a_high"] > 0.5)).all()
    assert (table["n_low"] < table["n"]).all()
    assert table["n"].max() < 2 * table["n"].min()


def test_optimum_at_the_budget_of_chinchilla_is_near_twenty_tokens_per_parameter(golden):
    best = allocation(golden, 5.76e23)
    assert best.method == "closed form"
    assert best.n["value"] == pytest.approx(7.2e10, rel=0.1)
    assert best.tokens_per_n["low"] < 20 < best.tokens_per_n["high"]
    assert best.exponent["low"] == pytest.approx(0.48, abs=0.02)


def test_check_warns_that_held_out_runs_lie_outside_their_intervals(golden, runs):
    report = check(golden, runs, starts=4, resamples=20)
    assert set(report.hold_outs) == {"size", "compute"}
    assert report.unavailable == {}
    warned = " ".join(report.warnings)
    assert "of the runs left out by compute lie inside their 95 % interval" in warned
    assert report.regret is None
    assert report.in_sample.rows == 240
    assert report.checklist.sections["Fitting"]["value at the optimum"].startswith(
        "0.0010182740178"
    )
