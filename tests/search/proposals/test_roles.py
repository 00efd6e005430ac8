from dataclasses import replace

import numpy as np
import pytest

from shapelaw.search.proposals.proposal import BASELINE, CANDIDATE, EVEN, FAST, LOSS_OPTIMAL
from shapelaw.search.proposals.roles import assign_roles, front_of
from support.one_proposal import SPEED

# The baseline, then shapes in the order of growing speed.
LOSSES = np.array([2.8, 2.7, 2.7001, 2.79, 2.799, 2.9])
SPEEDS = np.array([100.0, 90.0, 95.0, 130.0, 150.0, 200.0])
LIKELY = np.array([0.5, 0.99, 0.99, 0.81, 0.55, 0.01])
ALL = np.ones(6, dtype=bool)


def roles(**changes: np.ndarray) -> list[str]:
    given = {"losses": LOSSES, "speeds": SPEEDS, "likely": LIKELY, "eligible": ALL} | changes
    return assign_roles(
        given["losses"], given["speeds"], given["likely"], given["eligible"], confidence=0.8
    )


def test_every_role_goes_to_the_shape_that_it_names() -> None:
    assert roles() == [BASELINE, CANDIDATE, LOSS_OPTIMAL, FAST, EVEN, CANDIDATE]


def test_tie_in_loss_goes_to_the_faster_shape_and_a_real_difference_to_the_lower() -> None:
    apart = np.array([2.8, 2.69, 2.7001, 2.79, 2.799, 2.9])
    assert roles(losses=apart)[1] == LOSS_OPTIMAL


def test_faster_shape_of_equal_predicted_loss_that_is_likely_worse_is_not_loss_optimal() -> None:
    doubtful = np.where(np.arange(6) == 2, 0.3, LIKELY)
    assert roles(likely=doubtful)[1] == LOSS_OPTIMAL


def test_shape_is_not_fast_below_the_confidence_or_without_a_gain_in_speed() -> None:
    assert FAST not in roles(likely=np.where(LIKELY < 0.9, 0.79, LIKELY))
    slow = np.minimum(SPEEDS, 100.9)
    assert {FAST, EVEN}.isdisjoint(roles(speeds=slow))


def test_baseline_of_the_lowest_loss_keeps_its_role_and_no_other_shape_has_it() -> None:
    assert LOSS_OPTIMAL not in roles(losses=LOSSES + np.array([-1, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("role", [LOSS_OPTIMAL, FAST, EVEN])
def test_shape_that_is_not_eligible_or_not_served_has_no_role(role: str) -> None:
    place = roles().index(role)
    out = np.arange(6) != place
    assert roles(eligible=out)[place] == CANDIDATE
    assert roles(speeds=np.where(out, SPEEDS, 0.0))[place] == CANDIDATE


def test_shapes_set_apart_do_not_push_others_off_the_front() -> None:
    answers = [replace(SPEED, output_tokens_per_second=r) for r in (100.0, 90.0, 200.0, 50.0)]
    losses = [2.8, 2.7, 2.6, 2.65]
    assert front_of(losses, answers) == [False, False, True, False]
    apart = np.array([False, False, True, True])
    assert front_of(losses, answers, None, apart) == [True, True, True, False]
