"""Parameters and optima of a fit with their 95 % intervals, and the sides that are open."""

from typing import TYPE_CHECKING

import numpy as np

from shapelaw.scaling.fitting.run_intervals import ENDS
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.solver.identifiability import optimum_status

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit

OPTIMUM = "_optimum"  # end of the name of the best value of a ratio


def parameters_of(fit: "Fit") -> dict[str, dict[str, float]]:
    """Return the public parameters with their intervals, as :meth:`Fit.parameters` describes."""
    drawn = fit.law.public(fit.spread, fit.reference)
    parameters = {}
    for name, value in fit.law.public(fit.theta, fit.reference).items():
        low = high = float("nan")
        if name in fit.ends:
            low, high = fit.ends[name]["low"], fit.ends[name]["high"]
        elif fit.has_intervals:
            low, high = map(float, np.percentile(drawn[name], ENDS))
        parameters[name] = {"value": value, "low": low, "high": high}
    return parameters


def open_sides_of(fit: "Fit") -> dict[str, str]:
    """Return the open sides of every interval, as :meth:`Fit.open_sides` describes."""
    sides = {}
    for name, about in fit.parameters().items():
        known = fit.ends[name]["open"] if name in fit.ends else ""
        ratio = name.removesuffix(OPTIMUM)
        low, high = (-np.inf, np.inf) if ratio == name else fit.ranges.get(ratio, (-np.inf, np.inf))
        out = {"below": about["low"] < low, "above": about["high"] > high}
        sides[name] = " and ".join(side for side in out if out[side] or side in known)
    return sides


def optima_of(fit: "Fit") -> dict[str, dict[str, object]]:
    """Return the best value of each U-shaped ratio by column, with interval and status."""
    parameters = fit.parameters()
    optima: dict[str, dict[str, object]] = {}
    for factor in fit.law.shapes:
        if not isinstance(factor, UShape):
            continue
        name = f"{factor.of}{OPTIMUM}"
        if name in fit.held:
            why = f"not resolved: {fit.held[name].why}"
            optima[factor.of] = {"value": None, "low": None, "high": None, "status": why}
            continue
        best = parameters[name]
        optima[factor.of], _ = optimum_status(
            factor.of, best["value"], best["low"], best["high"], fit.ranges[factor.of]
        )
    return optima
