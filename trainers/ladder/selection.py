"""Selection of the shapes of every size, their roles and the runs that train them."""

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
    format_ranges,
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

MAX_CANDIDATES = 1500
CELLS_PER_AXIS = 16  # shapes in one cell are nearly alike
TWIN_DISTANCE_WEIGHT = 400.0  # of a pair's squared distance in the unit cube
# A chooser gets candidates, a number and a seed, and returns the positions of the chosen ones.
Seeds = tuple[int, ...]
Chooser = Callable[[Cube, int, Seeds], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ShapeSelection:
    """Method and settings for choosing the shapes of a size.

    ``allowed`` is the largest absolute correlation of two axes without a penalty.
    """

    grid: LadderGrid
    allocation: LadderAllocation
    recipe: Recipe
    choose: Chooser
    seed: Seeds
    allowed: float = 0.0

    def runs(self, rung: Rung, table: ShapeTable, before: Sequence[Planned]) -> list[Planned]:
        """Plan the runs of a size, with shapes from a table that extend the runs planned before."""
        rows = self.choose(self.cube(table, before), rung.shapes, self.seed)
        return planned_runs(self.roles(table, rows, rung), rung, self.allocation, self.recipe)

    def cube(self, table: ShapeTable, before: Sequence[Planned]) -> Cube:
        """Return the shapes of a size as candidates that extend the runs planned before."""
        points = unit_points(table, table)
        if not before:
            return Cube.alone(points, self.allowed)
        cells = [run.shape for run in before for _ in run.counts if run.spec.seed == 0]
        return Cube(points, _logs(table), _logs(ShapeTable.of(cells)), self.allowed)

    def roles(self, table: ShapeTable, rows: np.ndarray, rung: Rung) -> list[tuple[Shape, str]]:
        """Assign roles to the shapes of a size.

        Anchors come first, then proxies, then shapes with other head dimensions.
        """
        points = unit_points(table.take(rows), table)
        extra = float(len(set(self.allocation.branches) - {1.0}))
        count = min(self.allocation.anchors, len(rows))
        heavy = choose_heavy(points, count, extra=extra, allowed=self.allowed)
        anchors = [(table[row], ANCHOR) for row in rows[heavy]]
        others = [(table[row], PROXY) for row in np.delete(rows, heavy)]
        twins = [(shape, PROXY) for shape in self.twins(table, rows, rung)]
        return [*anchors, *others, *twins]

    def twins(self, table: ShapeTable, rows: np.ndarray, rung: Rung) -> list[Shape]:
        """Choose shapes that differ from a chosen shape in the head dimension and hardly otherwise.

        Every head dimension has the same partners, so that it is not correlated with any other
        axis. The partners are the chosen shapes with near twins whose larger weight leaves the axes
        uncorrelated.
        """
        pools = [self.grid.shapes(rung, head_dim) for head_dim in self.grid.other_head_dims]
        if not pools:
            return []
        points = unit_points(table.take(rows), table)
        distances = [
            ((unit_points(pool, table)[:, None] - points) ** 2).sum(axis=-1) for pool in pools
        ]
        nearest = np.sum([of_pool.min(axis=0) for of_pool in distances], axis=0)
        weights, partners = np.ones(len(rows)), list[int]()
        for _ in range(min(self.grid.other_shapes, len(rows))):
            heavier = weights + len(pools) * np.eye(len(rows))
            cost = TWIN_DISTANCE_WEIGHT * nearest + weighted_penalty(points, heavier, self.allowed)
            cost[partners] = np.inf
            partners.append(int(cost.argmin()))
            weights[partners[-1]] += len(pools)
        twins = [
            pool[int(of_pool[:, partner].argmin())]
            for pool, of_pool in zip(pools, distances, strict=True)
            for partner in partners
        ]
        return list(dict.fromkeys(twins))


def candidates(rung: Rung, grid: LadderGrid, seed: int) -> ShapeTable:
    """Return the candidate shapes of a size.

    Parameters
    ----------
    rung
        Size, number of shapes to choose and ranges.
    grid
        Grid of valid shapes.
    seed
        Seed of the random thinning of many candidates.

    Raises
    ------
    InputError
        There are fewer candidates than shapes to choose.
    """
    table = _thinned(grid.shapes(rung, grid.head_dim), rung.parameters, seed)
    if len(table) < rung.shapes:
        raise InputError(
            f"`shapes` of {rung.label} must be at most the {len(table)} valid ones inside "
            f"{format_ranges(rung.ranges())}, but is {rung.shapes}; widen a range or take finer "
            "steps"
        )
    return table


def _thinned(table: ShapeTable, parameters: int, seed: int) -> ShapeTable:
    """Reduce a table of shapes to at most ``MAX_CANDIDATES``.

    Of shapes that are nearly alike, the one nearest to the size is kept. If too many are left, a
    random subset of them is drawn.
    """
    if len(table) <= MAX_CANDIDATES:
        return table
    off = np.abs(np.log(table.n_non_embedding / parameters))
    order = off.argsort(kind="stable")
    cells = np.round(unit_points(table, table)[order] * CELLS_PER_AXIS)
    rows = order[np.unique(cells, axis=0, return_index=True)[1]]
    if len(rows) > MAX_CANDIDATES:
        rows = np.random.default_rng(seed).choice(rows, MAX_CANDIDATES, replace=False)
    return table.take(np.sort(rows))


def _logs(table: ShapeTable) -> np.ndarray:
    """Return the logarithms of the chosen axes and of N, (shapes, 5)."""
    return np.log(table.frame()[[*CHOSEN_AXES, "n_non_embedding"]].to_numpy(dtype=float))


def unit_points(table: ShapeTable, like: ShapeTable) -> np.ndarray:
    """Map shapes to the unit cube over the axes that vary in ``like``, (shapes, axes)."""
    reference, logs = (_logs(part)[:, : len(CHOSEN_AXES)] for part in (like, table))
    low, span = reference.min(axis=0), np.ptp(reference, axis=0)
    varies = span > 0
    return np.asarray((logs[:, varies] - low[varies]) / span[varies])


def planned_runs(
    roles: Sequence[tuple[Shape, str]], rung: Rung, allocation: LadderAllocation, recipe: Recipe
) -> list[Planned]:
    """Return the runs of one size, every seed of each shape, the longest runs first."""
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
    """Choose the candidates nearest to an even, uncorrelated filling of the cube."""
    if count == len(cube.points):
        return np.arange(count)
    return choose_filling(cube, count, seed=seed)


def factorial(cube: Cube, count: int, seed: Seeds) -> np.ndarray:
    """Choose the candidates nearest to the cells of a full factorial design.

    Every axis has the same number of levels, at the middles of equal parts of its range.

    Parameters
    ----------
    cube
        Candidates.
    count
        Number of candidates to choose, levels**axes.
    seed
        Not used; a factorial design is deterministic.

    Returns
    -------
    numpy.ndarray
        Sorted positions of the chosen candidates, (count,).

    Raises
    ------
    InputError
        ``count`` is not levels**axes for two or more levels.
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
    distances = ((cube.points[:, None] - cells) ** 2).sum(axis=-1)
    rows = []
    # The cell that is farthest from all candidates is filled first.
    for cell in distances.min(axis=0).argsort(kind="stable")[::-1]:
        rows.append(int(distances[:, cell].argmin()))
        distances[rows[-1]] = np.inf
    return np.sort(rows)


METHODS = {"latin-hypercube": latin_hypercube, "factorial": factorial}
