"""Back-tests of the choice of runs against simpler strategies, on finished run tables.

The runs of the largest compute are the held-out set, which no strategy may train; the others are
the pool. Starting from a third of the pool, each strategy adds runs of the pool up to growing
budgets. After each budget the law is fitted again and its error on the held-out runs is recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.design.candidates import costs
from shapelaw.scaling.design.strategies import DESIGN, STRATEGIES, TITLES, BacktestStage, Strategy
from shapelaw.scaling.display.documents import finite
from shapelaw.scaling.display.progress import track
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import RunTable, as_run_table

FitRuns = Callable[[RunTable], Fit]
STARTS = ("smallest", "random")
ENDS = (2.5, 97.5)  # per cent: a 95 % interval
RESAMPLES = 4000
TARGET_ERROR_RATIO = 1.25  # error to be reached, over the error of the fit to the whole pool
MIN_RUNS = 24


@dataclass(frozen=True, kw_only=True, repr=False)
class Backtest(Result):
    """The errors of every strategy for every seed.

    ``course`` has one row per seed, strategy and budget: ``seed, strategy, budget_flops,
    spent_flops, runs, error``. FLOPs include those of the start set; the error is the root mean
    square error of ln loss on the held-out runs. ``full_error`` is the error of the fit to the
    whole pool.
    """

    course: pd.DataFrame
    full_error: float
    held_out: int
    pool: int
    start: str

    def frame(self) -> pd.DataFrame:
        """Return the course, one row per seed, strategy and budget."""
        return self.course

    def flops_to_reach(self, error: float) -> pd.DataFrame:
        """Find the budgets after which the error stays at or below a target.

        Parameters
        ----------
        error
            Root mean square error of ln loss.

        Returns
        -------
        FLOPs by seed (rows) and strategy (columns): the allowed budget, not the FLOPs spent;
        infinite where the error after the last budget is above the target.
        """
        reached: dict[str, dict[int, float]] = {}
        for (seed, strategy), rows in self.course.groupby(["seed", "strategy"], sort=False):
            above = np.flatnonzero(rows["error"].to_numpy() > error)
            after = above[-1] + 1 if len(above) else 0
            budgets = rows["budget_flops"].to_numpy()
            flops = budgets[after] if after < len(budgets) else np.inf
            reached.setdefault(str(strategy), {})[int(str(seed))] = flops
        return pd.DataFrame(reached)

    def ratios(self, error: float, *, to: str = "random") -> dict[str, dict[str, float | None]]:
        """Compare the FLOPs to reach an error with those of another strategy, seed by seed.

        Parameters
        ----------
        error
            Root mean square error of ln loss to be reached.
        to
            The strategy in the denominator of the ratios.

        Returns
        -------
        By strategy, the geometric mean of the ratio of FLOPs and its 95 % interval (bootstrap over
        seeds), its median, and the shares of seeds in which the strategy needed fewer FLOPs, as
        many, and never reached the error. The geometric mean is None where one of the two
        strategies does not reach the error for some seed.
        """
        table = self.flops_to_reach(error)
        comparisons: dict[str, dict[str, float | None]] = {}
        for strategy in table.columns.drop(to):
            flops, other = table[strategy].to_numpy(), table[to].to_numpy()
            reached = np.isfinite(flops)
            both = reached & np.isfinite(other)
            comparison: dict[str, float | None] = dict.fromkeys(("ratio", "low", "high"))
            if both.all():
                mean = _geometric_mean(np.log(flops / other))
                comparison = dict(zip(comparison, mean, strict=True))
            each = np.divide(flops, other, out=np.full_like(flops, np.inf), where=reached)
            comparison["median"] = finite(float(np.median(each)))
            shares = {"fewer": flops < other, "equal": (flops == other) & both, "never": ~reached}
            comparison |= {name: float(share.mean()) for name, share in shares.items()}
            comparisons[str(strategy)] = comparison
        return comparisons

    def bands(self) -> pd.DataFrame:
        """Compute the median and quartiles of the error by strategy and step of the budget."""
        step = self.course.groupby(["seed", "strategy"]).cumcount()
        grouped = self.course.groupby(["strategy", step.rename("step")])
        bands = {
            "budget_flops": grouped["budget_flops"].median(),
            "lower_quartile": grouped["error"].quantile(0.25),
            "median": grouped["error"].median(),
            "upper_quartile": grouped["error"].quantile(0.75),
        }
        return pd.DataFrame(bands).reset_index()

    def error_ratios(self, *, to: str = "random") -> dict[str, tuple[float, float, float]]:
        """Compare errors at equal budgets with those of another strategy.

        Parameters
        ----------
        to
            The strategy in the denominator of the ratios.

        Returns
        -------
        By strategy, the geometric mean of the ratio over budgets and seeds, and the low and high
        end of its 95 % interval (bootstrap over seeds).
        """
        step = self.course.groupby(["seed", "strategy"]).cumcount()
        rows = self.course[step > 0]  # before the first budget all strategies are equal
        logs = rows.assign(log_error=np.log(rows["error"])).pivot_table(
            values="log_error", index="seed", columns="strategy"
        )
        return {
            str(strategy): _geometric_mean((logs[strategy] - logs[to]).to_numpy())
            for strategy in logs.columns.drop(to)
        }

    def comparison(self) -> pd.DataFrame:
        """Compare the design with the other strategies, one row for each.

        Returns
        -------
        ``error_ratio`` is the error of the design over that of the other strategy at equal
        budgets. ``flops_ratio`` is the FLOPs after which the error of the design stays at or below
        1.25 times the error of the fit to the whole pool, over those of the other strategy. Both
        have a 95 % interval. ``flops_ratio`` is missing where one of the two does not reach that
        error for some seed; ``never_percent`` is the share of seeds in which the design does not.
        """
        rows = []
        for other in self.course["strategy"].unique():
            if other == DESIGN:
                continue
            error, low, high = self.error_ratios(to=other)[DESIGN]
            flops = self.ratios(TARGET_ERROR_RATIO * self.full_error, to=other)[DESIGN]
            rows.append({
                "compared with": TITLES[other],
                "error_ratio": error, "error_low": low, "error_high": high,
                "flops_ratio": flops["ratio"], "flops_low": flops["low"],
                "flops_high": flops["high"], "never_percent": 100 * (flops["never"] or 0.0),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def view(self) -> View:
        """Return the errors of all strategies, and how the table was divided."""
        table = self.comparison()
        ratios = "; ".join(
            f"{row['error_ratio']:.2f} [{row['error_low']:.2f}, {row['error_high']:.2f}] times "
            f"that of {row['compared with']}"
            for row in table.to_dict("records")
        )
        bands = self.bands().drop(columns="step")
        bands[["lower_quartile", "median", "upper_quartile"]] *= 100
        order = bands["strategy"].map(list(TITLES).index)
        bands = bands.iloc[order.argsort(kind="stable")].replace({"strategy": TITLES})
        larger = counted(self.held_out, "larger run")
        target = f"{100 * TARGET_ERROR_RATIO * self.full_error:.3g} %"
        return View(
            title=f"error of next-runs on {larger} at equal FLOPs: {ratios}",
            tables={
                "next-runs over other strategies, 95 % intervals": table,
                "error on the held-out runs in %, over seeds": bands,
            },
            notes=[
                f"{counted(self.course['seed'].nunique(), 'seed')}, each from another third of the "
                f"pool of {counted(self.pool, 'run')} ({self.start}); the {self.held_out} runs of "
                "the largest compute are only predicted",
                f"FLOPs are those to reach an error of {target}, {TARGET_ERROR_RATIO:g} times the "
                "error of the fit to the whole pool",
            ],
        )

    def document(self) -> dict[str, Any]:
        """Return the comparison, the ratios to random choice, and the errors by budget."""
        return {
            "full_error": self.full_error,
            "held_out": self.held_out,
            "pool": self.pool,
            "seeds": self.course["seed"].nunique(),
            "start": self.start,
            "comparison": self.comparison().rename(columns={"compared with": "compared_with"}),
            "ratios": self.ratios(TARGET_ERROR_RATIO * self.full_error),
            "bands": self.bands(),
        }


def _geometric_mean(logs: np.ndarray) -> tuple[float, float, float]:
    """Compute the geometric mean and its 95 % interval from logarithms of ratios by seed."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.percentile(logs[drawn].mean(axis=1), ENDS)
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def backtest(
    runs: RunTable | pd.DataFrame,
    fit_runs: FitRuns,
    *,
    seeds: int = 20,
    start: str = "smallest",
    held_out: float = 0.15,
    steps: int = 14,
) -> Backtest:
    """Replay every strategy on a run table.

    Parameters
    ----------
    runs
        A run table; its costs are those of :func:`shapelaw.scaling.design.candidates.costs`.
    fit_runs
        A function that fits a law to some rows of the table.
    seeds
        The number of start sets and random orders.
    start
        ``"smallest"``: a random half of the cheapest two thirds of the pool; ``"random"``: a
        random third of the pool.
    held_out
        Share of the runs, those of the largest compute, that are only predicted.
    steps
        The number of budgets beyond the start set, evenly spaced in the logarithm from a
        thousandth of the cost of the remaining pool to its whole cost.

    Returns
    -------
    The errors of every strategy by seed and budget.

    Raises
    ------
    InputError
        ``start`` is unknown or the table is too small.
    """
    if start not in STARTS:
        raise InputError(f"`start` must be one of {', '.join(STARTS)}, but got {start!r}")
    if len(runs) < MIN_RUNS:
        raise InputError(
            f"a back-test needs `len(runs) >= {MIN_RUNS}`, but got {len(runs)}; use a larger table"
        )
    pool, target = _pool_and_target(as_run_table(runs), held_out)
    fit_runs = _each_once(fit_runs)
    courses = []
    replays = list(product(range(seeds), enumerate(STRATEGIES)))
    for seed, (number, strategy) in track(replays, "back-test", total=len(replays)):
        begin = _start(len(pool), start, np.random.default_rng(seed))
        generator = np.random.default_rng((seed, number))
        course = _course(pool, target, fit_runs, begin, STRATEGIES[strategy], generator, steps)
        courses.append(course.assign(seed=seed, strategy=strategy))
    return Backtest(
        course=pd.concat(courses, ignore_index=True),
        full_error=held_out_error(fit_runs(pool), target),
        held_out=len(target),
        pool=len(pool),
        start=start,
    )


