import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.space.pareto import hypervolume
from shapelaw.search.study.acquisition import (
    expected_gain,
    expected_improvement,
    reference_point,
    step_function,
)

REFERENCE = (3.0, 0.0)
POINTS = st.lists(st.tuples(st.floats(1, 3.5), st.floats(-1, 4)), max_size=6)


def area(losses: np.ndarray, speeds: np.ndarray) -> float:
    return hypervolume(losses, np.exp(speeds), (REFERENCE[0], float(np.exp(REFERENCE[1]))))


@settings(max_examples=60)
@given(POINTS, st.floats(1, 3.5), st.floats(-1, 4), st.floats(0.05, 1))
def test_the_expected_gain_is_the_mean_gain_in_hypervolume(
    points: list[tuple[float, float]], loss: float, mean: float, deviation: float
) -> None:
    losses, speeds = np.array(points).reshape(-1, 2).T
    nodes = np.linspace(-6, 6, 401)
    weights = np.exp(-(nodes**2) / 2)
    weights /= weights.sum()
    before = area(losses, speeds)
    gains = [
        area(np.append(losses, loss), np.append(speeds, mean + deviation * node)) - before
        for node in nodes
    ]
    expected = expected_gain(
        np.array([loss]), np.array([mean]), np.array([deviation]),
        measured=(losses, speeds), reference=REFERENCE,
    )  # fmt: skip
    assert expected[0] == pytest.approx(weights @ gains, abs=5e-3)


def test_gain_of_a_shape_without_uncertainty_is_its_hypervolume() -> None:
    losses, speeds = np.array([1.5, 2.0]), np.array([1.0, 2.0])
    gain = expected_gain(
        np.array([1.8]), np.array([1.7]), np.array([1e-9]),
        measured=(losses, speeds), reference=REFERENCE,
    )  # fmt: skip
    assert gain[0] == pytest.approx(0.2 * 0.7)


def test_gains_of_many_shapes_equal_those_one_by_one() -> None:
    draw = np.random.default_rng(0)
    losses, mean, deviation = draw.uniform(1, 3, 20_000), draw.normal(size=20_000), np.ones(20_000)
    measured = draw.uniform(1, 3, 9), draw.normal(size=9)
    together = expected_gain(losses, mean, deviation, measured=measured, reference=REFERENCE)
    for row in (0, 17, 16_384, 19_999):
        alone = expected_gain(
            losses[[row]], mean[[row]], deviation[[row]], measured=measured, reference=REFERENCE
        )
        assert together[row] == pytest.approx(alone[0])


def test_shape_beyond_the_reference_has_no_gain() -> None:
    gain = expected_gain(
        np.array([3.0, 3.5, 2.9]), np.full(3, 9.0), np.ones(3),
        measured=(np.array([]), np.array([])), reference=REFERENCE,
    )  # fmt: skip
    assert list(gain > 0) == [False, False, True]


def test_expected_improvement_grows_with_mean_and_deviation() -> None:
    best = np.array(1.0)
    by_mean = expected_improvement(np.array([0.0, 1.0, 2.0]), np.ones(3), best)
    by_doubt = expected_improvement(np.full(3, 0.5), np.array([0.1, 1.0, 2.0]), best)
    assert (np.diff(by_mean) > 0).all()
    assert (np.diff(by_doubt) > 0).all()
    assert by_mean[1] == pytest.approx(1 / np.sqrt(2 * np.pi))


def test_step_function_rises_at_points_faster_than_all_of_less_loss() -> None:
    starts, heights = step_function(
        np.array([2.0, 1.0, 1.5, 2.0]), np.array([3.0, 1.0, 0.5, 2.0]), reference=REFERENCE
    )
    assert starts.tolist() == [-np.inf, 1.0, 2.0]
    assert heights.tolist() == [0.0, 1.0, 3.0]


def test_reference_point_lies_beyond_both_ends_of_the_front() -> None:
    loss, speed = reference_point(np.array([1.0, 2.0]), np.array([5.0, 7.0]))
    assert (loss, speed) == (pytest.approx(2.1), pytest.approx(4.8))
    assert reference_point(np.array([1.0]), np.array([5.0]))[0] > 1.0
