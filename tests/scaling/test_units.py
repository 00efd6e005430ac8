import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import (
    NUMBER_FORMATS,
    format_bytes,
    format_count,
    format_seconds,
    number_format,
    parse_count,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("12_000", 12_000),
        ("2e6", 2_000_000),
        ("2E+6", 2_000_000),
        (".2M", 200_000),
        ("1.5B", 1_500_000_000),
        ("350m", 350_000_000),
        ("100 G", 100_000_000_000),
        (" 3T ", 3_000_000_000_000),
        ("1e-3B", 1_000_000),
        ("0.6", 1),
        (2e6, 2_000_000),
        (7, 7),
    ],
)
def test_a_count_with_suffix_or_exponent_is_read(text, count):
    parsed = parse_count(text)
    assert parsed == count
    assert isinstance(parsed, int)


@pytest.mark.parametrize(
    "text", ["", "B", "-1", "1Q", "1 2", "one", "nan", "inf", "1.2.3", "1e", "0x10", "1MM", "_1"]
)
def test_a_text_that_is_not_a_count_raises_with_examples(text):
    with pytest.raises(InputError, match=r"a count must be a number with .* write 350M, 1B or 2e6"):
        parse_count(text)


@pytest.mark.parametrize("text", ["0", "0.4", "1e-3", "0B"])
def test_a_count_below_one_is_refused(text):
    with pytest.raises(InputError, match=f"a count must be at least 1, but got '{text}'"):
        parse_count(text)


@pytest.mark.parametrize("text", ["1e999", "1e308T"])
def test_a_count_without_bound_is_refused(text):
    with pytest.raises(InputError, match="a count must be"):
        parse_count(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "1"),
        (99, "99"),
        (900, "900"),
        (999, "999"),
        (999.7, "1K"),
        (102_208, "102K"),
        (999_499, "999K"),
        (999_600, "1M"),
        (1_235_814_400, "1.24B"),
        (100e9, "100B"),
        (2.5e12, "2.5T"),
        (12.34, "12.3"),
    ],
)
def test_counts_are_shown_with_three_digits(count, text):
    assert format_count(count) == text


@given(st.integers(1, 10**15))
def test_a_shown_count_reads_back_to_three_digits(count):
    assert parse_count(format_count(count)) == pytest.approx(count, rel=5.1e-3)


@given(st.integers(1, 999), st.sampled_from(["", "K", "M", "B", "T"]))
def test_a_count_of_three_digits_reads_back_exactly(digits, suffix):
    count = parse_count(f"{digits}{suffix}")
    assert format_count(count) == f"{digits}{suffix}"
    assert parse_count(format_count(count)) == count


@pytest.mark.parametrize("short", NUMBER_FORMATS)
def test_a_short_number_format_becomes_the_long_one_which_stays(short):
    assert number_format(short) == NUMBER_FORMATS[short] != short
    assert number_format(number_format(short)) == number_format(short)
    assert number_format("fp8") == "fp8"


def test_times_and_sizes_keep_three_digits_and_the_largest_unit_they_reach() -> None:
    assert [format_seconds(value) for value in (12.345, 0.9996, 0.00123, 4.56e-7)] == [
        "12.3 s",
        "1 s",
        "1.23 ms",
        "0.456 µs",
    ]
    assert [format_bytes(value) for value in (0, 999, 114_688, 6.4e9, 2e12)] == [
        "0 B",
        "999 B",
        "115 kB",
        "6.4 GB",
        "2 TB",
    ]
