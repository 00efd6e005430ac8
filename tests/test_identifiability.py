import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.identifiability import (
    EXPONENTS,
    NO_TERM,
    Held,
    hold_base,
    hold_factors,
    levels,
    neutral,
    optimum_status,
    outside,
)
from scaling.laws import Chinchilla, D, GroupedQuery, N, UShape, law_named

SIZES, TOKENS = (1e6, 4e6, 16e6), (1e7, 1e8, 1e9)


def grid(sizes, tokens) -> dict[str, np.ndarray]:
    """Every size with every token count."""
    return {N: np.repeat(sizes, len(tokens)).astype(float), D: np.tile(tokens, len(sizes))}


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([5.0], 1),
        ([5.0, 5.0, 5.0], 1),
        ([1.0, 1.09], 1),
        ([1.0, 1.11], 2),
        ([1e6, 4e6, 1.02e6, 4.1e6, 1.6e7], 3),
    ],
)
def test_values_within_ten_per_cent_are_one_level(values, count):
    assert levels(np.array(values)) == count


def test_three_sizes_and_token_counts_fix_every_exponent():
    assert hold_base(grid(SIZES, TOKENS)) == {}


def test_two_sizes_and_two_token_counts_hold_both_exponents_in_a_range():
    held = hold_base(grid(SIZES[:2], TOKENS[:2]))
    assert set(held) == {"alpha", "beta"}
    for name in held:
        assert (held[name].value, held[name].low, held[name].high) == EXPONENTS[name]
        assert held[name].low < held[name].value < held[name].high
    assert "2 sizes cannot fix it beside its scale; intervals span 0.2 to" in held["alpha"].why
    assert "2 token counts cannot fix it beside its scale" in held["beta"].why


def test_one_size_leaves_the_size_term_in_the_floor():
    held = hold_base(grid(SIZES[:1], TOKENS))
    assert set(held) == {"A", "alpha"}
    assert held["A"].value == NO_TERM
    assert "all runs have one size" in held["A"].why
    assert held["alpha"].low == held["alpha"].high  # without a term, intervals vary nothing


def test_one_token_count_leaves_the_data_term_in_the_floor():
    held = hold_base(grid(SIZES, TOKENS[:1]))
    assert set(held) == {"B", "beta"}
    assert held["B"].value == NO_TERM
    assert "all runs have one token count" in held["beta"].why


def test_tokens_in_proportion_to_size_leave_one_term_for_both():
    sizes = np.array(SIZES)
    held = hold_base({N: sizes, D: 20 * sizes * [1.0, 1.03, 0.98]})
    assert set(held) == {"B", "beta"}
    assert "tokens are proportional to size" in held["B"].why


def test_one_size_and_one_token_count_leave_only_the_floor():
    held = hold_base(grid(SIZES[:1], TOKENS[:1]))
    assert set(held) == {"A", "alpha", "B", "beta"}
    assert "all runs have one size" in held["A"].why
    assert "all runs have one token count" in held["B"].why


def test_a_term_that_is_held_off_contributes_nothing():
    columns = grid(SIZES, TOKENS)
    theta = np.array([0.5, NO_TERM, 0.35, NO_TERM, 0.37])
    value, _ = Chinchilla().log_loss(theta, columns, {N: 1e6, D: 1e8})
    np.testing.assert_allclose(value, 0.5, rtol=1e-12)


def ratios(**columns) -> dict[str, np.ndarray]:
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def test_a_factor_whose_column_is_constant_is_unseen():
    columns = ratios(
        hidden_over_sqrt_n=[0.1, 0.2, 0.3], mlp_to_attention=[2.0, 2.05, 2.01], gqa=[4, 1, 2]
    )
    unseen = hold_factors(law_named("conditional"), columns)
    assert unseen == {"mlp_to_attention": "all runs have nearly the same mlp_to_attention"}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_later_of_two_factors_that_move_together_is_unseen(sign):
    hidden = np.array([0.1, 0.2, 0.3, 0.5])
    columns = ratios(
        hidden_over_sqrt_n=hidden, mlp_to_attention=3 * hidden ** (sign * 2), gqa=[4, 1, 2, 1]
    )
    unseen = hold_factors(law_named("conditional"), columns)
    assert list(unseen) == ["mlp_to_attention"]
    assert f"it moves with hidden_over_sqrt_n (correlation {sign}.000)" in unseen.values()


