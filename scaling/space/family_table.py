"""Table of models of one family as columns, counted by the blocks of the family."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.architectures.shape import RATIOS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import select

if TYPE_CHECKING:
    import pandas as pd

# Counts of every family, beside the fields of its config.
COUNTS: dict[str, Callable[[Architecture], Any]] = {
    "n_total": lambda a: a.n_total,
    "n_active": lambda a: a.n_active,
    "n_non_embedding": lambda a: a.n_non_embedding,
    "n_active_non_embedding": lambda a: a.n_active_non_embedding,
    "sparsity": lambda a: a.sparsity,
    "hidden_over_sqrt_n": lambda a: a.hidden_over_sqrt_n,
    "mlp_to_attention": lambda a: a.mlp_to_attention,
    "gqa": lambda a: a.gqa,
}
Structure = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FamilyTable:
    """Models of one family: the numbers that vary, and what decides on the blocks of each.

    Attributes
    ----------
    model_type
        Model type of the family.
    structures
        Fields that decide which blocks a layer has, constants included, one entry for each set of
        values; ``layer_types`` is a pattern that is repeated over the layers.
    structure
        Position of each model's structure, (n,).
    numbers
        The other fields, integers (n,) each.
    """

    model_type: str
    structures: tuple[Structure, ...]
    structure: np.ndarray
    numbers: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.structure)

    def __getitem__(self, row: int) -> Architecture:
        """Return the architecture of one row."""
        return read_architecture(self.config(row))

    def config(self, row: int) -> dict[str, Any]:
        """Return the fields of the Hugging Face config of one row."""
        numbers = {name: int(column[row]) for name, column in self.numbers.items()}
        return structured_config(self.model_type, self.structures[self.structure[row]], numbers)

    def take(self, rows: np.ndarray) -> "FamilyTable":
        """Select the models at the given positions, or where a mask is true."""
        numbers = {name: column[rows] for name, column in self.numbers.items()}
        return replace(self, structure=self.structure[rows], numbers=numbers)

    @classmethod
    def joined(cls, tables: "Sequence[FamilyTable]") -> "FamilyTable":
        """Concatenate the rows of tables that have the same structures."""
        first = tables[0]
        return replace(
            first,
            structure=np.concatenate([table.structure for table in tables]),
            numbers={
                name: np.concatenate([table.numbers[name] for table in tables])
                for name in first.numbers
            },
        )

    def parts(self) -> Iterator[tuple[np.ndarray, Architecture]]:
        """Yield for each structure its rows and their architecture of columns."""
        order = np.argsort(self.structure, kind="stable")
        codes, starts = np.unique(self.structure[order], return_index=True)
        for code, rows in zip(codes, np.split(order, starts[1:]), strict=True):
            numbers = {name: column[rows] for name, column in self.numbers.items()}
            config = structured_config(self.model_type, self.structures[code], numbers)
            yield rows, read_architecture(config)

    @cached_property
    def _parts(self) -> tuple[tuple[np.ndarray, Architecture], ...]:
        return tuple(self.parts())

    def counted(self, count: Callable[[Architecture], Any]) -> np.ndarray:
        """Count something for every model, (n,).

        Parameters
        ----------
        count
            Function from an architecture of columns to a number or a column.
        """
        counted = [(rows, np.asarray(count(part))) for rows, part in self._parts]
        dtypes = [values.dtype for _, values in counted]
        column = np.zeros(len(self), dtype=np.result_type(*dtypes) if dtypes else np.int64)
        for rows, values in counted:
            column[rows] = values
        return column

    def counted_as(self, name: str) -> np.ndarray:
        """Return a property of the architectures, (n,)."""
        return self.counted(lambda part: getattr(part, name))

    @property
    def hidden_size(self) -> np.ndarray:
        """Hidden sizes, (n,)."""
        return self.counted_as("hidden_size")

    @property
    def intermediate_size(self) -> np.ndarray:
        """Widths of the MLP that one token passes, means over the layers, (n,)."""
        return self.counted_as("intermediate_size")

    @property
    def num_hidden_layers(self) -> np.ndarray:
        """Numbers of layers, (n,)."""
        return self.counted_as("num_hidden_layers")

    @property
    def num_attention_heads(self) -> np.ndarray:
        """Query heads, (n,)."""
        return self.counted_as("num_attention_heads")

    @property
    def head_dim(self) -> np.ndarray:
        """Head dimensions, of values in latent attention, (n,)."""
        return self.counted_as("head_dim")

    @property
    def gqa(self) -> np.ndarray:
        """Query heads per key-value head, (n,)."""
        return self.counted_as("gqa")

    def training_flops(self, context_length: int) -> np.ndarray:
        """Count the FLOPs per training token of every model, (n,)."""
        return self.counted(lambda part: part.training_flops(context_length))

    def frame(self) -> "pd.DataFrame":
        """Return the ratios of laws as a data frame."""
        import pandas as pd

        return pd.DataFrame({name: self.counted_as(name) for name in RATIOS})

    def with_model(self, model: Architecture) -> "tuple[FamilyTable, int]":
        """Return the table, with a model of the family added if it is missing, and its row.

        Fields that are neither a number nor part of a structure here are those of the structures.
        """
        axes = FAMILIES[self.model_type].axes
        absent: dict[Any, Any] = {  # fields whose default follows from others
            axes.head_dim: model.head_dim,
            axes.groups: model.num_key_value_heads,
            axes.width: model.intermediate_size,
        }
        fields = {**absent, **dict(model.fields)}
        numbers = {name: np.array([_of_all_layers(name, fields[name])]) for name in self.numbers}
        wanted = {name: fields.get(name) or None for name in self.structures[0]}

        def spread(structure: Structure) -> dict[str, Any]:
            config = structured_config(self.model_type, structure, {})
            return {name: config.get(name) or None for name in wanted}

        same = [code for code, each in enumerate(self.structures) if spread(each) == wanted]
        own = {name: fields.get(name) for name in wanted}
        structures = self.structures if same else (*self.structures, own)
        code = same[0] if same else len(self.structures)
        equal = self.structure == code
        for name, value in numbers.items():
            equal = equal & (self.numbers[name] == value)
        if equal.any():
            return self, int(np.flatnonzero(equal)[0])
        alone = FamilyTable(
            model_type=self.model_type,
            structures=structures,
            structure=np.array([code]),
            numbers=numbers,
        )
        return FamilyTable.joined([replace(self, structures=structures), alone]), len(self)

    def texts(self, name: str) -> np.ndarray:
        """Return the column of a field as texts, which compare also where it is null, (n,)."""
        if name in self.numbers:
            return self.numbers[name]
        texts = [str(_cell(structure.get(name))) for structure in self.structures]
        return np.asarray(np.array(texts)[self.structure])

    def field(self, name: str) -> np.ndarray:
        """Return the column of a field; null is NaN, and a pattern its kinds with slashes, (n,)."""
        if name in self.numbers:
            return self.numbers[name]
        values = [_cell(structure[name]) for structure in self.structures]
        if any(value is None for value in values) and not any(isinstance(v, str) for v in values):
            values = [np.nan if value is None else value for value in values]
        return np.asarray(np.array(values)[self.structure])

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Fields that are columns: the numbers, and those of the structures."""
        return (*self.structures[0], *self.numbers) if self.structures else (*self.numbers,)


