import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.bases import BestLoss, Chinchilla, Kaplan, PowerLaw
from shapelaw.scaling.laws.factors import AspectRatio, GroupedQuery, UShape
from shapelaw.scaling.laws.law import Law, reference_of
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.solver.identifiability import (
    DRIFT,
    EXPONENTS,
    NO_TERM,
    OTHER_EXPONENT,
    Held,
    decades_outside,
    hold,
    hold_base,
    hold_drifts,
    hold_factors,
    hold_pins,
    neutral,
    optimum_status,
    outside,
)

SIZES, TOKENS = (1e6, 4e6, 16e6), (1e7, 1e8, 1e9)
CHINCHILLA = law_named("chinchilla")


def grid(sizes, tokens) -> dict[str, np.ndarray]:
    """Pair every size with every token count."""
    return {N: np.repeat(sizes, len(tokens)).astype(float), D: np.tile(tokens, len(sizes))}


def test_three_sizes_and_token_counts_identify_every_exponent():
    assert hold_base(CHINCHILLA, grid(SIZES, TOKENS)) == {}


def test_two_sizes_and_two_token_counts_hold_both_exponents_in_a_range():
    held = hold_base(CHINCHILLA, grid(SIZES[:2], TOKENS[:2]))
    assert set(held) == {"alpha", "beta"}
    for name, column in (("alpha", N), ("beta", D)):
        assert (held[name].value, held[name].low, held[name].high) == EXPONENTS[column]
        assert held[name].low < held[name].value < held[name].high
    assert (
        "2 sizes cannot identify it separately from its scale; intervals span 0.2 to"
        in held["alpha"].why
    )
    assert "2 token counts cannot identify it separately from its scale" in held["beta"].why


def test_one_size_merges_the_size_term_into_the_irreducible_loss():
    held = hold_base(CHINCHILLA, grid(SIZES[:1], TOKENS))
    assert set(held) == {"A", "alpha"}
    assert held["A"].value == NO_TERM
    assert "all runs have one size" in held["A"].why
    assert held["alpha"].low == held["alpha"].high  # without a term, intervals vary nothing


def test_one_token_count_merges_the_data_term_into_the_irreducible_loss():
    held = hold_base(CHINCHILLA, grid(SIZES, TOKENS[:1]))
    assert set(held) == {"B", "beta"}
    assert held["B"].value == NO_TERM
    assert "all runs have one token count" in held["beta"].why


def test_tokens_proportional_to_size_leave_one_term_for_both():
    sizes = np.array(SIZES)
    held = hold_base(CHINCHILLA, {N: sizes, D: 20 * sizes * [1.0, 1.03, 0.98]})
    assert set(held) == {"B", "beta"}
    assert "tokens are proportional to size" in held["B"].why


def test_one_size_and_one_token_count_leave_only_the_irreducible_loss():
    held = hold_base(CHINCHILLA, grid(SIZES[:1], TOKENS[:1]))
    assert set(held) == {"A", "alpha", "B", "beta"}
    assert "all runs have one size" in held["A"].why
    assert "all runs have one token count" in held["B"].why


@pytest.mark.parametrize(
    ("sizes", "tokens"),
    [
        (np.geomspace(1e7, 1e9, 60), (1e9, 2e9, 4e9)),
        (np.geomspace(2e8, 1e9, 979), (2e10,)),
        (SIZES, np.linspace(120e9, 350e9, 24)),
    ],
)
def test_chain_of_close_values_keeps_its_term_and_its_exponent(sizes, tokens):
    held = hold_base(CHINCHILLA, grid(sizes, tokens))
    assert set(held) == ({"B", "beta"} if len(tokens) == 1 else set())


def test_levels_within_a_small_factor_do_not_identify_an_exponent():
    held = hold_base(CHINCHILLA, grid((1e6, 1.2e6, 1.44e6), (1e9, 1.25e9, 1.5e9)))
    assert set(held) == {"alpha"}
    assert held["alpha"].why.startswith("3 sizes within a factor of 1.44 cannot identify it")


