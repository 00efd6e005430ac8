"""The compute-optimal model size of a law, and the range of sizes that are nearly as good.

The optimum of a scaling law is flat: models of very different size reach nearly the same loss. So
every optimum is reported with the range of sizes whose loss is within a tolerance of the best.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import LEVEL, Fit
from shapelaw.scaling.laws.bases import Chinchilla
from shapelaw.scaling.runs.columns import D, N

TOLERANCE = 0.001  # of the loss: inside it lies the flat valley
GRID = 801
STEP = 1.01  # factor of compute over which the exponent of N* is measured on a grid
SIZES_BEYOND = 1e3  # how far N is looked for outside the fitted sizes
RATIO_BEYOND = 4.0  # and a ratio outside its range
Range = dict[str, float | None]


@dataclass(frozen=True, kw_only=True, repr=False)
class ComputeOptimal(Result):
    """The best N and D of a compute C = 6ND, each with its 95 % interval.

    ``n`` in parameters (by the size convention of the fit), ``tokens``, ``tokens_per_n``, and
    ``exponent``, a of N* ∝ C^a; each has value, low and high, None where unknown. ``why`` says why
    there is no optimum.
    """

    compute: float
    method: str
    n: Range
    tokens: Range
    tokens_per_n: Range
    exponent: Range
    why: str = ""

    def frame(self) -> pd.DataFrame:
        """One row per quantity."""
        quantities = {
            "N* (parameters)": self.n,
            "D* (tokens)": self.tokens,
            "D*/N*": self.tokens_per_n,
            "a (N* ∝ C^a)": self.exponent,
        }
        return pd.DataFrame([{"quantity": name, **one} for name, one in quantities.items()])

    def view(self) -> View:
        """Return the best N and D with intervals, or why there are none."""
        title = f"no best N at {self.compute:.3g} FLOPs: {self.why}"
        if not self.why:
            size, tokens = self.n["value"], self.tokens["value"]
            title = (
                f"best at {self.compute:.3g} FLOPs ({self.method}): N {size:.3g}, D {tokens:.3g}"
            )
        return View(title=title, tables={"compute-optimal, 95 % interval": self.frame()})


class BestSizes(NamedTuple):
    """The compute-optimal N (k,), its exponent in the compute (k,), and how both were found."""

    n: np.ndarray
    exponent: np.ndarray
    method: str


def best_sizes(
    fitted: Fit, thetas: np.ndarray, compute: float, ratios: Mapping[str, float] | None = None
) -> BestSizes:
    """Minimise the loss of a law along C = 6ND, for many rows of parameters.

    Chinchilla's law has N* = G (C/6)^a with a = β/(α+β) and G = (αA/βB)^(1/(α+β)) (arXiv
    2203.15556, equation 4). With shape factors this is the optimum of the best shape of every
    size. For ratios that are held, and for other laws, N is searched on a grid.

    Parameters
    ----------
    thetas
        Internal parameters, (k, p).
    compute
        Training FLOPs.
    ratios
        Shape ratios that are held while N moves. None: every ratio at its best at each size, for
        laws on Chinchilla's base only.

    Returns
    -------
    NaN where there is no optimum within a factor of 1000 of the fitted sizes.
    """
    if isinstance(fitted.law.base, Chinchilla) and (ratios is None or not fitted.law.shapes):
        public = fitted.law.public(thetas, fitted.reference)
        alpha, beta = np.asarray(public["alpha"]), np.asarray(public["beta"])
        log_scale = np.log(alpha * public["A"] / (beta * public["B"])) / (alpha + beta)
        exponent = beta / (alpha + beta)
        size = np.exp(log_scale + exponent * np.log(compute / 6))
        return BestSizes(size, exponent, "closed form")
    grid, found = _sizes(fitted), []
    for theta in thetas:
        near, far = (
            _lowest(np.log(grid), _along(fitted, theta, grid, c, ratios or {}))
            for c in (compute, compute * STEP)
        )
        found.append((np.exp(near), (far - near) / np.log(STEP)))
    sizes, exponents = np.array(found).T
    return BestSizes(sizes, exponents, "grid over N")


def allocation(
    fitted: Fit, compute: float, *, shape: Mapping[str, float] | None = None
) -> ComputeOptimal:
    """Find the compute-optimal N and D of a fit, with intervals from its resamples.

    Parameters
    ----------
    compute
        Training FLOPs.
    shape
        Ratios of the shape that is scaled; by default every ratio at its optimum.

    Raises
    ------
    InputError
        The compute is not a positive number, or a ratio is not one of the law's.
    """
    if not 0 < compute < np.inf:
        raise InputError(f"`compute > 0` and finite must hold, but got {compute}; write 1e21")
    unfit = {"A", "B"} & {name for name in fitted.held if fitted.held[name].value < -10}
    if unfit or not {N, D} <= set(fitted.law.columns):
        word = f"{' and '.join(sorted(unfit))} held at no effect" if unfit else "no N and D in it"
        return _unknown(compute, f"the law has {word}: nothing to trade")
    thetas = np.vstack([fitted.theta, *fitted.draws])
    best = best_sizes(fitted, thetas, compute, shape_held(fitted, shape))
    if not np.isfinite(best.n[0]):
        return _unknown(compute, "no optimum within a factor 1000 of the fitted sizes")
    tokens = compute / (6 * best.n)
    return ComputeOptimal(
        compute=compute,
        method=best.method,
        n=_range(best.n),
        tokens=_range(tokens),
        tokens_per_n=_range(tokens / best.n),
        exponent=_range(best.exponent),
    )


def _unknown(compute: float, why: str) -> ComputeOptimal:
    none: Range = {"value": None, "low": None, "high": None}
    return ComputeOptimal(
        compute=compute, method="none", n=none, tokens=none, tokens_per_n=none, exponent=none,
        why=why,
    )  # fmt: skip


def _range(values: np.ndarray) -> Range:
    """First the value, then the resamples, of which those without an optimum count as far out."""
    draws = values[1:]
    if not len(draws):
        return {"value": float(values[0]), "low": None, "high": None}
    lost = ~np.isfinite(draws)
    if lost.mean() > (100 - LEVEL) / 200:
        return {"value": float(values[0]), "low": None, "high": None}
    low, high = np.percentile(draws[~lost], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


def _sizes(fitted: Fit) -> np.ndarray:
    low, high = fitted.ranges[N]
    return np.geomspace(low / SIZES_BEYOND, high * SIZES_BEYOND, 4 * GRID)


def _along(
    fitted: Fit, theta: np.ndarray, sizes: np.ndarray, compute: float, ratios: Mapping[str, float]
) -> np.ndarray:
    """Ln loss at every size with the tokens that the compute leaves."""
    columns = {name: np.full(len(sizes), value) for name, value in ratios.items()}
    columns |= {N: sizes, D: compute / (6 * sizes)}
    return np.asarray(fitted.law.log_loss(theta, columns, fitted.reference)[0])


def _lowest(x: np.ndarray, y: np.ndarray) -> float:
    """Where y is lowest, by a parabola through the three lowest points; NaN at an end."""
    i = int(np.argmin(y))
    if i in (0, len(x) - 1):
        return float("nan")
    bend = y[i - 1] - 2 * y[i] + y[i + 1]
    shift = 0.5 * (y[i - 1] - y[i + 1]) / bend if bend > 0 else 0.0
    return float(x[i] + shift * (x[1] - x[0]))


def shape_held(fitted: Fit, given: Mapping[str, float] | None) -> dict[str, float]:
    """Ratios to hold: as given, else at the optimum, else in the middle of the runs."""
    columns = [name for name in fitted.law.columns if name not in (N, D)]
    for name, value in (given or {}).items():
        if name not in columns or not 0 < value < np.inf:
            raise InputError(
                f"`shape` must give positive ratios of the law ({', '.join(columns) or 'none'}), "
                f"but got {name} = {value}"
            )
    optima = fitted.optima()
    chosen: dict[str, float] = {}
    for name in columns:
        best = optima.get(name, {}).get("value")
        middle = float(np.sqrt(np.prod(fitted.ranges[name])))
        chosen[name] = float(best) if isinstance(best, float) else middle
    return chosen | dict(given or {})


@dataclass(frozen=True, kw_only=True, repr=False)
class Valley(Result):
    """How far N and each ratio can move before the loss is more than .1 % above the best.

    ``ranges`` has a row per quantity: the best value and both ends, None where the valley goes on
    beyond what was looked at, and the width as a factor.
    """

    law_name: str
    tolerance: float
    allocation: ComputeOptimal
    ranges: pd.DataFrame

    def frame(self) -> pd.DataFrame:
        """Return the ranges."""
        return self.ranges

    def view(self) -> View:
        """Return the optimum of N at this compute, and its valley."""
        width = f"within {100 * self.tolerance:g} %"
        title = f"no best N: {self.allocation.why}"
        if not self.allocation.why:
            size = self.ranges.iloc[0]
            title = f"best N {size['best']:.3g}, {width} of its loss from "
            title += f"{_end(size['low'])} to {_end(size['high'])}"
        return View(
            title=f"{self.law_name} at {self.allocation.compute:.3g} FLOPs: {title}",
            tables={
                **self.allocation.view().tables,
                f"flat valley: loss {width} of the best": self.ranges,
            },
        )

    def document(self) -> dict[str, Any]:
        """Return optimum and valley."""
        return {
            "law": self.law_name,
            "compute": self.allocation.compute,
            "tolerance": self.tolerance,
            "optimum": self.allocation.frame(),
            "valley": self.ranges,
            "why": self.allocation.why,
        }


def _end(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "beyond the range looked at"


def valley(
    fitted: Fit,
    compute: float | None = None,
    *,
    shape: Mapping[str, float] | None = None,
    tolerance: float = TOLERANCE,
) -> Valley:
    """The flat valley around the best N of a compute, and around the best value of each ratio.

    Parameters
    ----------
    compute
        Training FLOPs; by default 6ND in the middle of the fitted N and D.
    shape
        Ratios that are held while N moves; by default at their optima.
    tolerance
        Fraction of the loss that counts as no difference.

    Raises
    ------
    InputError
        The compute or the tolerance is not a positive number.
    """
    if not 0 < tolerance < 1:
        raise InputError(f"`0 < tolerance < 1` must hold, but got {tolerance}; write 0.001")
    middle = {name: float(np.sqrt(np.prod(ends))) for name, ends in fitted.ranges.items()}
    if compute is None:
        compute = 6 * middle[N] * middle[D]
    best, ratios = allocation(fitted, compute, shape=shape), shape_held(fitted, shape)
    lines = []
    n, d = middle[N], compute / (6 * middle[N])
    if best.n["value"] is not None and best.tokens["value"] is not None:
        n, d = best.n["value"], best.tokens["value"]
        # Finer than the search's grid: 1e3 either way of the optimum.
        sizes = np.geomspace(n / SIZES_BEYOND, n * SIZES_BEYOND, 4 * GRID + 1)
        curve = _along(fitted, fitted.theta, sizes, compute, ratios)
        lines.append({"quantity": N, **_flat(sizes, curve, tolerance), "best": n, "status": ""})
    for name in ratios:
        low, high = fitted.ranges[name]
        values = np.geomspace(low / RATIO_BEYOND, high * RATIO_BEYOND, GRID)
        columns = {other: np.full(GRID, value) for other, value in ratios.items()}
        columns |= {name: values, N: np.full(GRID, n), D: np.full(GRID, d)}
        curve = fitted.law.log_loss(fitted.theta, columns, fitted.reference)[0]
        held = [p for p in fitted.held if p.startswith(f"{name}_") and not p.endswith("_drift")]
        status = f"not resolved: {fitted.held[held[0]].why}" if held else ""
        lines.append({"quantity": name, **_flat(values, curve, tolerance), "status": status})
    names = ["quantity", "best", "low", "high", "factor", "status"]
    ranges = pd.DataFrame(lines, columns=names)
    return Valley(law_name=fitted.law_name, tolerance=tolerance, allocation=best, ranges=ranges)


def _flat(x: np.ndarray, log_loss: np.ndarray, tolerance: float) -> dict[str, float]:
    """The stretch around the lowest point that stays within the tolerance; NaN ends are open."""
    above = log_loss - log_loss.min() - np.log1p(tolerance)
    i = int(np.argmin(above))
    logs, inside = np.log(x), above <= 0
    left = np.flatnonzero(~inside[:i])
    right = np.flatnonzero(~inside[i:])
    low = high = np.nan
    if len(left):
        j = left[-1]
        low = np.exp(np.interp(0.0, [above[j + 1], above[j]], [logs[j + 1], logs[j]]))
    if len(right):
        j = i + right[0]
        high = np.exp(np.interp(0.0, [above[j - 1], above[j]], [logs[j - 1], logs[j]]))
    best = np.exp(_lowest(logs, log_loss))
    return {"best": float(best), "low": float(low), "high": float(high), "factor": high / low}