def _pool_and_target(runs: RunTable, held_out: float) -> tuple[RunTable, RunTable]:
    """Divide runs by their cost: the pool, and the share of the dearest, which is held out."""
    order = np.argsort(costs(runs), kind="stable")
    kept = len(runs) - max(round(held_out * len(runs)), 2)
    return runs.take(order[:kept]), runs.take(order[kept:])


def _each_once(fit_runs: FitRuns) -> FitRuns:
    """Cache fits: all strategies begin with the same rows, and two of them end with the pool."""
    fits: dict[frozenset[str], Fit] = {}

    def fit_once(runs: RunTable) -> Fit:
        key = frozenset(runs.run_ids)
        if key not in fits:
            fits[key] = fit_runs(runs)
        return fits[key]

    return fit_once


def _start(pool: int, start: str, generator: np.random.Generator) -> np.ndarray:
    """Draw the positions of a third of a pool that is sorted by cost."""
    among = pool if start == "random" else round(2 * pool / 3)
    return np.sort(generator.permutation(among)[: round(pool / 3)])


def _course(
    pool: RunTable,
    target: RunTable,
    fit_runs: FitRuns,
    begin: np.ndarray,
    strategy: Strategy,
    generator: np.random.Generator,
    steps: int,
) -> pd.DataFrame:
    """Replay one strategy from one start set: a row per budget, the first with nothing spent."""
    price = costs(pool)
    trained, left = begin, np.setdiff1d(np.arange(len(pool)), begin)
    pool_cost, start_cost = price[left].sum() * (1 + 1e-9), float(price[trained].sum())
    fitted, spent, rows = fit_runs(pool.take(trained)), 0.0, []
    for budget in [0.0, *np.geomspace(pool_cost / 1000, pool_cost, steps)]:
        allowed = budget - spent
        if len(left) and price[left].min() <= allowed:
            stage = BacktestStage(
                fit=fitted,
                trained=pool.take(trained),
                pool=pool.take(left),
                budget_flops=allowed,
                held_out=target,
                generator=generator,
            )
            chosen = left[strategy(stage)]
            spent += float(price[chosen].sum())
            trained = np.concatenate((trained, chosen))
            left = np.setdiff1d(left, chosen)
            fitted = fit_runs(pool.take(trained))
        error = held_out_error(fitted, target)
        flops = {"budget_flops": start_cost + budget, "spent_flops": start_cost + spent}
        rows.append(flops | {"runs": len(trained), "error": error})
    return pd.DataFrame(rows)


def held_out_error(fit: Fit, target: RunTable) -> float:
    """Compute the root mean square error of ln loss on runs, about the relative error.

    Parameters
    ----------
    fit
        The fitted law.
    target
        Runs with measured losses.
    """
    return float(np.sqrt(np.mean(np.log(target.losses / fit.expected(target)) ** 2)))
