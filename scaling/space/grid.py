"""Grid of a space: layers, hidden sizes and heads, and the MLP widths that fit the budget."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable

# Fields that vary in a space, in the order of the tables of a Space.
FREE_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
# Labels of the counts left after each limit, in the order in which the limits apply.
PAIRS = "pairs of layers and hidden size"
SMALL = "pairs that fit the budget with one head and the narrowest MLP"
HEADS = "combinations of these with a head dimension and head counts"
FITTING = "combinations that fit the budget with the narrowest MLP"
SHAPES = "shapes within the tolerance"
WAYS_OUT = {
    PAIRS: "widen `aspect` or the layers, or take a smaller `hidden_step`",
    SMALL: "take fewer layers, a smaller `hidden_step`, `mlp_step` or head dimension",
    HEADS: "allow other `gqa`, more `max_heads` or a smaller head dimension",
    FITTING: "take fewer layers or a smaller head dimension, `hidden_step` or `mlp_step`",
    SHAPES: "widen the tolerance or take a smaller `mlp_step`",
}
BATCH = 2**18  # combinations evaluated at once: some tens of megabytes


@dataclass(frozen=True, kw_only=True)
class ShapeGrid:
    """The grid of layer and hidden-size pairs, each with every head dimension and head counts.

    Attributes
    ----------
    layers
        Numbers of layers in ascending order, (l,).
    hidden_sizes
        Hidden sizes for each number of layers, (l,).
    head_dim, heads, groups
        Head dimension, query heads and key-value heads of each combination, (c,).
    """

    layers: tuple[int, ...]
    hidden_sizes: tuple[range, ...]
    head_dim: np.ndarray
    heads: np.ndarray
    groups: np.ndarray

    @property
    def pairs(self) -> int:
        """Number of pairs of layers and hidden size."""
        return sum(len(sizes) for sizes in self.hidden_sizes)

    @property
    def combinations(self) -> int:
        """Number of combinations of layers, hidden size and heads."""
        return self.pairs * len(self.heads)

    def pair(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute layers and hidden sizes of the pairs at the given positions."""
        ends = np.cumsum([len(sizes) for sizes in self.hidden_sizes])
        which = np.searchsorted(ends, at, side="right")
        starts = np.array([sizes.start for sizes in self.hidden_sizes], dtype=np.int64)
        steps = np.array([sizes.step for sizes in self.hidden_sizes], dtype=np.int64)
        lengths = np.diff(ends, prepend=0)
        hidden = starts[which] + steps[which] * (at - (ends - lengths)[which])
        return np.array(self.layers, dtype=np.int64)[which], hidden

    def batches(self) -> Iterator[np.ndarray]:
        """Yield the positions of all pairs in parts that each give a batch of combinations."""
        size = max(BATCH // max(len(self.heads), 1), 1)
        for begin in range(0, self.pairs, size):
            yield np.arange(begin, min(begin + size, self.pairs))

    def sample(self, most: int) -> np.ndarray:
        """Return evenly spaced positions of pairs with about ``most`` combinations in total."""
        wanted = min(self.pairs, max(most // max(len(self.heads), 1), 16))
        return ((np.arange(wanted) + 0.5) * (self.pairs / max(wanted, 1))).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Combinations of all fields but the MLP width, with the widths that fit the budget.

    Attributes
    ----------
    table
        The combinations with the smallest width on the grid, (n,).
    first, repeats
        The smallest fitting width, in steps of the grid, and the number of fitting widths, (n,).
    """

    table: ShapeTable
    first: np.ndarray
    repeats: np.ndarray

    def take(self, mask: np.ndarray) -> "Widths":
        """Select the combinations where a mask is true."""
        table = self.table.take(mask)
        return Widths(table=table, first=self.first[mask], repeats=self.repeats[mask])

    def spread(self, rows: int) -> Iterator[ShapeTable]:
        """Yield one shape per combination and width, in order, at most ``rows`` at a time."""
        ends = np.cumsum(self.repeats)
        starts = ends - self.repeats
        total = int(ends[-1]) if len(ends) else 0
        for begin in range(0, total, rows):
            end = min(begin + rows, total)
            left = int(np.searchsorted(ends, begin, side="right"))
            right = int(np.searchsorted(starts, end, side="left"))
            here = np.minimum(ends[left:right], end) - np.maximum(starts[left:right], begin)
            which = np.repeat(np.arange(left, right), here)
            steps = self.first[which] + np.arange(begin, end) - starts[which]
            part = self.table.take(which)
            yield replace(part, intermediate_size=steps * part.intermediate_size)


def head_pairs(most: int, ratios: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """List the pairs (query heads, key-value heads) where the second divides the first, in order.

    Parameters
    ----------
    most
        Largest number of query heads.
    ratios
        Numbers of query heads per key-value head to keep; None keeps all.

    Returns
    -------
    Query heads and key-value heads, (c,) each.
    """
    groups = np.concatenate([np.full(most // k, k) for k in range(1, most + 1)])
    ratio = np.concatenate([np.arange(1, most // k + 1) for k in range(1, most + 1)])
    kept = np.ones(len(ratio), dtype=bool) if ratios is None else np.isin(ratio, ratios)
    heads, groups = (groups * ratio)[kept], groups[kept]
    order = np.lexsort((groups, heads))
    return heads[order], groups[order]


def find_emptying_limit(left: dict[str, int]) -> tuple[str, str]:
    """Find the first limit that left nothing, and describe the counts up to that limit."""
    names = [*left]
    last = next(name for name in names if not left[name])
    counts = [f"{left[name]:,} {name}" for name in names[: names.index(last)]]
    return last, ", ".join(
        [*counts, f"0 {last}" if last in WAYS_OUT else f"0 shapes with `{last}`"]
    )
