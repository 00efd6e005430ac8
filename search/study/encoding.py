"""The encoding of an enumerated space as Optuna parameters that are always valid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.space.grid import FREE_FIELDS


@dataclass(frozen=True)
class SpaceEncoding:
    """An enumerated space of shapes as the parameters of a study.

    Every field of a shape becomes a number in [0, 1], a pick, that selects one of the values that
    the fields before it leave. A field with only one value is no parameter.
    """

    fields: np.ndarray  # (n, 6), in the order of FREE_FIELDS

    @classmethod
    def of(cls, table: ShapeTable) -> "SpaceEncoding":
        """Make the encoding of a table of shapes."""
        return cls(np.stack([getattr(table, name) for name in FREE_FIELDS], axis=1))

    @property
    def parameters(self) -> list[str]:
        """Return the names of the fields that have more than one value."""
        ends = zip(FREE_FIELDS, self.fields.min(axis=0), self.fields.max(axis=0), strict=True)
        return [name for name, low, high in ends if low < high]

    def row(self, pick: Callable[[str], float]) -> int:
        """Return the row that a set of picks selects."""
        rows, free = np.arange(len(self.fields)), self.parameters
        for column, name in enumerate(FREE_FIELDS):
            values = np.unique(self.fields[rows, column])
            chosen = values[0]
            if name in free:
                chosen = values[min(int(pick(name) * len(values)), len(values) - 1)]
            rows = rows[self.fields[rows, column] == chosen]
        return int(rows[0])

    def picks(self, row: int) -> dict[str, float]:
        """Return the picks that select a row: the inverse of :meth:`row`."""
        rows, picks, free = np.arange(len(self.fields)), {}, self.parameters
        for column, name in enumerate(FREE_FIELDS):
            values = np.unique(self.fields[rows, column])
            value = self.fields[row, column]
            if name in free:
                picks[name] = (int(np.searchsorted(values, value)) + 0.5) / len(values)
            rows = rows[self.fields[rows, column] == value]
        return picks

    def nearest(self, row: int, allowed: np.ndarray) -> int:
        """Return the allowed row whose fields are nearest to those of a row in ratio."""
        apart = np.log(self.fields[allowed] / self.fields[row])
        return int(allowed[np.argmin((apart**2).sum(axis=1))])
