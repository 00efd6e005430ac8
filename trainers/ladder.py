"""Plan a ladder over shapes: which runs to train so that every effect can be told apart.

The axes are hidden size over √N, MLP over attention, grouped heads and depth at each size N, then
tokens per parameter and seeds. ``anchor`` shapes are trained with several token counts (decay
branches of one run, arXiv 2410.05192) and several seeds; ``proxy`` shapes once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from scaling.errors import InputError
from scaling.quantities import format_count
from scaling.shape import Shape, ShapeTable
from scaling.space import Space, within
from trainers.filling import Cube, choose_filling, choose_heavy, weighted_penalty
from trainers.optim import Recipe
from trainers.planned import ANCHOR, CHOSEN_AXES, PROXY, Ladder, Planned

MOST_CANDIDATES = 2000
CELLS = 16  # shapes within 1/16 of every axis's range are nearly alike
TWIN = 100.0  # weight of a pair's squared distance in the unit cube
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The shapes of one size.

    ``parameters`` is N, non-embedding with norms; ``shapes`` how many of it; the ranges bound the
    axes, ends included. Without a range, hidden size over √N takes every valid value.
    """

    parameters: int
    shapes: int
    layers: Range = (2, 6)
    mlp_to_attention: Range = (0.5, 6.0)
    gqa: Range = (1, 4)
    hidden_over_sqrt_n: Range | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "shapes"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name} >= 1` must hold, but got {getattr(self, name)}")
        for name, (low, high) in self.ranges().items():
            if not 0 < low <= high:
                raise InputError(f"`0 < low <= high` must hold for {name}, but got {low}:{high}")

    def ranges(self) -> dict[str, Range]:
        """Range by axis."""
        named = {
            "num_hidden_layers": self.layers,
            "mlp_to_attention": self.mlp_to_attention,
            "gqa": self.gqa,
        }
        if self.hidden_over_sqrt_n is not None:
            named["hidden_over_sqrt_n"] = self.hidden_over_sqrt_n
        return named

    @property
    def label(self) -> str:
        """The size for people: 300K, 1.5M."""
        return format_count(self.parameters)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What all shapes of a ladder share.

    All have ``head_dim``; at each size ``other_shapes`` more for each of ``other_head_dims``, as
    near as possible to one of these in every other axis, so that they make a pair.
    """

    vocab_size: int = 256
    head_dim: int = 32
    other_head_dims: tuple[int, ...] = ()
    other_shapes: int = 1
    hidden_step: int = 8
    mlp_step: int = 4
    tolerance: float = 0.02
    max_heads: int = 32
    qk_norm: bool = True
    tie_word_embeddings: bool = True

    def shapes(self, rung: Rung, head_dim: int) -> ShapeTable:
        """Every valid shape of a size with one head dimension.

        Raises
        ------
        InputError
            There is none.
        """
        low, high = rung.layers
        space = Space(
            parameters=rung.parameters,
            layers=tuple(range(int(np.ceil(low)), int(high) + 1)),
            head_dims=(head_dim,),
            vocab_size=self.vocab_size,
            hidden_step=self.hidden_step,
            mlp_step=self.mlp_step,
            tolerance=self.tolerance,
            max_heads=self.max_heads,
            qk_norm=self.qk_norm,
            tie_word_embeddings=self.tie_word_embeddings,
        )
        table = space.enumerate()
        kept = np.flatnonzero(within(table, rung.ranges(), slack=1 + 1e-9))
        if not len(kept):
            raise InputError(
                f"none of the {len(table)} valid shapes of {rung.label} with head dimension "
                f"{head_dim} lies inside {_words(rung.ranges())}; widen a range, "
                "or take finer steps of hidden or intermediate size"
            )
        return table.take(kept)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Tokens and seeds.

    Every shape is trained with ``tokens_per_parameter`` · N tokens by ``seeds`` seeds. At each
    size ``anchors`` shapes get ``anchor_seeds`` seeds, and the token counts times ``branches``
    too; those above one are costly, so only the first ``long_seeds`` seeds go there.
    """

    tokens_per_parameter: float = 20.0
    seeds: int = 1
    anchors: int = 4
    anchor_seeds: int = 3
    long_seeds: int = 1
    branches: tuple[float, ...] = (0.25, 4.0)

    def __post_init__(self) -> None:
        if not 0 < self.tokens_per_parameter < np.inf:
            raise InputError(
                f"`tokens_per_parameter > 0` must hold, but got {self.tokens_per_parameter}"
            )
        for name, least in (("seeds", 1), ("anchors", 0), ("anchor_seeds", 1), ("long_seeds", 0)):
            if getattr(self, name) < least:
                raise InputError(f"`{name} >= {least}` must hold, but got {getattr(self, name)}")
        if any(not 0 < factor < np.inf for factor in self.branches):
            raise InputError(f"`branches` must be positive factors, but got {self.branches}")

    def tokens(self, size: int, role: str, seed: int) -> tuple[int, ...]:
        """Token counts at which a run of a shape of ``size`` parameters is measured, ascending."""
        factors = {1.0}
        if role == ANCHOR:
            factors |= {f for f in self.branches if f < 1 or seed < self.long_seeds}
        return tuple(sorted(round(self.tokens_per_parameter * size * f) for f in factors))

    def seeds_of(self, role: str) -> int:
        """Seeds of a shape with that role."""
        return max(self.seeds, self.anchor_seeds) if role == ANCHOR else self.seeds


def plan_ladder(
    rungs: Sequence[Rung],
    *,
    grid: Grid | None = None,
    allocation: Allocation | None = None,
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
    grid, allocation = grid or Grid(), allocation or Allocation()
    if method not in METHODS:
        raise InputError(f"`method` must be one of {', '.join(METHODS)}, but got {method!r}")
    labels = [rung.label for rung in rungs]
    if not rungs or len(set(labels)) < len(labels):
        raise InputError(f"`sizes` must be one or more different sizes, but got {labels}")
    recipe = read_settings(settings or {})
    runs: list[Planned] = []
    candidates = {}
    for rung in rungs:
        table = _thinned(grid.shapes(rung, grid.head_dim), rung.parameters, seed)
        if len(table) < rung.shapes:
            raise InputError(
                f"`shapes` of {rung.label} must be at most the {len(table)} valid ones inside "
                f"{_words(rung.ranges())}, but is {rung.shapes}; widen a range or take finer steps"
            )
        candidates[rung.label] = len(table)
        rows = METHODS[method](_cube(table, runs), rung.shapes, seed)
        runs += _runs_of(_roles(table, rows, rung, grid, allocation), rung, allocation)
    return Ladder(
        runs=tuple(runs),
        recipe=recipe,
        settings=tuple(settings or ()),
        method=method,
        candidates=candidates,
    )


def read_settings(settings: Mapping[str, object]) -> Recipe:
    """A recipe with some fields given, as texts or as values.

    Raises
    ------
    InputError
        There is no such field, or a value is none of its kind.
    """
    default = asdict(Recipe())
    values = {}
    for name, value in settings.items():
        if name not in default:
            raise InputError(
                f"a setting of the recipe must be one of {', '.join(default)}, but got {name!r}"
            )
        try:
            values[name] = type(default[name])(value)
        except (TypeError, ValueError):
            raise InputError(
                f"`{name}` must be a {type(default[name]).__name__}, but got {value!r}"
            ) from None
    return Recipe(**default | values)


def _thinned(table: ShapeTable, parameters: int, seed: int) -> ShapeTable:
    """Of shapes that are nearly alike, the one nearest to the size; at most ``MOST_CANDIDATES``.

    What is left after that is drawn at random: it is enough to choose from.
    """
    if len(table) <= MOST_CANDIDATES:
        return table
    off = np.abs(np.log(table.n_non_embedding / parameters))
    order = off.argsort(kind="stable")
    cells = np.round(_unit(table, table)[order] * CELLS)
    rows = order[np.unique(cells, axis=0, return_index=True)[1]]
    if len(rows) > MOST_CANDIDATES:
        rows = np.random.default_rng(seed).choice(rows, MOST_CANDIDATES, replace=False)
    return table.take(np.sort(rows))


def _logs(table: ShapeTable) -> np.ndarray:
    """Logarithms of the axes of a choice and of N, (shapes, 5)."""
    return np.log(table.frame()[[*CHOSEN_AXES, "n_non_embedding"]].to_numpy(dtype=float))


def _unit(table: ShapeTable, like: ShapeTable) -> np.ndarray:
    """Shapes as points of the unit cube over the axes that vary in ``like``, (shapes, axes)."""
    logs, own = (_logs(part)[:, : len(CHOSEN_AXES)] for part in (like, table))
    low, span = logs.min(axis=0), np.ptp(logs, axis=0)
    varies = span > 0
    return np.asarray((own[:, varies] - low[varies]) / span[varies])


def _cube(table: ShapeTable, before: Sequence[Planned]) -> Cube:
    """The shapes of a size as candidates that join the runs planned before."""
    if not before:
        return Cube.alone(_unit(table, table))
    cells = [run.shape for run in before for _ in (*run.branches, run.tokens) if run.seed == 0]
    return Cube(_unit(table, table), _logs(table), _logs(ShapeTable.of(cells)))


def _roles(
    table: ShapeTable, rows: np.ndarray, rung: Rung, grid: Grid, allocation: Allocation
) -> list[tuple[Shape, str]]:
    """The shapes of a size with their roles: anchors first, then proxies, then other heads."""
    points = _unit(table.take(rows), table)
    extra = float(len(set(allocation.branches) - {1.0}))
    heavy = choose_heavy(points, min(allocation.anchors, len(rows)), extra=extra)
    anchors, others = rows[heavy], np.delete(rows, heavy)
    roles = [(table[row], ANCHOR) for row in anchors] + [(table[row], PROXY) for row in others]
    if grid.other_head_dims:
        roles += [(shape, PROXY) for shape in _pairs(table, rows, rung, grid)]
    return roles


def _pairs(table: ShapeTable, rows: np.ndarray, rung: Rung, grid: Grid) -> list[Shape]:
    """Shapes that differ from a chosen one in the head dimension, and hardly in anything else.

    Every head dimension has the same partners, so that it moves with no other axis; the partners
    are those that have near twins and whose place, counted more often, confounds nothing.
    """
    pools = [grid.shapes(rung, head_dim) for head_dim in grid.other_head_dims]
    points = _unit(table.take(rows), table)
    apart = [((_unit(pool, table)[:, None] - points) ** 2).sum(axis=-1) for pool in pools]
    distance = np.sum([each.min(axis=0) for each in apart], axis=0)
    weights, partners = np.ones(len(rows)), list[int]()
    for _ in range(min(grid.other_shapes, len(rows))):
        cost = TWIN * distance + weighted_penalty(points, weights + len(pools) * np.eye(len(rows)))
        cost[partners] = np.inf
        partners.append(int(cost.argmin()))
        weights[partners[-1]] += len(pools)
    found = [
        pool[int(each[:, partner].argmin())]
        for pool, each in zip(pools, apart, strict=True)
        for partner in partners
    ]
    return list(dict.fromkeys(found))


def _runs_of(
    roles: Sequence[tuple[Shape, str]], rung: Rung, allocation: Allocation
) -> list[Planned]:
    """The runs of one size: of each shape, every seed; the longest first."""
    runs = []
    for shape, role in roles:
        for seed in range(allocation.seeds_of(role)):
            *branches, tokens = allocation.tokens(rung.parameters, role, seed)
            runs.append(
                Planned(
                    shape=shape,
                    size=rung.label,
                    role=role,
                    tokens=tokens,
                    branches=tuple(branches),
                    seed=seed,
                )
            )
    return sorted(runs, key=lambda run: -run.tokens)


def latin_hypercube(cube: Cube, count: int, seed: int) -> np.ndarray:
    """Positions of the candidates nearest to an even, uncorrelated filling of the cube."""
    if count == len(cube.points):
        return np.arange(count)
    return choose_filling(cube, count, seed=seed)


def factorial(cube: Cube, count: int, seed: int) -> np.ndarray:
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


def _words(ranges: Mapping[str, Range]) -> str:
    return ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ranges.items())
