"""Compute-optimal model size of a law, and the range of sizes of nearly the same loss.

The optimum of a scaling law is flat: models of very different size reach nearly the same loss.
Every optimum is therefore reported with the range of sizes whose loss is within a tolerance of the
lowest. The shape follows the size: a ratio whose optimum drifts with N is at the optimum of each N,
unless the caller holds it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import ENDS, LEVEL
from shapelaw.scaling.laws.bases import Chinchilla, OuterExponent
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.runs.columns import D, N

GRID_POINTS = 801  # values of a ratio; four times as many sizes
COMPUTE_STEP = 1.01  # factor of compute over which the exponent of N* is measured on a grid
MAX_SIZE_EXTRAPOLATION = 1e3  # factor beyond the fitted sizes up to which N is searched
MAX_RATIO_EXTRAPOLATION = 4.0  # factor beyond its range up to which a ratio is searched
Range = dict[str, float | None]


@dataclass(frozen=True, kw_only=True, repr=False)
class ComputeOptimal(Result):
    """Compute-optimal N and D at C = 6ND, each with its 95 % interval.

    Each quantity has the keys value, low and high, None where unknown.

    Parameters
    ----------
    compute
        Compute budget C, FLOPs.
    method
        Method of the minimisation.
    n
        Parameters, by the size convention of the fit.
    tokens
        Training tokens.
    tokens_per_n
        Tokens per parameter.
    exponent
        a of N* ∝ C^a.
    why
        Reason that there is no optimum; empty if there is one.
    """

    compute: float
    method: str
    n: Range
    tokens: Range
    tokens_per_n: Range
    exponent: Range
    why: str = ""

    def frame(self) -> pd.DataFrame:
        """Return one row per quantity."""
        quantities = {
            "N* (parameters)": self.n,
            "D* (tokens)": self.tokens,
            "D*/N*": self.tokens_per_n,
            "a (N* ∝ C^a)": self.exponent,
        }
        return pd.DataFrame([{"quantity": name, **ends} for name, ends in quantities.items()])

    def view(self) -> View:
        """Return the best N and D with intervals, or the reason that there are none."""
        title = f"no best N at {self.compute:.3g} FLOPs: {self.why}"
        if not self.why:
            size, tokens = self.n["value"], self.tokens["value"]
            title = (
                f"best at {self.compute:.3g} FLOPs ({self.method}): N {size:.3g}, D {tokens:.3g}"
            )
        return View(title=title, tables={"compute-optimal, 95 % interval": self.frame()})


class BestSizes(NamedTuple):
    """Compute-optimal N (k,), its exponent in the compute (k,), and the method of both."""

    n: np.ndarray
    exponent: np.ndarray
    method: str


def best_sizes(
    fitted: Fit, thetas: np.ndarray, compute: float, held: Mapping[str, float] | None = None
) -> BestSizes:
    """Minimise the loss of a law along C = 6ND for many vectors of parameters.

    Chinchilla's law has N* = G (C/6)^a with a = β/(α+β) and G = (αA/βB)^(1/(α+β)) (arXiv
    2203.15556, equation 4). With an outer exponent κ, G = ((α/β)^κ A/B)^(1/(α+β)) and a is the
    same. Shape factors leave N* as it is where they do not depend on N: at the optimum of every
    size, and for ratios that are held if their optimum does not drift. Otherwise, and for other
    bases, N is searched on a grid.

    Parameters
    ----------
    fitted
        Fit that gives the law, its reference and the range of sizes.
    thetas
        Internal parameters, (k, p).
    compute
        Compute budget, FLOPs.
    held
        Ratios that are held while N varies. Every other ratio is as in :func:`best_ratios` at each
        size.

    Returns
    -------
    BestSizes
        N and its exponent, NaN if there is no optimum within a factor of 1000 of the fitted sizes.
    """
    if has_closed_form(fitted, held):
        public = fitted.law.public(thetas, fitted.reference)
        alpha, beta = np.asarray(public["alpha"]), np.asarray(public["beta"])
        log_scale = np.log(alpha * public["A"] / (beta * public["B"]))
        log_scale += (public.get("kappa", 1.0) - 1.0) * np.log(alpha / beta)
        log_scale /= alpha + beta
        exponent = beta / (alpha + beta)
        size = np.exp(log_scale + exponent * np.log(compute / 6))
        return BestSizes(size, exponent, "closed form")
    grid, minima = _sizes(fitted), []
    for theta in thetas:
        near, far = (
            minimum_by_parabola(
                np.log(grid), log_loss_at_compute(fitted, theta, grid, budget, held)
            )
            for budget in (compute, compute * COMPUTE_STEP)
        )
        minima.append((np.exp(near), (far - near) / np.log(COMPUTE_STEP)))
    sizes, exponents = np.array(minima).T
    return BestSizes(sizes, exponents, "grid over N")


def has_closed_form(fitted: Fit, held: Mapping[str, float] | None = None) -> bool:
    """Return True if the compute-optimal N needs no search.

    Parameters
    ----------
    fitted
        Fit that gives the law.
    held
        Ratios that are held while N varies.
    """
    return isinstance(fitted.law.base, (Chinchilla, OuterExponent)) and all(
        (isinstance(shape, UShape) and shape.of not in (held or {}))  # at its optimum, 0
        or not {N, D} & set(shape.columns)
        for shape in fitted.law.shapes
    )


def best_ratios(
    fitted: Fit,
    sizes: np.ndarray,
    held: Mapping[str, float] | None = None,
    theta: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Choose every ratio of the shape at each size: as held, else the optimum of that size.

    A ratio without an optimum, or without an effect, is in the geometric middle of its range.

    Parameters
    ----------
    fitted
        Fit that gives the law and the ranges of the ratios.
    sizes
        N in parameters, (n,).
    held
        Ratios by column that have one value at all sizes.
    theta
        Internal parameters with the optima, (p,); by default those of the fit.

    Returns
    -------
    dict
        Every ratio of the law by column, (n,) each.

    Raises
    ------
    InputError
        The law has no such ratio, or the value is not a positive number.
    """
    columns = [name for name in fitted.law.columns if name not in (N, D)]
    for name, value in (held or {}).items():
        if name not in columns or not 0 < value < np.inf:
            raise InputError(
                f"`shape` must give positive ratios of the law ({', '.join(columns) or 'none'}), "
                f"but got {name} = {value}"
            )
    vector = fitted.theta if theta is None else theta
    inner = {name: vector[place] for name, place in fitted.law.index.items()}
    chosen = {}
    for name in columns:
        logs = np.full(len(sizes), np.log(fitted.ranges[name]).mean())
        if inner.get(f"{name}_curvature", 0.0) > 0:
            logs = np.full(len(sizes), inner[f"{name}_optimum"])
        if inner.get(f"{name}_drift"):
            logs += inner[f"{name}_drift"] * np.log(sizes / fitted.reference[N])
        chosen[name] = np.exp(logs)
    return chosen | {name: np.full(len(sizes), value) for name, value in (held or {}).items()}


