import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.decisions.decide import share_lowest
from shapelaw.scaling.decisions.near_best import near_best

DRAWS = np.log([[2.0, 2.004, 2.2], [2.0, 2.004, 2.2], [2.0, 2.004, 2.2], [2.3, 2.3, 2.2]])


def test_near_best_counts_draws_within_the_indifference() -> None:
    best = near_best(DRAWS, 0.005)
    assert (best.row, best.certainty, best.rival) == (0, 0.75, 2)


def test_near_best_without_a_rival_where_one_shape_always_wins() -> None:
    best = near_best(DRAWS[:3], 1e-9)
    assert (best.row, best.certainty, best.rival) == (0, 1.0, None)


def test_near_best_prefers_the_lower_mean_of_equally_certain_shapes() -> None:
    assert near_best(DRAWS[:3, [1, 0, 2]], 0.01).row == 1


@given(st.integers(0, 1000), st.floats(1e-6, 0.5))
def test_certainty_rises_with_the_indifference_and_exceeds_the_share_of_lowest_draws(
    seed: int, indifference: float
) -> None:
    draws = np.random.default_rng(seed).standard_normal((40, 6))
    narrow, wide = near_best(draws, indifference), near_best(draws, 2 * indifference)
    assert share_lowest(draws).max() <= narrow.certainty <= wide.certainty
