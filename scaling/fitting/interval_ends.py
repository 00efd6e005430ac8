"""Ends of the intervals of a law's parameters, and which of them the runs leave open.

The ends of a posterior are percentiles of a long sample; those of a fit without a prior are profile
ends, which no seed changes. Where neither is possible, or a percentile still depends on which draws
were made, the end is open: the number is the percentile of these draws, and is not printed.
"""

from collections.abc import Mapping

import numpy as np

from shapelaw.scaling.fitting.fit_parts import ParameterEnds
from shapelaw.scaling.fitting.run_intervals import ENDS
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.profiles import profile

LONG_SAMPLE = 8192  # draws of a posterior from which the ends come
MIN_DRAWS = 1000  # of a fit, from which on its ends are worth a long sample or profiles
BATCHES = 16  # parts of the draws whose percentiles give the error of an end
MAX_END_ERROR = 0.05  # standard error of an end, as a share of the width, that is still an end
MIN_CLUSTERS = 30  # with fewer, profile intervals are too narrow


def drawn_ends(drawn: Mapping[str, np.ndarray]) -> dict[str, ParameterEnds]:
    """Compute percentile ends of parameters; an end that depends on the draws is open.

    Parameters
    ----------
    drawn
        Draws of each public parameter, (S,). Every sixteenth draw is one of 16 batches, whose
        percentiles differ by the error of an end.

    Returns
    -------
    dict
        Ends by parameter.
    """
    ends: dict[str, ParameterEnds] = {}
    for name, values in drawn.items():
        low, high = np.percentile(values, ENDS)
        parts = [np.percentile(values[start::BATCHES], ENDS) for start in range(BATCHES)]
        errors = np.std(parts, axis=0, ddof=1) / np.sqrt(BATCHES)
        open_low, open_high = errors > MAX_END_ERROR * (high - low) + 1e-9 * abs(high)
        sides = [side for side, out in (("below", open_low), ("above", open_high)) if out]
        ends[name] = {"low": float(low), "high": float(high), "open": " and ".join(sides)}
    return ends


def allows_profiles(problem: Problem, clusters: np.ndarray | None) -> bool:
    """Return whether profile intervals hold: no parameter has a range, and clusters are many."""
    few = clusters is not None and len(np.unique(clusters)) < MIN_CLUSTERS
    return not few and all(held.low == held.high for held in problem.held.values())


def profile_ends(
    problem: Problem,
    best: Solution,
    clusters: np.ndarray | None,
    drawn: Mapping[str, ParameterEnds],
) -> dict[str, ParameterEnds]:
    """Compute profile ends of the public parameters of a law.

    Parameters
    ----------
    problem, best
        Fitted problem and its optimum.
    clusters
        Cluster of each row, (n,), or None.
    drawn
        Percentile ends of the resamples; their numbers stand where a profile end is open.

    Returns
    -------
    dict
        Ends by parameter.
    """
    law, ends = problem.law, dict(drawn)
    for name in drawn:
        logarithmic = name in law.logarithmic

        def quantity(theta: np.ndarray, name: str = name, log: bool = logarithmic) -> np.ndarray:
            value = np.asarray(law.public(theta, problem.reference)[name])
            return np.log(value) if log else value

        interval = profile(problem, best, quantity, clusters=clusters)
        found = np.array([interval.low, interval.high])
        values = np.exp(found) if logarithmic else found
        known = [bool(np.isfinite(end)) for end in found]
        sides = [side for side, has in zip(("below", "above"), known, strict=True) if not has]
        ends[name] = {
            "low": float(values[0]) if known[0] else drawn[name]["low"],
            "high": float(values[1]) if known[1] else drawn[name]["high"],
            "open": " and ".join(sides),
        }
    return ends