def allocation(
    fitted: Fit, compute: float, *, shape: Mapping[str, float] | None = None
) -> ComputeOptimal:
    """Find the compute-optimal N and D of a fit, with intervals from its resamples.

    Parameters
    ----------
    fitted
        Fit with or without resamples.
    compute
        Compute budget, FLOPs.
    shape
        Ratios that are held while N varies; by default every ratio is at the optimum of each N.

    Returns
    -------
    ComputeOptimal
        Optimum with 95 % intervals, or the reason that there is none.

    Raises
    ------
    InputError
        The compute is not a positive number, or the law has no such ratio.
    """
    if not 0 < compute < np.inf:
        raise InputError(f"`compute > 0` and finite must hold, but got {compute}; write 1e21")
    if gap := trade_off_gap(fitted):
        return _unknown(compute, gap)
    best_ratios(fitted, np.ones(1), shape)  # raises for ratios that the law lacks
    best = best_sizes(fitted, np.vstack([fitted.theta, *fitted.draws]), compute, shape)
    if not np.isfinite(best.n[0]):
        return _unknown(compute, "no optimum within a factor 1000 of the fitted sizes")
    tokens = compute / (6 * best.n)
    return ComputeOptimal(
        compute=compute,
        method=best.method,
        n=value_with_interval(best.n),
        tokens=value_with_interval(tokens),
        tokens_per_n=value_with_interval(tokens / best.n),
        exponent=value_with_interval(best.exponent),
    )


