"""Plan a ladder over shapes: which runs to train so that every effect can be told apart.

The axes are hidden size over √N, MLP over attention, grouped heads and depth at each size N, then
tokens per parameter and seeds. ``anchor`` shapes are trained with several token counts (decay
branches of one run, arXiv 2410.05192) and several seeds; ``proxy`` shapes once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.ladder.grid import LadderAllocation, LadderGrid, Rung
from shapelaw.trainers.ladder.plan import Ladder, Planned, worst_of
from shapelaw.trainers.ladder.selection import METHODS, ShapeSelection, candidates
from shapelaw.trainers.optimizers.recipe import Recipe, parse_settings

# Correlations that cost nothing, tried in this order at each size until the largest of the plan is
# at most GOOD: what is freer spreads wider.
FREE = (0.25, 0.2, 0.2, 0.15, 0.1)
GOOD = 0.25


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
        The sizes, smallest first as a rule: runs are planned in this order.
    grid
        What all shapes share; by default bytes as the vocabulary and head dimension 32.
    allocation
        Tokens and seeds.
    method
        ``latin-hypercube``: the valid shapes nearest to an even, uncorrelated filling of the
        ranges; ``factorial``: those nearest to the cells of a full factorial.
    settings
        Fields of the recipe that the plan fixes, such as ``context_length``.
    seed
        Of the choice. The same seed gives the same plan.

    Raises
    ------
    InputError
        A size has too few valid shapes, or a setting makes no sense.
    """
    grid, allocation = grid or LadderGrid(), allocation or LadderAllocation()
    if method not in METHODS:
        raise InputError(f"`method` must be one of {', '.join(METHODS)}, but got {method!r}")
    labels = [rung.label for rung in rungs]
    if not rungs or len(set(labels)) < len(labels):
        raise InputError(f"`sizes` must be one or more different sizes, but got {labels}")
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
    """Add the runs of a size, chosen with the freedom that correlates the axes of all least."""
    tries: list[list[Planned]] = []
    for attempt, free in enumerate(FREE):
        chosen = replace(selection, seed=(*selection.seed, attempt), free=free)
        tries.append([*runs, *chosen.runs(rung, table, runs)])
        if worst_of(tries[-1]) <= GOOD:
            break
    return min(tries, key=worst_of)


def _with_warmup(
    settings: dict[str, Any], rungs: Sequence[Rung], allocation: LadderAllocation
) -> dict[str, Any]:
    """Settings with a warm-up in steps, where branches need one and none is given.

    It is the recipe's share of the steps of the smallest size's ordinary run.
    """
    recipe = Recipe(**settings)
    branched = allocation.anchors and set(allocation.branches) - {1.0}
    if not branched or recipe.warmup_steps or not recipe.warmup:
        return settings
    tokens = allocation.tokens_per_parameter * min(rung.parameters for rung in rungs)
    return settings | {"warmup_steps": max(1, round(recipe.warmup * recipe.steps(round(tokens))))}
