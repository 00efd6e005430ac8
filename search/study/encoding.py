"""An enumerated space as the parameters of an Optuna study: whatever is suggested is valid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.space.grid import FREE_FIELDS


@dataclass(frozen=True)
class SpaceEncoding:
    """An enumerated space as the parameters of a study.

    Every field of a shape becomes a number in [0, 1] that picks from the values left by the fields
    before it; a field with one value everywhere is no parameter.
    """

    fields: np.ndarray  # (n, 6), in the order of FREE_FIELDS

    @classmethod
    def of(cls, table: ShapeTable) -> "SpaceEncoding":
        """The grid of a table."""
        return cls(np.stack([getattr(table, name) for name in FREE_FIELDS], axis=1))

    @property
    def parameters(self) -> list[str]:
        """The fields that have more than one value."""
        ends = zip(FREE_FIELDS, self.fields.min(axis=0), self.fields.max(axis=0), strict=True)
        return [name for name, low, high in ends if low < high]

    def row(self, pick: Callable[[str], float]) -> int:
        """The row that a set of picks leads to."""
        rows, free = np.arange(len(self.fields)), self.parameters
        for column, name in enumerate(FREE_FIELDS):
            values = np.unique(self.fields[rows, column])
            chosen = values[0]
            if name in free:
                chosen = values[min(int(pick(name) * len(values)), len(values) - 1)]
            rows = rows[self.fields[rows, column] == chosen]
        return int(rows[0])

    def picks(self, row: int) -> dict[str, float]:
        """The picks that lead to a row: the inverse of :meth:`row`."""
        rows, picks, free = np.arange(len(self.fields)), {}, self.parameters
        for column, name in enumerate(FREE_FIELDS):
            values = np.unique(self.fields[rows, column])
            value = self.fields[row, column]
            if name in free:
                picks[name] = (int(np.searchsorted(values, value)) + 0.5) / len(values)
            rows = rows[self.fields[rows, column] == value]
        return picks

    def nearest(self, row: int, allowed: np.ndarray) -> int:
        """The allowed row whose fields are nearest in ratio."""
        apart = np.log(self.fields[allowed] / self.fields[row])
        return int(allowed[np.argmin((apart**2).sum(axis=1))])