def has_trade_off(fitted: Fit) -> bool:
    """Return True if the law of a fit has terms in both N and D, with an effect in the fit."""
    return has_effect(fitted, N) and has_effect(fitted, D)


def has_effect(fitted: Fit, column: str) -> bool:
    """Return True if the law of a fit has a term in a column that is not held at no effect."""
    held = {fitted.law.scales[name][1] for name in _scales_without_effect(fitted)}
    return column in fitted.law.columns and column not in held


def _scales_without_effect(fitted: Fit) -> list[str]:
    """Return the scales of the terms that are held at no effect."""
    scales, held = fitted.law.scales, fitted.held
    return [name for name in scales if name in held and held[name].value < -10]


def trade_off_gap(fitted: Fit) -> str:
    """Say why a law has no trade-off between N and D; empty if it has one."""
    if has_trade_off(fitted):
        return ""
    unfit = [
        name for name in _scales_without_effect(fitted) if fitted.law.scales[name][1] in (N, D)
    ]
    gap = f"{' and '.join(unfit)} held at no effect" if unfit else "no N and D"
    return f"the law has {gap}: N and D have no trade-off"


def _unknown(compute: float, why: str) -> ComputeOptimal:
    """Return the result of a law without an optimum."""
    none: Range = {"value": None, "low": None, "high": None}
    return ComputeOptimal(
        compute=compute, method="none", n=none, tokens=none, tokens_per_n=none, exponent=none,
        why=why,
    )  # fmt: skip


def value_with_interval(values: np.ndarray) -> Range:
    """Return the first value with the percentile interval of the other values, the resamples.

    A resample without an optimum may lie beyond either end. The interval is therefore unknown if
    the share of such resamples exceeds the share that an interval leaves out at one end.
    """
    draws = values[1:]
    if not len(draws):
        return {"value": float(values[0]), "low": None, "high": None}
    missing = ~np.isfinite(draws)
    if missing.mean() > (100 - LEVEL) / 200:
        return {"value": float(values[0]), "low": None, "high": None}
    low, high = np.percentile(draws[~missing], ENDS)
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def _sizes(fitted: Fit) -> np.ndarray:
    """Return the grid of sizes on which N is searched."""
    low, high = fitted.ranges[N]
    return np.geomspace(
        low / MAX_SIZE_EXTRAPOLATION, high * MAX_SIZE_EXTRAPOLATION, 4 * GRID_POINTS
    )


def log_loss_at_compute(
    fitted: Fit,
    theta: np.ndarray,
    sizes: np.ndarray,
    compute: float,
    held: Mapping[str, float] | None,
) -> np.ndarray:
    """Return ln loss at every size, with D = C / 6N; infinite where the base does not hold."""
    columns = best_ratios(fitted, sizes, held, theta)
    columns |= {N: sizes, D: compute / (6 * sizes)}
    law, at = fitted.law, fitted.reference
    logs = np.asarray(law.log_loss(theta, columns, at)[0])
    return np.where(law.base.valid_sizes(theta, sizes, at, law.index), logs, np.inf)


def minimum_by_parabola(x: np.ndarray, y: np.ndarray) -> float:
    """Locate the minimum of y by a parabola through three points; NaN if it is at an end.

    An infinite y ends the range, too.
    """
    i = int(np.argmin(y))
    if i in (0, len(x) - 1) or not np.isfinite(y[i - 1 : i + 2]).all():
        return float("nan")
    curvature = y[i - 1] - 2 * y[i] + y[i + 1]
    shift = 0.5 * (y[i - 1] - y[i + 1]) / curvature if curvature > 0 else 0.0
    return float(x[i] + shift * (x[1] - x[0]))
