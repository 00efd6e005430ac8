"""What a run table cannot tell: which parameters to hold fixed, each with a reason."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scaling.laws import Columns, D, Factor, Law, N, UShape

# Published exponents of the Chinchilla data and a generous range around them, for tables that
# cannot fix their own: arXiv 2404.10102 refits .348 and .366; fits of other tables span the range.
EXPONENTS = {"alpha": (0.35, 0.2, 0.6), "beta": (0.37, 0.2, 0.6)}
# Drift of an optimum per ln N. The optima of arXiv 2510.18245 between .2B and 1B parameters moved
# by -.04 (hidden size) and +.09 (MLP ratio); our own tiny models gave -.22 (hidden size, LOG.md).
DRIFT = (-0.25, 0.25)
SAME_LEVEL = np.log(1.1)  # values closer than 10 % are one level
CONSTANT = np.log(1.05)
COLLINEAR = 0.98
NO_TERM = -50.0  # ln of a scale that contributes nothing


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


def hold_base(columns: Columns) -> dict[str, Held]:
    """What the sizes and token counts of a table cannot identify in the Chinchilla base."""
    n_levels, d_levels = levels(columns[N]), levels(columns[D])
    proportional = np.ptp(np.log(columns[D] / columns[N])) < SAME_LEVEL
    held: dict[str, Held] = {}
    if n_levels == 1:
        why = "all runs have one size: the size term is part of E, and predictions hold only there"
        held["A"] = held["alpha"] = Held.at(NO_TERM, why)
    if d_levels == 1 or (proportional and n_levels > 1):
        why = "tokens are proportional to size: A/N^alpha stands for both, at this ratio only"
        if d_levels == 1:
            why = "all runs have one token count: the data term is part of E, only there"
        held["B"] = held["beta"] = Held.at(NO_TERM, why)
    for name, count, what in (("alpha", n_levels, "sizes"), ("beta", d_levels, "token counts")):
        value, low, high = EXPONENTS[name]
        if name in held:
            held[name] = Held.at(value, held[name].why)
        elif count < 3:
            why = f"{count} {what} cannot fix it beside its scale; intervals span {low} to {high}"
            held[name] = Held(value=value, low=low, high=high, why=why)
    return held


def hold_factors(law: Law, columns: Columns) -> dict[str, str]:
    """Factors that the table cannot see: {column: reason}.

    A factor is unseen where its column is constant, or moves with the column of an earlier factor.
    """
    unseen: dict[str, str] = {}
    seen: list[str] = []
    for factor in law.factors:
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
    """Drifts of optima with N that are not fitted.

    A steady factor has none by definition; but where a table has two sizes, and so cannot tell,
    intervals vary it.
    """
    held: dict[str, Held] = {}
    for factor in law.factors:
        if isinstance(factor, UShape) and factor.drift:
            name, sizes = f"{factor.of}_drift", levels(columns[N])
            low, high = DRIFT
            if sizes == 2:
                why = f"2 sizes cannot tell a drift with N; intervals span {low} to {high} per ln N"
                held[name] = Held(value=0.0, low=low, high=high, why=why)
            elif factor.steady or sizes == 1:
                held[name] = Held.at(0.0, "the optimum does not move with N")
    return held


def neutral(factor: Factor, columns: Columns, why: str) -> dict[str, Held]:
    """Hold every parameter of a factor so that it has no effect."""
    middle = float(np.log(columns[factor.of]).mean())
    return {
        parameter.name: Held.at(middle if parameter.name.endswith("_optimum") else 0.0, why)
        for parameter in factor.parameters(columns)
    }


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


def outside(row: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    """In words: which values of a row lie outside the fitted ranges, and by how much."""
    words = []
    for name, (low, high) in ranges.items():
        value = float(row[name])
        for gap, end, limit in ((value / high, "above", high), (low / value, "below", low)):
            if gap > 1.02:
                words.append(
                    f"{name} {value:.3g} is {np.log10(gap):.2f} decades {end} the runs' {limit:.3g}"
                )
    return words
