"""Strategies that choose runs of a finished table for a back-test."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.design.candidates import Limits, costs
from shapelaw.scaling.design.goals import Prediction
from shapelaw.scaling.design.next_batch import next_runs
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.table import RunTable

DESIGN = "design"
TITLES = {DESIGN: "next-runs", "random": "random choice", "cheapest": "cheapest first"}


@dataclass(frozen=True, kw_only=True)
class BacktestStage:
    """The input of a strategy: runs trained so far, remaining pool, budget and held-out set."""

    fit: Fit
    trained: RunTable
    pool: RunTable
    budget_flops: float
    held_out: RunTable
    generator: np.random.Generator


def by_design(stage: BacktestStage) -> list[int]:
    """Choose runs of the pool by an I-optimal design for the held-out runs, each run once."""
    limits = Limits(
        stretch=1e6, most_runs=len(stage.pool), most_repeats=1, smallest_gain=0.0
    )  # every run of the pool was trained, so no box is needed
    goal = Prediction(at=stage.held_out.frame)
    pool, budget = stage.pool.frame.reset_index(drop=True), stage.budget_flops
    design = next_runs(stage.fit, pool, budget, goal=goal, runs=stage.trained, limits=limits)
    return list(design.rows.index)


def at_random(stage: BacktestStage) -> list[int]:
    """Choose runs in random order, each if the remaining budget pays for it."""
    return _affordable(stage, stage.generator.permutation(len(stage.pool)))


def cheapest_first(stage: BacktestStage) -> list[int]:
    """Choose runs in order of cost, the cheapest first."""
    return _affordable(stage, np.argsort(costs(stage.pool), kind="stable"))


Strategy = Callable[[BacktestStage], list[int]]  # returns positions in the pool
STRATEGIES: dict[str, Strategy] = {
    DESIGN: by_design,
    "random": at_random,
    "cheapest": cheapest_first,
}


def _affordable(stage: BacktestStage, order: np.ndarray) -> list[int]:
    price, left, chosen = costs(stage.pool), stage.budget_flops * (1 + 1e-12), []
    for position in order:
        if price[position] <= left:
            left -= price[position]
            chosen.append(int(position))
    return chosen
