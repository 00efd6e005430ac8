"""Choose the shapes of every size, their roles and the runs that train them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.ladder.grid import (
    ANCHOR,
    PROXY,
    LadderAllocation,
    LadderGrid,
    Rung,
    in_words,
)
from shapelaw.trainers.ladder.plan import CHOSEN_AXES, Planned
from shapelaw.trainers.ladder.space_filling import (
    Cube,
    choose_filling,
    choose_heavy,
    weighted_penalty,
)
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec, run_name

MOST_CANDIDATES = 1500
CELLS = 16  # shapes within 1/16 of every axis's range are nearly alike
TWIN = 400.0  # weight of a pair's squared distance in the unit cube
# From candidates, how many and a seed, the positions of those chosen.
Seeds = tuple[int, ...]
Chooser = Callable[[Cube, int, Seeds], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ShapeSelection:
    """Choose the shapes of a size; ``free`` is the correlation of two axes that costs nothing."""

    grid: LadderGrid
    allocation: LadderAllocation
    recipe: Recipe
    choose: Chooser
    seed: Seeds
    free: float = 0.0

    def runs(self, rung: Rung, table: ShapeTable, before: Sequence[Planned]) -> list[Planned]:
        """Plan the runs of a size, chosen from a table to go with those planned before."""
        rows = self.choose(self.cube(table, before), rung.shapes, self.seed)
        return runs_of(self.roles(table, rows, rung), rung, self.allocation, self.recipe)

    def cube(self, table: ShapeTable, before: Sequence[Planned]) -> Cube:
        """The shapes of a size as candidates that join the runs planned before."""
        points = unit_points(table, table)
        if not before:
            return Cube.alone(points, self.free)
        cells = [run.shape for run in before for _ in run.counts if run.spec.seed == 0]
        return Cube(points, _logs(table), _logs(ShapeTable.of(cells)), self.free)

    def roles(self, table: ShapeTable, rows: np.ndarray, rung: Rung) -> list[tuple[Shape, str]]:
        """The shapes of a size with their roles: anchors first, then proxies, then other heads."""
        points = unit_points(table.take(rows), table)
        extra = float(len(set(self.allocation.branches) - {1.0}))
        count = min(self.allocation.anchors, len(rows))
        heavy = choose_heavy(points, count, extra=extra, free=self.free)
        anchors = [(table[row], ANCHOR) for row in rows[heavy]]
        others = [(table[row], PROXY) for row in np.delete(rows, heavy)]
        twins = [(shape, PROXY) for shape in self.twins(table, rows, rung)]
        return [*anchors, *others, *twins]

    def twins(self, table: ShapeTable, rows: np.ndarray, rung: Rung) -> list[Shape]:
        """Shapes that differ from a chosen one in the head dimension, and hardly in anything else.

        Every head dimension has the same partners, so that it moves with no other axis; they are
        those that have near twins and whose place, counted more often, confounds nothing.
        """
        pools = [self.grid.shapes(rung, head_dim) for head_dim in self.grid.other_head_dims]
        if not pools:
            return []
        points = unit_points(table.take(rows), table)
        apart = [((unit_points(pool, table)[:, None] - points) ** 2).sum(axis=-1) for pool in pools]
        distance = np.sum([each.min(axis=0) for each in apart], axis=0)
        weights, partners = np.ones(len(rows)), list[int]()
        for _ in range(min(self.grid.other_shapes, len(rows))):
            heavier = weights + len(pools) * np.eye(len(rows))
            cost = TWIN * distance + weighted_penalty(points, heavier, self.free)
            cost[partners] = np.inf
            partners.append(int(cost.argmin()))
            weights[partners[-1]] += len(pools)
        found = [
            pool[int(each[:, partner].argmin())]
            for pool, each in zip(pools, apart, strict=True)
            for partner in partners
        ]
        return list(dict.fromkeys(found))


def candidates(rung: Rung, grid: LadderGrid, seed: int) -> ShapeTable:
    """The shapes of a size to choose from.

    Raises
    ------
    InputError
        There are fewer than wanted.
    """
    table = _thinned(grid.shapes(rung, grid.head_dim), rung.parameters, seed)
    if len(table) < rung.shapes:
        raise InputError(
            f"`shapes` of {rung.label} must be at most the {len(table)} valid ones inside "
            f"{in_words(rung.ranges())}, but is {rung.shapes}; widen a range or take finer steps"
        )
    return table


def _thinned(table: ShapeTable, parameters: int, seed: int) -> ShapeTable:
    """Of shapes that are nearly alike, the one nearest to the size; at most ``MOST_CANDIDATES``.

    What is left after that is drawn at random: it is enough to choose from.
    """
    if len(table) <= MOST_CANDIDATES:
        return table
    off = np.abs(np.log(table.n_non_embedding / parameters))
    order = off.argsort(kind="stable")
    cells = np.round(unit_points(table, table)[order] * CELLS)
    rows = order[np.unique(cells, axis=0, return_index=True)[1]]
    if len(rows) > MOST_CANDIDATES:
        rows = np.random.default_rng(seed).choice(rows, MOST_CANDIDATES, replace=False)
    return table.take(np.sort(rows))


def _logs(table: ShapeTable) -> np.ndarray:
    """Logarithms of the axes of a choice and of N, (shapes, 5)."""
    return np.log(table.frame()[[*CHOSEN_AXES, "n_non_embedding"]].to_numpy(dtype=float))


def unit_points(table: ShapeTable, like: ShapeTable) -> np.ndarray:
    """Shapes as points of the unit cube over the axes that vary in ``like``, (shapes, axes)."""
    logs, own = (_logs(part)[:, : len(CHOSEN_AXES)] for part in (like, table))
    low, span = logs.min(axis=0), np.ptp(logs, axis=0)
    varies = span > 0
    return np.asarray((own[:, varies] - low[varies]) / span[varies])


def runs_of(
    roles: Sequence[tuple[Shape, str]], rung: Rung, allocation: LadderAllocation, recipe: Recipe
) -> list[Planned]:
    """The runs of one size: of each shape, every seed; the longest first."""
    runs = []
    for shape, role in roles:
        for seed in range(allocation.seeds_of(role)):
            *branches, tokens = allocation.tokens(rung.parameters, role, seed)
            spec = RunSpec(
                run_id=run_name(shape, tokens, seed),
                shape=shape,
                tokens=tokens,
                recipe=recipe,
                seed=seed,
                role=role,
                branches=tuple(branches),
            )
            runs.append(Planned(spec=spec, size=rung.label))
    return sorted(runs, key=lambda run: -run.spec.tokens)


def latin_hypercube(cube: Cube, count: int, seed: Seeds) -> np.ndarray:
    """Positions of the candidates nearest to an even, uncorrelated filling of the cube."""
    if count == len(cube.points):
        return np.arange(count)
    return choose_filling(cube, count, seed=seed)


def factorial(cube: Cube, count: int, seed: Seeds) -> np.ndarray:
    """Positions of the candidates nearest to the cells of a full factorial.

    Every axis has as many levels as ``count`` allows, at the middles of equal parts of its range.

    Raises
    ------
    InputError
        There are too few shapes for two levels of every axis.
    """
    axes = cube.points.shape[1]
    levels = int(round(count ** (1 / axes), 9)) if axes else 1
    if levels < 2 or levels**axes != count:
        fitting = ", ".join(str(n**axes) for n in (2, 3, 4))
        raise InputError(
            f"`shapes` must be levels**axes for a factorial of {axes} axes ({fitting}, ...), "
            f"but is {count}; change it, or take --method latin-hypercube"
        )
    middles = (np.arange(levels) + 0.5) / levels
    cells = np.stack(np.meshgrid(*[middles] * axes, indexing="ij"), axis=-1).reshape(-1, axes)
    apart = ((cube.points[:, None] - cells) ** 2).sum(axis=-1)
    rows = []
    for cell in apart.min(axis=0).argsort(kind="stable")[::-1]:  # the hardest cell chooses first
        rows.append(int(apart[:, cell].argmin()))
        apart[rows[-1]] = np.inf
    return np.sort(rows)


METHODS = {"latin-hypercube": latin_hypercube, "factorial": factorial}