def test_a_term_that_is_held_off_contributes_nothing():
    columns = grid(SIZES, TOKENS)
    theta = np.array([0.5, NO_TERM, 0.35, NO_TERM, 0.37])
    value, _ = CHINCHILLA.log_loss(theta, columns, {N: 1e6, D: 1e8})
    np.testing.assert_allclose(value, 0.5, rtol=1e-12)


def ratios(**columns) -> dict[str, np.ndarray]:
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def test_a_factor_with_a_constant_column_is_not_identified():
    columns = ratios(
        hidden_over_sqrt_n=[0.1, 0.2, 0.3], mlp_to_attention=[2.0, 2.05, 2.01], gqa=[4, 1, 2]
    )
    unseen = hold_factors(law_named("conditional"), columns)
    assert unseen == {"mlp_to_attention": "all runs have nearly the same mlp_to_attention"}


@pytest.mark.parametrize(("largest", "held"), [(2.25, True), (2.4, True), (2.6, False)])
def test_optimum_needs_a_ratio_that_varies_more_than_by_rounding(largest, held):
    columns = ratios(
        hidden_over_sqrt_n=[0.1, 0.2, 0.3, 0.1],
        mlp_to_attention=[2.0, largest, 2.1, 2.0],
        gqa=[2.0, 2.2, 2.0, 2.2],
    )
    unseen = hold_factors(law_named("conditional"), columns)
    assert set(unseen) == ({"mlp_to_attention"} if held else set())
    if held:
        assert "varies by a factor of 1." in unseen["mlp_to_attention"]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_later_of_two_collinear_factors_is_not_identified(sign):
    hidden = np.array([0.1, 0.2, 0.3, 0.5])
    columns = ratios(
        hidden_over_sqrt_n=hidden, mlp_to_attention=3 * hidden ** (sign * 2), gqa=[4, 1, 2, 1]
    )
    unseen = hold_factors(law_named("conditional"), columns)
    assert list(unseen) == ["mlp_to_attention"]
    assert f"it moves with hidden_over_sqrt_n (correlation {sign}.000)" in unseen.values()


def test_a_constant_column_does_not_affect_other_factors():
    columns = ratios(
        hidden_over_sqrt_n=[0.1, 0.1, 0.1], mlp_to_attention=[1, 2, 3], gqa=[1, 2, 4.2]
    )
    unseen = hold_factors(law_named("conditional"), columns)
    assert list(unseen) == ["hidden_over_sqrt_n", "gqa"]
    assert "moves with mlp_to_attention" in unseen["gqa"]


def test_factors_with_independent_columns_are_all_identified():
    columns = ratios(
        hidden_over_sqrt_n=[0.1, 0.2, 0.1, 0.2], mlp_to_attention=[1, 1, 3, 3], gqa=[4, 1, 1, 4]
    )
    assert hold_factors(law_named("conditional"), columns) == {}


@pytest.mark.parametrize(
    "factor",
    [
        UShape("x"),
        UShape("x", drift=True),
        UShape("x", drift=True, bend=True),
        GroupedQuery("x"),
        GroupedQuery("x", form="curved"),
        AspectRatio("x"),
    ],
    ids=repr,
)
def test_a_neutral_factor_has_no_effect_and_stays_fixed(factor):
    sizes, tokens = [1e6, 2e6, 3e6], [1e7, 1e8, 1e9]
    columns = ratios(x=[1.0, 2.0, 5.0], best_loss=[2, 3, 4], **{N: sizes, D: tokens})
    law = BestLoss() * factor
    held = neutral(law, factor, columns, "given reason")
    assert list(held) == list(law.names)
    assert all(h.low == h.high == h.value and h.why == "given reason" for h in held.values())
    theta = np.array([h.value for h in held.values()])
    predicted = law.predict(theta, columns, reference_of(columns))
    np.testing.assert_allclose(predicted, columns["best_loss"], rtol=1e-15)


def test_a_tied_parameter_of_a_neutral_factor_stays_free():
    law, columns = law_named("morph"), ratios(aspect_ratio=[8.0, 64.0])
    assert set(neutral(law, law.factors[0], columns, "given reason")) == {"aspect_ratio_epsilon"}


# Other bases.


