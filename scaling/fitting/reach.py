"""Reach of a fit: the N, D and ratios up to which it predicts without being asked to extrapolate.

N and D reach 1.5 decades beyond the runs. A ratio reaches beyond either end of its fitted range by
half of that range in logarithms, which is a factor of √(largest / smallest), and by a factor of 2
at least: a ratio that was varied more is known farther.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import LEVEL_TOLERANCE
from shapelaw.scaling.solver.identifiability import NO_TERM
from shapelaw.scaling.units import format_count

MAX_DECADES = 1.5  # of N or D from the nearest run
MIN_RATIO_REACH = 2.0  # factor beyond the fitted range of a ratio, at least
LETTERS = {N: "N", D: "D"}
NAMES = {N: "size", D: "token count"}
LEVEL_WIDTH = 1 + LEVEL_TOLERANCE  # ratio of values that count as equal
Ranges = Mapping[str, tuple[float, float]]


def beyond_reach(
    fit: Fit, columns: Mapping[str, ArrayLike], more: Ranges | None = None
) -> dict[int, str]:
    """Describe the rows that are too far from the runs of a fit, or where it has no information.

    Parameters
    ----------
    fit
        Fit that predicts.
    columns
        N, D and ratios of every row, as the fit counts them, (n,) each; absent ones do not count.
    more
        Ranges of columns in which other evidence holds; distances count from both ranges together,
        and terms that the fit holds do not count.

    Returns
    -------
    dict
        A sentence by row: the factor of N, D or a ratio beyond the runs, out of reach; a size or
        token count other than the only one of the runs; or a ratio of tokens to size other than the
        only one, where the fit holds the term of one of them.
    """
    sentences: dict[int, list[str]] = {}
    for name in (*LETTERS, *ratios_of(fit)):
        if name not in columns or name not in fit.ranges:
            continue
        values = np.atleast_1d(np.asarray(columns[name], dtype=float))
        for row, text in _far_values(fit, name, values, (more or {}).get(name)):
            sentences.setdefault(row, []).append(text)
    for row, text in _without_term(fit, columns) if more is None else ():
        sentences.setdefault(row, []).append(text)
    return {row: ", ".join(sentences[row]) for row in sorted(sentences)}


def ratios_of(fit: Fit) -> list[str]:
    """List the columns of the shape factors of a law that are neither N, D nor whole numbers."""
    names = dict.fromkeys(factor.of for factor in fit.law.shapes)
    return [name for name in names if name not in (N, D, *INTEGER_FIELDS)]


def _far_values(
    fit: Fit, name: str, values: np.ndarray, others: tuple[float, float] | None
) -> Iterator[tuple[int, str]]:
    """Describe the values of a column that are beyond its reach, by row."""
    low, high = fit.ranges[name]
    lowest, highest = (low, high) if others is None else (min(low, others[0]), max(high, others[1]))
    reach, what = 10**MAX_DECADES, " run"
    if name not in LETTERS:
        reach, what = max(float(np.sqrt(highest / lowest)), MIN_RATIO_REACH), " of the runs"
        if others is None and high <= low * LEVEL_WIDTH and _held_factor(fit, name):
            reach = LEVEL_WIDTH
    for row, value in enumerate(values):
        number = LETTERS.get(name, f"{name} = {value:.3g}")
        if value > highest * reach:
            end = format_count(high) if name in LETTERS else f"{high:.3g}"
            yield row, f"{number} is {_factor(value / high)} times the largest{what} ({end})"
        elif value < lowest / reach:
            end = format_count(low) if name in LETTERS else f"{low:.3g}"
            yield row, f"{number} is 1/{_factor(low / value)} of the smallest{what} ({end})"


def _held_factor(fit: Fit, ratio: str) -> bool:
    """Return whether a parameter of the factor of a ratio is held at one value."""
    names = (name for factor in fit.law.shapes if factor.of == ratio for name in factor.names)
    return any(name in fit.held and fit.held[name].low == fit.held[name].high for name in names)


def _factor(ratio: float) -> str:
    """Format a factor with three digits and separators, such as 3,310."""
    return f"{float(f'{ratio:.3g}'):,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _without_term(fit: Fit, columns: Mapping[str, ArrayLike]) -> Iterator[tuple[int, str]]:
    """Describe rows at a size, a token count or a ratio of both that a held term does not cover."""
    scales = fit.law.base.scales
    for scale, (_, name) in scales.items():
        held = fit.held.get(scale)
        if held is None or held.value != NO_TERM or name not in LETTERS or name not in columns:
            continue
        values = np.atleast_1d(np.asarray(columns[name], dtype=float))
        low, high = fit.ranges[name]
        if high <= low * LEVEL_WIDTH:
            text = f"all runs have one {NAMES[name]} ({format_count(high)})"
            apart = (values > high * LEVEL_WIDTH) | (values < low / LEVEL_WIDTH)
        else:
            sizes = np.atleast_1d(np.asarray(columns[N], dtype=float))
            ratio, only = values / sizes, fit.reference[name] / fit.reference[N]
            text = f"all runs have D = {only:.3g} N"
            apart = (ratio > only * LEVEL_WIDTH) | (ratio < only / LEVEL_WIDTH)
        for row in np.flatnonzero(apart):
            yield int(row), f"{text}, and {LETTERS[name]} is {format_count(values[row])}"


def require_reach(beyond: Mapping[int, str], *, extrapolate: bool, lines: bool = True) -> list[str]:
    """Refuse predictions beyond the reach of a fit unless they are asked for.

    Parameters
    ----------
    beyond
        Sentence by row, as :func:`beyond_reach` returns them.
    extrapolate
        True to predict all the same.
    lines
        Name the line of each row in its file, whose header is line 1.

    Returns
    -------
    list
        The sentences, to print before the predictions.

    Raises
    ------
    InputError
        A row is beyond reach and ``extrapolate`` is false.
    """
    named = [f"line {row + 2}: {text}" if lines else text for row, text in beyond.items()]
    if named and not extrapolate:
        others = f", and {len(named) - 1} more" if len(named) > 1 else ""
        raise InputError(
            f"`--extrapolate` must be given for predictions that the runs do not reach "
            f"({MAX_DECADES} decades of N or D, half the range of a ratio in logarithms), but "
            f"{named[0]}{others}; add it, or fit nearer runs"
        )
    return named
