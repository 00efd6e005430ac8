import inspect
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.bases import (
    BestLoss,
    Chinchilla,
    EfficiencyLeverage,
    Kaplan,
    OuterExponent,
    PowerLaw,
    VaryingExponent,
    WidthDepth,
)
from shapelaw.scaling.laws.factors import AspectRatio, Bracket, GroupedQuery, LogRatio, UShape
from shapelaw.scaling.laws.law import Law, reference_of
from shapelaw.scaling.laws.notation import LETTERS, symbol
from shapelaw.scaling.laws.registry import LAWS, PARTS, chinchilla, law_named, laws_page
from shapelaw.scaling.runs.columns import D, N, columns_of
from support.paths import ROOT

ROWS = 7
RANGES = {
    N: (1e5, 1e9),
    D: (1e6, 1e11),
    "hidden_over_sqrt_n": (0.05, 0.5),
    "mlp_to_attention": (0.3, 8.0),
    "gqa": (1.0, 16.0),
    "num_hidden_layers": (2.0, 64.0),
    "head_dim": (16.0, 256.0),
    "hidden_size": (64.0, 4096.0),
    "aspect_ratio": (8.0, 256.0),
    "best_loss": (2.0, 4.0),
    "sparsity": (1.0, 40.0),
    "expert_sparsity": (1.0, 128.0),
    "active_experts": (1.0, 16.0),
    "granularity": (1.0, 32.0),
}
LOSS = np.array([2.0, 4.0])
# Every named law, and every part in every form, multiplied, added, tied and pinned.
ALL_LAWS: dict[str, Law] = {name: make() for name, make in LAWS.items()} | {
    "power in D": Law(PowerLaw(of=D)),
    "kaplan with a shape": Kaplan() * UShape("gqa"),
    "drift": Chinchilla() * UShape("num_hidden_layers", drift=True),
    "bend": Chinchilla() * UShape("mlp_to_attention", bend=True),
    "drift and bend": Chinchilla() * UShape("gqa", drift=True, bend=True),
    "share": Chinchilla() * GroupedQuery(form="share"),
    "curved": Chinchilla() * GroupedQuery(form="curved"),
    "saturating sparsity": Chinchilla() * LogRatio("expert_sparsity", start=0.0163),
    "saturating leverage": EfficiencyLeverage(of="sparsity", start=0.0163) * UShape("gqa"),
    "aspect ratio": WidthDepth() * AspectRatio(),
    "bracket": Chinchilla() * Bracket("hidden_over_sqrt_n", letter="c"),
    "plus a bowl": Chinchilla() + UShape("mlp_to_attention", drift=True, bend=True),
    "plus and times": (PowerLaw() + GroupedQuery() + AspectRatio("gqa")) * UShape("gqa"),
    "varying exponent with a shape": VaryingExponent() * UShape("gqa", drift=True),
    "outer exponent with a shape": OuterExponent() * UShape("mlp_to_attention") * GroupedQuery(),
    "outer exponent, tied and pinned": OuterExponent().tie("alpha", "beta").pin("kappa", 0.4),
    "tied powers": Chinchilla().tie("alpha", "beta"),
    "tied curvatures": (Chinchilla() * UShape("gqa") * UShape("aspect_ratio")).tie(
        "gqa_curvature", "aspect_ratio_curvature"
    ),
    "pinned floor": Chinchilla().pin("E", 1.69, low=1.6, high=1.8, source="arXiv 2203.15556"),
    "pinned scale": (Chinchilla() * GroupedQuery()).pin("alpha", 0.34).pin("A", 406.4),
}
unit = st.floats(0.0, 1.0)