def test_a_power_law_needs_three_values_of_its_variable_and_a_term_needs_two():
    assert hold_base(Law(PowerLaw()), grid(SIZES, TOKENS[:1])) == {}
    two = hold_base(Law(PowerLaw(of=D)), grid(SIZES[:1], TOKENS[:2]))
    assert {name: (one.value, one.low, one.high) for name, one in two.items()} == {
        "alpha": EXPONENTS[D]
    }
    one = hold_base(Law(PowerLaw()), grid(SIZES[:1], TOKENS))
    assert {name: held.value for name, held in one.items()} == {"A": NO_TERM, "alpha": 0.35}
    # Without an irreducible loss, the scale alone is the loss.
    assert set(hold_base(Law(Kaplan()), grid(SIZES[:1], TOKENS))) == {"alpha"}


def test_terms_of_other_columns_are_held_by_the_levels_of_their_column():
    columns = grid(SIZES, TOKENS) | ratios(
        hidden_size=[64, 64, 64, 128, 128, 128, 64, 128, 64], num_hidden_layers=[4] * 9
    )
    held = hold_base(law_named("width-depth"), columns)
    assert set(held) == {"alpha", "B", "beta"}
    assert (held["alpha"].value, held["alpha"].low, held["alpha"].high) == OTHER_EXPONENT
    assert held["alpha"].why.startswith("2 values of hidden_size cannot identify it")
    assert "its term in num_hidden_layers is part of E" in held["B"].why
    columns["num_hidden_layers"] = columns[N] / 1e5
    held = hold_base(law_named("width-depth"), columns)
    assert held["C"].why == f"{N} is proportional to num_hidden_layers, whose term stands for both"


def test_a_tied_exponent_is_identified_by_any_variable_with_three_values():
    tied = Chinchilla().tie("alpha", "beta")
    assert set(hold_base(tied, grid(SIZES[:2], TOKENS))) == set()
    assert set(hold_base(tied, grid(SIZES[:1], TOKENS))) == {"A"}  # the exponent serves B
    assert set(hold_base(tied, grid(SIZES[:2], TOKENS[:2]))) == {"alpha"}


def test_a_base_without_parameters_holds_nothing():
    assert hold_base(Law(BestLoss()), ratios(best_loss=[2.0, 3.0])) == {}


# Drifts, bends, pins.


def shapes_of(sizes, ratios_of_each) -> dict[str, np.ndarray]:
    """Pair every size with its values of a ratio, at one token count."""
    pairs = [(n, x) for n, row in zip(sizes, ratios_of_each, strict=True) for x in row]
    n, x = np.array(pairs, dtype=float).T
    return {N: n, D: np.full(len(n), 1e9), "gqa": x}


DRIFTING = Chinchilla() * UShape("gqa", drift=True)


def test_a_drift_is_fitted_where_three_sizes_have_three_values_each():
    assert hold_drifts(DRIFTING, shapes_of(SIZES, [[1, 2, 4]] * 3)) == {}
    assert hold_drifts(DRIFTING, shapes_of((1e6, 1.02e6, 4e6, 16e6), [[1], [2, 4]] + [[1, 2, 4]] * 2)) == {}  # fmt: skip  # noqa: E501


def test_drift_is_fitted_where_sizes_have_many_close_values():
    dense = np.geomspace(1, 4, 20)
    assert hold_drifts(DRIFTING, shapes_of(SIZES, [dense] * 3)) == {}
    assert set(hold_drifts(DRIFTING, shapes_of(SIZES[:2], [dense] * 2))) == {"gqa_drift"}


def space_filling(runs=60, largest=1e9, correlation=0.0) -> dict[str, np.ndarray]:
    """Give every run a size and a ratio of its own, correlated in their logarithms."""
    uniform = np.random.default_rng(0).uniform(-1, 1, (2, runs))
    ratio = correlation * uniform[0] + np.sqrt(1 - correlation**2) * uniform[1]
    low, high = np.log(1e7), np.log(largest)
    size = np.exp(low + (high - low) * (uniform[0] + 1) / 2)
    return {N: size, D: np.full(runs, 1e9), "gqa": np.exp(ratio)}


