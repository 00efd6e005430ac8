import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import select

N = np.array([1e6, 2e6, 3e6, 4e6])
SEED = np.array([0, 1, 2, 3])
ROLE = np.array(["proxy", "proxy", "confirmation", "proxy"], dtype=object)
GOOD = np.array([True, False, True, False])
COLUMNS = {"n": N, "seed": SEED, "role": ROLE, "good": GOOD}

EXPECTED = {
    "n > 2e6": N > 2e6,
    "n >= 2e6": N >= 2e6,
    "n < 2e6": N < 2e6,
    "n <= 2e6": N <= 2e6,
    "n == 2e6": N == 2e6,
    "n != 2e6": N != 2e6,
    "2e6 < n": N > 2e6,
    "1e6 < n <= 3e6": (N > 1e6) & (N <= 3e6),
    "role == 'proxy'": ROLE == "proxy",
    'role != "proxy"': ROLE != "proxy",
    "good": GOOD,
    "not good": ~GOOD,
    "not n > 2e6": ~(N > 2e6),
    "n > 1e6 and seed < 3": (N > 1e6) & (SEED < 3),
    "n > 3e6 or seed == 0": (N > 3e6) | (SEED == 0),
    "n > 3e6 or seed == 0 and good": (N > 3e6) | ((SEED == 0) & GOOD),
    "(n > 3e6 or seed == 1) and good": ((N > 3e6) | (SEED == 1)) & GOOD,
    "n > 1e6 and n < 4e6 and good": (N > 1e6) & (N < 4e6) & GOOD,
    "n / 1e6 + seed * 2 - 1 > 4": N / 1e6 + SEED * 2 - 1 > 4,
    "-seed < -1": -SEED < -1,
    "seed % 2 == 0": SEED % 2 == 0,
    "seed % 2 == 1 and role == 'proxy'": (SEED % 2 == 1) & (ROLE == "proxy"),
    " n > 2e6 ": N > 2e6,
    "seed in (0, 3)": np.isin(SEED, [0, 3]),
    "seed not in [0, 3]": ~np.isin(SEED, [0, 3]),
    "seed in (1)": SEED == 1,
    "role in ('confirmation', 'other')": ROLE == "confirmation",
    "role not in ('proxy',) or n in (2e6, 4e6)": (ROLE != "proxy") | np.isin(N, [2e6, 4e6]),
    "seed * 2 in (-2, 2, 4) and good": np.isin(SEED * 2, [2, 4]) & GOOD,
    "1e6 < n in (2e6, 4e6)": np.isin(N, [2e6, 4e6]),
    "1 < 2": np.full(4, True),
    "False": np.full(4, False),
}


@pytest.mark.parametrize("text", EXPECTED)
def test_a_filter_selects_what_numpy_selects(text):
    mask = select(text, COLUMNS, len(N))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, EXPECTED[text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n > 2e6 and 1 < 2", N > 2e6),
        ("n > 2e6 and True", N > 2e6),
        ("1 > 2 or n > 2e6", N > 2e6),
        ("n > 2e6 or 1 < 2", np.full(4, True)),
    ],
)
def test_a_constant_condition_combines_with_one_on_a_column(text, expected):
    np.testing.assert_array_equal(select(text, COLUMNS, len(N)), expected)


@given(
    values=st.lists(st.integers(-9, 9), min_size=1, max_size=6),
    bound=st.integers(-9, 9),
    comparison=st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    other=st.sampled_from(["and", "or"]),
    factor=st.integers(1, 5),
)
def test_random_filters_agree_with_python_row_by_row(values, bound, comparison, other, factor):
    text = f"x * {factor} - 1 {comparison} {bound} {other} not x % 2 == 0"
    mask = select(text, {"x": np.array(values)}, len(values))
    assert mask.tolist() == [eval(text, {"x": x}) for x in values]


def test_the_mask_shares_no_memory_with_the_columns():
    mask = select("good", COLUMNS, len(N))
    mask[:] = False
    assert GOOD.any()


