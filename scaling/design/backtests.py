"""Back-test of the choice of runs: replay it on a finished run table beside simpler strategies.

The runs of the largest compute are held out, no strategy may train them; the others are the pool.
Starting from a third of the pool, each strategy adds runs of the pool up to growing budgets. After
each budget the law is fitted again and its error on the held-out runs is noted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.design.candidates import Limits, costs
from shapelaw.scaling.design.goals import Prediction
from shapelaw.scaling.design.next_batch import next_runs
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
TARGET = 1.25  # times the error of the fit to the whole pool: the error to be reached
LEAST_RUNS = 24
DESIGN = "design"
TITLES = {DESIGN: "next-runs", "random": "random choice", "cheapest": "cheapest first"}


@dataclass(frozen=True, kw_only=True)
class BacktestStage:
    """What a strategy sees: runs trained so far, the pool left, the budget and the target."""

    fit: Fit
    trained: RunTable
    pool: RunTable
    budget_flops: float
    held_out: RunTable
    generator: np.random.Generator


def by_design(stage: BacktestStage) -> list[int]:
    """Choose runs of the pool by design: I-optimal for the held-out places, each run once."""
    limits = Limits(
        stretch=1e6, most_runs=len(stage.pool), most_repeats=1, smallest_gain=0.0
    )  # every run of the pool was trained: no box is needed
    goal = Prediction(at=stage.held_out.frame)
    pool, budget = stage.pool.frame.reset_index(drop=True), stage.budget_flops
    design = next_runs(stage.fit, pool, budget, goal=goal, runs=stage.trained, limits=limits)
    return list(design.rows.index)


def at_random(stage: BacktestStage) -> list[int]:
    """Choose runs in random order, each if the budget left pays for it."""
    return _payable(stage, stage.generator.permutation(len(stage.pool)))


def cheapest_first(stage: BacktestStage) -> list[int]:
    """Choose runs from the cheapest on."""
    return _payable(stage, np.argsort(costs(stage.pool), kind="stable"))


# Each strategy gives positions in the pool.
STRATEGIES: dict[str, Callable[[BacktestStage], list[int]]] = {
    DESIGN: by_design,
    "random": at_random,
    "cheapest": cheapest_first,
}


def _payable(stage: BacktestStage, order: np.ndarray) -> list[int]:
    price, left, chosen = costs(stage.pool), stage.budget_flops * (1 + 1e-12), []
    for position in order:
        if price[position] <= left:
            left -= price[position]
            chosen.append(int(position))
    return chosen


@dataclass(frozen=True, kw_only=True, repr=False)
class Backtest(Result):
    """The errors of every strategy for every seed.

    ``course`` has one row per seed, strategy and budget: ``seed, strategy, budget_flops,
    spent_flops, runs, error``; FLOPs include those of the start set, the error is the root mean
    square of ln loss on the held-out runs. ``full_error`` is the error of the fit to the whole
    pool.
    """

    course: pd.DataFrame
    full_error: float
    held_out: int
    pool: int
    start: str

    def frame(self) -> pd.DataFrame:
        """The course."""
        return self.course

    def flops_to_reach(self, error: float) -> pd.DataFrame:
        """FLOPs after which the error stays at or below ``error``: seeds × strategies.

        A budget counts as what was allowed to be spent by then; infinite where the last fit of
        a strategy is still above.
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
        """FLOPs to reach an error as a ratio to another strategy's, seed by seed.

        Returns
        -------
        By strategy, the geometric mean of the ratio and its 95 % interval (bootstrap over seeds),
        its median, and the shares of seeds in which it needed fewer FLOPs, as many, and never
        arrived. The geometric mean is None where one of the two never arrives in some seed.
        """
        table = self.flops_to_reach(error)
        answers: dict[str, dict[str, float | None]] = {}
        for strategy in table.columns.drop(to):
            own, other = table[strategy].to_numpy(), table[to].to_numpy()
            both = np.isfinite(own) & np.isfinite(other)
            found: dict[str, float | None] = dict.fromkeys(("ratio", "low", "high"))
            if both.all():
                found = dict(zip(found, _geometric_mean(np.log(own / other)), strict=True))
            arrived = np.isfinite(own)
            each = np.divide(own, other, out=np.full_like(own, np.inf), where=arrived)
            found["median"] = finite(float(np.median(each)))
            shares = {"fewer": own < other, "equal": (own == other) & both}
            shares["never"] = ~arrived
            found |= {name: float(share.mean()) for name, share in shares.items()}
            answers[str(strategy)] = found
        return answers

    def bands(self) -> pd.DataFrame:
        """Median and quartiles of the error by strategy and step of the budget."""
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
        """Errors at equal budgets as a ratio to another strategy's.

        Returns
        -------
        By strategy, the geometric mean over budgets and seeds, and the low and high end of its
        95 % interval (bootstrap over seeds).
        """
        step = self.course.groupby(["seed", "strategy"]).cumcount()
        rows = self.course[step > 0]  # before the first budget all are alike
        logs = rows.assign(log_error=np.log(rows["error"])).pivot_table(
            values="log_error", index="seed", columns="strategy"
        )
        return {
            str(strategy): _geometric_mean((logs[strategy] - logs[to]).to_numpy())
            for strategy in logs.columns.drop(to)
        }

    def comparison(self) -> pd.DataFrame:
        """Compare the design with the other strategies, one row for each.

        ``error_ratio`` is the error of the design over that of the other at equal budgets, and
        ``flops_ratio`` the FLOPs after which it stays at 1.25 times the error of the whole pool
        over those of the other, each with a 95 % interval. ``flops_ratio`` is missing where one of
        the two does not get there in some seed; ``never_percent`` has the share of seeds in which
        the design does not.
        """
        rows = []
        for other in self.course["strategy"].unique():
            if other == DESIGN:
                continue
            error, low, high = self.error_ratios(to=other)[DESIGN]
            flops = self.ratios(TARGET * self.full_error, to=other)[DESIGN]
            rows.append({
                "compared with": TITLES[other],
                "error_ratio": error, "error_low": low, "error_high": high,
                "flops_ratio": flops["ratio"], "flops_low": flops["low"],
                "flops_high": flops["high"], "never_percent": 100 * (flops["never"] or 0.0),
            })  # fmt: skip
        return pd.DataFrame(rows)

    def view(self) -> View:
        """Return the errors beside those of other strategies, and how the table was divided."""
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
                f"FLOPs are those to reach an error of {100 * TARGET * self.full_error:.3g} %, "
                f"{TARGET:g} times the error of the fit to the whole pool",
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
            "ratios": self.ratios(TARGET * self.full_error),
            "bands": self.bands(),
        }


