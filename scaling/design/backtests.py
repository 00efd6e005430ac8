"""Back-test on a finished table: whether choosing its runs by design would have paid.

A table is cut into a held-out set, its runs of the largest compute, which no strategy may train,
and a pool. Starting from a third of the pool, each strategy adds runs of the pool up to growing
budgets; after each the law is fitted again and its error on the held-out runs is noted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.design.candidates import Limits, costs
from shapelaw.scaling.design.goals import Prediction
from shapelaw.scaling.design.linearised import sized
from shapelaw.scaling.design.next_batch import next_runs
from shapelaw.scaling.display.console import json_row
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit

Refit = Callable[[pd.DataFrame], Fit]
STARTS = ("smallest", "random")
ENDS = (2.5, 97.5)  # per cent: a 95 % interval
RESAMPLES = 4000


@dataclass(frozen=True, kw_only=True)
class BacktestStage:
    """What a strategy sees: runs trained so far, the pool left, the budget and the target."""

    fit: Fit
    trained: pd.DataFrame
    pool: pd.DataFrame
    budget_flops: float
    held_out: pd.DataFrame
    generator: np.random.Generator


def by_design(stage: BacktestStage) -> list[Any]:
    """I-optimal for the held-out places, under the budget; each run of the pool once."""
    limits = Limits(
        stretch=1e6, most_runs=len(stage.pool), most_repeats=1, smallest_gain=0.0
    )  # every run of the pool was trained: no box is needed
    goal = Prediction(at=stage.held_out)
    pool, budget = stage.pool, stage.budget_flops
    design = next_runs(stage.fit, pool, budget, goal=goal, runs=stage.trained, limits=limits)
    return list(design.rows.index)


def at_random(stage: BacktestStage) -> list[Any]:
    """Runs in random order, each taken if the budget left pays for it."""
    return _payable(stage, stage.generator.permutation(len(stage.pool)))


def cheapest_first(stage: BacktestStage) -> list[Any]:
    """All at the smallest size: by cost."""
    return _payable(stage, np.argsort(costs(stage.pool), kind="stable"))


STRATEGIES: dict[str, Callable[[BacktestStage], list[Any]]] = {
    "design": by_design,
    "random": at_random,
    "cheapest": cheapest_first,
}


def _payable(stage: BacktestStage, order: np.ndarray) -> list[Any]:
    price, left, chosen = costs(stage.pool), stage.budget_flops * (1 + 1e-12), []
    for position in order:
        if price[position] <= left:
            left -= price[position]
            chosen.append(stage.pool.index[position])
    return chosen


@dataclass(frozen=True, kw_only=True, repr=False)
class Backtest:
    """The course of every strategy for every seed.

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
        generator = np.random.default_rng(0)
        drawn = generator.integers(len(table), size=(RESAMPLES, len(table)))
        answers: dict[str, dict[str, float | None]] = {}
        for strategy in table.columns.drop(to):
            own, other = table[strategy].to_numpy(), table[to].to_numpy()
            finite = np.isfinite(own) & np.isfinite(other)
            found: dict[str, float | None] = dict.fromkeys(("ratio", "low", "high"))
            if finite.all():
                log = np.log(own / other)
                low, high = np.percentile(log[drawn].mean(axis=1), ENDS)
                found = {
                    "ratio": float(np.exp(log.mean())),
                    "low": float(np.exp(low)),
                    "high": float(np.exp(high)),
                }
            arrived = np.isfinite(own)
            each = np.divide(own, other, out=np.full_like(own, np.inf), where=arrived)
            middle = float(np.median(each))
            found["median"] = middle if np.isfinite(middle) else None
            shares = {"fewer": own < other, "equal": (own == other) & finite}
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

    def summary(self) -> str:
        """The ratios at 1.25 times the error of the whole pool."""
        target = 1.25 * self.full_error
        lines = [
            f"{self.held_out} runs held out, a pool of {self.pool}, start: {self.start}; "
            f"to reach {100 * target:.2f} % (1.25 x the error of the whole pool):"
        ]
        for strategy, found in self.ratios(target).items():
            shown = "(median) none"
            if found["median"] is not None:
                shown = f"(median) {found['median']:.2f}"
            if found["ratio"] is not None:
                shown = f"{found['ratio']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
            never = f", never in {100 * (found['never'] or 0):.0f} % of seeds"
            lines.append(f"  {strategy}: {shown} x the FLOPs of random" + never)
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.summary())}</pre>" + self.bands().to_html(index=False)

    def as_json(self) -> dict[str, Any]:
        """Bands and ratios."""
        return {
            "full_error": self.full_error,
            "held_out": self.held_out,
            "pool": self.pool,
            "start": self.start,
            "ratios": self.ratios(1.25 * self.full_error),
            "bands": [json_row(row) for row in self.bands().to_dict("records")],
        }


