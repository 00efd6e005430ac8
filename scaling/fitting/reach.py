"""Reach of a fit: the N and D up to which its predictions are given without being asked for."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import LEVEL_TOLERANCE
from shapelaw.scaling.solver.identifiability import NO_TERM
from shapelaw.scaling.units import format_count

MAX_DECADES = 1.5  # of N or D from the nearest run
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
        N and D of every row, as the fit counts them, (n,) each.
    more
        Ranges of N and D in which other evidence holds; distances count from both ranges together,
        and terms that the fit holds do not count.

    Returns
    -------
    dict
        A sentence by row: the factor of N or D beyond the runs, farther than 1.5 decades; a size or
        token count other than the only one of the runs; or a ratio of tokens to size other than the
        only one, where the fit holds the term of one of them.
    """
    sentences: dict[int, list[str]] = {}
    for name, letter in LETTERS.items():
        if name not in columns or name not in fit.ranges:
            continue
        values = np.atleast_1d(np.asarray(columns[name], dtype=float))
        low, high = fit.ranges[name]
        others = (more or {}).get(name, (low, high))
        lowest, highest = min(low, *others), max(high, *others)
        for row, value in enumerate(values):
            if value > highest * 10**MAX_DECADES:
                text = f"{letter} is {_factor(value / high)} times the largest run"
                sentences.setdefault(row, []).append(f"{text} ({format_count(high)})")
            elif value < lowest / 10**MAX_DECADES:
                text = f"{letter} is 1/{_factor(low / value)} of the smallest run"
                sentences.setdefault(row, []).append(f"{text} ({format_count(low)})")
    for row, text in _without_term(fit, columns) if more is None else ():
        sentences.setdefault(row, []).append(text)
    return {row: ", ".join(sentences[row]) for row in sorted(sentences)}


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
            f"`--extrapolate` must be given for predictions where the runs say nothing or beyond "
            f"{MAX_DECADES} decades from them, but {named[0]}{others}; add it, or fit nearer runs"
        )
    return named
