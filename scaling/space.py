"""Which shapes are allowed: every valid shape of a parameter budget, in a reproducible order."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scaling.errors import InputError
from scaling.shape import Shape, ShapeTable

CONVENTIONS = {
    "non-embedding": "n_non_embedding",
    "total": "n_total",
    "active": "n_active",
}
# Non-embedding size up to which a step of the hidden size, the MLP width and a head dimension is
# usual: small models need fine steps to have any choice, large ones need aligned matrices.
STEPS = (
    (10**6, 8, 4, 16),
    (10**8, 32, 32, 64),
    (2 * 10**9, 128, 128, 64),
    (10**15, 256, 256, 128),
)
LLAMA_1B_LAYERS = 16


@dataclass(frozen=True, kw_only=True)
class Space:
    """A budget and the grid of shapes around it.

    ``parameters`` counts by ``convention``, within ``tolerance`` (a fraction). ``layers`` and
    ``head_dims`` are the values tried; ``hidden_step`` and ``mlp_step`` the grids of hidden and
    intermediate size; ``max_heads`` the most query heads.
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
    aspect: tuple[float, float] = (0.25, 512.0)  # hidden size per layer

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise InputError(
                f"`--params-convention` must be one of {', '.join(CONVENTIONS)}, "
                f"but got {self.convention!r}"
            )
        if not 0 < self.tolerance < 0.5:
            raise InputError(f"`0 < tolerance < 0.5` must hold, but got {self.tolerance}")
        if self.vocab_size < 1:
            raise InputError(f"`vocab_size >= 1` must hold, but got {self.vocab_size}")
        if not self.layers or not self.head_dims:
            raise InputError("a space needs at least one number of layers and one head dimension")
        odd = [h for h in self.head_dims if h % 2]
        if odd:
            raise InputError(
                "`head_dim % 2 == 0` must hold for rotary positions, "
                f"but got {odd[0]}; use {odd[0] + 1}"
            )

    def enumerate(self) -> ShapeTable:
        """Every valid shape of the budget, by layers, hidden size, head dimension, heads, width.

        Raises
        ------
        InputError
            There is none; the text says which limit leaves nothing.
        """
        parts = list(self._blocks())
        if not parts:
            raise InputError(
                f"no valid shape has {self.parameters} parameters ± {100 * self.tolerance:g} % "
                f"({self.convention}) with layers {list(self.layers)}, head dimensions "
                f"{list(self.head_dims)}, hidden size a multiple of {self.hidden_step} and MLP "
                f"width of {self.mlp_step}; change the budget, the layers or the tolerance"
            )
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return self._table(*columns)

    def _blocks(self) -> Iterator[tuple[np.ndarray, ...]]:
        """Valid shapes of each number of layers and hidden size, a block of columns at a time."""
        heads, groups = _head_pairs(self.max_heads)
        for layers in sorted(set(self.layers)):
            low, high = (layers * ratio for ratio in self.aspect)
            start = max(self.hidden_step, int(np.ceil(low / self.hidden_step)) * self.hidden_step)
            for hidden in range(start, int(high) + 1, self.hidden_step):
                dims = sorted(set(self.head_dims))
                block = [self._widths(layers, hidden, h, heads, groups) for h in dims]
                filled = [part for part in block if len(part[0])]
                if filled:
                    yield tuple(np.concatenate(column) for column in zip(*filled, strict=True))

    def _widths(
        self, layers: int, hidden: int, head_dim: int, heads: np.ndarray, groups: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Every MLP width that brings the count within the tolerance, for each pair of heads."""
        kept = heads * head_dim <= 4 * hidden
        heads, groups = heads[kept], groups[kept]
        slimmest = self._count(layers, hidden, head_dim, heads, groups, np.zeros_like(heads))
        per_width = 3 * layers * hidden
        low = (self.parameters * (1 - self.tolerance) - slimmest) / per_width
        high = (self.parameters * (1 + self.tolerance) - slimmest) / per_width
        first = np.maximum(np.ceil(low / self.mlp_step), 1).astype(np.int64)
        last = np.floor(high / self.mlp_step).astype(np.int64)
        repeats = np.maximum(last - first + 1, 0)
        offset = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        width = (np.repeat(first, repeats) + offset) * self.mlp_step
        heads, groups = np.repeat(heads, repeats), np.repeat(groups, repeats)
        same = np.ones_like(width)
        return layers * same, hidden * same, head_dim * same, heads, groups, width

    def _count(self, layers: int, hidden: int, head_dim: int, *pair: np.ndarray) -> np.ndarray:
        heads, groups, width = pair
        same = np.ones_like(heads)
        table = self._table(layers * same, hidden * same, head_dim * same, heads, groups, width)
        counted: np.ndarray = getattr(table, CONVENTIONS[self.convention])
        return counted

    def _table(self, layers: np.ndarray, hidden: np.ndarray, *others: np.ndarray) -> ShapeTable:
        """Shapes from their columns, with what is the same all over the space."""
        head_dim, heads, groups, width = others
        rows = len(layers)
        return ShapeTable(
            hidden_size=hidden,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            vocab_size=np.full(rows, self.vocab_size),
            tie_word_embeddings=np.full(rows, self.tie_word_embeddings),
            qk_norm=np.full(rows, self.qk_norm),
            rope_theta=np.full(rows, self.rope_theta),
        )


def _head_pairs(most: int) -> tuple[np.ndarray, np.ndarray]:
    """All (query heads, key-value heads) where the second divides the first."""
    pairs = [(h, k) for h in range(1, most + 1) for k in range(1, h + 1) if h % k == 0]
    heads, groups = np.array(pairs, dtype=np.int64).T
    return heads, groups


def usual_steps(parameters: float) -> tuple[int, int, int]:
    """Hidden step, MLP step and head dimension that models of a size use."""
    return next(steps for limit, *steps in STEPS if parameters <= limit)  # type: ignore[return-value]


def within(
    table: ShapeTable, ranges: dict[str, tuple[float, float]], slack: float = 1.0
) -> np.ndarray:
    """Mask of the shapes whose ratios lie inside given ranges, widened by a factor."""
    frame = table.frame()
    keep = np.ones(len(table), dtype=bool)
    for name, (low, high) in ranges.items():
        if name in frame:
            values = frame[name].to_numpy()
            keep &= (values >= low / slack) & (values <= high * slack)
    return keep


def nearest_proportions(table: ShapeTable, like: Shape, parameters: int) -> int:
    """The row whose proportions are nearest to a known model's, at the table's size.

    Proportions are those of one layer, which do not change when a team shrinks a model by its
    width: f/d, H·h/d and H/K. Ties go to the size nearest to ``parameters``, then to the head
    dimension.
    """

    def proportions(of: Shape | ShapeTable) -> np.ndarray:
        width = of.num_attention_heads * of.head_dim / of.hidden_size
        ratios = np.array([of.intermediate_size / of.hidden_size, width, of.gqa])
        return np.asarray(np.log(ratios))

    apart = proportions(table) - proportions(like)[:, None]
    size = np.abs(np.log(table.n_non_embedding / parameters))
    other_head = np.abs(np.log(table.head_dim / like.head_dim))
    return int(np.argmin((apart**2).sum(axis=0) + 1e-3 * size + 1e-4 * other_head))