def test_a_constant_column_hides_no_other():
    columns = ratios(
        hidden_over_sqrt_n=[0.1, 0.1, 0.1], mlp_to_attention=[1, 2, 3], gqa=[1, 2, 4.2]
    )
    unseen = hold_factors(law_named("conditional"), columns)
    assert list(unseen) == ["hidden_over_sqrt_n", "gqa"]
    assert "moves with mlp_to_attention" in unseen["gqa"]


def test_independent_columns_are_all_seen():
    columns = ratios(
        hidden_over_sqrt_n=[0.1, 0.2, 0.1, 0.2], mlp_to_attention=[1, 1, 3, 3], gqa=[4, 1, 1, 4]
    )
    assert hold_factors(law_named("conditional"), columns) == {}


@pytest.mark.parametrize(
    "factor",
    [UShape("x"), UShape("x", drift=True), GroupedQuery("x")],
    ids=["UShape", "drift", "GroupedQuery"],
)
def test_a_neutral_factor_has_no_effect_and_stays_fixed(factor):
    columns = ratios(x=[1.0, 2.0, 5.0], **{N: [1e6, 2e6, 3e6]})
    held = neutral(factor, columns, "of noise")
    assert list(held) == [parameter.name for parameter in factor.parameters(columns)]
    assert all(one.low == one.high == one.value and one.why == "of noise" for one in held.values())
    theta = np.array([one.value for one in held.values()])
    np.testing.assert_array_equal(factor.effect(theta, columns, {N: 1e6})[0], 0.0)


def test_an_optimum_inside_with_its_interval_inside_needs_no_note():
    answer, note = optimum_status("x", 2.0, 1.5, 3.0, (1.0, 4.0))
    assert answer == {
        "value": 2.0,
        "low": 1.5,
        "high": 3.0,
        "status": "inside the observed range",
    }
    assert note is None


@pytest.mark.parametrize(
    ("value", "low", "high", "expected", "words"),
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
def test_an_optimum_that_the_data_do_not_enclose_is_open(value, low, high, expected, words):
    answer, note = optimum_status("x", value, low, high, (1.0, 4.0))
    assert (answer["value"], answer["low"], answer["high"]) == expected
    assert words in answer["status"]
    assert note == f"x: {answer['status']}"


@given(ends=st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3))
def test_a_stated_interval_encloses_its_value_and_stays_in_the_observed_range(ends):
    low, value, high = sorted(ends)
    answer, _ = optimum_status("x", value, low, high, (1.0, 4.0))
    stated = [answer[key] for key in ("low", "value", "high") if answer[key] is not None]
    assert stated == sorted(stated)
    assert all(1.0 <= end <= 4.0 for end in stated)


def test_a_row_inside_the_ranges_gives_no_words():
    ranges = {N: (1e6, 1e8), "gqa": (1.0, 4.0)}
    assert outside({N: 1e7, "gqa": 4, "other": 99}, ranges) == []
    assert outside({N: 1.01e8, "gqa": 1}, ranges) == []  # one per cent is not worth a word


def test_a_row_outside_is_told_how_far_in_decades():
    ranges = {N: (1e6, 1e8), "gqa": (1.0, 4.0)}
    assert outside({N: 1e10, "gqa": 0.5}, ranges) == [
        f"{N} 1e+10 is 2.00 decades above the runs' 1e+08",
        "gqa 0.5 is 0.30 decades below the runs' 1",
    ]


def test_a_parameter_held_at_one_value_has_no_range():
    held = Held.at(3.0, "for a reason")
    assert (held.value, held.low, held.high, held.why) == (3.0, 3.0, 3.0, "for a reason")
