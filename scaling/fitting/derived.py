"""Quantities derived from the parameters of a fit, with confidence intervals by any method.

A quantity is a function of the internal parameters, so bootstrap, BCa, profile and sandwich
intervals all apply to it. Examples are a parameter, the optimum of a ratio, the loss of a shape,
the difference of two losses, and the compute-optimal size, tokens and tokens per parameter.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import best_sizes
from shapelaw.scaling.fitting.fit_text import unit_of
from shapelaw.scaling.fitting.law_problem import reconstruct_problem
from shapelaw.scaling.fitting.result import Fit, as_fit
from shapelaw.scaling.fitting.run_intervals import LEVEL
from shapelaw.scaling.laws.bases import Chinchilla, OuterExponent
from shapelaw.scaling.runs.table import RUN_GROUP, RunsLike, RunTable, as_frame
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.intervals import Interval, bca, normal_interval, percentile
from shapelaw.scaling.uncertainty.profiles import profile
from shapelaw.scaling.uncertainty.resampling import METHODS, bootstrap, method_for
from shapelaw.scaling.uncertainty.robust_covariance import Quantity as Function
from shapelaw.scaling.uncertainty.robust_covariance import numeric_gradient
from shapelaw.scaling.units import short_unit

WAYS = ("auto", "posterior", "profile", "bca", "bootstrap", "sandwich", *METHODS)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Named function of the internal parameters.

    Parameters
    ----------
    name
        Name of the quantity.
    unit
        Unit of its values.
    function
        Function of the internal parameters, (S, p) -> (S,).
    logarithmic
        Make intervals of the logarithm, whose distribution is closer to symmetric.
    drawn
        Function that draws the quantity from a posterior with the misfit of the law, (S,); None
        where the parameters alone determine it.
    """

    name: str
    unit: str
    function: Function
    logarithmic: bool = False
    drawn: Callable[[], np.ndarray] | None = None

    def inner(self, theta: np.ndarray) -> np.ndarray:
        """Evaluate the function, or its logarithm if ``logarithmic``."""
        value = self.function(theta)
        return np.asarray(np.log(value) if self.logarithmic else value)