def test_drift_is_fitted_where_every_run_has_its_own_size_and_ratio():
    assert hold_drifts(DRIFTING, space_filling()) == {}


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        (space_filling(largest=1.2e7), "sizes within a factor of 1."),
        (space_filling(correlation=1.0), "0 of 31 sizes (neighbours pooled) have 3 values of gqa"),
    ],
)
def test_drift_is_held_where_sizes_are_close_or_the_ratio_follows_them(columns, why):
    assert why in hold_drifts(DRIFTING, columns)["gqa_drift"].why


@pytest.mark.parametrize(
    ("sizes", "values", "why"),
    [
        (SIZES[:2], [[1, 2, 4]] * 2, "2 sizes cannot identify a drift with N"),
        (
            SIZES,
            [[1, 2, 4], [1, 2, 4], [1, 4]],
            "2 of 3 sizes (neighbours pooled) have 3 values of gqa",
        ),
        (
            np.geomspace(1e6, 1e9, 18),
            [[1, 4]] * 18,
            "0 of 18 sizes (neighbours pooled) have 3 values of gqa",
        ),
    ],
)
def test_a_drift_that_the_table_cannot_identify_varies_in_intervals(sizes, values, why):
    held = hold_drifts(DRIFTING, shapes_of(sizes, values))
    assert set(held) == {"gqa_drift"}
    assert (held["gqa_drift"].value, held["gqa_drift"].low, held["gqa_drift"].high) == (0, *DRIFT)
    assert held["gqa_drift"].why.startswith(why)


def test_a_drift_at_one_size_is_held_at_zero():
    held = hold_drifts(DRIFTING, shapes_of(SIZES[:1], [[1, 2, 4]]))
    assert held == {
        "gqa_drift": Held.at(0.0, "all runs have one size, which cannot identify a drift with N")
    }


def test_a_bend_needs_three_ratios_of_tokens_to_size():
    law = Chinchilla() * UShape("gqa", bend=True)
    assert hold_drifts(law, shapes_of(SIZES, [[1, 2, 4]] * 3)) == {}
    held = hold_drifts(law, shapes_of(SIZES[:2], [[1, 2, 4]] * 2))
    assert held["gqa_bend"].low == held["gqa_bend"].high == 0.0


def test_a_pin_is_held_at_its_internal_value_over_its_range():
    at = {N: 1e6, D: 1e8}
    law = Chinchilla().pin("E", 1.69, low=1.6, high=1.8).pin("alpha", 0.34).pin("A", 406.4)
    held = hold_pins(law, at)
    assert (held["E"].low, held["E"].value, held["E"].high) == pytest.approx(
        np.log([1.6, 1.69, 1.8])
    )
    assert held["E"].why == "pinned at 1.69 (given)"
    assert held["alpha"].value == 0.34
    assert np.exp(held["A"].value) == pytest.approx(406.4 / 1e6**0.34)
    tied = Chinchilla().tie("alpha", "beta").pin("beta", 0.3)
    assert hold_pins(tied, at)["alpha"].value == 0.3


def test_a_pin_replaces_any_other_reason_to_hold_a_parameter():
    columns = grid(SIZES[:2], TOKENS)
    assert hold(CHINCHILLA, columns, reference_of(columns))["alpha"].low == 0.2
    pinned = hold(Chinchilla().pin("alpha", 0.3), columns, reference_of(columns))
    assert pinned["alpha"] == Held.at(0.3, "pinned at 0.3 (given)")


def test_two_factors_of_one_ratio_are_both_identified():
    law = Chinchilla() * UShape("gqa") * GroupedQuery()
    columns = grid(SIZES, TOKENS) | ratios(gqa=[1, 2, 4, 8, 1, 2, 4, 8, 1])
    assert hold_factors(law, columns) == {}
    columns["gqa"][:] = 2.0
    assert set(hold(law, columns, reference_of(columns))) == {
        "gqa_curvature",
        "gqa_optimum",
        "gqa_slope",
    }


def test_an_optimum_with_its_interval_inside_the_observed_range_has_no_note():
    answer, note = optimum_status("x", 2.0, 1.5, 3.0, (1.0, 4.0))
    assert answer == {
        "value": 2.0,
        "low": 1.5,
        "high": 3.0,
        "status": "inside the observed range",
    }
    assert note is None


