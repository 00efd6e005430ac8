"""Probabilities of a proposal: less loss than the baseline, faster than it, best of the allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from shapelaw.scaling.decisions.decide import share_lowest
from shapelaw.scaling.fitting.run_intervals import LEVEL
from shapelaw.search.engines._base import TIME_MODEL, Measurement

NO_SPREAD = "no spread"  # begins the reason of a probability of 1 or 0
UPPER = (100 + LEVEL) / 200  # probability below the upper end of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class UncertainSpeed:
    """A speed in output tokens/s with its standard error.

    Attributes
    ----------
    error
        Standard error of the speed; 0 where no spread is known.
    degrees
        Degrees of freedom of the error; infinite for a time model.
    kind
        Kind of the measurement: ``measured``, ``predicted`` or ``time model``.
    """

    rate: float
    error: float
    degrees: float
    kind: str

    @classmethod
    def of(cls, measurement: Measurement) -> "UncertainSpeed":
        """Return the speed of a measurement."""
        return cls._from_interval(
            measurement.output_tokens_per_second,
            measurement.high,
            measurement.repeats,
            measurement.kind,
        )

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "UncertainSpeed":
        """Return the speed of a row of ``proposals.json`` that has one."""
        repeats = row.get("throughput_repeats")
        ends = (row["throughput"], row["throughput_high"])
        counted = 0 if repeats is None or np.isnan(repeats) else int(repeats)
        return cls._from_interval(*ends, counted, row.get("throughput_kind", "measured"))

    @classmethod
    def _from_interval(cls, rate: float, high: float, repeats: int, kind: str) -> "UncertainSpeed":
        """Compute the standard error from the upper end of the 95 % interval."""
        degrees = repeats - 1.0 if repeats > 1 else np.inf
        quantile = student.ppf(UPPER, degrees) if repeats > 1 else norm.ppf(UPPER)
        return cls(rate=rate, error=float((high - rate) / quantile), degrees=degrees, kind=kind)

    def probability_above(self, other: "UncertainSpeed", factor: float = 1.0) -> float:
        """Compute the probability of a true speed above ``factor`` times another one.

        Both errors are independent; the degrees of freedom of the difference are those of Welch and
        Satterthwaite. Without errors the probability is 1 or 0, and ½ for equal speeds.
        """
        difference = self.rate - factor * other.rate
        parts = np.array([self.error**2, (factor * other.error) ** 2])
        total = parts.sum()
        if not total:
            return float(np.heaviside(difference, 0.5))
        inverse = (parts**2 / np.array([self.degrees, other.degrees])).sum() / total**2
        score = difference / np.sqrt(total)
        return float(norm.cdf(score) if not inverse else student.cdf(score, 1 / inverse))


def probability_faster(
    result: Measurement | str, reference: Measurement | str
) -> tuple[float | None, str]:
    """Compute the probability of a higher true speed than the reference's, and name its basis.

    Returns
    -------
    probability
        None where one of both has no speed.
    basis
        Source of the spread, or the reason why the probability is 1 or 0.
    """
    for answer in (result, reference):
        if isinstance(answer, str):
            return None, f"no speed: {answer}"
    speed, base = UncertainSpeed.of(result), UncertainSpeed.of(reference)  # type: ignore[arg-type]
    kinds = " and ".join(sorted({speed.kind, base.kind}))
    if speed.error == base.error == 0:
        return speed.probability_above(
            base
        ), f"{NO_SPREAD}: {kinds} speeds are compared as they are"
    sources = {
        "the time model's error" if each.kind == TIME_MODEL else f"{each.kind} repeats"
        for each in (speed, base)
        if each.error
    }
    return speed.probability_above(base), f"spread of {' and '.join(sorted(sources))}"


def probability_of_less_loss(draws: np.ndarray, baseline: int) -> np.ndarray:
    """Compute the probability of a lower true loss than the baseline's, (n,); ties count half.

    Parameters
    ----------
    draws
        Joint draws of ln loss, (S, n).
    baseline
        Column of the baseline.
    """
    reference = draws[:, [baseline]]
    return np.asarray(((draws < reference) + (draws == reference) / 2).mean(axis=0))


def probability_of_best(draws: np.ndarray, allowed: Sequence[bool]) -> list[float | None]:
    """Compute the probability of the lowest true loss of the allowed shapes; None for others.

    Parameters
    ----------
    draws
        Joint draws of ln loss, (S, n).
    allowed
        Mask of the shapes that may be chosen, (n,).
    """
    columns = np.flatnonzero(allowed)
    probabilities: list[float | None] = [None] * draws.shape[1]
    if len(columns):
        shares = share_lowest(draws[:, columns]).tolist()
        for column, share in zip(columns, shares, strict=True):
            probabilities[column] = share
    return probabilities


def probability_text(probability: float | None) -> str:
    """Format a probability with two decimals, and its ends as bounds.

    Examples
    --------
    >>> [probability_text(value) for value in (None, 0.0, 0.25, 0.999)]
    ['–', '< 0.01', '0.25', '> 0.99']
    """
    if probability is None:
        return "–"
    if probability > 0.99:
        return "> 0.99"
    return "< 0.01" if probability < 0.01 else f"{probability:.2f}"
