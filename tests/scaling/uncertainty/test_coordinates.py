"""Coordinates of internal parameters: round trips and derivatives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.uncertainty.coordinates import PLAIN, POSITIVE, SHARE, Coordinates

COORDINATES = Coordinates(kinds=(PLAIN, POSITIVE, SHARE), ceilings=np.array([0.0, 0.0, 0.7]))
POINTS = st.tuples(*[st.floats(-20, 20)] * 3).map(lambda point: np.array([point]))


@given(POINTS)
def test_coordinates_of_internal_parameters_return_to_themselves(t):
    assert COORDINATES.t(COORDINATES.theta(t)[0]) == pytest.approx(t, rel=1e-6, abs=1e-5)


@given(POINTS)
def test_slope_equals_finite_difference(t):
    step = 1e-5
    higher, lower = COORDINATES.theta(t + step)[0], COORDINATES.theta(t - step)[0]
    expected = (higher - lower) / (2 * step)
    assert COORDINATES.theta(t)[1] == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(POINTS)
def test_positive_parameter_is_positive_and_share_is_below_its_ceiling(t):
    _, positive, share = COORDINATES.theta(t)[0][0]
    assert positive > 0
    assert share < 0.7


@pytest.mark.parametrize("theta", [[0.0, 0.0, 0.7], [0.0, 0.0, 0.9], [0.0, -1.0, -100.0]])
def test_value_at_a_bound_is_moved_to_a_finite_coordinate(theta):
    t = COORDINATES.t(np.array([theta]))
    assert np.isfinite(t).all()
    assert np.isfinite(COORDINATES.theta(t)[0]).all()


def test_take_keeps_kinds_and_ceilings_of_the_places():
    taken = COORDINATES.take(np.array([2, 0]))
    assert taken.kinds == (SHARE, PLAIN)
    assert taken.ceilings.tolist() == [0.7, 0.0]


def test_derivative_far_outside_is_finite():
    theta, slope = COORDINATES.theta(np.array([[0.0, 1e4, -1e4]]))
    assert np.isfinite(theta).all()
    assert np.isfinite(slope).all()