def parameter(fit: Fit, name: str) -> Quantity:
    """Return a public parameter of the law as a quantity.

    Parameters
    ----------
    fit
        Fit that gives the law.
    name
        Name of the parameter in the equation.

    Returns
    -------
    Quantity
        The parameter with its unit.

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
        name=name,
        unit=unit_of(name, fit.loss_unit),
        function=function,
        logarithmic=name in law.logarithmic,
    )


def predicted_loss(fit: Fit, row: pd.DataFrame) -> Quantity:
    """Return the predicted loss of a shape at N and D as a quantity.

    Parameters
    ----------
    fit
        Fit that predicts.
    row
        One row with the columns of the law.

    Returns
    -------
    Quantity
        Loss in nats per token.

    Raises
    ------
    InputError
        There is not exactly one row, or a column is missing.
    """
    fit = as_fit(fit)
    program = fit.law.program(fit.columns(_require_one_row(row)), fit.reference)

    def function(theta: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(program.log_loss(theta)[:, 0]))

    def drawn() -> np.ndarray:
        return np.asarray(np.exp(fit.log_loss_draws(row)[:, 0]))

    return Quantity(
        name="predicted loss",
        unit=short_unit(fit.loss_unit),
        function=function,
        logarithmic=True,
        drawn=drawn,
    )


def difference(fit: Fit, first: pd.DataFrame, second: pd.DataFrame) -> Quantity:
    """Return the loss of the first shape minus that of the second as a quantity.

    Errors common to both losses cancel.

    Parameters
    ----------
    fit
        Fit that predicts.
    first, second
        One row each with the columns of the law.

    Returns
    -------
    Quantity
        Difference of the losses in nats per token.

    Raises
    ------
    InputError
        As :func:`predicted_loss`.
    """
    minuend, subtrahend = predicted_loss(fit, first), predicted_loss(fit, second)

    def function(theta: np.ndarray) -> np.ndarray:
        return np.asarray(minuend.function(theta) - subtrahend.function(theta))

    def drawn() -> np.ndarray:
        losses = np.exp(fit.log_loss_draws(pd.concat([first, second])))
        return np.asarray(losses[:, 0] - losses[:, 1])

    unit = short_unit(fit.loss_unit)
    return Quantity(name="difference of losses", unit=unit, function=function, drawn=drawn)


def optimal(fit: Fit, flops: float) -> list[Quantity]:
    """Return the compute-optimal N, D and D/N of the best shape, and the exponent of N in C.

    Parameters
    ----------
    fit
        Fit of a law with the base of Chinchilla or with an outer exponent.
    flops
        Compute budget C = 6ND in FLOPs.

    Returns
    -------
    list of Quantity
        N*, D*, D*/N* and the exponent, as in
        :func:`shapelaw.scaling.fitting.compute_optimal.best_sizes`.

    Raises
    ------
    InputError
        The base of the law is neither of the two, or the budget is not positive.
    """
    fit = as_fit(fit)
    if not isinstance(fit.law.base, (Chinchilla, OuterExponent)):
        raise InputError(
            f"`base` must be Chinchilla or OuterExponent for a compute-optimal size, but the law "
            f"is {fit.law_name}; fit a law such as `chinchilla`"
        )
    if not 0 < flops < np.inf:
        raise InputError(f"`flops > 0` and finite must hold, but got {flops}; write 1e21")

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
    runs: RunsLike,
    quantities: Quantity | Sequence[Quantity],
    *,
    way: str = "auto",
    level: float = LEVEL,
    resamples: int = 2000,
    clusters: str | None = None,
) -> pd.DataFrame:
    """Compute confidence intervals of quantities.

    Parameters
    ----------
    fit
        Fit at whose optimum the quantities are evaluated.
    runs
        Run table of the fit.
    quantities
        One or several quantities.
    way
        Method of the intervals: ``posterior`` (percentiles of the draws of a fit with a prior, with
        the misfit of the law), ``profile`` (without resamples), ``bca`` or ``bootstrap``
        (percentiles), ``sandwich`` (± t standard errors), or a bootstrap by its method: ``rows``,
        ``cluster``, ``residuals``, ``wild``, ``wild-cluster``. ``auto`` is ``posterior`` for a fit
        with a prior, else ``profile``, or ``bca`` for clustered rows: with a dozen clusters only
        ``cluster`` and ``bca`` keep their level (LOG.md).
    level
        Confidence level in per cent.
    resamples
        Number of bootstrap resamples.
    clusters
        Column whose equal values form one cluster; by default ``run_group`` if the table has it.

    Returns
    -------
    pandas.DataFrame
        One row per quantity: value, low, high, unit, method and level.

    Raises
    ------
    InputError
        The runs are not those of the fit, the method or a column is unknown, the level or the
        number of resamples is out of range, or all runs are one cluster.
    """
    fit = as_fit(fit)
    if way not in WAYS:
        raise InputError(f"`way` must be one of {', '.join(WAYS)}, but got {way!r}")
    wanted = [quantities] if isinstance(quantities, Quantity) else list(quantities)
    runs = fit.count_as_fitted(runs)
    problem, best = reconstruct_problem(fit, runs)
    groups = _groups_of(runs, clusters)
    if way == "posterior" or (way == "auto" and fit.posterior is not None):
        return _posterior_intervals(fit, wanted, level)
    if way == "auto":
        way = "profile" if groups is None else "bca"
    _validate(way, level, resamples)
    # A quantity that depends on a parameter held in a range has the interval of its resamples.
    in_range = [way != "bca" and _varied(problem, best, quantity) for quantity in wanted]
    draws = np.empty((0, len(problem.law.names)))
    if way in ("bca", "bootstrap", *METHODS) or any(in_range):
        default = method_for(len(runs), int(problem.free.sum()), groups)
        method = way if way in METHODS else default
        draws = bootstrap(
            problem, best, method=method, resamples=resamples, seed=fit.seed, clusters=groups
        )
    rows = []
    for quantity, held in zip(wanted, in_range, strict=True):
        chosen = "bootstrap" if held or way in METHODS else way
        ends = asdict(_interval(problem, best, quantity, chosen, draws, level, groups))
        if quantity.logarithmic:
            ends |= {name: float(np.exp(ends[name])) for name in ("value", "low", "high")}
        rows.append({"quantity": quantity.name, **ends, "unit": quantity.unit})
    return pd.DataFrame(rows).set_index("quantity")


def _posterior_intervals(fit: Fit, wanted: list[Quantity], level: float) -> pd.DataFrame:
    """Compute percentiles of the draws of a fit with a prior."""
    _validate("posterior", level, resamples=0)
    if fit.posterior is None:
        raise InputError(
            "`posterior` intervals need a fit with a prior and with draws, but this fit has none; "
            'fit with prior="weak" and resamples'
        )
    rows = []
    for quantity in wanted:
        drawn = quantity.function(fit.draws) if quantity.drawn is None else quantity.drawn()
        low, high = np.percentile(drawn, [50 - level / 2, 50 + level / 2])
        value = float(quantity.function(fit.theta[None])[0])
        rows.append(
            {
                "quantity": quantity.name, "value": value, "low": float(low), "high": float(high),
                "method": "draws of the posterior", "level": level, "unit": quantity.unit,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("quantity")


def _groups_of(runs: RunTable, clusters: str | None) -> np.ndarray | None:
    """Return the cluster of each row, (n,); None if the rows are independent."""
    if clusters is not None and clusters not in runs:
        raise InputError(f"`clusters` must be a column of the runs, but got {clusters!r}")
    groups = runs.run_groups if clusters is None else runs[clusters].to_numpy()
    if groups is not None and len(set(groups)) < 2:
        raise InputError(
            f"`{clusters or RUN_GROUP}` must have at least 2 values to be clusters, but all runs "
            f"have {groups[0]!r}; choose another column, for the spread between clusters is unknown"
        )
    return groups


def _validate(way: str, level: float, resamples: int) -> None:
    """Require a level and a number of resamples that allow an interval."""
    if not 1 <= level < 100:
        raise InputError(f"`1 <= level < 100` must hold, in per cent, but got {level}; write 95")
    if way in ("bca", "bootstrap", *METHODS) and resamples < 2:
        raise InputError(f"`resamples >= 2` must hold for {way}, but got {resamples}; write 2000")


def _varied(problem: Problem, best: Solution, quantity: Quantity) -> bool:
    """Return True if a quantity depends on a parameter that is held in a range."""
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


def _require_one_row(row: pd.DataFrame) -> pd.DataFrame:
    """Return the table if it has exactly one row."""
    row = as_frame(row)
    if len(row) != 1:
        raise InputError(
            f"`len(row) == 1` must hold for the loss of a shape, but got {len(row)}; give one row"
        )
    return row
