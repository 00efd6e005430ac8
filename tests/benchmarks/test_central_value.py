"""The benchmark of central values: cuts by size, and errors with values worked out by hand."""

import sys

import numpy as np
import pandas as pd
import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import central_value
import decisions

from shapelaw.scaling.checks.decision_cases import decision_cases


def test_cuts_hold_larger_models_and_place_the_shapes_of_every_decision_among_them():
    runs = decisions.load("quickstart", "total", "total")
    cases = {case.cut: case for case in decision_cases(runs) if case.sizes >= 2}
    cuts = list(central_value.cuts_of("quickstart", "total"))
    assert [cut for *_, cut in cuts] == sorted(cases)
    for smaller, larger, pairs, cut in cuts:
        assert smaller.sizes.max() == cut
        assert larger.sizes.min() >= 1.5 * cut
        names = {tuple(larger.run_ids[rows]) for pair in pairs for rows in pair}
        assert tuple(runs.run_ids[cases[cut].first]) in names
        assert tuple(runs.run_ids[cases[cut].second]) in names


def test_errors_are_root_mean_squares_of_losses_and_of_differences_between_shapes():
    errors = {"equation": np.array([0.03, 0.01, -0.01]), "median": np.array([0.02, 0.02, 0.02])}
    pairs = [(np.array([0, 1]), np.array([2]))]  # two seeds of the first shape
    figures = central_value.scored(errors, pairs)
    assert figures["equation_percent"] == pytest.approx(100 * np.sqrt(0.0011 / 3))
    assert figures["median_percent"] == pytest.approx(2.0)
    assert figures["equation_difference_percent"] == pytest.approx(3.0)
    assert figures["median_difference_percent"] == pytest.approx(0.0)
    assert central_value.scored(errors, [])["median_difference_percent"] is None


def test_summary_counts_tables_and_cuts_by_the_ratio_of_their_errors():
    rows = pd.DataFrame(
        [("a", 1.0, 0.5, 1.0), ("a", 1.0, 2.0, 1.0), ("b", 2.0, 1.0, 2.02)],
        columns=["table", "equation_percent", "predicted_percent", "median_percent"],
    ).assign(size="total")
    found = central_value.summary(rows)
    # Table a: halved and doubled, mean ratio 1; table b: halved.
    assert found["predicted"]["ratio"] == pytest.approx(2**-0.5)
    assert (found["predicted"]["better_tables"], found["predicted"]["worse_tables"]) == (1, 0)
    assert (found["predicted"]["better_cuts"], found["predicted"]["worse_cuts"]) == (2, 1)
    assert (found["median"]["better_cuts"], found["median"]["worse_cuts"]) == (0, 0)