def _geometric_mean(logs: np.ndarray) -> tuple[float, float, float]:
    """The geometric mean of ratios, given their logarithms by seed, and its 95 % interval."""
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
        A run table; cost by :func:`shapelaw.scaling.design.candidates.costs`.
    fit_runs
        Fits a law to some of its rows.
    seeds
        How many start sets (and random orders).
    start
        ``"smallest"``: a random half of the cheapest two thirds of the pool; ``"random"``: a
        random third of the pool.
    held_out
        Share of the runs, those of the largest compute, that are only predicted.
    steps
        Budgets beyond the start, evenly spaced in the logarithm from a thousandth of the cost
        of the pool to all of it.

    Raises
    ------
    InputError
        ``start`` is unknown or the table is too small.
    """
    if start not in STARTS:
        raise InputError(f"`start` must be one of {', '.join(STARTS)}, but got {start!r}")
    if len(runs) < LEAST_RUNS:
        raise InputError(
            f"a back-test needs `len(runs) >= {LEAST_RUNS}`, but got {len(runs)}; use a larger "
            "table"
        )
    runs = as_run_table(runs)
    order = np.argsort(costs(runs), kind="stable")
    kept = len(runs) - max(round(held_out * len(runs)), 2)
    pool, target = runs.take(order[:kept]), runs.take(order[kept:])
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


def _each_once(fit_runs: FitRuns) -> FitRuns:
    """Fit every set of rows once: strategies begin alike, and two of them end with the pool."""
    fits: dict[frozenset[str], Fit] = {}

    def fit_once(runs: RunTable) -> Fit:
        key = frozenset(runs.run_ids)
        if key not in fits:
            fits[key] = fit_runs(runs)
        return fits[key]

    return fit_once


def _start(pool: int, start: str, generator: np.random.Generator) -> np.ndarray:
    """Positions of a third of a pool that is sorted by cost."""
    among = pool if start == "random" else round(2 * pool / 3)
    return np.sort(generator.permutation(among)[: round(pool / 3)])


def _course(
    pool: RunTable,
    target: RunTable,
    fit_runs: FitRuns,
    begin: np.ndarray,
    strategy: Callable[[BacktestStage], list[int]],
    generator: np.random.Generator,
    steps: int,
) -> pd.DataFrame:
    """Follow one strategy from one start: a row per budget, the first with nothing spent."""
    price = costs(pool)
    trained, left = begin, np.setdiff1d(np.arange(len(pool)), begin)
    most, begun = price[left].sum() * (1 + 1e-9), float(price[trained].sum())
    fitted, spent, rows = fit_runs(pool.take(trained)), 0.0, []
    for budget in [0.0, *np.geomspace(most / 1000, most, steps)]:
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
        flops = {"budget_flops": begun + budget, "spent_flops": begun + spent}
        rows.append(flops | {"runs": len(trained), "error": error})
    return pd.DataFrame(rows)


def held_out_error(fit: Fit, target: RunTable) -> float:
    """Compute the root mean square of ln loss minus ln prediction: about the relative error."""
    return float(np.sqrt(np.mean(np.log(target.losses / fit.central(target)) ** 2)))
