"""Plans of ladders over shapes: runs from which the effect of every axis can be estimated.

The axes at each size N are hidden size over √N, MLP over attention, grouped-query heads and depth;
then come tokens per parameter and seeds. ``anchor`` shapes are trained with several token counts
(decay branches of one run, arXiv 2410.05192) and several seeds, ``proxy`` shapes once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.ladder.grid import LadderAllocation, LadderGrid, Rung
from shapelaw.trainers.ladder.plan import Ladder, Planned, largest_correlation
from shapelaw.trainers.ladder.selection import METHODS, ShapeSelection, candidates
from shapelaw.trainers.optimizers.recipe import Recipe, parse_settings

# Correlations without a penalty, tried in this order at each size until the largest correlation of
# the plan is at most TARGET_CORRELATION. With a larger allowance the shapes spread more evenly.
ALLOWED_CORRELATIONS = (0.25, 0.2, 0.2, 0.15, 0.1)
TARGET_CORRELATION = 0.25


def plan_ladder(
    rungs: Sequence[Rung],
    *,
    grid: LadderGrid | None = None,
    allocation: LadderAllocation | None = None,
    method: str = "latin-hypercube",
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
) -> Ladder:
    """Choose the shapes of every size and the runs that train them.

    Parameters
    ----------
    rungs
        Sizes in the order in which their runs are planned, usually the smallest first.
    grid
        Settings shared by all shapes; by default a vocabulary of bytes and head dimension 32.
    allocation
        Tokens and seeds.
    method
        ``latin-hypercube`` takes the valid shapes nearest to an even, uncorrelated filling of the
        ranges; ``factorial`` takes those nearest to the cells of a full factorial design.
    settings
        Fields of the recipe that the plan sets, such as ``context_length``.
    seed
        Seed of the choice. The same seed gives the same plan.

    Raises
    ------
    InputError
        A size has too few valid shapes, or a setting is invalid.
    """
    grid, allocation = grid or LadderGrid(), allocation or LadderAllocation()
    if method not in METHODS:
        raise InputError(f"`method` must be one of {', '.join(METHODS)}, but got {method!r}")
    labels = [rung.label for rung in rungs]
    if not rungs or len(set(labels)) < len(labels):
        raise InputError(
            f"`--sizes` must be one or more different sizes, but got {labels}; remove duplicates"
        )
    changes = _with_warmup(parse_settings(settings or {}), rungs, allocation)
    recipe = Recipe(**changes)
    pools = {rung: candidates(rung, grid, seed) for rung in rungs}
    selection = ShapeSelection(
        grid=grid, allocation=allocation, recipe=recipe, choose=METHODS[method], seed=(seed,)
    )
    runs: list[Planned] = []
    for rung, table in pools.items():
        runs = _with_runs_of(rung, table, runs, selection)
    return Ladder(
        runs=tuple(runs),
        settings=tuple(changes),
        method=method,
        candidates={rung.label: len(table) for rung, table in pools.items()},
    )


def _with_runs_of(
    rung: Rung, table: ShapeTable, runs: list[Planned], selection: ShapeSelection
) -> list[Planned]:
    """Add the runs of a size, of several choices the one with the smallest largest correlation."""
    plans: list[list[Planned]] = []
    for attempt, allowed in enumerate(ALLOWED_CORRELATIONS):
        choice = replace(selection, seed=(*selection.seed, attempt), allowed=allowed)
        plans.append([*runs, *choice.runs(rung, table, runs)])
        if largest_correlation(plans[-1]) <= TARGET_CORRELATION:
            break
    return min(plans, key=largest_correlation)


def _with_warmup(
    settings: dict[str, Any], rungs: Sequence[Rung], allocation: LadderAllocation
) -> dict[str, Any]:
    """Add a warm-up in steps to the settings if branches need one and none is given.

    Its length is the warm-up share of the recipe times the steps of an ordinary run of the smallest
    size.
    """
    recipe = Recipe(**settings)
    branched = allocation.anchors and set(allocation.branches) - {1.0}
    if not branched or recipe.warmup_steps or not recipe.warmup:
        return settings
    tokens = allocation.tokens_per_parameter * min(rung.parameters for rung in rungs)
    return settings | {"warmup_steps": max(1, round(recipe.warmup * recipe.steps(round(tokens))))}
