"""Identifiability of law parameters from a run table: parameters to hold fixed, with reasons."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.bases import COUPLINGS
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.laws.law import Law
from shapelaw.scaling.laws.part import Columns, Factor, Reference
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import count_distinct, level_of

# Published exponents of the Chinchilla data with a wide range, for run tables that cannot identify
# their exponents: arXiv 2404.10102 refits 0.348 and 0.366; fits of other tables span the range.
EXPONENTS = {N: (0.35, 0.2, 0.6), D: (0.37, 0.2, 0.6)}
OTHER_EXPONENT = (0.35, 0.1, 1.0)
# Drift of an optimum per ln N. The optima of arXiv 2510.18245 between 0.2B and 1B parameters drift
# by -0.04 (hidden size) and +0.09 (MLP ratio); tiny models gave -0.22 (hidden size, LOG.md).
DRIFT = (-0.25, 0.25)
MAX_CONSTANT_SPREAD = np.log(1.05)  # a column with a smaller range in ln counts as constant
MIN_OPTIMUM_SPREAD = np.log(1.25)  # a ratio that rounding alone varies has no optimum to fit
COLLINEAR = 0.98  # absolute correlation above which two columns cannot be told apart
NO_TERM = -50.0  # ln of a scale that contributes nothing
MIN_DECADES_TO_REPORT = np.log10(1.02)  # smallest distance outside a fitted range that is reported
MIN_LEVELS = 3  # levels that identify an exponent, sizes for a drift, and shapes at such a size
MIN_SPREAD = 1.5  # ratio of the largest to the smallest of these levels, at least
NOUNS = {N: ("size", "sizes"), D: ("token count", "token counts")}


@dataclass(frozen=True, kw_only=True)
class Held:
    """A held internal parameter: its value, its range in confidence intervals, and the reason.

    Confidence intervals vary the parameter from ``low`` to ``high``; both equal ``value`` where the
    parameter does not vary.
    """

    value: float
    low: float
    high: float
    why: str

    @classmethod
    def at(cls, value: float, why: str) -> "Held":
        """Hold a parameter at one value, also in confidence intervals."""
        return cls(value=value, low=value, high=value, why=why)


def hold(law: Law, columns: Columns, at: Reference) -> dict[str, Held]:
    """Choose the parameters to hold: those that the table cannot identify, and the pinned ones.

    Parameters
    ----------
    law
        The law to fit.
    columns
        The columns that the law needs, (n,) each.
    at
        Geometric means of the columns.

    Returns
    -------
    Held internal parameters by name, each with its reason.
    """
    held = hold_base(law, columns)
    held |= hold_couplings(law, columns, held) | hold_drifts(law, columns)
    held |= hold_slopes(law, columns, at)
    unseen = hold_factors(law, columns)
    for factor in law.shapes:
        if factor.of in unseen:
            held |= neutral(law, factor, columns, unseen[factor.of])
    return held | hold_pins(law, at)


def hold_base(law: Law, columns: Columns) -> dict[str, Held]:
    """Hold the scales and exponents of a base that the values of its variables cannot identify.

    A term needs two levels of its variable. An exponent needs three levels that span a factor of
    ``MIN_SPREAD``.
    """
    held: dict[str, Held] = {}
    seen: list[str] = []
    scales = law.base.scales
    for scale, (exponent, column) in scales.items():
        singular, plural = NOUNS.get(column, (column, f"values of {column}"))
        value, low, high = EXPONENTS.get(column, OTHER_EXPONENT)
        name = law.names[law.index[exponent]]
        tied = [
            other for other, (power, _) in scales.items() if law.index[power] == law.index[exponent]
        ]
        why = _reason_for_no_term(columns, column, seen, singular)
        if why is not None:
            if "E" in law.base.names or len(scales) > 1:
                held[scale] = Held.at(NO_TERM, why)
            if len(tied) == 1:
                held[name] = Held.at(value, why)
            continue
        seen.append(column)
        if not any(_identifies_power(columns[scales[other][1]]) for other in tied):
            why = f"{_levels_in_words(columns[column], plural)} cannot identify it separately from "
            why += f"its scale; intervals span {low} to {high}"
            held[name] = Held(value=value, low=low, high=high, why=why)
    return held


def _identifies_power(values: np.ndarray) -> bool:
    """Return whether the values of a variable identify its exponent and scale, if both are free."""
    return count_distinct(values) >= MIN_LEVELS and _ratio_of_ends(values) >= MIN_SPREAD


def _ratio_of_ends(values: np.ndarray) -> float:
    """Return the largest of some values over the smallest."""
    return float(values.max() / values.min())


def _levels_in_words(values: np.ndarray, plural: str) -> str:
    """Count the levels of a variable in words, with their spread where it is too small."""
    spread = _ratio_of_ends(values)
    within = f" within a factor of {spread:.3g}" if spread < MIN_SPREAD else ""
    return f"{count_distinct(values)} {plural}{within}"


def _reason_for_no_term(
    columns: Columns, column: str, seen: list[str], singular: str
) -> str | None:
    """Return the reason why a variable cannot have its own term, or None if it can."""
    if count_distinct(columns[column]) == 1:
        term = {N: "the size term", D: "the data term"}.get(column, f"its term in {column}")
        return f"all runs have one {singular}: {term} is part of E, and predictions hold only there"
    for other in seen:
        if count_distinct(columns[column] / columns[other]) == 1:
            if (column, other) == (D, N):
                return (
                    "tokens are proportional to size: A/N^alpha stands for both, at this ratio only"
                )
            return f"{column} is proportional to {other}, whose term stands for both"
    return None


def move_together(columns: Columns) -> bool:
    """Return whether the tokens of runs of several sizes follow their size."""
    if not {N, D} <= set(columns) or 1 in (count_distinct(columns[N]), count_distinct(columns[D])):
        return False
    return abs(float(np.corrcoef(np.log(columns[N]), np.log(columns[D]))[0, 1])) > COLLINEAR


def split_note(columns: Columns) -> str:
    """Say that N and D cannot be told apart where tokens follow size; empty where they do not."""
    if not move_together(columns):
        return ""
    correlation = float(np.corrcoef(np.log(columns[N]), np.log(columns[D]))[0, 1])
    ratios = columns[D] / columns[N]
    ray = f"D = {np.exp(np.log(ratios).mean()):.3g} N in all runs"
    if count_distinct(ratios) > 1:
        ray = f"tokens move with size, correlation {correlation:.3f}"
    return (
        f"N and D cannot be told apart ({ray}): the prior splits the loss between their terms, and "
        "intervals at other ratios of tokens to size span every split; runs at other ratios would "
        "decide"
    )


def hold_couplings(law: Law, columns: Columns, base: Mapping[str, Held]) -> dict[str, Held]:
    """Hold the coupling of size and tokens of a base at none where a table cannot identify it.

    A coupling needs both terms of the base (``base`` are its held parameters), and sizes and token
    counts that identify exponents and do not move together. A slope of the exponent of D in ln N
    also needs three sizes, each with three token counts.
    """
    names = [name for name in law.base.names if name in COUPLINGS]
    if not names:
        return {}
    reasons = [held.why for name, held in base.items() if name in law.base.scales]
    reasons += [
        f"{_levels_in_words(columns[column], plural)} cannot identify it"
        for column, (_, plural) in NOUNS.items()
        if not _identifies_power(columns[column])
    ]
    if not reasons:
        correlation = float(np.corrcoef(np.log(columns[N]), np.log(columns[D]))[0, 1])
        if abs(correlation) > COLLINEAR:
            reasons.append(f"tokens move with size (correlation {correlation:.3f})")
    if not reasons and "beta_n" in names:
        sizes = len(_sizes_with_shapes(columns, D))
        if sizes < MIN_LEVELS:
            reasons.append(f"{counted(sizes, 'size')} with three token counts cannot identify it")
    return {name: Held.at(0.0, reasons[0]) for name in names if reasons}


def hold_slopes(law: Law, columns: Columns, at: Reference) -> dict[str, Held]:
    """Hold parameters of a base at no effect whose variables the others of the table can replace.

    A variable can be replaced where it is constant, or where a linear function of ln N, ln D and
    the variables before it correlates with it by more than ``COLLINEAR``.
    """
    held: dict[str, Held] = {}
    seen = [np.log(columns[name]) for name in (N, D) if name in columns]
    for name, variable in law.base.slopes(columns, at).items():
        spread = float(np.ptp(variable))
        basis = np.stack([np.ones(len(variable)), *seen], axis=1)
        rest = variable - basis @ np.linalg.lstsq(basis, variable, rcond=None)[0]
        share = float(rest.var() / variable.var()) if spread else 0.0
        if spread < MAX_CONSTANT_SPREAD:
            held[name] = Held.at(0.0, "the runs have nearly the same sparsity or granularity")
        elif share < 1 - COLLINEAR**2:
            why = "its variable moves with those of N, D and the other exponents"
            held[name] = Held.at(0.0, f"{why} (correlation {np.sqrt(1 - share):.3f})")
        else:
            seen.append(variable)
    return held


def hold_pins(law: Law, at: Reference) -> dict[str, Held]:
    """Hold the pinned parameters of a law, with their ranges, as internal parameters."""
    held = {}
    values = {pin.name: pin.value for pin in law.pins}
    for pin in law.pins:

        def internal(value: float, name: str = pin.name) -> float:
            value = float(np.log(value)) if name in law.logarithmic else value
            if name in law.scales:
                exponent, column = law.scales[name]
                value -= values[exponent] * float(np.log(at[column]))
            return value

        held[law.names[law.index[pin.name]]] = Held(
            value=internal(pin.value),
            low=internal(pin.low),
            high=internal(pin.high),
            why=f"pinned at {pin.value:g} ({pin.source})",
        )
    return held


def hold_factors(law: Law, columns: Columns) -> dict[str, str]:
    """Find the factors that a table cannot identify: {column: reason}.

    A factor cannot be identified where its column is constant (or, for an optimum, varies by little
    more than rounding), or is collinear with N or with the column of an earlier factor.
    """
    unseen: dict[str, str] = {}
    judged: set[str] = set()
    seen = [N] if N in columns and count_distinct(columns[N]) > 1 else []
    for factor in law.shapes:
        if not factor.optional or factor.of in judged:
            continue  # a law may have several factors of one ratio
        judged.add(factor.of)
        logs = np.log(columns[factor.of])
        if np.ptp(logs) < MAX_CONSTANT_SPREAD:
            unseen[factor.of] = f"all runs have nearly the same {factor.of}"
            continue
        if isinstance(factor, UShape) and np.ptp(logs) < MIN_OPTIMUM_SPREAD:
            unseen[factor.of] = f"{factor.of} varies by a factor of {np.exp(np.ptp(logs)):.3g} only"
            continue
        for other in seen:
            correlation = np.corrcoef(logs, np.log(columns[other]))[0, 1]
            if abs(correlation) > COLLINEAR:
                unseen[factor.of] = f"it moves with {other} (correlation {correlation:.3f})"
                break
        else:
            seen.append(factor.of)
    return unseen


def hold_drifts(law: Law, columns: Columns) -> dict[str, Held]:
    """Hold drifts of optima with N and bends of curvatures with D/N that a table cannot identify.

    A drift needs three sizes that span a factor of ``MIN_SPREAD``, each with three levels of the
    ratio; neighbouring sizes with fewer levels count together as one. Where the table has at least
    two sizes, confidence intervals vary the drift, so that they include its effect on extrapolation
    over N.
    """
    held: dict[str, Held] = {}
    for factor in law.shapes:
        if not isinstance(factor, UShape):
            continue
        sizes = _sizes_with_shapes(columns, factor.of) if factor.drift else []
        if factor.drift and (len(sizes) < MIN_LEVELS or sizes[-1] < MIN_SPREAD * sizes[0]):
            low, high = DRIFT
            why = f"{_why_no_drift(columns, factor.of, sizes)}; "
            why += f"intervals span {low} to {high} per ln N"
            name = f"{factor.of}_drift"
            held[name] = Held(value=0.0, low=low, high=high, why=why)
            if count_distinct(columns[N]) == 1:
                held[name] = Held.at(
                    0.0, "all runs have one size, which cannot identify a drift with N"
                )
        if factor.bend and count_distinct(columns[D] / columns[N]) < MIN_LEVELS:
            why = "too few ratios of tokens to size cannot identify a bend of the curvature"
            held[f"{factor.of}_bend"] = Held.at(0.0, why)
    return held


def _why_no_drift(columns: Columns, ratio: str, sizes: list[float]) -> str:
    """Say what a table lacks for a drift, given its sizes with three levels of the ratio."""
    total = count_distinct(columns[N])
    if len(sizes) >= MIN_LEVELS:
        within = f"{counted(len(sizes), 'size')} within a factor of {sizes[-1] / sizes[0]:.3g}"
        return f"{within} cannot identify a drift with N"
    if total < MIN_LEVELS:
        return f"{counted(total, 'size')} cannot identify a drift with N"
    return (
        f"{len(sizes)} of {total} sizes (neighbours pooled) have {MIN_LEVELS} values of {ratio}, "
        f"and a drift with N needs {MIN_LEVELS} such sizes"
    )


def _sizes_with_shapes(columns: Columns, ratio: str) -> list[float]:
    """Return the sizes that have at least three levels of a ratio, smallest first.

    Neighbouring levels of N are pooled until they have three levels of the ratio, so that a design
    in which every run has its own size counts as well. The part of the ratio that changes with N
    is removed before, since it tells nothing of the shape at one size.
    """
    log_ratio, level = np.log(columns[ratio]), level_of(columns[N])
    log_size = (np.bincount(level, np.log(columns[N])) / np.bincount(level))[level]
    centred = log_size - log_size.mean()
    slope = centred @ log_ratio / max(centred @ centred, np.finfo(float).tiny)
    at_one_size = np.exp(log_ratio - slope * centred)
    sizes, pooled = [], np.zeros(len(level), dtype=bool)
    for number in range(level.max() + 1):
        pooled |= level == number
        if count_distinct(at_one_size[pooled]) >= MIN_LEVELS:
            sizes.append(float(np.exp(log_size[pooled].mean())))
            pooled[:] = False
    return sizes


def neutral(law: Law, factor: Factor, columns: Columns, why: str) -> dict[str, Held]:
    """Hold every parameter of a factor at no effect; tied parameters stay free."""
    values = factor.neutral(columns)
    tied = {name for tie in law.ties for name in tie}
    untied = [name for name in factor.names if name not in tied]
    return {name: Held.at(values.get(name, 0.0), why) for name in untied}


def optimum_status(
    column: str, value: float, low: float, high: float, observed: tuple[float, float]
) -> tuple[dict[str, object], str | None]:
    """Restrict an optimum and its interval to the observed range, and write a note.

    Runs do not locate an optimum beyond the observed range, so a value there becomes ``None``.

    Parameters
    ----------
    column
        Column of the ratio, for the note.
    value, low, high
        Estimate of the optimum and its confidence interval; NaN for ends that are unknown.
    observed
        Smallest and largest value of the ratio in the run table.

    Returns
    -------
    The value, the ends and the status by name; and a note, None where the interval is closed.
    """
    bottom, top = observed
    unknown = bool(np.isnan(low) or np.isnan(high))
    answer: dict[str, object] = {
        "value": value if bottom <= value <= top else None,
        "low": low if low >= bottom else None,
        "high": high if high <= top else None,
        "status": "inside the observed range",
    }
    if value > top:
        answer["status"] = f"loss falls up to the largest value seen: optimum above {top:.3g}"
        answer["low"] = None if unknown else min(max(low, bottom), top)
    elif value < bottom:
        answer["status"] = f"loss rises from the smallest value seen: optimum below {bottom:.3g}"
        answer["high"] = None if unknown else max(min(high, top), bottom)
    elif not unknown and None in (answer["low"], answer["high"]):
        answer["status"] = "inside the observed range, its interval is open on one side"
        if answer["low"] is None and answer["high"] is None:
            answer["status"] = "not resolved: the interval is wider than the observed range"
    else:
        return answer, None
    return answer, f"{column}: {answer['status']}"


def decades_outside(
    row: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Measure the distance of each value of a row outside its fitted range, in decades.

    A distance is positive above the largest fitted value, negative below the smallest, 0 inside.

    Parameters
    ----------
    row
        Values by column name.
    ranges
        Smallest and largest fitted value by column name.

    Returns
    -------
    Distances in decades by column name.

    Raises
    ------
    InputError
        The row lacks a column of the ranges, or a value is not a positive number.
    """
    decades = {}
    for name, (low, high) in ranges.items():
        if name not in row:
            raise InputError(
                f"the row must have `{name}`, but has {', '.join(map(str, row))}; add a value"
            )
        value = float(row[name])
        if not 0 < value < np.inf:
            raise InputError(f"`{name} > 0` and finite must hold, but got {value}; correct the row")
        decades[name] = float(max(np.log10(value / high), 0.0) + min(np.log10(value / low), 0.0))
    return decades


def outside(row: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """List the values of a row outside the fitted ranges, with their distances in decades."""
    notes = []
    for name, decades in decades_outside(row, ranges).items():
        if abs(decades) > MIN_DECADES_TO_REPORT:
            side, limit = ("above", ranges[name][1]) if decades > 0 else ("below", ranges[name][0])
            notes.append(
                f"{name} {float(row[name]):.3g} is {abs(decades):.2f} decades {side} the runs' "
                f"{limit:.3g}"
            )
    return notes
