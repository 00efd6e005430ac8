"""Hard constraints on shapes: conditions on their fields and on derived columns."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

from shapelaw.scaling.architectures.shape import SWITCH_FIELDS
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.filters import names_in, select

FIELDS = tuple(field.name for field in fields(ShapeTable) if field.name not in SWITCH_FIELDS)
# Columns derived from the fields, given the bytes of a weight and of a value in the KV cache.
DERIVED: dict[str, Callable[[ShapeTable, float, float], np.ndarray]] = {
    "n_total": lambda table, *_: table.n_total,
    "n_active": lambda table, *_: table.n_active,
    "n_non_embedding": lambda table, *_: table.n_non_embedding,
    "hidden_over_sqrt_n": lambda table, *_: table.hidden_over_sqrt_n,
    "mlp_to_attention": lambda table, *_: table.mlp_to_attention,
    "gqa": lambda table, *_: table.gqa,
    "kv_bytes": lambda table, _, cached: table.kv_bytes(cached),
    "weight_bytes": lambda table, stored, _: table.weight_bytes(stored),
}
# Columns that do not depend on the MLP width; their constraints apply before widths are listed.
WITHOUT_WIDTH = {*FIELDS, "gqa", "kv_bytes"} - {"intermediate_size"}


@dataclass(frozen=True)
class Columns(Mapping[str, np.ndarray]):
    """Columns that a constraint may name; a derived column is computed on access."""

    table: ShapeTable
    bytes_per_value: float
    kv_bytes_per_value: float

    def __getitem__(self, name: str) -> np.ndarray:
        if name in DERIVED:
            return DERIVED[name](self.table, self.bytes_per_value, self.kv_bytes_per_value)
        if name in FIELDS:
            column: np.ndarray = getattr(self.table, name)
            return column
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in DERIVED or name in FIELDS

    def __iter__(self) -> Iterator[str]:
        return iter((*FIELDS, *DERIVED))

    def __len__(self) -> int:
        return len(FIELDS) + len(DERIVED)

    def where(self, constraint: str) -> np.ndarray:
        """Return the mask of the shapes that satisfy a constraint, (n,).

        Raises
        ------
        shapelaw.scaling.errors.InputError
            The text is not a condition in the grammar of :func:`shapelaw.scaling.filters.select`.
        """
        return select(constraint, self, len(self.table))


def without_width(constraint: str) -> bool:
    """Return True if no column of a constraint depends on the MLP width."""
    return names_in(constraint) <= WITHOUT_WIDTH
