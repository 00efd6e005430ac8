"""The encoding of an enumerated space as Optuna parameters that are always valid."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.space.grid import FREE_FIELDS


@dataclass(frozen=True)
class SpaceEncoding:
    """An enumerated space of shapes as the parameters of a study.

    Every field of a shape that has more than one value is a parameter with its real values. Any
    positive numbers select a shape: for each field in turn, the value that is nearest in ratio
    among those that the fields before it leave.
    """

    fields: np.ndarray  # (n, 6), in the order of FREE_FIELDS

    @classmethod
    def of(cls, table: ShapeTable) -> "SpaceEncoding":
        """Make the encoding of a table of shapes."""
        return cls(np.stack([getattr(table, name) for name in FREE_FIELDS], axis=1))

    @property
    def parameters(self) -> dict[str, tuple[int, int]]:
        """Return the least and the largest value of the fields that have more than one value."""
        ends = zip(FREE_FIELDS, self.fields.min(axis=0), self.fields.max(axis=0), strict=True)
        return {name: (int(low), int(high)) for name, low, high in ends if low < high}

    def row(self, value: Callable[[str], float]) -> int:
        """Return the row that the values of the parameters select."""
        rows = np.arange(len(self.fields))
        for name in self.parameters:
            column = self.fields[rows, FREE_FIELDS.index(name)]
            apart = np.abs(np.log(column / value(name)))
            rows = rows[apart == apart.min()]
        return int(rows[0])

    def values(self, row: int) -> dict[str, int]:
        """Return the values of the parameters in a row: the inverse of :meth:`row`."""
        fields = dict(zip(FREE_FIELDS, self.fields[row].tolist(), strict=True))
        return {name: int(fields[name]) for name in self.parameters}

    def random_row(self, draw: np.random.Generator) -> int:
        """Draw a row: each field in turn, with equal probability of each value that is left."""
        rows = np.arange(len(self.fields))
        for column in range(self.fields.shape[1]):
            values = self.fields[rows, column]
            rows = rows[values == draw.choice(np.unique(values))]
        return int(rows[0])

    def nearest(self, row: int, allowed: np.ndarray) -> int:
        """Return the allowed row whose fields are nearest to those of a row in ratio."""
        apart = np.log(self.fields[allowed] / self.fields[row])
        return int(allowed[np.argmin((apart**2).sum(axis=1))])
