"""What a run table cannot tell: which parameters to hold fixed, each with a reason."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.laws.law import Columns, Factor, Law, Reference
from shapelaw.scaling.runs.columns import D, N

# Published exponents of the Chinchilla data and a generous range around them, for tables that
# cannot fix their own: arXiv 2404.10102 refits .348 and .366; fits of other tables span the range.
EXPONENTS = {N: (0.35, 0.2, 0.6), D: (0.37, 0.2, 0.6)}
OTHER_EXPONENT = (0.35, 0.1, 1.0)
# Drift of an optimum per ln N. The optima of arXiv 2510.18245 between .2B and 1B parameters moved
# by -.04 (hidden size) and +.09 (MLP ratio); our own tiny models gave -.22 (hidden size, LOG.md).
DRIFT = (-0.25, 0.25)
SAME_LEVEL = np.log(1.1)  # values closer than 10 % are one level
CONSTANT = np.log(1.05)
COLLINEAR = 0.98
NO_TERM = -50.0  # ln of a scale that contributes nothing
NEAR_DECADES = np.log10(1.02)  # a row this little outside of the ranges is not worth a word
ENOUGH = 3  # levels that fix an exponent, sizes that fix a drift, shapes of a size that help
WORDS = {N: ("size", "sizes"), D: ("token count", "token counts")}


@dataclass(frozen=True, kw_only=True)
class Held:
    """An internal parameter that was not fitted.

    ``low`` to ``high`` is the range that intervals let it vary over; equal where it is not varied.
    """

    value: float
    low: float
    high: float
    why: str

    @classmethod
    def at(cls, value: float, why: str) -> "Held":
        """Held at one value, which intervals keep too."""
        return cls(value=value, low=value, high=value, why=why)


def levels(values: np.ndarray) -> int:
    """How many distinct values a column has, neighbours within 10 % being one."""
    logs = np.sort(np.log(values))
    return 1 + int((np.diff(logs) > SAME_LEVEL).sum())


def hold(law: Law, columns: Columns, at: Reference) -> dict[str, Held]:
    """Everything that is not fitted: what the table cannot identify, and what is pinned."""
    held = hold_base(law, columns) | hold_drifts(law, columns)
    unseen = hold_factors(law, columns)
    for factor in law.shapes:
        if factor.of in unseen:
            held |= neutral(law, factor, columns, unseen[factor.of])
    return held | hold_pins(law, at)


def hold_base(law: Law, columns: Columns) -> dict[str, Held]:
    """What the values of its variables cannot identify in a base of power laws."""
    held: dict[str, Held] = {}
    seen: list[str] = []
    scales = law.base.scales
    counts = {column: levels(columns[column]) for _, column in scales.values()}
    for scale, (exponent, column) in scales.items():
        one, many = WORDS.get(column, (column, f"values of {column}"))
        value, low, high = EXPONENTS.get(column, OTHER_EXPONENT)
        name = law.names[law.index[exponent]]
        tied = [
            own for own, (power, _) in scales.items() if law.index[power] == law.index[exponent]
        ]
        why = _no_term(columns, column, seen, one, alone=len(scales) == 1)
        if why is not None:
            if "E" in law.base.names or len(scales) > 1:
                held[scale] = Held.at(NO_TERM, why)
            if len(tied) == 1:
                held[name] = Held.at(value, why)
            continue
        seen.append(column)
        if max(counts[scales[own][1]] for own in tied) < ENOUGH:
            why = f"{counts[column]} {many} cannot fix it beside its scale; "
            why += f"intervals span {low} to {high}"
            held[name] = Held(value=value, low=low, high=high, why=why)
    return held


def _no_term(
    columns: Columns, column: str, seen: list[str], one: str, *, alone: bool
) -> str | None:
    """Why a variable can have no term of its own."""
    if levels(columns[column]) == 1:
        term = {N: "the size term", D: "the data term"}.get(column, f"its term in {column}")
        return f"all runs have one {one}: {term} is part of E, and predictions hold only there"
    for other in seen:
        if np.ptp(np.log(columns[column] / columns[other])) < SAME_LEVEL:
            if (column, other) == (D, N):
                return (
                    "tokens are proportional to size: A/N^alpha stands for both, at this ratio only"
                )
            return f"{column} is proportional to {other}, whose term stands for both"
    return None


def hold_pins(law: Law, at: Reference) -> dict[str, Held]:
    """Parameters that the law itself gives, with their ranges."""
    held = {}
    values = {pin.name: pin.value for pin in law.pins}
    for pin in law.pins:

        def inner(value: float, name: str = pin.name) -> float:
            value = float(np.log(value)) if name in law.logarithmic else value
            if name in law.scales:
                exponent, column = law.scales[name]
                value -= values[exponent] * float(np.log(at[column]))
            return value

        held[law.names[law.index[pin.name]]] = Held(
            value=inner(pin.value),
            low=inner(pin.low),
            high=inner(pin.high),
            why=f"pinned at {pin.value:g} ({pin.source})",
        )
    return held


def hold_factors(law: Law, columns: Columns) -> dict[str, str]:
    """Factors that the table cannot see: {column: reason}.

    A factor is unseen where its column is constant, or moves with N or with the column of an
    earlier factor.
    """
    unseen: dict[str, str] = {}
    judged: set[str] = set()
    seen = [N] if N in columns and levels(columns[N]) > 1 else []
    for factor in law.shapes:
        if not factor.optional or factor.of in judged:
            continue  # several factors of one ratio are the law's own choice
        judged.add(factor.of)
        logs = np.log(columns[factor.of])
        if np.ptp(logs) < CONSTANT:
            unseen[factor.of] = f"all runs have nearly the same {factor.of}"
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
    """Drifts of optima with N, and bends of curvatures with D/N, that the table cannot fit.

    A drift needs three sizes, each with three values of the ratio. Where there are at least two
    sizes, intervals vary it: what an extrapolation over N does not know is not hidden.
    """
    held: dict[str, Held] = {}
    for factor in law.shapes:
        if not isinstance(factor, UShape):
            continue
        if factor.drift and (useful := _sizes_with_shapes(columns, factor.of)) < ENOUGH:
            low, high = DRIFT
            why = f"{useful} sizes cannot tell a drift with N; "
            why += f"intervals span {low} to {high} per ln N"
            name = f"{factor.of}_drift"
            held[name] = Held(value=0.0, low=low, high=high, why=why)
            if levels(columns[N]) == 1:
                held[name] = Held.at(0.0, "all runs have one size: no drift with N shows")
        if factor.bend and levels(columns[D] / columns[N]) < ENOUGH:
            why = "too few ratios of tokens to size show no bend of the curvature"
            held[f"{factor.of}_bend"] = Held.at(0.0, why)
    return held


def _sizes_with_shapes(columns: Columns, ratio: str) -> int:
    """How many sizes have at least three values of a ratio."""
    order = np.argsort(columns[N])
    logs = np.log(columns[N][order])
    cuts = np.flatnonzero(np.diff(logs) > SAME_LEVEL) + 1
    return sum(levels(columns[ratio][part]) >= ENOUGH for part in np.split(order, cuts))


def neutral(law: Law, factor: Factor, columns: Columns, why: str) -> dict[str, Held]:
    """Hold every parameter of a factor so that it has no effect; tied ones stay free."""
    values = factor.neutral(columns)
    tied = {name for tie in law.ties for name in tie}
    every = {name: values.get(name, 0.0) for name in factor.names if name not in tied}
    return {name: Held.at(value, why) for name, value in every.items()}


def optimum_status(
    column: str, value: float, low: float, high: float, observed: tuple[float, float]
) -> tuple[dict[str, object], str | None]:
    """An optimum with its interval, cut to what the observed range supports, and a note.

    Beyond the observed range an optimum is only known to lie outside: that end becomes ``None``.
    """
    bottom, top = observed
    answer: dict[str, object] = {
        "value": value if bottom <= value <= top else None,
        "low": low if low >= bottom else None,
        "high": high if high <= top else None,
        "status": "inside the observed range",
    }
    if value > top:
        answer["status"] = f"loss falls up to the largest value seen: optimum above {top:.3g}"
        answer["low"] = min(max(low, bottom), top)
    elif value < bottom:
        answer["status"] = f"loss rises from the smallest value seen: optimum below {bottom:.3g}"
        answer["high"] = max(min(high, top), bottom)
    elif answer["low"] is None or answer["high"] is None:
        answer["status"] = "inside the observed range, its interval is open on one side"
        if answer["low"] is None and answer["high"] is None:
            answer["status"] = "not resolved: the interval is wider than the observed range"
    else:
        return answer, None
    return answer, f"{column}: {answer['status']}"


def decades_outside(
    row: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Measure how far each value of a row lies outside of a fitted range, in decades.

    Positive above the largest fitted value, negative below the smallest, 0 inside.

    Raises
    ------
    InputError
        The row lacks a column of the ranges, or a value is not a positive number.
    """
    decades = {}
    for name, (low, high) in ranges.items():
        if name not in row:
            raise InputError(f"the row must give `{name}`, but gives {', '.join(map(str, row))}")
        value = float(row[name])
        if not 0 < value < np.inf:
            raise InputError(f"`{name} > 0` and finite must hold, but got {value}")
        decades[name] = float(max(np.log10(value / high), 0.0) + min(np.log10(value / low), 0.0))
    return decades


def outside(row: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """Say which values of a row lie outside of the fitted ranges, and by how many decades."""
    words = []
    for name, decades in decades_outside(row, ranges).items():
        if abs(decades) > NEAR_DECADES:
            side, limit = ("above", ranges[name][1]) if decades > 0 else ("below", ranges[name][0])
            words.append(
                f"{name} {float(row[name]):.3g} is {abs(decades):.2f} decades {side} the runs' "
                f"{limit:.3g}"
            )
    return words
