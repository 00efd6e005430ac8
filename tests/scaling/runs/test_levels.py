import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.levels import MAX_CLUSTERED_VALUES, count_distinct, level_of


def test_level_with_scattered_values_is_not_split():
    values = [0.96, 1.0, 1.03, 1.05, 2.0, 2.1, 0.5]
    assert level_of(np.array(values)).tolist() == [1, 1, 1, 1, 2, 2, 0]


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=60))
def test_levels_are_ordered_narrow_and_numbered_from_zero(values):
    values = np.array(values)
    level = level_of(values)
    assert set(level) == set(range(level.max() + 1))
    order = np.argsort(values, kind="stable")
    assert (np.diff(level[order]) >= 0).all()
    for number in set(level):
        inside = values[level == number]
        assert inside.max() <= 1.1 * inside.min() * (1 + 1e-6)


def test_many_distinct_values_are_binned_into_levels_of_ten_percent():
    level = level_of(np.geomspace(1, 1e3, 20_000))
    assert 70 <= level.max() + 1 <= 75


@pytest.mark.parametrize("lowest", [1.0, 1.05, 0.97e6, 3.3e9])
def test_many_distinct_values_within_ten_percent_are_one_level(lowest):
    values = np.linspace(lowest, 1.0999 * lowest, MAX_CLUSTERED_VALUES + 1)
    assert count_distinct(values) == 1


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([5.0], 1),
        ([5.0, 5.0, 5.0], 1),
        ([1.0, 1.09], 1),
        ([1.0, 1.11], 2),
        ([1.00e6, 1.01e6], 1),
        ([1e6, 4e6, 1.02e6, 4.1e6, 1.6e7], 3),
    ],
)
def test_values_within_ten_per_cent_are_one_level(values, count):
    assert count_distinct(np.array(values)) == count


@given(spread=st.floats(1.5, 1e4), step=st.floats(1.001, 1.09))
def test_chain_of_close_values_has_as_many_levels_as_its_spread_needs(spread, step):
    values = np.geomspace(1e7, spread * 1e7, int(np.log(spread) / np.log(step)) + 2)
    width, gap, length = np.log(1.1), np.log(values[1] / values[0]), np.log(spread)
    # A level and the gap after it cover width + gap at most; two neighbours exceed one width.
    assert np.floor(length / (width + gap)) <= count_distinct(values) <= 2 * length / width + 2


def test_values_without_a_level_are_refused():
    with pytest.raises(InputError, match="levels need `value > 0` and finite"):
        level_of(np.array([1.0, 0.0]))
