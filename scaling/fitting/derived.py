"""Quantities that depend on a fit's parameters, each with an interval by any method.

A quantity is a function of internal parameters, so bootstrap, BCa, profile and sandwich intervals
all apply to it: a parameter, the optimum of a ratio, the loss of a shape, the difference of two
shapes, the compute-optimal size, tokens and tokens per parameter.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import best_sizes
from shapelaw.scaling.fitting.fit_law import problem_again
from shapelaw.scaling.fitting.result import LEVEL, Fit, unit_of
from shapelaw.scaling.laws.bases import Chinchilla
from shapelaw.scaling.runs.table import RUN_GROUP, RunTable
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.intervals import Interval, bca, normal_interval, percentile
from shapelaw.scaling.uncertainty.profiles import profile
from shapelaw.scaling.uncertainty.resampling import METHODS, bootstrap, method_for
from shapelaw.scaling.uncertainty.robust_covariance import Quantity as Function
from shapelaw.scaling.uncertainty.robust_covariance import numeric_gradient

WAYS = ("auto", "profile", "bca", "bootstrap", "sandwich", *METHODS)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A named quantity: its unit and its function of internal parameters, (S, p) -> (S,).

    With ``logarithmic`` intervals are made for its logarithm, which is nearer to symmetric.
    """

    name: str
    unit: str
    function: Function
    logarithmic: bool = False

    def inner(self, theta: np.ndarray) -> np.ndarray:
        """The function, or its logarithm."""
        value = self.function(theta)
        return np.asarray(np.log(value) if self.logarithmic else value)


def parameter(fit: Fit, name: str) -> Quantity:
    """A parameter of the equation.

    Raises
    ------
    InputError
        The law has no such parameter.
    """
    law = fit.law
    if name not in law.every_name:
        raise InputError(
            f"a parameter must be one of {', '.join(law.every_name)}, but got {name!r}"
        )

    def function(theta: np.ndarray) -> np.ndarray:
        return np.asarray(law.public(theta, fit.reference)[name])

    return Quantity(
        name=name, unit=unit_of(name), function=function, logarithmic=name in law.logarithmic
    )


def predicted_loss(fit: Fit, row: pd.DataFrame) -> Quantity:
    """The loss of a shape at N and D: one row with the law's columns."""
    program = fit.law.program(fit.columns(_one(row)), fit.reference)

    def function(theta: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(program.log_loss(theta)[:, 0]))

    return Quantity(name="predicted loss", unit="nats/token", function=function, logarithmic=True)


def difference(fit: Fit, first: pd.DataFrame, second: pd.DataFrame) -> Quantity:
    """Loss of the first shape minus that of the second: what is common to both cancels."""
    one, other = predicted_loss(fit, first), predicted_loss(fit, second)

    def function(theta: np.ndarray) -> np.ndarray:
        return np.asarray(one.function(theta) - other.function(theta))

    return Quantity(name="difference of losses", unit="nats/token", function=function)


def optimal(fit: Fit, flops: float) -> list[Quantity]:
    """Compute-optimal N, D and D/N at C = 6ND training FLOPs, and the exponent of N in C.

    Those of the best shape: :func:`shapelaw.scaling.fitting.compute_optimal.best_sizes`.

    Raises
    ------
    InputError
        The base of the law is not Chinchilla's, or the budget is not positive.
    """
    if not isinstance(fit.law.base, Chinchilla):
        raise InputError(
            f"`base` must be Chinchilla for a compute-optimal size, but the law is {fit.law_name}"
        )
    if not 0 < flops < np.inf:
        raise InputError(f"`flops > 0` and finite must hold, but got {flops}")

    def size(theta: np.ndarray) -> np.ndarray:
        return best_sizes(fit, theta, flops).n

    def exponent(theta: np.ndarray) -> np.ndarray:
        return best_sizes(fit, theta, flops).exponent

    def tokens(theta: np.ndarray) -> np.ndarray:
        return np.asarray(flops / 6 / size(theta))

    def ratio(theta: np.ndarray) -> np.ndarray:
        return np.asarray(flops / 6 / size(theta) ** 2)

    return [
        Quantity(name="N*", unit="parameters", function=size, logarithmic=True),
        Quantity(name="D*", unit="tokens", function=tokens, logarithmic=True),
        Quantity(name="D*/N*", unit="tokens/parameter", function=ratio, logarithmic=True),
        Quantity(name="a_opt", unit="exponent of C in N*", function=exponent),
    ]


