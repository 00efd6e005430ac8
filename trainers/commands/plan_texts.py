"""Texts of the options of a ladder over shapes, parsed to sizes, grids and allocations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from shapelaw.trainers.ladder.grid import LadderAllocation, LadderGrid, Rung

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Options of sizes and ranges as text, each with one value for all sizes or one per size.

    ``layers`` can also list depths for all sizes, such as ``8,16,32`` or ``8:32:4``.
    """

    sizes: str
    shapes: str
    layers: str
    mlp_ratio: str
    gqa: str
    hidden: str | None = None

    def rungs(self) -> "list[Rung]":
        """Parse the sizes of the ladder.

        Raises
        ------
        InputError
            A text is invalid, or its number of values is not that of the sizes.
        """
        from shapelaw.scaling.units import parse_count
        from shapelaw.trainers.ladder.grid import Rung

        sizes = [parse_count(text) for text in self.sizes.split(",")]
        columns = (
            _each(self.shapes, "--shapes", parse_count, len(sizes)),
            _depths(self.layers, len(sizes)),
            _each(self.mlp_ratio, "--mlp-ratio", _range, len(sizes)),
            _each(self.gqa, "--gqa", _range, len(sizes)),
        )
        hidden = (
            [None] * len(sizes)
            if self.hidden is None
            else _each(self.hidden, "--hidden-over-sqrt-n", _range, len(sizes))
        )
        return [
            Rung(
                parameters=size,
                shapes=shapes,
                layers=(depths[0], depths[-1]),
                depths=depths,
                mlp_to_attention=ratio,
                gqa=gqa,
                hidden_over_sqrt_n=width,
            )
            for size, shapes, depths, ratio, gqa, width in zip(sizes, *columns, hidden, strict=True)
        ]

    def depths(self) -> tuple[int, ...]:
        """Return the numbers of layers that are allowed for any size."""
        count = len(self.layers.split(","))
        return tuple(sorted({depth for part in _depths(self.layers, count) for depth in part}))


def _each(text: str, option: str, read: Callable[[str], Part], count: int) -> list[Part]:
    """Parse one value per size from a comma-separated text with one or ``count`` values."""
    from shapelaw.scaling.errors import InputError

    values = [read(part) for part in text.split(",")]
    if len(values) not in (1, count):
        raise InputError(
            f"`{option}` must have one value, or one for each of {count} sizes, "
            f"but has {len(values)}: {text!r}"
        )
    return values * (count // len(values)) if len(values) == 1 else values


def _depths(text: str, count: int) -> list[tuple[int, ...]]:
    """Return the allowed numbers of layers of each of ``count`` sizes, ascending.

    ``2:6``, ``8:32:4`` and ``8,16,32`` apply to all sizes. If one of several parts is a range, as
    in ``2:4,4:8``, each part applies to one size.
    """
    from shapelaw.scaling.units import parse_numbers

    def read(part: str) -> tuple[int, ...]:
        return tuple(sorted(set(parse_numbers("--layers", part))))

    return _each(text, "--layers", read, count) if ":" in text else [read(text)] * count


def _range(text: str) -> tuple[float, float]:
    from shapelaw.scaling.errors import InputError

    try:
        low, _, high = text.partition(":")
        return float(low), float(high or low)
    except ValueError:
        raise InputError(f"a range must be LOW:HIGH such as 0.5:6, but got {text!r}") from None


def read_numbers(text: str, option: str) -> tuple[float, ...]:
    """Parse comma-separated numbers; an empty text gives no number.

    Raises
    ------
    InputError
        A part is not a number.
    """
    from shapelaw.scaling.errors import InputError

    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"`{option}` must be numbers such as 16,64, but got {text!r}") from None


def grid_of(head_dim: str, others: int, steps: str, **shared: Any) -> "LadderGrid":
    """Parse the options of the grid of shapes; ``shared`` are its other fields."""
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.units import parse_numbers
    from shapelaw.trainers.ladder.grid import LadderGrid

    dims, grids = parse_numbers("--head-dim", head_dim), parse_numbers("--steps", steps)
    if len(grids) != 2:
        raise InputError(f"`--steps` must have two values such as 8,4, but got {steps!r}")
    return LadderGrid(
        head_dim=dims[0],
        other_head_dims=dims[1:],
        other_shapes=others,
        hidden_step=grids[0],
        mlp_step=grids[1],
        **shared,
    )


def allocation_of(tokens: float, seeds: int, anchors: str, branches: str) -> "LadderAllocation":
    """Parse the options of tokens and seeds; ``anchors`` is COUNT[:SEEDS[:LONG SEEDS]]."""
    from shapelaw.scaling.errors import InputError
    from shapelaw.trainers.ladder.grid import LadderAllocation

    try:
        count, *more = (int(part) for part in anchors.split(":"))
        anchor_seeds, long_seeds = (*more, *(3, 1)[len(more) :])
    except ValueError:
        raise InputError(
            f"`--anchors` must be COUNT[:SEEDS[:LONG_SEEDS]] such as 4:3:1, but got {anchors!r}"
        ) from None
    return LadderAllocation(
        tokens_per_parameter=tokens,
        seeds=seeds,
        anchors=count,
        anchor_seeds=anchor_seeds,
        long_seeds=long_seeds,
        branches=read_numbers(branches, "--branches"),
    )
