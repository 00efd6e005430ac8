import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from shapelaw.scaling.checks.calibration import (
    brier_score,
    favoured,
    log_score,
    reliability_table,
    sharpness,
    wilson_interval,
)

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([80.0, 90.0, 95.0]))
def test_wilson_interval_of_counts_equals_that_of_scipy(counted, level):
    held, count = counted
    expected = binomtest(held, count).proportion_ci(level / 100, method="wilson")
    assert wilson_interval(held, count, level) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("stated", "happened", "brier", "logarithmic"),
    [
        ([0.5, 0.5], [1, 0], 0.25, np.log(2)),
        ([0.8, 0.4], [1, 1], (0.04 + 0.36) / 2, -(np.log(0.8) + np.log(0.4)) / 2),
        ([0.9], [0.5], 0.16, -(np.log(0.9) + np.log(0.1)) / 2),
        ([1.0, 0.0], [1, 0], 0.0, -np.log(1 - 1e-4)),
        ([0.0], [1], 1.0, -np.log(1e-4)),
    ],
)
def test_scores_of_stated_probabilities_equal_those_by_hand(stated, happened, brier, logarithmic):
    assert brier_score(stated, happened) == pytest.approx(brier)
    assert log_score(stated, happened) == pytest.approx(logarithmic)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1))
def test_scores_of_complementary_events_are_equal(events):
    p, outcome = map(np.array, zip(*events, strict=True))
    assert brier_score(1 - p, 1 - outcome) == pytest.approx(brier_score(p, outcome))
    assert log_score(1 - p, 1 - outcome) == pytest.approx(log_score(p, outcome))
    assert sharpness(1 - p) == pytest.approx(sharpness(p))


def test_favoured_side_holds_where_it_happened_and_half_where_there_is_none():
    probability, held = favoured([0.7, 0.2, 0.2, 0.5, 0.9], [1, 0, 1, 1, 0.5])
    assert probability.tolist() == [0.7, 0.8, 0.8, 0.5, 0.9]
    assert held.tolist() == [1, 1, 0, 0.5, 0.5]


def test_reliability_table_counts_every_event_once_in_its_bin():
    table = reliability_table([0.55, 0.45, 0.6, 0.05, 0.9, 1.0], [1, 1, 0, 0, 1, 0])
    assert table["stated_from"].tolist() == [0.5, 0.6, 0.9]
    assert table["n"].tolist() == [2, 1, 3]
    assert table["mean_stated"].tolist() == pytest.approx([0.55, 0.6, 0.95])
    assert table["share_held"].tolist() == pytest.approx([0.5, 0.0, 2 / 3])
    low, high = wilson_interval(2, 3)
    assert (table["held_low"].iloc[2], table["held_high"].iloc[2]) == (low, high)


@pytest.mark.parametrize(("overstated", "consistent"), [(0.0, True), (0.2, False)])
def test_reliability_of_synthetic_events_is_consistent_only_if_stated_rightly(
    overstated, consistent
):
    generator = np.random.default_rng(0)
    truth = generator.uniform(0.55, 0.8, 4000)
    happened = generator.random(4000) < truth
    table = reliability_table(np.minimum(truth + overstated, 1), happened)
    assert table["consistent"].all() == consistent


def test_sharpness_is_zero_for_even_and_one_for_certain_statements():
    assert sharpness([0.5, 0.5]) == 0
    assert sharpness([0.0, 1.0]) == 1
    assert sharpness([0.75, 0.5]) == pytest.approx(0.25)
