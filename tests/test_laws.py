import inspect
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling import laws
from scaling.errors import InputError
from scaling.laws import (
    LAWS,
    Chinchilla,
    D,
    GroupedQuery,
    Law,
    N,
    UShape,
    chinchilla,
    columns_of,
    law_named,
)

ROWS = 7
RANGES = {
    N: (1e5, 1e9),
    D: (1e6, 1e11),
    "hidden_over_sqrt_n": (0.02, 0.5),
    "mlp_to_attention": (0.3, 8.0),
    "gqa": (1.0, 16.0),
    "num_hidden_layers": (2.0, 64.0),
}
LOSS = np.array([2.0, 4.0])
# Every factor in every form that it has, and every law that has a name.
FACTORS = {
    "UShape": UShape("mlp_to_attention"),
    "UShape with drift": UShape("num_hidden_layers", drift=True),
    "GroupedQuery": GroupedQuery(),
}
unit = st.floats(0.0, 1.0)


def some_columns(seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Values of every column, spread over its range evenly in the logarithm."""
    generator = np.random.default_rng(seed)
    return {
        name: np.exp(generator.uniform(np.log(low), np.log(high), rows))
        for name, (low, high) in RANGES.items()
    }


def reference_of(columns) -> dict[str, float]:
    return {name: float(np.exp(np.log(columns[name]).mean())) for name in (N, D)}


def inside(boxes, point) -> np.ndarray:
    """The point of the boxes at fractions of their sides."""
    low, high = np.array(boxes).T
    return low + (high - low) * point


def numeric_gradient(function, theta, step=1e-5) -> np.ndarray:
    """Central differences of (n,) values by the parameters, (n, p)."""
    moves = step * np.eye(len(theta))
    return np.stack([(function(theta + m) - function(theta - m)) / (2 * step) for m in moves], -1)


@st.composite
def at_random(draw: st.DrawFn, parameters, starts=True):
    """Internal parameters somewhere in the boxes of their starts."""
    boxes = [parameter.starts if starts else parameter.bounds for parameter in parameters]
    point = draw(st.lists(unit, min_size=len(boxes), max_size=len(boxes)))
    return inside(boxes, np.array(point))


def test_the_contracts_below_cover_every_class_of_factor():
    defined = {
        kind
        for _, kind in inspect.getmembers(laws, inspect.isclass)
        if kind.__module__ == laws.__name__ and hasattr(kind, "effect")
    }
    assert defined - {laws.Factor} == {type(factor) for factor in FACTORS.values()}
    assert {type(factor) for make in LAWS.values() for factor in make().factors} <= defined


@pytest.mark.parametrize("kind", [Chinchilla, Law, UShape, GroupedQuery])
def test_the_first_line_of_a_laws_description_is_its_equation(kind):
    assert "=" in inspect.getdoc(kind).splitlines()[0]


@pytest.mark.parametrize("kind", [Chinchilla, Law, UShape])
def test_a_published_law_names_its_source(kind):
    words = " ".join(inspect.getdoc(kind).split())
    assert re.search(r"arXiv \d{4}\.\d{5}", words)
    assert re.search(r"equation \d", words)


@pytest.mark.parametrize("name", LAWS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_gradient_of_a_law_is_that_of_its_values(name, data, seed):
    law, columns = law_named(name), some_columns(seed)
    at = reference_of(columns)
    theta = data.draw(at_random(law.parameters(columns, LOSS)))
    value, gradient = law.log_loss(theta, columns, at)
    assert value.shape == (ROWS,)
    assert gradient.shape == (ROWS, len(theta))
    numeric = numeric_gradient(lambda moved: law.log_loss(moved, columns, at)[0], theta)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FACTORS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_gradient_of_a_factor_is_that_of_its_effect(name, data, seed):
    factor, columns = FACTORS[name], some_columns(seed)
    at = reference_of(columns)
    theta = data.draw(at_random(factor.parameters(columns)))
    effect, gradient = factor.effect(theta, columns, at)
    assert effect.shape == (ROWS,)
    assert gradient.shape == (ROWS, len(theta))
    numeric = numeric_gradient(lambda moved: factor.effect(moved, columns, at)[0], theta)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FACTORS)
@settings(deadline=None, max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_factor_stays_positive_within_its_bounds_and_has_no_effect_at_zero(name, data, seed):
    factor, columns = FACTORS[name], some_columns(seed)
    at = reference_of(columns)
    theta = data.draw(at_random(factor.parameters(columns), starts=False))
    assert (1 + factor.effect(theta, columns, at)[0] > 0).all()
    theta[0] = 0.0  # curvature or slope
    np.testing.assert_array_equal(factor.effect(theta, columns, at)[0], 0.0)


@pytest.mark.parametrize("name", LAWS)
def test_a_laws_parameters_are_named_once_and_start_within_their_bounds(name):
    law, columns = law_named(name), some_columns(1)
    parameters = law.parameters(columns, LOSS)
    names = [parameter.name for parameter in parameters]
    assert len(set(names)) == len(names) == sum(law.sizes())
    for parameter in parameters:
        (low, high), (first, last) = parameter.bounds, parameter.starts
        assert low <= first <= last <= high
        assert low < high
    theta = inside([parameter.starts for parameter in parameters], 0.5)
    assert list(law.public(theta, reference_of(columns))) == names


@pytest.mark.parametrize("name", LAWS)
def test_a_law_needs_the_columns_that_it_names_and_no_others(name):
    law, columns = law_named(name), some_columns(2)
    own = {column: columns[column] for column in law.columns}
    at = reference_of(columns)
    theta = inside([p.starts for p in law.parameters(own, LOSS)], 0.5)
    np.testing.assert_array_equal(law.predict(theta, own, at), law.predict(theta, columns, at))
    for column in law.columns:
        with pytest.raises(KeyError, match=column):
            law.predict(theta, {k: v for k, v in own.items() if k != column}, at)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_its_base_times_its_factors(name):
    law, columns = law_named(name), some_columns(3)
    at = reference_of(columns)
    theta = inside([p.starts for p in law.parameters(columns, LOSS)], 0.3)
    base, *own = law.split(theta)
    expected = np.exp(law.base.log_loss(base, columns, at)[0])
    for factor, part in zip(law.factors, own, strict=True):
        expected = expected * (1 + factor.effect(part, columns, at)[0])
    np.testing.assert_allclose(law.predict(theta, columns, at), expected, rtol=1e-13)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_public_parameters_put_into_the_plain_formula_give_the_loss(data, seed):
    law, columns = chinchilla(), some_columns(seed)
    at = reference_of(columns)
    theta = data.draw(at_random(law.parameters(columns, LOSS)))
    own = law.public(theta, at)
    plain = own["E"] + own["A"] / columns[N] ** own["alpha"] + own["B"] / columns[D] ** own["beta"]
    np.testing.assert_allclose(law.predict(theta, columns, at), plain, rtol=1e-11)


@settings(deadline=None, max_examples=50)
@given(data=st.data(), size=st.floats(1e5, 1e9), factor=st.floats(1.01, 100.0))
def test_more_parameters_and_more_tokens_never_cost_loss(data, size, factor):
    law = chinchilla()
    columns = {N: np.array([size, size * factor, size]), D: np.array([1e9, 1e9, 1e9 * factor])}
    theta = data.draw(at_random(law.parameters(columns, LOSS)))
    first, larger, longer = law.predict(theta, columns, {N: 1e7, D: 1e9})
    assert larger <= first
    assert longer <= first


@given(
    curvature=st.floats(1e-3, 10.0),
    optimum=st.floats(0.01, 100.0),
    away=st.floats(-3.0, 3.0).filter(lambda x: abs(x) > 1e-3),
)
def test_a_u_shape_is_zero_at_its_optimum_and_above_elsewhere(curvature, optimum, away):
    factor = UShape("x")
    theta = np.array([curvature, np.log(optimum)])
    columns = {"x": optimum * np.exp([0.0, away])}
    (best, elsewhere), gradient = factor.effect(theta, columns, {})
    assert best == pytest.approx(0.0, abs=1e-12)
    assert gradient[0] == pytest.approx(0.0, abs=1e-12)
    assert elsewhere > 0
    plain = curvature * (away + np.exp(-away) - 1)
    assert elsewhere == pytest.approx(plain, rel=1e-6)


def test_a_u_shape_is_the_papers_bracket_without_its_scale():
    # a0 + a1 ln x + a2/x of arXiv 2510.18245, coefficients of the 1B fit: x* = a2/a1
    a0, a1, a2 = 2.319, 0.238, 0.0176
    x = np.geomspace(0.03, 0.3, 9)
    bracket = a0 + a1 * np.log(x) + a2 / x
    lowest = a0 + a1 * np.log(a2 / a1) + a1
    theta = np.array([a1 / lowest, np.log(a2 / a1)])
    np.testing.assert_allclose(
        1 + UShape("x").effect(theta, {"x": x}, {})[0], bracket / lowest, rtol=1e-12
    )
    assert a2 / a1 == pytest.approx(0.074, abs=5e-4)


@given(
    optimum=st.floats(0.1, 10.0),
    gamma=st.floats(-2.0, 2.0),
    size=st.floats(0.01, 100.0),
)
def test_with_drift_the_optimum_moves_as_a_power_of_the_size(optimum, gamma, size):
    factor = UShape("x", drift=True)
    best = optimum * size**gamma
    columns = {"x": best * np.array([1.0, 1.05, 0.95]), N: np.full(3, 1e6 * size)}
    effect, _ = factor.effect(np.array([1.0, np.log(optimum), gamma]), columns, {N: 1e6})
    assert effect[0] == pytest.approx(0.0, abs=1e-12)
    assert (effect[1:] > 1e-4).all()


def test_at_the_reference_size_a_drifting_optimum_is_the_public_one():
    factor = UShape("x", drift=True)
    assert factor.columns == ("x", N)
    theta = np.array([0.1, np.log(3.0), -0.5])
    assert factor.public(theta, {N: 1e6}) == pytest.approx(
        {"x_curvature": 0.1, "x_optimum": 3.0, "x_drift": -0.5}
    )
    columns = {"x": np.array([3.0]), N: np.array([1e6])}
    assert factor.effect(theta, columns, {N: 1e6})[0] == pytest.approx(0.0, abs=1e-15)


def test_an_optimum_may_lie_outside_the_observed_range_by_its_reach():
    columns = {"x": np.array([2.0, 4.0])}
    _, optimum = UShape("x", reach=1.0).parameters(columns)
    assert optimum.starts == pytest.approx((np.log(2), np.log(4)))
    assert optimum.bounds == pytest.approx((np.log(2) - 1, np.log(4) + 1))


@given(slope=st.floats(-0.15, 0.15), groups=st.integers(1, 128))
def test_grouping_queries_costs_its_slope_per_unit_of_the_logarithm(slope, groups):
    effect, _ = GroupedQuery().effect(np.array([slope]), {"gqa": np.array([1.0, groups])}, {})
    assert effect.tolist() == pytest.approx([0.0, slope * np.log(groups)])


def test_laws_compose_in_the_order_in_which_they_are_written():
    law = Chinchilla() * UShape("mlp_to_attention") * GroupedQuery()
    assert law == Law(Chinchilla(), (UShape("mlp_to_attention"), GroupedQuery()))
    assert law.columns == (N, D, "mlp_to_attention", "gqa")
    assert law.sizes() == [5, 2, 1]


def test_the_named_laws_are_those_of_the_documentation():
    assert law_named("chinchilla").factors == ()
    assert [f.of for f in law_named("conditional").factors] == [
        "hidden_over_sqrt_n",
        "mlp_to_attention",
        "gqa",
    ]
    depth = law_named("conditional+depth").factors[-1]
    assert depth == UShape("num_hidden_layers", drift=True)


def test_an_unknown_law_is_refused_with_the_known_ones():
    with pytest.raises(
        InputError, match=r"`--law` must be one of chinchilla, .*, but got 'kaplan'"
    ):
        law_named("kaplan")


def test_columns_are_read_as_floats_from_a_frame_and_a_mapping():
    frame = pd.DataFrame({"gqa": [1, 2], "other": ["a", "b"]})
    for table in (frame, {"gqa": [1, 2]}):
        columns = columns_of(table, ["gqa"])
        assert columns["gqa"].dtype == float
        assert columns["gqa"].tolist() == [1.0, 2.0]


def test_calibrations_of_the_published_models_are_those_of_the_paper():
    """The 1B coefficients of arXiv 2510.18245, written as two U-shapes, rank its models."""
    bowls = []
    for name, c0, c1, c2 in (
        ("hidden_over_sqrt_n", 2.319, 0.238, 0.0176),
        ("mlp_to_attention", 0.5104, 0.0051, 0.0062),
    ):
        lowest = c0 + c1 * np.log(c2 / c1) + c1
        bowls.append((UShape(name), np.array([c1 / lowest, np.log(c2 / c1)])))

    def calibration(hidden: float, ratio: float) -> float:
        columns = {
            "hidden_over_sqrt_n": np.array([hidden]),
            "mlp_to_attention": np.array([ratio]),
        }
        return float(np.prod([1 + bowl.effect(theta, columns, {})[0] for bowl, theta in bowls]))

    llama_to_panda = calibration(0.0657, 4.80) / calibration(0.0820, 1.067)
    assert llama_to_panda == pytest.approx(1.0063, abs=2e-4)
    llama_to_panda_3b = calibration(0.0579, 3.0) / calibration(0.0764, 1.227)
    assert llama_to_panda_3b == pytest.approx(1.0070, abs=2e-4)
    llama_to_surefire = calibration(0.0657, 4.80) / calibration(0.0824, 3.60)
    assert llama_to_surefire == pytest.approx(1.0022, abs=2e-4)
