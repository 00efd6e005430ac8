"""Space of shapes: every valid shape of a parameter budget, in a reproducible order."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.constraints import Columns, without_width
from shapelaw.scaling.space.grid import (
    FITTING,
    FREE_FIELDS,
    HEADS,
    PAIRS,
    SHAPES,
    SMALL,
    WAYS_OUT,
    ShapeGrid,
    Widths,
    find_emptying_limit,
    head_pairs,
)

CONVENTIONS = {"non-embedding": "n_non_embedding", "total": "n_total", "active": "n_active"}
# Usual steps of hidden size and MLP width and usual head dimension, up to a non-embedding size:
# small models need fine steps to have any choice, large models need aligned matrices.
STEPS = (
    (10**6, 8, 4, 16),
    (10**8, 32, 32, 64),
    (2 * 10**9, 128, 128, 64),
    (np.inf, 256, 256, 128),
)
LLAMA_1B = (973_146_112, 16)  # non-embedding parameters and layers of Llama 3.2 1B
CHUNK = 2**18  # shapes per chunk: some tens of megabytes
SAMPLE = 2**19  # combinations in the sample that estimates the size of a space
MOST_SHAPES = 10**8  # shapes that a pass enumerates, before constraints on the MLP width
MOST_COMBINATIONS = 10**9  # combinations of layers, hidden size and heads in a pass
MOST_AT_ONCE = 2 * 10**7  # shapes in one table
WIDEST_ATTENTION = 4  # largest query heads · head dimension / hidden size
DEPTH_RANGE = 0.5  # share of a depth that a search goes up and down
DEPTH_STEPS = 8  # steps of depth in a model's own
# Counts above these limits could overflow 64-bit integers.
LIMITS = {"parameters": 10**13, "vocab_size": 10**9, "max_heads": 4096}
MOST_LAYERS, MOST_HIDDEN = 10**4, 10**6


@dataclass(frozen=True, kw_only=True)
class Space:
    """A parameter budget with a grid of shapes around it.

    Attributes
    ----------
    parameters, convention, tolerance
        The budget, the parameters that count, and the largest relative deviation.
    layers, head_dims
        Numbers of layers and head dimensions on the grid.
    hidden_step, mlp_step
        Grid steps of hidden size and intermediate size.
    max_heads, gqa
        Largest number of query heads; query heads per key-value head, None for every divisor.
    aspect
        Smallest and largest ratio of hidden size to layers.
    constraints
        Conditions such as ``"num_hidden_layers % 4 == 0"`` on the fields of a shape, its counts
        (``n_total``, ...), its ratios (``gqa``, ``mlp_to_attention``, ``hidden_over_sqrt_n``) and
        ``kv_bytes`` (per token) and ``weight_bytes``; see :mod:`shapelaw.scaling.filters`.
    bytes_per_value, kv_bytes_per_value
        Bytes of a weight and of a value in the KV cache.

    Raises
    ------
    InputError
        A value is out of range, or a constraint is not a condition on these columns.
    """

    parameters: int
    layers: tuple[int, ...]
    head_dims: tuple[int, ...]
    vocab_size: int
    hidden_step: int
    mlp_step: int
    tolerance: float = 0.03
    convention: str = "non-embedding"
    tie_word_embeddings: bool = True
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    max_heads: int = 128
    gqa: tuple[int, ...] | None = None
    aspect: tuple[float, float] = (0.25, 512.0)
    constraints: tuple[str, ...] = ()
    bytes_per_value: float = 2
    kv_bytes_per_value: int = 2

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise InputError(
                f"`--params-convention` must be one of {', '.join(CONVENTIONS)}, "
                f"but got {self.convention!r}"
            )
        if not 0 < self.tolerance < 0.5:
            raise InputError(
                f"`0 < tolerance < 0.5` must hold, but got {self.tolerance}; 0.03 is usual"
            )
        if not self.layers or not self.head_dims:
            raise InputError(
                "a space needs at least one number of layers and one head dimension, but got "
                f"layers {list(self.layers)}, head dimensions {list(self.head_dims)}; add a value"
            )
        self._check_whole_numbers()
        odd = [h for h in self.head_dims if h % 2]
        if odd:
            raise InputError(
                "`head_dim % 2 == 0` must hold for rotary positions, "
                f"but got {odd[0]}; use {odd[0] + 1}"
            )
        if not 0 < self.aspect[0] <= self.aspect[1] < np.inf:
            raise InputError(f"`0 < aspect[0] <= aspect[1]` must hold, but got {self.aspect}")
        empty = self.columns(self._table(*[np.zeros(0, dtype=np.int64)] * 6))
        for constraint in self.constraints:
            empty.where(constraint)

    def _check_whole_numbers(self) -> None:
        for name in ("parameters", "vocab_size", "hidden_step", "mlp_step", "max_heads"):
            value, most = getattr(self, name), LIMITS.get(name, MOST_HIDDEN)
            if not 1 <= value <= most:
                raise InputError(f"`1 <= {name} <= {most}` must hold, but got {value}")
        for name in ("layers", "head_dims", "gqa"):
            for value in getattr(self, name) or ():
                if not 1 <= value <= MOST_LAYERS:
                    raise InputError(f"`1 <= {name} <= {MOST_LAYERS}` must hold, but got {value}")

    @property
    def counted(self) -> str:
        """Column of the parameters that the budget counts."""
        return CONVENTIONS[self.convention]

    def limited(self, **most: float) -> "Space":
        """Add upper limits on columns as constraints: ``limited(kv_bytes=32768)``."""
        limits = [f"{name} <= {value}" for name, value in most.items()]
        return replace(self, constraints=(*self.constraints, *limits))

    def enumerate(self) -> ShapeTable:
        """List every valid shape, by layers, hidden size, head dimension, heads and MLP width.

        Raises
        ------
        InputError
            The space is empty, and the error names the limit that leaves no shape; or the space
            has more shapes than one table holds.
        """
        parts: dict[str, list[np.ndarray]] = {name: [] for name in FREE_FIELDS}
        held = 0
        for chunk in self.chunks():
            for name, column in parts.items():
                column.append(getattr(chunk, name))
            held += len(chunk)
            if held > MOST_AT_ONCE:
                raise InputError(
                    f"one table holds at most {MOST_AT_ONCE:.0e} shapes and the space has more; "
                    f"{self._coarser(self.size() / MOST_AT_ONCE)}, or iterate over `Space.chunks`"
                )
        # Columns are joined one by one, so that at most one column is in memory twice.
        return self._table(*[np.concatenate(parts.pop(name)) for name in FREE_FIELDS])

    def chunks(
        self, rows: int = CHUNK, *, left: dict[str, int] | None = None
    ) -> Iterator[ShapeTable]:
        """Yield the shapes of :meth:`enumerate` in the same order, in chunks.

        Parameters
        ----------
        rows
            Largest number of shapes in a chunk.
        left
            Dictionary to fill with the count that each limit leaves, as in :meth:`counts`.

        Raises
        ------
        InputError
            The space is too large to enumerate (raised at once, with an estimate of its size), or
            the space is empty.
        """
        return self._checked(rows, {} if left is None else left)

    def counts(self) -> dict[str, int]:
        """Count the combinations and shapes that each limit leaves, in the order of application.

        Constraints that do not depend on the MLP width are applied before the others.

        Raises
        ------
        InputError
            The space is too large to enumerate.
        """
        self._refuse_too_large()
        left: dict[str, int] = {}
        for _ in self._filtered(CHUNK, left):
            pass
        return left

    def size(self) -> float:
        """Estimate the number of shapes before constraints on the MLP width.

        The number is exact for a space with few combinations, and otherwise estimated from evenly
        spaced combinations.
        """
        return self._estimate()[0]

    def _estimate(self) -> tuple[float, int]:
        """Estimate the number of shapes; count the combinations of all fields but the MLP width."""
        grid, _ = self._grid()
        at = grid.sample(SAMPLE)
        if not len(at):
            return 0.0, 0
        shapes = self._widths(grid, at, {}).repeats.sum()
        return float(shapes) * (grid.pairs / len(at)), grid.combinations

    def _refuse_too_large(self) -> None:
        shapes, combinations = self._estimate()
        if shapes > MOST_SHAPES:
            raise InputError(
                f"the space holds about {shapes:.1e} shapes, more than the {MOST_SHAPES:.0e} that "
                f"a pass enumerates; {self._coarser(shapes / MOST_SHAPES)}"
            )
        if combinations > MOST_COMBINATIONS:
            raise InputError(
                f"the space has {combinations:.1e} combinations of layers, hidden size and heads "
                f"(about {shapes:.1e} shapes), more than the {MOST_COMBINATIONS:.0e} that a pass "
                "enumerates; take fewer layers, a larger `hidden_step` or smaller `max_heads`"
            )

    def _coarser(self, factor: float) -> str:
        doublings = max(int(np.ceil(np.log2(factor))), 1)
        return (
            f"take `mlp_step` {self.mlp_step * 2**doublings} in place of "
            f"{self.mlp_step}, a larger `hidden_step`, fewer layers or head dimensions, some "
            "`gqa`, a smaller tolerance, or constraints on layers, hidden size and heads"
        )

    def _checked(self, rows: int, left: dict[str, int]) -> Iterator[ShapeTable]:
        """Yield the chunks; add the count that each limit leaves to ``left``."""
        self._refuse_too_large()
        empty = True
        for chunk in self._filtered(rows, left):
            empty = False
            yield chunk
        if empty:
            raise InputError(self._describe_empty(left))

    def _describe_empty(self, left: dict[str, int]) -> str:
        """Describe the limit that left no shape, and the counts before that limit."""
        last, counts = find_emptying_limit(left)
        nearest = f" (the nearest count is {self._nearest():,})" if last == SHAPES else ""
        way_out = WAYS_OUT.get(last, "relax or drop this constraint")
        return (
            f"no valid shape has {self.parameters} parameters ± {100 * self.tolerance:g} % "
            f"({self.convention}) with layers {list(self.layers)}, head dimensions "
            f"{list(self.head_dims)}, hidden size a multiple of {self.hidden_step} and MLP width "
            f"of {self.mlp_step}: there are {counts}{nearest}; {way_out}"
        )

    def _nearest(self) -> int:
        """Find the parameter count on the grid that is nearest to the budget."""
        grid, _ = self._grid()
        best = 0
        for at in grid.batches():
            table, bare, step = self._combinations(grid, at)
            for width in ((self.parameters - bare) // step, -((bare - self.parameters) // step)):
                counts = bare + np.maximum(width, 1) * step
                near = counts[[np.argmin(np.abs(counts - self.parameters))]] if len(table) else []
                best = min([best, *near], key=lambda count: abs(count - self.parameters))
        return int(best)

    def _filtered(self, rows: int, left: dict[str, int]) -> Iterator[ShapeTable]:
        """Yield the chunks that are not empty; add the count that each limit leaves to ``left``."""
        grid, pairs = self._grid()
        left |= {PAIRS: pairs, SMALL: grid.pairs}
        on_width = [text for text in dict.fromkeys(self.constraints) if not without_width(text)]
        for at in grid.batches():
            for table in self._widths(grid, at, left).spread(rows):
                columns, mask = self.columns(table), np.ones(len(table), dtype=bool)
                for text in on_width:
                    mask &= columns.where(text)
                    left[text] = left.get(text, 0) + int(mask.sum())
                if mask.any():
                    yield table.take(mask) if on_width else table

    def _widths(self, grid: ShapeGrid, at: np.ndarray, left: dict[str, int]) -> Widths:
        """Find the MLP widths within the tolerance, for the combinations of some pairs."""
        low = int(np.ceil(self.parameters * (1 - self.tolerance)))
        high = int(np.floor(self.parameters * (1 + self.tolerance)))
        table, bare, step = self._combinations(grid, at)
        first = np.maximum(-((bare - low) // step), 1)
        repeats = np.maximum((high - bare) // step - first + 1, 0)
        widths = Widths(table=table, first=first, repeats=repeats).take(repeats > 0)
        passed = {
            HEADS: len(table),
            FITTING: int((bare + step <= high).sum()),
            SHAPES: int(widths.repeats.sum()),
        }
        for text in dict.fromkeys(self.constraints):
            if without_width(text):
                widths = widths.take(self.columns(widths.table).where(text))
                passed[text] = int(widths.repeats.sum())
        left |= {name: left.get(name, 0) + number for name, number in passed.items()}
        return widths

    def _combinations(
        self, grid: ShapeGrid, at: np.ndarray
    ) -> tuple[ShapeTable, np.ndarray, np.ndarray]:
        """Return shapes of the smallest width, counts without MLP, parameters per width step."""
        layers, hidden = grid.pair(at)
        widest = WIDEST_ATTENTION * hidden[:, None]
        row, head = np.nonzero(grid.heads * grid.head_dim <= widest)
        width = np.broadcast_to(np.int64(self.mlp_step), (len(row),))
        columns = (layers[row], hidden[row], grid.head_dim[head], grid.heads[head])
        table = self._table(*columns, grid.groups[head], width)
        step = table.num_hidden_layers * table.mlp_parameters
        return table, self._count(table) - step, step

    def _grid(self) -> tuple[ShapeGrid, int]:
        """Return the pairs whose smallest shape fits the budget, and the number of all pairs."""
        high = self.parameters * (1 + self.tolerance)
        layers, pairs, sizes = sorted(set(self.layers)), 0, []
        for depth in layers:
            low, most = (depth * ratio for ratio in self.aspect)
            start = max(int(np.ceil(low / self.hidden_step)), 1) * self.hidden_step
            steps = range(start, int(min(most, MOST_HIDDEN)) + 1, self.hidden_step)
            narrowest = partial(self._narrowest_count, depth)
            sizes.append(steps[: bisect_right(steps, high, key=narrowest)])
            pairs += len(steps)
        dims = np.array(sorted(set(self.head_dims)), dtype=np.int64)
        heads, groups = head_pairs(self.max_heads, self.gqa)
        grid = ShapeGrid(
            layers=tuple(layers),
            hidden_sizes=tuple(sizes),
            head_dim=np.repeat(dims, len(heads)),
            heads=np.tile(heads, len(dims)),
            groups=np.tile(groups, len(dims)),
        )
        return grid, pairs

    def _narrowest_count(self, layers: int, hidden: int) -> int:
        """Count the parameters with one head and the smallest MLP width."""
        columns = [np.array([value]) for value in (layers, hidden, min(self.head_dims), 1, 1)]
        return int(self._count(self._table(*columns, np.array([self.mlp_step])))[0])

    def _count(self, table: ShapeTable) -> np.ndarray:
        counts: np.ndarray = getattr(table, self.counted)
        return counts

    def column_chunks(self, left: dict[str, int]) -> Iterator[Columns]:
        """Yield the columns of :meth:`chunks`; add the count that each limit leaves to ``left``."""
        return map(self.columns, self.chunks(left=left))

    def columns(self, table: ShapeTable) -> Columns:
        """Return the columns that a constraint may name, for some shapes of the space."""
        return Columns(table, self.bytes_per_value, self.kv_bytes_per_value)

    def _table(self, layers: np.ndarray, hidden: np.ndarray, *others: np.ndarray) -> ShapeTable:
        """Build a table from varying columns and the constant fields of the space."""
        head_dim, heads, groups, width = others
        constant = partial(np.broadcast_to, shape=(len(layers),))
        return ShapeTable(
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            vocab_size=constant(np.int64(self.vocab_size)),
            tie_word_embeddings=constant(np.bool_(self.tie_word_embeddings)),
            qk_norm=constant(np.bool_(self.qk_norm)),
            rope_theta=constant(np.float64(self.rope_theta)),
        )


def usual_steps(parameters: float) -> tuple[int, int, int]:
    """Return the hidden step, MLP step and head dimension that are usual for a model size."""
    return next(steps for limit, *steps in STEPS if parameters <= limit)  # type: ignore[return-value]


def usual_layers(parameters: float) -> tuple[int, ...]:
    """Return half to twice the depth of Llama 3.2 1B, scaled with the cube root of the size."""
    size, layers = LLAMA_1B
    scaled = layers * (parameters / size) ** (1 / 3)
    return tuple(range(max(round(scaled / 2), 1), max(round(2 * scaled), 2) + 1))


def depths_around(depth: int) -> tuple[int, ...]:
    """Return numbers of layers from half to one and a half times a depth, which is among them.

    Examples
    --------
    >>> depths_around(16)
    (8, 10, 12, 14, 16, 18, 20, 22, 24)
    >>> depths_around(6)
    (3, 4, 5, 6, 7, 8, 9)
    """
    step = 2 * round(depth / (2 * DEPTH_STEPS)) or 1
    most = int(DEPTH_RANGE * depth) // step
    return tuple(depth + step * i for i in range(-most, most + 1) if depth + step * i > 0)