def backtest(
    runs: pd.DataFrame,
    refit: Refit,
    *,
    seeds: int = 20,
    start: str = "smallest",
    held_out: float = 0.15,
    steps: int = 14,
) -> Backtest:
    """Run every strategy on a table.

    Parameters
    ----------
    runs
        A run table; cost by :func:`shapelaw.scaling.design.candidates.costs`.
    refit
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
    if len(runs) < 24:
        raise InputError(f"a back-test needs `len(runs) >= 24`, but got {len(runs)}")
    runs = runs.reset_index(drop=True)
    order = np.argsort(costs(runs), kind="stable")
    kept = len(runs) - max(round(held_out * len(runs)), 2)
    pool, target = runs.iloc[order[:kept]], runs.iloc[order[kept:]]
    courses = []
    for seed in range(seeds):
        begin = _start(len(pool), start, np.random.default_rng(seed))
        for number, strategy in enumerate(STRATEGIES):
            generator = np.random.default_rng((seed, number))
            course = _course(pool, target, refit, begin, STRATEGIES[strategy], generator, steps)
            courses.append(course.assign(seed=seed, strategy=strategy))
    return Backtest(
        course=pd.concat(courses, ignore_index=True),
        full_error=held_out_error(refit(pool), target),
        held_out=len(target),
        pool=len(pool),
        start=start,
    )


def _start(pool: int, start: str, generator: np.random.Generator) -> np.ndarray:
    """Positions of a third of a pool that is sorted by cost."""
    among = pool if start == "random" else round(2 * pool / 3)
    return np.sort(generator.permutation(among)[: round(pool / 3)])


def _course(
    pool: pd.DataFrame,
    target: pd.DataFrame,
    refit: Refit,
    begin: np.ndarray,
    strategy: Callable[[BacktestStage], list[Any]],
    generator: np.random.Generator,
    steps: int,
) -> pd.DataFrame:
    """One strategy from one start: a row per budget, the first with nothing spent."""
    trained = pool.iloc[begin]
    left = pool.drop(index=trained.index)
    most, begun = costs(left).sum() * (1 + 1e-9), float(costs(trained).sum())
    fitted, spent, rows = refit(trained), 0.0, []
    for budget in [0.0, *np.geomspace(most / 1000, most, steps)]:
        allowed = budget - spent
        if len(left) and costs(left).min() <= allowed:
            stage = BacktestStage(
                fit=fitted,
                trained=trained,
                pool=left,
                budget_flops=allowed,
                held_out=target,
                generator=generator,
            )
            chosen = strategy(stage)
            spent += float(costs(left.loc[chosen]).sum())
            trained = pd.concat((trained, left.loc[chosen]))
            left = left.drop(index=chosen)
            fitted = refit(trained)
        error = held_out_error(fitted, target)
        flops = {"budget_flops": begun + budget, "spent_flops": begun + spent}
        rows.append(flops | {"runs": len(trained), "error": error})
    return pd.DataFrame(rows)


def held_out_error(fit: Fit, target: pd.DataFrame) -> float:
    """Root mean square of ln loss minus ln prediction: about the relative error."""
    predicted = fit.central(sized(fit, target))
    return float(np.sqrt(np.mean(np.log(target["loss"].to_numpy() / predicted) ** 2)))
