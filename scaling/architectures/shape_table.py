"""Table of shapes as columns: one array per field."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS, SWITCH_FIELDS, Shape

if TYPE_CHECKING:
    import pandas as pd

FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys(INTEGER_FIELDS, np.int64),
    "tie_word_embeddings": np.bool_,
    "qk_norm": np.bool_,
    "rope_theta": np.float64,
    **dict.fromkeys(SWITCH_FIELDS, np.bool_),
}


@dataclass(frozen=True, kw_only=True)
class ShapeTable(Costs):
    """A table of shapes; each field is an array (n,) of int64, bool or float64 values.

    Gate and biases may be one value for all shapes.
    """

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
    gated: np.ndarray | bool = True
    qkv_bias: np.ndarray | bool = False
    output_bias: np.ndarray | bool = False
    mlp_bias: np.ndarray | bool = False

    def __post_init__(self) -> None:
        for name in SWITCH_FIELDS:
            values = np.asarray(getattr(self, name), dtype=np.bool_)
            if values.ndim == 0:
                object.__setattr__(self, name, np.broadcast_to(values, (len(self),)))

    def __len__(self) -> int:
        return len(self.hidden_size)

    def __getitem__(self, index: int) -> Shape:
        """Return the shape of one row."""
        values = {field.name: getattr(self, field.name)[index].item() for field in fields(self)}
        return Shape(**values)

    def take(self, rows: np.ndarray) -> "ShapeTable":
        """Select the shapes at the given positions, or where a mask is true."""
        columns = {field.name: _rows(getattr(self, field.name), rows) for field in fields(self)}
        return ShapeTable(**columns)

    @classmethod
    def of(cls, shapes: "list[Shape]") -> "ShapeTable":
        """Stack shapes into a table."""
        column = partial(_column, shapes)
        return cls(**{field.name: column(field.name) for field in fields(cls)})

    @classmethod
    def joined(cls, tables: "Sequence[ShapeTable]") -> "ShapeTable":
        """Concatenate the rows of several tables."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(t, name) for t in tables]) for name in names})

    def frame(self) -> "pd.DataFrame":
        """Return a data frame of the fields, the parameter counts and the ratios of laws.

        Gate and biases are columns where a shape has other than the usual ones.
        """
        import pandas as pd  # here, so that the trainer needs no more than torch and NumPy

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, usual in SWITCH_FIELDS.items():
            if (columns[name] == usual).all():
                del columns[name]
        derived = ("n_total", "n_active", "n_non_embedding", *RATIOS, "aspect_ratio")
        return pd.DataFrame(columns | {name: getattr(self, name) for name in derived})


def _column(shapes: list[Shape], name: str) -> np.ndarray:
    return np.array([getattr(shape, name) for shape in shapes], dtype=FIELD_TYPES[name])


def _rows(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Select rows of a column; a broadcast single value stays broadcast."""
    if column.strides != (0,) or not len(column):
        return np.asarray(column[rows])
    number = int(np.count_nonzero(rows)) if np.asarray(rows).dtype == bool else len(rows)
    return np.broadcast_to(column[0], (number,))