def intervals(
    fit: Fit,
    runs: RunTable | pd.DataFrame,
    quantities: Quantity | Sequence[Quantity],
    *,
    way: str = "auto",
    level: float = LEVEL,
    resamples: int = 2000,
    clusters: str | None = None,
) -> pd.DataFrame:
    """Intervals of quantities as a table: quantity, value, low, high, unit, method, level.

    Parameters
    ----------
    runs
        The table of the fit.
    quantities
        One, or several.
    way
        ``profile`` (needs no resamples), ``bca`` or ``bootstrap`` (percentiles), ``sandwich``
        (± t standard errors), or a bootstrap by its method: ``rows``, ``cluster``,
        ``residuals``, ``wild``, ``wild-cluster``; ``auto`` is ``profile``, and ``bca`` where rows
        are clustered: with a dozen clusters only ``cluster`` and ``bca`` keep their level (LOG.md).
    level
        Per cent.
    clusters
        Column whose equal values are one cluster; ``run_group`` where the table has it.

    Raises
    ------
    InputError
        The runs are not those of the fit, the way or a column is unknown, the level or the number
        of resamples is impossible, or all runs are one cluster.
    """
    if way not in WAYS:
        raise InputError(f"`way` must be one of {', '.join(WAYS)}, but got {way!r}")
    runs = fit.count_as_fitted(runs)
    problem, best = problem_again(fit, runs)
    groups = _groups_of(runs, clusters)
    if way == "auto":
        way = "profile" if groups is None else "bca"
    _possible(way, level, resamples)
    wanted = [quantities] if isinstance(quantities, Quantity) else list(quantities)
    # What depends on a parameter that is held in a range has the interval of its resamples.
    spread = [way != "bca" and _varied(problem, best, quantity) for quantity in wanted]
    draws = np.empty((0, len(problem.law.names)))
    if way in ("bca", "bootstrap", *METHODS) or any(spread):
        own = method_for(len(runs), int(problem.free.sum()), groups)
        method = way if way in METHODS else own
        draws = bootstrap(
            problem, best, method=method, resamples=resamples, seed=fit.seed, clusters=groups
        )
    rows = []
    for quantity, held in zip(wanted, spread, strict=True):
        own = "bootstrap" if held or way in METHODS else way
        found = _interval(problem, best, quantity, own, draws, level, groups)
        ends = asdict(found)
        if quantity.logarithmic:
            ends |= {name: float(np.exp(ends[name])) for name in ("value", "low", "high")}
        rows.append({"quantity": quantity.name, **ends, "unit": quantity.unit})
    return pd.DataFrame(rows).set_index("quantity")


def _groups_of(runs: RunTable, clusters: str | None) -> np.ndarray | None:
    """Find the cluster of each row, (n,); None where rows stand alone."""
    if clusters is not None and clusters not in runs:
        raise InputError(f"`clusters` must be a column of the runs, but got {clusters!r}")
    groups = runs.run_groups if clusters is None else runs[clusters].to_numpy()
    if groups is not None and len(set(groups)) < 2:
        raise InputError(
            f"`{clusters or RUN_GROUP}` must have at least 2 values to be clusters, but all runs "
            f"have {groups[0]!r}: one cluster says nothing about the spread between clusters"
        )
    return groups


def _possible(way: str, level: float, resamples: int) -> None:
    if not 1 <= level < 100:
        raise InputError(f"`1 <= level < 100` must hold, in per cent, but got {level}; write 95")
    if way in ("bca", "bootstrap", *METHODS) and resamples < 2:
        raise InputError(f"`resamples >= 2` must hold for {way}, but got {resamples}; write 2000")


def _varied(problem: Problem, best: Solution, quantity: Quantity) -> bool:
    """Whether a quantity depends on a parameter that is held in a range."""
    names = problem.law.names
    places = [place for place, name in enumerate(names) if name in problem.held]
    wide = [p for p in places if problem.held[names[p]].low < problem.held[names[p]].high]
    return bool(numeric_gradient(quantity.inner, best.theta)[wide].any())


def _interval(
    problem: Problem,
    best: Solution,
    quantity: Quantity,
    way: str,
    draws: np.ndarray,
    level: float,
    groups: np.ndarray | None,
) -> Interval:
    if way == "profile":
        return profile(problem, best, quantity.inner, level=level, clusters=groups)
    if way == "bca":
        return bca(problem, best, quantity.inner, draws, level=level, clusters=groups)
    if way == "bootstrap":
        return percentile(quantity.inner, best, draws, level)
    return normal_interval(problem, best, quantity.inner, level=level, clusters=groups)


def _one(row: pd.DataFrame) -> pd.DataFrame:
    if len(row) != 1:
        raise InputError(f"`len(row) == 1` must hold for the loss of a shape, but got {len(row)}")
    return row