def some_columns(seed: int, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Draw values of every column, uniformly in the logarithm over its range."""
    generator = np.random.default_rng(seed)
    return {
        name: np.exp(generator.uniform(np.log(low), np.log(high), rows))
        for name, (low, high) in RANGES.items()
    }


def inside(boxes, point) -> np.ndarray:
    """Return the point at the given fractions of the sides of the boxes."""
    low, high = np.array(boxes).reshape(-1, 2).T
    return low + (high - low) * point


def central_differences(function, theta, step=1e-4) -> np.ndarray:
    """Differentiate an array by the parameters (last axis), to the fourth order in the step."""
    moves = step * np.eye(len(theta))
    return np.stack(
        [
            (8 * (function(theta + m) - function(theta - m))
             - (function(theta + 2 * m) - function(theta - 2 * m))) / (12 * step)
            for m in moves
        ],
        -1,
    )  # fmt: skip


@st.composite
def at_random(draw: st.DrawFn, law: Law, columns):
    """Draw internal parameters from the ranges of their starts, where the loss is positive."""
    theta = draw(within_bounds(law, columns, starts=True))
    assume((np.nan_to_num(law.predict(theta, columns, reference_of(columns))) > 0.2).all())
    return theta


@st.composite
def within_bounds(draw: st.DrawFn, law: Law, columns, starts=False):
    """Draw internal parameters from anywhere within their bounds."""
    boxes = [p.starts if starts else p.bounds for p in law.parameters(columns, LOSS)]
    point = draw(st.lists(unit, min_size=len(boxes), max_size=len(boxes)))
    return inside(boxes, np.array(point))


def deviation(factor, theta, columns, at) -> np.ndarray:
    """Evaluate a factor alone: its deviation from 1."""
    law = BestLoss() * factor
    rows = len(next(iter(columns.values())))
    return law.predict(np.array(theta, dtype=float), columns | {"best_loss": np.ones(rows)}, at) - 1


# Contract tests: they run over every law.


def test_the_contracts_cover_every_kind_of_part():
    assert {type(part) for law in ALL_LAWS.values() for part in law.parts} == set(PARTS.values())


@pytest.mark.parametrize("kind", [*PARTS.values(), Law])
def test_the_first_line_of_a_laws_docstring_is_its_equation(kind):
    assert re.match(r"(L|g\(\w\)) = ", inspect.getdoc(kind))


@pytest.mark.parametrize("kind", [*PARTS.values(), Law])
def test_a_laws_docstring_cites_its_source(kind):
    assert re.search(r"arXiv \d{4}\.\d{5}", " ".join(inspect.getdoc(kind).split()))


@pytest.mark.parametrize("name", ALL_LAWS)
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_gradient_of_a_law_is_that_of_its_values(name, data, seed):
    law, columns = ALL_LAWS[name], some_columns(seed)
    theta = data.draw(at_random(law, columns))
    program = law.program(columns, reference_of(columns))
    gradient = program.gradient(theta[None])[0]
    assert gradient.shape == (len(law.names), ROWS)
    numeric = central_differences(lambda moved: program.log_loss(moved[None])[0], theta)
    large = 1e-7 * max(1.0, float(np.abs(gradient).max()))
    np.testing.assert_allclose(gradient.T, numeric, rtol=1e-6, atol=large)


@pytest.mark.parametrize("name", ALL_LAWS)
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_hessian_of_a_law_is_that_of_its_gradient(name, data, seed):
    law, columns = ALL_LAWS[name], some_columns(seed)
    theta = data.draw(at_random(law, columns))
    program = law.program(columns, reference_of(columns))
    hessian = program.hessian(theta)
    assert hessian.shape == (ROWS, len(law.names), len(law.names))
    numeric = central_differences(lambda moved: program.gradient(moved[None])[0].T, theta)
    # A loss near zero has a Hessian as large as 1e4: the error of differences grows with its size.
    large = 1e-6 * max(1.0, float(np.abs(hessian).max()))
    np.testing.assert_allclose(hessian, numeric, rtol=1e-5, atol=large)
    np.testing.assert_allclose(hessian, hessian.transpose(0, 2, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL_LAWS)
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_public_and_internal_parameters_are_each_others_inverse(name, data, seed):
    law, columns = ALL_LAWS[name], some_columns(seed)
    at = reference_of(columns)
    theta = data.draw(within_bounds(law, columns))
    public = law.public(theta, at)
    assert list(public) == list(law.every_name)
    np.testing.assert_allclose(law.internal(public, at), theta, rtol=1e-12, atol=1e-12)
    assert law.public(law.internal(public, at), at) == pytest.approx(public, rel=1e-9)
    many = law.public(np.stack([theta, theta]), at)
    assert {own: values[1] for own, values in many.items()} == pytest.approx(public, rel=1e-12)


@pytest.mark.parametrize("name", ALL_LAWS)
def test_parsing_the_repr_of_a_law_returns_the_same_law(name):
    law = ALL_LAWS[name]
    assert law_named(repr(law)) == law
    assert law_named(law) is law
    assert law_named(law.base) == Law(law.base)


@pytest.mark.parametrize("name", ALL_LAWS)
def test_a_laws_parameters_are_named_once_and_start_within_their_bounds(name):
    law, columns = ALL_LAWS[name], some_columns(1)
    parameters = law.parameters(columns, LOSS)
    assert [parameter.name for parameter in parameters] == list(law.names)
    assert len(set(law.every_name)) == len(law.every_name)
    assert set(law.names) <= set(law.every_name)
    for parameter in parameters:
        (low, high), (first, last) = parameter.bounds, parameter.starts
        assert low <= first <= last <= high
        assert low < high


@pytest.mark.parametrize("name", ALL_LAWS)
def test_a_law_needs_the_columns_that_it_names_and_no_others(name):
    law, columns = ALL_LAWS[name], some_columns(2)
    needed = {column: columns[column] for column in law.columns}
    at = reference_of(columns)
    theta = inside([p.starts for p in law.parameters(needed, LOSS)], 0.5)
    np.testing.assert_array_equal(law.predict(theta, needed, at), law.predict(theta, columns, at))
    for column in law.columns:
        with pytest.raises(KeyError, match=column):
            law.predict(theta, {k: v for k, v in needed.items() if k != column}, at)


@pytest.mark.parametrize("name", ALL_LAWS)
def test_a_factor_has_no_effect_at_its_neutral_parameters(name):
    law, columns = ALL_LAWS[name], some_columns(3)
    at = reference_of(columns)
    theta = inside([p.starts for p in law.parameters(columns, LOSS)], 0.6)
    for factor in law.shapes:
        if not factor.optional:
            continue
        without = theta.copy()
        for own, value in factor.neutral(columns).items():
            without[law.index[own]] = value
        assert not np.allclose(law.effect(factor, theta[None], columns, at), 0, atol=1e-6)
        np.testing.assert_allclose(
            law.effect(factor, without[None], columns, at), 0, rtol=0, atol=1e-12
        )


MULTIPLIED = [n for n, law in ALL_LAWS.items() if law.factors and not law.extras and all(
    factor.optional for factor in law.factors)]  # fmt: skip


@pytest.mark.parametrize("name", MULTIPLIED)
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_a_factor_that_multiplies_stays_positive_within_its_bounds(name, data, seed):
    law, columns = ALL_LAWS[name], some_columns(seed)
    theta = data.draw(within_bounds(law, columns))
    assert (law.predict(theta, columns, reference_of(columns)) > 0).all()


# The printed equation, evaluated by an independent parser.

TOKEN = re.compile(r"\s*(\d+\.?\d*(?:e[-+]?\d+)?|[A-Za-z]\w*\*?|[-+/^()·])")


class EquationParser:
    """A parser that evaluates ``(E + A/N^alpha) · (1 + k (ln(x/x*) + x*/x - 1))``."""

    def __init__(self, text: str, values: dict[str, np.ndarray]):
        assert TOKEN.sub("", text).strip() == "", f"unreadable: {TOKEN.sub('', text)}"
        self.tokens, self.values = TOKEN.findall(text), values

    def next(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def total(self):
        answer = self.product()
        while self.next() in ("+", "-"):
            sign = 1 if self.tokens.pop(0) == "+" else -1
            answer = answer + sign * self.product()
        return answer

    def product(self):
        answer = self.power()
        while self.next() and self.next() not in "+-)":
            if self.next() == "/":
                self.tokens.pop(0)
                answer = answer / self.power()
            else:
                if self.next() == "·":
                    self.tokens.pop(0)
                answer = answer * self.power()
        return answer

    def power(self):
        if self.next() == "-":
            self.tokens.pop(0)
            return -self.power()
        answer = self.atom()
        if self.next() == "^":
            self.tokens.pop(0)
            answer = answer ** self.power()
        return answer

    def atom(self):
        token = self.tokens.pop(0)
        if token == "ln":
            return np.log(self.atom())
        if token == "(":
            answer = self.total()
            assert self.tokens.pop(0) == ")"
            return answer
        return float(token) if token[0].isdigit() else self.values[token]


def evaluated(text: str, columns, at, named=None) -> np.ndarray:
    """Evaluate the loss from the text of an equation."""
    letters = {LETTERS[name][0] if name in LETTERS else name: c for name, c in columns.items()}
    values = letters | {"N0": at[N], "D0": at[D], "g0": at.get("granularity")} | (named or {})
    parser = EquationParser(text.removeprefix("L = "), values)
    answer = parser.total()
    assert not parser.tokens
    return answer


@pytest.mark.parametrize("name", ALL_LAWS)
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_equation_in_symbols_gives_the_predicted_loss(name, data, seed):
    law, columns = ALL_LAWS[name], some_columns(seed)
    at = reference_of(columns)
    theta = data.draw(at_random(law, columns))
    named = {symbol(own, latex=False): value for own, value in law.public(theta, at).items()}
    text = law.describe()
    np.testing.assert_allclose(
        evaluated(text, columns, at, named), law.predict(theta, columns, at), rtol=1e-10
    )


@pytest.mark.parametrize("name", ALL_LAWS)
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_equation_in_numbers_gives_the_predicted_loss(name, data, seed):
    law, columns = ALL_LAWS[name], some_columns(seed)
    at = reference_of(columns)
    public = law.public(data.draw(at_random(law, columns)), at)
    shown = {own: float(f"{value:.5g}") for own, value in public.items()}
    text = law.describe(public)
    assert "+ -" not in text
    np.testing.assert_allclose(
        evaluated(text, columns, at), law.predict(law.internal(shown, at), columns, at), rtol=1e-10
    )


@pytest.mark.parametrize("name", ALL_LAWS)
@pytest.mark.parametrize("numbers", [False, True])
def test_the_equation_in_latex_is_balanced(name, numbers):
    law, columns = ALL_LAWS[name], some_columns(4)
    at = reference_of(columns)
    theta = inside([p.starts for p in law.parameters(columns, LOSS)], 0.1)
    text = law.describe(law.public(theta, at) if numbers else None, latex=True)
    for opening, closing in ("{}", "()"):
        depth = np.cumsum([(c == opening) - (c == closing) for c in text])
        assert depth.min() >= 0
        assert depth[-1] == 0
    assert text.count(r"\left") - text.count(r"\leftarrow") == text.count(r"\right")
    assert not re.search(r"\de[-+]\d", text)
    bare = re.sub(r"\\[A-Za-z]+", " ", text)
    assert not re.search(r"_[a-z]{2}", bare), "a subscript of several letters without braces"


def test_tied_parameters_share_one_symbol_and_one_number():
    law = LAWS["morph"]()
    assert law.describe() == (
        "L = (E + A/N^alpha + B/D^alpha) · (1 + epsilon_R R^alpha)"  # one exponent
    )
    theta = np.array([0.5, 0.1, 0.3, 0.2, -4.0])
    public = law.public(theta, {N: 1e7, D: 1e9})
    assert public["alpha"] == public["beta"] == public["aspect_ratio_exponent"] == 0.3


# Formulas.


def test_a_law_is_its_base_times_its_factors():
    law, columns = law_named("conditional-steady"), some_columns(3)
    at = reference_of(columns)
    theta = inside([p.starts for p in law.parameters(columns, LOSS)], 0.3)
    expected = chinchilla().predict(theta[:5], columns, at)
    place = 5
    for factor in law.factors:
        own = theta[place : place + len(factor.names)]
        expected = expected * (1 + deviation(factor, own, columns, at))
        place += len(own)
    np.testing.assert_allclose(law.predict(theta, columns, at), expected, rtol=1e-13)


def test_an_added_term_adds_nats_to_the_base():
    columns = some_columns(5)
    at = reference_of(columns)
    law = Chinchilla() + GroupedQuery()
    theta = np.array([0.5, 0.1, 0.3, 0.2, 0.4, 0.02])
    plain = chinchilla().predict(theta[:5], columns, at) + 0.02 * np.log(columns["gqa"])
    np.testing.assert_allclose(law.predict(theta, columns, at), plain, rtol=1e-13)


@settings(max_examples=50)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_public_parameters_put_into_the_plain_formula_give_the_loss(data, seed):
    law, columns = chinchilla(), some_columns(seed)
    at = reference_of(columns)
    own = law.public(theta := data.draw(at_random(law, columns)), at)
    plain = own["E"] + own["A"] / columns[N] ** own["alpha"] + own["B"] / columns[D] ** own["beta"]
    np.testing.assert_allclose(law.predict(theta, columns, at), plain, rtol=1e-11)


@settings(max_examples=50)
@given(data=st.data(), size=st.floats(1e5, 1e9), factor=st.floats(1.01, 100.0))
def test_loss_never_rises_with_more_parameters_or_more_tokens(data, size, factor):
    law = chinchilla()
    columns = {N: np.array([size, size * factor, size]), D: np.array([1e9, 1e9, 1e9 * factor])}
    theta = data.draw(at_random(law, columns))
    first, larger, longer = law.predict(theta, columns, {N: 1e7, D: 1e9})
    assert larger <= first
    assert longer <= first


@given(
    curvature=st.floats(1e-3, 10.0),
    optimum=st.floats(0.01, 100.0),
    away=st.floats(-3.0, 3.0).filter(lambda x: abs(x) > 1e-3),
)
def test_a_u_shape_is_zero_at_its_optimum_and_positive_elsewhere(curvature, optimum, away):
    columns = {"x": optimum * np.exp([0.0, away])}
    best, elsewhere = deviation(UShape("x"), [curvature, np.log(optimum)], columns, {})
    assert best == pytest.approx(0.0, abs=1e-12)
    assert elsewhere > 0
    plain = curvature * (away + np.exp(-away) - 1)
    assert elsewhere == pytest.approx(plain, rel=1e-6, abs=1e-14)


def test_a_u_shape_equals_the_bracket_of_the_paper_divided_by_its_minimum():
    # a0 + a1 ln x + a2/x of arXiv 2510.18245, coefficients of the 1B fit: x* = a2/a1
    a0, a1, a2 = 2.319, 0.238, 0.0176
    columns = {"x": np.geomspace(0.03, 0.3, 9)}
    bracket = 1 + deviation(Bracket("x"), [a0, a1, a2], columns, {})
    lowest = a0 + a1 * np.log(a2 / a1) + a1
    bowl = 1 + deviation(UShape("x"), [a1 / lowest, np.log(a2 / a1)], columns, {})
    np.testing.assert_allclose(bowl, bracket / lowest, rtol=1e-12)
    assert a2 / a1 == pytest.approx(0.074, abs=5e-4)


@given(optimum=st.floats(0.1, 10.0), gamma=st.floats(-2.0, 2.0), size=st.floats(0.01, 100.0))
def test_with_drift_the_optimum_moves_as_a_power_of_the_size(optimum, gamma, size):
    best = optimum * size**gamma
    columns = {"x": best * np.array([1.0, 1.05, 0.95]), N: np.full(3, 1e6 * size)}
    theta = [1.0, np.log(optimum), gamma]
    effect = deviation(UShape("x", drift=True), theta, columns, {N: 1e6})
    assert effect[0] == pytest.approx(0.0, abs=1e-12)
    assert (effect[1:] > 1e-4).all()


@given(eta=st.floats(-2.0, 2.0), ratio=st.floats(0.01, 100.0))
def test_with_bend_the_curvature_is_a_power_of_tokens_per_parameter(eta, ratio):
    columns = {"x": np.array([3.0]), N: np.array([2e6]), D: np.array([2e6 * 20 * ratio])}
    at = {N: 1e6, D: 20e6}
    bent = deviation(UShape("x", bend=True), [0.1, 0.0, eta], columns, at)
    straight = deviation(UShape("x"), [0.1, 0.0], columns, at)
    np.testing.assert_allclose(bent, straight * ratio**eta, rtol=1e-6, atol=1e-14)


def test_at_the_reference_size_a_drifting_optimum_is_the_public_one():
    factor = UShape("x", drift=True)
    law = BestLoss() * factor
    assert factor.columns == ("x", N)
    theta = np.array([0.1, np.log(3.0), -0.5])
    assert law.public(theta, {N: 1e6}) == pytest.approx(
        {"x_curvature": 0.1, "x_optimum": 3.0, "x_drift": -0.5}
    )
    columns = {"x": np.array([3.0]), N: np.array([1e6])}
    assert deviation(factor, theta, columns, {N: 1e6})[0] == pytest.approx(0.0, abs=1e-15)


def test_an_optimum_may_lie_outside_the_observed_range_by_its_reach():
    columns = {"x": np.array([2.0, 4.0])}
    _, optimum = UShape("x", reach=1.0).parameters(columns, LOSS)
    assert optimum.starts == pytest.approx((np.log(2), np.log(4)))
    assert optimum.bounds == pytest.approx((np.log(2) - 1, np.log(4) + 1))


@given(slope=st.floats(-0.15, 0.15), square=st.floats(-0.02, 0.02), groups=st.integers(1, 128))
def test_the_gqa_factor_is_zero_at_one_and_follows_its_form_elsewhere(slope, square, groups):
    columns, log = {"gqa": np.array([1.0, groups])}, np.log(groups)
    expected = {
        "log": slope * log,
        "share": slope * (1 - 1 / groups),
        "curved": slope * log + square * log**2,
    }
    for form, effect in expected.items():
        factor = GroupedQuery(form=form)
        theta = [slope, square][: len(factor.names)]
        assume(1 + effect > 0)
        deviations = deviation(factor, theta, columns, {})
        assert deviations.tolist() == pytest.approx([0.0, effect], abs=1e-12)


def test_u_shapes_from_published_coefficients_rank_the_papers_models_as_published():
    """Use the 1B coefficients of arXiv 2510.18245, converted to two U-shapes."""
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
        return float(np.prod([1 + deviation(bowl, own, columns, {})[0] for bowl, own in bowls]))

    llama_to_panda = calibration(0.0657, 4.80) / calibration(0.0820, 1.067)
    assert llama_to_panda == pytest.approx(1.0063, abs=2e-4)
    llama_to_panda_3b = calibration(0.0579, 3.0) / calibration(0.0764, 1.227)
    assert llama_to_panda_3b == pytest.approx(1.0070, abs=2e-4)
    llama_to_surefire = calibration(0.0657, 4.80) / calibration(0.0824, 3.60)
    assert llama_to_surefire == pytest.approx(1.0022, abs=2e-4)


# Composition.


def test_laws_compose_in_the_order_in_which_they_are_written():
    law = Chinchilla() * UShape("mlp_to_attention") * GroupedQuery()
    assert law == Law(Chinchilla(), (UShape("mlp_to_attention"), GroupedQuery()))
    assert law.columns == (N, D, "mlp_to_attention", "gqa")
    assert len(law.names) == 5 + 2 + 1
    assert Chinchilla() * GroupedQuery() + AspectRatio() == (
        Law(Chinchilla(), (GroupedQuery(),), (AspectRatio(),))
    )


def test_ties_that_share_a_parameter_are_one_tie_in_any_order():
    law = Chinchilla() * AspectRatio()
    exponents = ("alpha", "beta", "aspect_ratio_exponent")
    first = law.tie(*exponents[:2]).tie(*exponents[1:])
    second = law.tie(*exponents[1:]).tie(*exponents[:2])
    for tied in (first, second, law.tie(*exponents)):
        assert len({tied.index[name] for name in exponents}) == 1
        assert len(tied.names) == 5
        assert law_named(repr(tied)) == tied
    separate = (law * UShape("gqa")).tie("alpha", "beta")
    assert len(separate.names) == 8


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("alpha", "gamma"), "`parameter` must be one of E, A, alpha, B, beta, but got"),
        (
            ("alpha",),
            "`tie` needs at least two different parameters, but got alpha; choose among E, A",
        ),
        (("alpha", "alpha"), "`tie` needs at least two different parameters"),
        (
            ("A", "B"),
            "`tie` must join only exponents, only optima or only slopes, but got A, B; tie",
        ),
        (("E", "alpha"), "`tie` must join only exponents"),
    ],
)
def test_a_tie_of_unsuitable_parameters_raises(names, message):
    with pytest.raises(InputError, match=message):
        Chinchilla().tie(*names)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gamma", {"value": 1.0}, "`parameter` must be one of E"),
        ("E", {"value": 1.0, "low": 1.1}, "`low <= value <= high` must hold for the pinned E"),
        ("E", {"value": 1.0, "high": 0.9}, "`low <= value <= high` must hold"),
        ("E", {"value": float("nan")}, "`low <= value <= high` must hold"),
        ("E", {"value": 0.0}, "`E > 0` and finite must hold for a pinned E, but got 0"),
        ("E", {"value": 1.0, "low": -1.0}, "`E > 0` and finite must hold"),
        ("A", {"value": 400}, "the scale `A` can be pinned only after its exponent `alpha`"),
    ],
)
def test_a_pin_that_violates_a_rule_raises(name, settings, message):
    with pytest.raises(InputError, match=message):
        Chinchilla().pin(name, **settings)


def test_pinning_again_replaces_the_pin_and_keeps_the_order():
    law = Chinchilla().pin("alpha", np.float64(0.3)).pin("A", 3).pin("alpha", 0.31)
    assert [(pin.name, pin.value) for pin in law.pins] == [("alpha", 0.31), ("A", 3.0)]
    assert law_named(repr(law)) == law


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "Chinchilla() * Chinchilla()",
            "but got Chinchilla() in place of a factor; write the base first",
        ),
        ("UShape('gqa')", "but got UShape(of='gqa') in place of a base; write the base first"),
        (
            "Chinchilla() * UShape('gqa') * UShape('gqa')",
            "gqa_curvature occurs twice; give each factor",
        ),
        ("BestLoss() * Bracket() * Bracket('gqa')", "a0 occurs twice"),
        ("Chinchilla() * GroupedQuery(form='square')", "`form` must be log, share or curved"),
    ],
)
def test_an_expression_that_violates_a_rule_raises_the_rule(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        law_named(text)


@pytest.mark.parametrize(
    "text",
    [
        "unknown",
        "",
        "Chinchilla",
        "Chinchilla(1)",
        "Chinchilla() - UShape('gqa')",
        "GroupedQuery() * Chinchilla()",
        "UShape('gqa').tie('a')",
        "Chinchilla().pin('E', 'x')",
        "__import__('os').system('true')",
        "Chinchilla().__class__()",
        "(" * 500,
    ],
)
def test_an_unknown_law_raises_with_the_list_of_laws(text):
    with pytest.raises(InputError, match=r"`--law` must be one of chinchilla, .*; but got "):
        law_named(text)


def test_named_laws_have_the_documented_parts():
    assert law_named("chinchilla").factors == ()
    assert [f.of for f in law_named("conditional").factors] == [
        "hidden_over_sqrt_n",
        "mlp_to_attention",
        "gqa",
    ]
    depth = law_named("conditional+depth").factors[-1]
    assert depth == UShape("num_hidden_layers", drift=True)
    assert law_named("paper-multiplicative").pins[0].value == 0.387


def test_columns_are_read_as_floats_from_a_frame_and_a_mapping():
    frame = pd.DataFrame({"gqa": [1, 2], "other": ["a", "b"]})
    for table in (frame, {"gqa": [1, 2]}):
        columns = columns_of(table, ["gqa"])
        assert columns["gqa"].dtype == float
        assert columns["gqa"].tolist() == [1.0, 2.0]


def test_the_page_of_all_laws_is_current_and_has_every_law_and_part():
    page = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
    assert page == laws_page()
    for name in (*LAWS, *PARTS):
        assert f"### `{name}`" in page