@pytest.mark.parametrize(
    "text",
    [
        "abs(n) > 1",
        "__import__('os').system('true') == 0",
        "n.size > 1",
        "n.__class__ == 1",
        "().__class__.__bases__ == 1",
        "n[0] > 1",
        "[n] == 1",
        "(n, n) == 1",
        "{'a': n} == 1",
        "(lambda: n) == 1",
        "[x for x in n] == 1",
        "n > 1 if good else n < 1",
        "(m := n) > 1",
        "f'{n}' == '1'",
        "2 ** 10000000 > 1",
        "n // 2 > 1",
        "n << 2 > 1",
        "n @ n > 1",
        "~good",
        "good & good",
        "None",
        "b'x' == role",
        "1j == n",
        "...",
    ],
)
def test_anything_but_columns_constants_comparisons_and_arithmetic_is_refused(text):
    with pytest.raises(InputError, match=r"may hold columns, numbers, strings, .* none of these"):
        select(text, COLUMNS, len(N))


@pytest.mark.parametrize("text", ["n is 1", "n is not 1"])
def test_other_comparisons_are_refused(text):
    with pytest.raises(InputError, match=r"may compare with < <= > >= == != in only"):
        select(text, COLUMNS, len(N))


@pytest.mark.parametrize(
    "text", ["seed in n", "seed in ()", "seed in (n, 1)", "seed in (1, (2, 3))", "seed in n + 1"]
)
def test_in_without_a_list_of_constants_is_refused_with_an_example(text):
    with pytest.raises(InputError, match=r"`in` must be followed by numbers or strings .* write"):
        select(text, COLUMNS, len(N))


@given(
    values=st.lists(st.integers(-9, 9), min_size=1, max_size=6),
    members=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    word=st.sampled_from(["in", "not in"]),
)
def test_in_agrees_with_python_row_by_row(values, members, word):
    text = f"x {word} {tuple(members)}"
    mask = select(text, {"x": np.array(values)}, len(values))
    assert mask.tolist() == [eval(text, {"x": x}) for x in values]


@pytest.mark.parametrize("name", ["loss", "__builtins__", "__name__", "select", "np", "print"])
def test_an_unknown_column_raises_with_the_list_of_columns(name):
    text = f"names the column '{name}', which the table lacks; it has n, seed, role, good"
    with pytest.raises(InputError, match=text):
        select(f"{name} == 1", COLUMNS, len(N))


@pytest.mark.parametrize(
    "text", ["", "n >", "n > 1; n < 2", "import os", "n = 1", "del n", "(" * 500 + "n", "n > 1\0"]
)
def test_a_filter_that_does_not_parse_raises_with_an_example(text):
    with pytest.raises(InputError, match=r"must be a condition on columns, but got .* write for"):
        select(text, COLUMNS, len(N))


@pytest.mark.parametrize("text", ["n", "n + 1", "role", "1", "'proxy'", "-n"])
def test_a_filter_that_is_not_a_condition_raises(text):
    with pytest.raises(InputError, match="a filter must be true or false for each row, but got"):
        select(text, COLUMNS, len(N))


@pytest.mark.parametrize(
    "text", ["n < 'proxy'", "-role == 1", "1 / 0 > n", "role + 1 == 2", "1 < 'a'", "n + 'a' == 1"]
)
def test_operations_that_do_not_fit_their_columns_are_refused(text):
    with pytest.raises(InputError, match=r"the filter .* cannot be applied"):
        select(text, COLUMNS, len(N))


def test_a_repetition_without_bound_is_refused():
    with pytest.raises(InputError, match="the filter"):
        select("'a' * 99999999999999999999 == role", COLUMNS, len(N))


class Trap:
    """An object that raises on every use."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was looked up")

    def __call__(self, *_):
        raise AssertionError("called")


@pytest.mark.parametrize("text", ["trap()", "trap.go", "trap[0]", "trap().go == 1", "not trap(n)"])
def test_a_refused_filter_runs_no_code(text):
    with pytest.raises(InputError, match="none of these"):
        select(text, {"trap": Trap(), "n": N}, len(N))


def test_a_row_that_divides_by_zero_is_infinite_without_a_warning():
    mask = select("n / seed > 1.9e6", {"n": N, "seed": SEED}, len(N))
    assert mask.tolist() == [True, True, False, False]