@dataclass(frozen=True)
class FamilyColumns(Mapping[str, np.ndarray]):
    """Columns that a condition may name: fields of the config, counts, and bytes.

    ``kv_bytes`` are those of a token in layers that see all tokens, or in all layers if none does;
    ``cache_bytes`` are those of a sequence of ``context`` tokens, with full windows and states.
    """

    table: FamilyTable
    shown: tuple[str, ...]
    bytes_per_value: float = 2
    kv_bytes_per_value: float = 2
    context: int = 4096

    @cached_property
    def _derived(self) -> dict[str, Callable[[Architecture], Any]]:
        cached, stored, context = self.kv_bytes_per_value, self.bytes_per_value, self.context
        return {
            **COUNTS,
            "weight_bytes": lambda a: a.weight_bytes(stored),
            "kv_bytes": lambda a: a.kv_bytes_per_token(cached),
            "cache_bytes": lambda a: a.cache_bytes(context, cached),
        }

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self._derived:
            return self.table.counted(self._derived[name])
        if name in self.table.fields:
            return self.table.field(name)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return name in self._derived or name in self.table.fields

    def __iter__(self) -> Iterator[str]:
        return iter((*self.shown, *self._derived))

    def __len__(self) -> int:
        return len(self.shown) + len(self._derived)

    def where(self, condition: str) -> np.ndarray:
        """Return the mask of the models that satisfy a condition, (n,)."""
        return select(condition, self, len(self.table))

    def frame(self) -> "pd.DataFrame":
        """Return all columns as a data frame."""
        import pandas as pd

        return pd.DataFrame({name: self[name] for name in self})


def structured_config(
    model_type: str, structure: Structure, numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """Make a config from a structure and numbers or columns; patterns are spread over the layers.

    Parameters
    ----------
    model_type
        Model type of the family.
    structure
        Fields that decide on the blocks, the number of layers among them.
    numbers
        The other fields.
    """
    config: dict[str, Any] = {"model_type": model_type, **structure, **numbers}
    pattern = config.get("layer_types")
    if isinstance(pattern, tuple):
        layers = config["num_hidden_layers"]
        config["layer_types"] = [pattern[index % len(pattern)] for index in range(layers)]
    return config


def _of_all_layers(name: str, value: Any) -> Any:
    """Return the one number of a field that may have one per layer."""
    values = value if isinstance(value, list) else [value]
    if len(set(values)) > 1:
        raise InputError(
            f"`{name}` must be one number in a search, but got {len(set(values))} different ones; "
            "give a baseline whose layers are equally wide"
        )
    return values[0]


def _cell(value: Any) -> Any:
    """Write the value of a field of a structure as a cell of a table."""
    if isinstance(value, tuple):
        return "/".join(value)
    return json.dumps(value) if isinstance(value, list | dict) else value
