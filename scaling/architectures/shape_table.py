"""Many shapes as columns: one array per field."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS, Shape

if TYPE_CHECKING:
    import pandas as pd

FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys(INTEGER_FIELDS, np.int64),
    "tie_word_embeddings": np.bool_,
    "qk_norm": np.bool_,
    "rope_theta": np.float64,
}


@dataclass(frozen=True, kw_only=True)
class ShapeTable(Costs):
    """Many shapes at once: every field an array of one length (int64, booleans for switches)."""

    hidden_size: np.ndarray
    intermediate_size: np.ndarray
    num_hidden_layers: np.ndarray
    num_attention_heads: np.ndarray
    num_key_value_heads: np.ndarray
    head_dim: np.ndarray
    vocab_size: np.ndarray
    tie_word_embeddings: np.ndarray
    qk_norm: np.ndarray
    rope_theta: np.ndarray

    def __len__(self) -> int:
        return len(self.hidden_size)

    def __getitem__(self, index: int) -> Shape:
        """The shape of one row."""
        values = {field.name: getattr(self, field.name)[index].item() for field in fields(self)}
        return Shape(**values)

    def take(self, rows: np.ndarray) -> "ShapeTable":
        """The shapes at the given positions, or where a mask is true."""
        columns = {field.name: _rows(getattr(self, field.name), rows) for field in fields(self)}
        return ShapeTable(**columns)

    @classmethod
    def of(cls, shapes: "list[Shape]") -> "ShapeTable":
        """Stack shapes into a table."""
        column = partial(_column, shapes)
        return cls(**{field.name: column(field.name) for field in fields(cls)})

    @classmethod
    def joined(cls, tables: "Sequence[ShapeTable]") -> "ShapeTable":
        """The rows of several tables, one after the other."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(t, name) for t in tables]) for name in names})

    def frame(self) -> "pd.DataFrame":
        """A data frame of the fields and of what a run table and a law need."""
        import pandas as pd  # here, so that the trainer needs no more than torch and NumPy

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        derived = ("n_total", "n_active", "n_non_embedding", *RATIOS)
        return pd.DataFrame(columns | {name: getattr(self, name) for name in derived})


def _column(shapes: list[Shape], name: str) -> np.ndarray:
    return np.array([getattr(shape, name) for shape in shapes], dtype=FIELD_TYPES[name])


def _rows(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a column; one that holds a single value for all rows keeps on doing so."""
    if column.strides != (0,) or not len(column):
        return np.asarray(column[rows])
    number = int(np.count_nonzero(rows)) if np.asarray(rows).dtype == bool else len(rows)
    return np.broadcast_to(column[0], (number,))