@pytest.mark.parametrize(
    ("value", "low", "high", "expected", "message"),
    [
        (2.0, 0.5, 3.0, (2.0, None, 3.0), "its interval is open on one side"),
        (2.0, 1.5, 9.0, (2.0, 1.5, None), "its interval is open on one side"),
        (2.0, 0.5, 9.0, (2.0, None, None), "not resolved: the interval is wider than the obs"),
        (6.0, 3.0, 9.0, (None, 3.0, None), "loss falls up to the largest value seen: optimum abo"),
        (6.0, 0.5, 9.0, (None, 1.0, None), "optimum above 4"),
        (6.0, 5.0, 9.0, (None, 4.0, None), "optimum above 4"),
        (0.2, 0.1, 0.5, (None, None, 1.0), "optimum below 1"),
        (0.5, 0.2, 2.0, (None, None, 2.0), "loss rises from the smallest value seen: optimum bel"),
        (0.5, 0.2, 9.0, (None, None, 4.0), "optimum below 1"),
    ],
)
def test_an_optimum_outside_the_observed_range_has_an_open_interval(
    value, low, high, expected, message
):
    answer, note = optimum_status("x", value, low, high, (1.0, 4.0))
    assert (answer["value"], answer["low"], answer["high"]) == expected
    assert message in answer["status"]
    assert note == f"x: {answer['status']}"


@pytest.mark.parametrize("value", [0.5, 2.0, 6.0])
def test_optimum_without_interval_has_no_ends_and_a_status_by_its_value(value):
    answer, note = optimum_status("x", value, np.nan, np.nan, (1.0, 4.0))
    assert answer["low"] is answer["high"] is None
    assert (answer["value"] is None) == (note is not None) == (value != 2.0)
    assert ("optimum" in answer["status"]) == (value != 2.0)


@given(ends=st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3))
def test_a_stated_interval_encloses_its_value_and_stays_in_the_observed_range(ends):
    low, value, high = sorted(ends)
    answer, _ = optimum_status("x", value, low, high, (1.0, 4.0))
    stated = [answer[key] for key in ("low", "value", "high") if answer[key] is not None]
    assert stated == sorted(stated)
    assert all(1.0 <= end <= 4.0 for end in stated)


def test_a_row_inside_the_ranges_gives_no_notes():
    ranges = {N: (1e6, 1e8), "gqa": (1.0, 4.0)}
    assert outside({N: 1e7, "gqa": 4, "other": 99}, ranges) == []
    assert outside({N: 1.01e8, "gqa": 1}, ranges) == []  # one per cent is not reported


def test_a_row_outside_the_ranges_gives_notes_with_distances_in_decades():
    ranges = {N: (1e6, 1e8), "gqa": (1.0, 4.0)}
    assert outside({N: 1e10, "gqa": 0.5}, ranges) == [
        f"{N} 1e+10 is 2.00 decades above the runs' 1e+08",
        "gqa 0.5 is 0.30 decades below the runs' 1",
    ]


def test_distance_from_fitted_ranges_is_in_decades_with_a_sign():
    ranges = {N: (1e6, 1e8), D: (1e9, 1e10)}
    distance = decades_outside({N: 1e9, D: 1e7}, ranges)
    assert distance == pytest.approx({N: 1.0, D: -2.0})
    assert decades_outside({N: 1e6, D: 1e10, "gqa": 99}, ranges) == {N: 0.0, D: 0.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({N: 1e6}, "the row must have `tokens`, but has n_non_embedding; add a value"),
        ({N: -1, D: 1e9}, "> 0` and finite"),
        ({N: 1e6, D: np.nan}, "`tokens > 0` and finite must hold, but got nan; correct the row"),
    ],
)
def test_a_row_without_a_usable_value_raises(row, message):
    with pytest.raises(InputError, match=message):
        decades_outside(row, {N: (1e6, 1e8), D: (1e9, 1e10)})


def test_a_parameter_held_at_one_value_has_no_range():
    held = Held.at(3.0, "for a reason")
    assert (held.value, held.low, held.high, held.why) == (3.0, 3.0, 3.0, "for a reason")
