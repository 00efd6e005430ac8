"""Specification of a ladder: its sizes, the grid of its shapes, its tokens and seeds."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.proportions import within
from shapelaw.scaling.space.space import Space
from shapelaw.scaling.units import format_count

PROXY, ANCHOR = "proxy", "anchor"
Range = tuple[float, float]
ASPECT: Range = (0.25, 512.0)  # hidden size per layer


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One size of a ladder and the ranges of its shapes.

    Parameters
    ----------
    parameters
        Non-embedding parameters N, norms included.
    shapes
        Number of shapes to choose.
    layers, mlp_to_attention, gqa
        Ranges of the axes, ends included.
    hidden_over_sqrt_n
        Range of hidden size over √N; by default every valid value.
    depths
        Allowed numbers of layers in the range ``layers``; None for all.
    """

    parameters: int
    shapes: int
    layers: Range = (2, 6)
    mlp_to_attention: Range = (0.5, 6.0)
    gqa: Range = (1, 4)
    hidden_over_sqrt_n: Range | None = None
    depths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("parameters", "shapes"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name} >= 1` must hold, but got {getattr(self, name)}")
        for name, (low, high) in self.ranges().items():
            if not 0 < low <= high:
                raise InputError(f"`0 < low <= high` must hold for {name}, but got {low}:{high}")

    def ranges(self) -> dict[str, Range]:
        """Return the range of each bounded axis."""
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
        """Rounded size, such as 300K or 1.5M."""
        return format_count(self.parameters)


@dataclass(frozen=True, kw_only=True)
class LadderGrid:
    """Grid of the valid shapes of a ladder, with the settings that all shapes share.

    Parameters
    ----------
    vocab_size
        Vocabulary size.
    head_dim
        Head dimension of the shapes.
    other_head_dims
        Further head dimensions. Each size gets ``other_shapes`` additional shapes for each of them,
        each a pair with a chosen shape that is as near as possible in all other axes.
    other_shapes
        Number of additional shapes for each further head dimension.
    hidden_step, mlp_step
        Steps of hidden and intermediate size.
    tolerance
        Largest relative deviation of a shape from its size.
    max_heads
        Largest number of query heads.
    qk_norm, rope_theta, tie_word_embeddings
        Fields of the shapes.
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
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True

    def shapes(self, rung: Rung, head_dim: int) -> ShapeTable:
        """Return every valid shape of a size with one head dimension.

        Raises
        ------
        InputError
            There is no valid shape in the ranges.
        """
        return _shapes(self, rung, head_dim)


@dataclass(frozen=True, kw_only=True)
class LadderAllocation:
    """Tokens and seeds of the shapes of a ladder.

    Parameters
    ----------
    tokens_per_parameter
        Training tokens of every shape as a multiple of N.
    seeds
        Seeds of every shape.
    anchors
        Number of anchor shapes of each size.
    anchor_seeds
        Seeds of an anchor shape.
    long_seeds
        Number of seeds of an anchor shape that are trained with the factors above one, which are
        costly.
    branches
        Factors of the token count at which anchor shapes are measured too.
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
        """Return the token counts, ascending, at which a run of ``size`` parameters is measured."""
        factors = {1.0}
        if role == ANCHOR:
            factors |= {f for f in self.branches if f < 1 or seed < self.long_seeds}
        return tuple(sorted(round(self.tokens_per_parameter * size * f) for f in factors))

    def seeds_of(self, role: str) -> int:
        """Return the number of seeds of a shape with a role."""
        return max(self.seeds, self.anchor_seeds) if role == ANCHOR else self.seeds


@lru_cache(maxsize=64)
def _shapes(grid: LadderGrid, rung: Rung, head_dim: int) -> ShapeTable:
    """Return every valid shape of a size, cached because a choice needs the table several times."""
    low, high = rung.layers
    parts = []
    for layers in rung.depths or range(int(np.ceil(low)), int(high) + 1):
        with suppress(InputError):  # a depth may have no valid shape
            parts.append(_shapes_of_depth(grid, rung.parameters, layers, head_dim))
    table = ShapeTable(
        **{
            field.name: np.concatenate([getattr(part, field.name) for part in parts] or [[]])
            for field in fields(ShapeTable)
        }
    )
    kept = np.flatnonzero(within(table, rung.ranges(), slack=1 + 1e-9)) if parts else np.array([])
    if not len(kept):
        raise InputError(
            f"none of the {len(table)} valid shapes of {rung.label} with head dimension "
            f"{head_dim} lies inside {format_ranges(rung.ranges())}; widen a range, "
            "or take finer steps of hidden or intermediate size"
        )
    return table.take(kept)


def _shapes_of_depth(grid: LadderGrid, parameters: int, layers: int, head_dim: int) -> ShapeTable:
    # A layer has at least one head. With it, a wider shape would exceed the size.
    widest = parameters * (1 + grid.tolerance) / (4 * head_dim * layers**2)
    space = Space(
        parameters=parameters,
        layers=(layers,),
        head_dims=(head_dim,),
        vocab_size=grid.vocab_size,
        hidden_step=grid.hidden_step,
        mlp_step=grid.mlp_step,
        tolerance=grid.tolerance,
        max_heads=grid.max_heads,
        qk_norm=grid.qk_norm,
        rope_theta=grid.rope_theta,
        tie_word_embeddings=grid.tie_word_embeddings,
        aspect=(ASPECT[0], min(ASPECT[1], widest)),
    )
    return space.enumerate()


def format_ranges(ranges: Mapping[str, Range]) -> str:
    """Format ranges as a list, such as ``gqa 1 to 4``."""
    return ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ranges.items())
