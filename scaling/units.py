"""Notation of counts, ranges, number formats, times and sizes: 350M, 8:32:4, bf16, 1.2 ms."""

import re
from collections.abc import Sequence

from shapelaw.scaling.errors import InputError

COUNT_LIMIT = 1e30
NUMBER_FORMATS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


NATS = "nats per token"
# Units of a loss by the words that name them, and the units' short forms.
LOSS_UNITS = {
    NATS: ("nats", "nat", "nats/token", "nats per token", "nats_per_token"),
    "bits per token": ("bits", "bit", "bits/token", "bits per token", "bits_per_token"),
    "bits per byte": ("bits per byte", "bits/byte", "bpb", "bits_per_byte"),
    "bits per character": ("bits per character", "bits/character", "bpc", "bits_per_character",
                           "bits per char", "bits/char"),
    "perplexity": ("perplexity", "ppl"),
}  # fmt: skip
SHORT_UNITS = {NATS: "nats/token", "bits per byte": "bits/byte",
               "bits per character": "bits/character"}  # fmt: skip


def short_unit(unit: str) -> str:
    """Return the short form of a unit of a loss, such as nats/token."""
    return SHORT_UNITS.get(unit, unit)


def loss_name(kind: str) -> str:
    """Return the name of a loss in headings and on axes, by its kind: ``exact`` or ``bound``."""
    return "bound on the loss" if kind == "bound" else "loss"


def kind_mark(kind: str) -> str:
    """Return what a heading adds for losses of a kind: nothing where they are exact."""
    return " (loss: an upper bound)" if kind == "bound" else ""


def loss_column(quantity: str, unit: str) -> str:
    """Name a column whose values have the unit of a loss.

    Examples
    --------
    >>> loss_column("regret", NATS), loss_column("regret", "bits per byte")
    ('regret_nats', 'regret_bits_per_byte')
    """
    return f"{quantity}_{'nats' if unit == NATS else unit.replace(' ', '_')}"


def unit_named(text: str) -> str:
    """Return the unit of a loss by one of its names.

    Raises
    ------
    InputError
        The unit is unknown or cannot be fitted.

    Examples
    --------
    >>> unit_named("bpb"), unit_named(" Nats ")
    ('bits per byte', 'nats per token')
    """
    plain = " ".join(text.strip().lower().split())
    for unit, names in LOSS_UNITS.items():
        if plain in names:
            return unit
    why = ": a normalised loss has no scale to extrapolate" if plain.startswith("normali") else ""
    raise InputError(
        f"`loss_unit` must be nats or bits (per token), bits per byte, bits per character or "
        f"perplexity, but got {text!r}{why}; convert the losses, or correct the unit"
    )


def parse_count(text: str | float) -> int:
    """Read a positive count such as ``"1B"``, ``"0.2M"``, ``"2e6"`` or ``12_000``.

    Raises
    ------
    InputError
        The text is not a number with an optional suffix K, M, B, G or T, or is below 1.

    Examples
    --------
    >>> parse_count("1.5B")
    1500000000
    >>> parse_count("350M")
    350000000
    """
    match = re.fullmatch(
        r"\s*(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?\s*([KMBGT]?)\s*", str(text), re.IGNORECASE
    )
    if match is None:
        raise InputError(
            "a count must be a number with an optional suffix K, M, B or T, "
            f"but got {text!r}; write 350M, 1B or 2e6"
        )
    digits, exponent, suffix = match.groups()
    number = float(digits.replace("_", "") + (exponent or "")) * SUFFIXES[suffix.upper()]
    if number >= COUNT_LIMIT:
        raise InputError(
            f"a count must be below {COUNT_LIMIT:g}, but got {text!r}; give a smaller number"
        )
    if round(number) < 1:
        raise InputError(f"a count must be at least 1, but got {text!r}; give a larger number")
    return round(number)


def format_count(count: float) -> str:
    """Format a count with three digits and a suffix, as :func:`parse_count` reads it.

    Examples
    --------
    >>> format_count(1_235_814_400), format_count(102_208), format_count(900)
    ('1.24B', '102K', '900')
    """
    for suffix in ("T", "B", "M", "K"):
        if count >= 0.9995 * SUFFIXES[suffix]:
            return f"{count / SUFFIXES[suffix]:.3g}{suffix}"
    return f"{count:.0f}" if count >= 100 or count == round(count) else f"{count:.3g}"


def format_seconds(value: float) -> str:
    """Format a time in seconds with three digits, in s, ms or µs.

    Examples
    --------
    >>> format_seconds(1.234), format_seconds(0.0456), format_seconds(0.000078)
    ('1.23 s', '45.6 ms', '78 µs')
    """
    return _with_unit(value, ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")))


def format_bytes(count: float) -> str:
    """Format a number of bytes by powers of 1000, with three digits.

    Examples
    --------
    >>> format_bytes(32768), format_bytes(999_700), format_bytes(2.47e9), format_bytes(12)
    ('32.8 kB', '1 MB', '2.47 GB', '12 B')
    """
    return _with_unit(count, ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")))


def _with_unit(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Format a value with three digits in the largest unit that the rounded value reaches."""
    scale, unit = next((pair for pair in units if value >= 0.9995 * pair[0]), units[-1])
    return f"{value / scale:.3g} {unit}"


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read integers: ``12,16,24``, a range ``8:32`` with both ends, or ``8:32:4`` with a step.

    Parameters
    ----------
    option
        Name of the option, for the error.
    text
        The text to read.

    Raises
    ------
    InputError
        The text has none of the forms, or a number is below 1.

    Examples
    --------
    >>> parse_numbers("--layers", "8:16:4")
    (8, 12, 16)
    """
    numbers: tuple[int, ...] = ()
    if re.fullmatch(r"[1-9]\d{0,6}(,[1-9]\d{0,6})*", text):
        numbers = tuple(int(part) for part in text.split(","))
    elif re.fullmatch(r"[1-9]\d{0,6}:[1-9]\d{0,6}(:[1-9]\d{0,6})?", text):
        low, high, *step = (int(part) for part in text.split(":"))
        numbers = tuple(range(low, high + 1, *step))
    if not numbers:
        raise InputError(
            f"`{option}` must be whole numbers like 12,16,24 or a range like 8:32 or 8:32:4, "
            f"but got {text!r}"
        )
    return numbers


def number_format(name: str) -> str:
    """Return the long name of a number format; other names are returned unchanged.

    Examples
    --------
    >>> number_format("bf16"), number_format("bfloat16"), number_format("fp8")
    ('bfloat16', 'bfloat16', 'fp8')
    """
    return NUMBER_FORMATS.get(name, name)
