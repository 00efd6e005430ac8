"""Space of models of one family: every combination of its axes that meets a budget of active N."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.config_fields import ConfigFamily
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import evaluate, names_in, select
from shapelaw.scaling.space.family_axes import (
    deployable_conditions,
    family_named,
    nearest_valid,
    parse_axis,
    usual_values,
    width_step,
)
from shapelaw.scaling.space.family_table import (
    FamilyColumns,
    FamilyTable,
    structured_config,
)
from shapelaw.scaling.space.space import LIMITS
from shapelaw.scaling.units import format_count

# Parameters that a budget counts: those that one token uses, or all.
ACTIVE_CONVENTIONS = {
    "non-embedding": "n_active_non_embedding",
    "active": "n_active",
    "total": "n_total",
}
COMBINATIONS = "combinations of the axes"
FITTING = "that fit the budget with the narrowest MLP"
WITHIN = "within the tolerance, one width each"
CHUNK = 2**17  # combinations that are counted at once: some tens of megabytes
MOST_COMBINATIONS = 5 * 10**7
MOST_STRUCTURES = 20_000  # sets of blocks, each of which is counted by itself
Numbers = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FamilySpace:
    """A budget of active parameters with the axes of a family around it.

    Every combination of the axes gets the one MLP or expert width, a multiple of the step, whose
    count is nearest to the budget.

    Attributes
    ----------
    model_type
        Model type of the family.
    parameters, convention, tolerance
        The budget, the parameters that count (of ``non-embedding`` and ``active`` those that one
        token uses), and the largest relative deviation.
    values
        Values of every axis by field.
    constants
        Fields with one value in all models, beside the defaults of the family.
    width_step
        Step of the width.
    rules
        Conditions on fields that every model keeps.
    constraints
        Conditions on fields, counts and bytes; see :class:`FamilyColumns`.
    bytes_per_value, kv_bytes_per_value, context
        Bytes of a weight and of a value in the cache, and tokens of a sequence (``cache_bytes``).
    layer_lists, listed_at
        Lists over the layers of one model, and its depth and other values of structure: models that
        have these keep the lists, others have the family's rules.

    Raises
    ------
    InputError
        A value is out of range, the space is too large, or a condition names another column.
    """

    model_type: str
    parameters: int
    values: Mapping[str, tuple[Any, ...]]
    constants: Mapping[str, Any]
    width_step: int
    rules: tuple[str, ...] = ()
    convention: str = "non-embedding"
    tolerance: float = 0.03
    constraints: tuple[str, ...] = ()
    bytes_per_value: float = 2
    kv_bytes_per_value: float = 2
    context: int = 4096
    layer_lists: Mapping[str, Any] = field(default_factory=dict)
    listed_at: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.convention not in ACTIVE_CONVENTIONS:
            raise InputError(
                f"`--params-convention` must be one of {', '.join(ACTIVE_CONVENTIONS)}, "
                f"but got {self.convention!r}"
            )
        if not 0 < self.tolerance < 0.5:
            raise InputError(
                f"`0 < tolerance < 0.5` must hold, but got {self.tolerance}; 0.03 is usual"
            )
        if not 1 <= self.parameters <= LIMITS["parameters"]:
            raise InputError(
                f"`1 <= parameters <= {LIMITS['parameters']}` must hold, but got {self.parameters}"
            )
        structures = prod(len(self.values[name]) for name in self._structure_names)
        combinations = structures * self._rows
        if combinations > MOST_COMBINATIONS or structures > MOST_STRUCTURES:
            raise InputError(
                f"the space has {combinations:.1e} combinations of its axes, {structures:,} of "
                f"them in {', '.join(self._structure_names)}, more than {MOST_COMBINATIONS:.0e} "
                f"or {MOST_STRUCTURES:,}; give fewer values by --axis or --layers"
            )
        known = self.column_names
        for condition in self.constraints:
            if unknown := names_in(condition) - {*known, *self.constants}:
                raise InputError(
                    f"the filter {condition!r} names {sorted(unknown)[0]!r}, which the space "
                    f"lacks; it has {', '.join(known)}"
                )

    @property
    def family(self) -> ConfigFamily:
        """The family."""
        return family_named(self.model_type)

    @property
    def axes(self) -> Axes:
        """The axes of the family."""
        return self.family.axes

    @cached_property
    def follows(self) -> dict[str, str]:
        """Fields that are computed from others, without those that have values of their own."""
        return {n: text for n, text in self.axes.follows.items() if n not in self.values}

    @cached_property
    def _size_names(self) -> tuple[str, ...]:
        """Axes that scale blocks, whose values are columns."""
        axes = self.axes
        names = (axes.hidden, axes.heads, axes.groups, axes.head_dim, *axes.sizes)
        return tuple(name for name in self.values if name in (*names, *axes.follows))

    @cached_property
    def _structure_names(self) -> tuple[str, ...]:
        """Axes whose values decide which blocks there are."""
        return tuple(name for name in self.values if name not in self._size_names)

    @property
    def number_names(self) -> tuple[str, ...]:
        """Fields of the config that are columns."""
        return (*self._size_names, self.axes.width, *self.follows)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Columns of :meth:`columns` in their order."""
        return tuple(
            self.columns(self._table(0, {n: np.ones(0, np.int64) for n in self.number_names}))
        )

    @cached_property
    def structures(self) -> tuple[dict[str, Any], ...]:
        """Every combination of the values that decide on the blocks, with the constants."""
        names = self._structure_names
        return tuple(
            self._with_lists({**dict(zip(names, values, strict=True)), **self.constants})
            for values in product(*(self.values[name] for name in names))
        )

    def _with_lists(self, structure: dict[str, Any]) -> dict[str, Any]:
        """Add the lists over the layers where they fit; null stands for the family's rule."""
        fits = all(structure.get(name) == value for name, value in self.listed_at.items())
        return {**structure, **(self.layer_lists if fits else dict.fromkeys(self.layer_lists))}

    @property
    def _rows(self) -> int:
        """Number of combinations of one structure."""
        return prod(len(self.values[name]) for name in self._size_names)

    @property
    def counted(self) -> str:
        """Column of the parameters that the budget counts."""
        return ACTIVE_CONVENTIONS[self.convention]

    def limited(self, **most: float) -> "FamilySpace":
        """Add upper limits on columns as conditions: ``limited(weight_bytes=8e10)``."""
        limits = tuple(f"{name} <= {value}" for name, value in most.items())
        return replace(self, constraints=(*self.constraints, *limits))

    def columns(self, table: FamilyTable) -> FamilyColumns:
        """Return the columns of models of the space: axes, counts and bytes."""
        shown = (*self._structure_names, *self.number_names)
        return FamilyColumns(
            table, shown, self.bytes_per_value, self.kv_bytes_per_value, self.context
        )

    def enumerate(self) -> FamilyTable:
        """List every model of the space, by structure and then by the axes in their order.

        Raises
        ------
        InputError
            No model is left; the error names the limit that leaves none.
        """
        return FamilyTable.joined([*self.chunks()])

    def chunks(self, *, left: dict[str, int] | None = None) -> Iterator[FamilyTable]:
        """Yield the models of :meth:`enumerate` in chunks.

        Parameters
        ----------
        left
            Dictionary to fill with the number of models that each limit leaves.

        Raises
        ------
        InputError
            No model is left.
        """
        left = {} if left is None else left
        early, late = self._rules_by_width()
        left |= dict.fromkeys((COMBINATIONS, *early, FITTING, WITHIN, *late), 0)
        empty = True
        for code in range(len(self.structures)):
            for begin in range(0, self._rows, CHUNK):
                table = self._chunk(code, np.arange(begin, min(begin + CHUNK, self._rows)), left)
                if table is not None:
                    empty = False
                    yield table
        if empty:
            raise InputError(self._describe_empty(left))

    def column_chunks(self, left: dict[str, int]) -> Iterator[FamilyColumns]:
        """Yield the columns of :meth:`chunks`; add the count that each limit leaves to ``left``."""
        return map(self.columns, self.chunks(left=left))

    def _rules_by_width(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the rules and conditions that need no width, and those that need it."""
        texts = tuple(dict.fromkeys((*self.rules, *self.constraints)))
        early = {*self._structure_names, *self.constants, *self._size_names}
        first = tuple(text for text in texts if names_in(text) <= early)
        return first, tuple(text for text in texts if text not in first)

    def _chunk(self, code: int, at: np.ndarray, left: dict[str, int]) -> FamilyTable | None:
        """Return the models of one structure at the given combinations; None if none is left."""
        places = np.unravel_index(at, [len(self.values[name]) for name in self._size_names])
        numbers = {
            name: np.array(self.values[name], dtype=np.int64)[place]
            for name, place in zip(self._size_names, places, strict=True)
        }
        left[COMBINATIONS] += len(at)
        early, late = self._rules_by_width()
        for rule in early:
            mask = select(rule, self._plain_columns(code, numbers), _length(numbers))
            numbers = _taken(numbers, mask)
            left[rule] += int(mask.sum())
        if not _length(numbers):
            return None
        numbers = self._solved(code, numbers, left)
        for rule in late:
            if not _length(numbers):
                return None
            mask = self.columns(self._table(code, numbers)).where(rule)
            numbers = _taken(numbers, mask)
            left[rule] += int(mask.sum())
        return self._table(code, numbers) if _length(numbers) else None

    def _plain_columns(self, code: int, numbers: Numbers) -> dict[str, Any]:
        """Return the fields as columns; null is NaN."""
        structure = self.structures[code]
        plain = {name: np.nan if each is None else each for name, each in structure.items()}
        return {**plain, **numbers}

    def _solved(self, code: int, numbers: Numbers, left: dict[str, int]) -> Numbers:
        """Add the width whose count is nearest to the budget; keep those within the tolerance.

        The count grows by the same number with every step of the width.
        """
        first, second = (self._counted(code, self._with_width(code, numbers, n)) for n in (1, 2))
        per_step = second - first
        steps = np.rint((self.parameters - first) / per_step).astype(np.int64) + 1
        fitting = first <= self.parameters * (1 + self.tolerance)
        steps = np.maximum(steps, 1)
        count = first + (steps - 1) * per_step
        within = fitting & (np.abs(count / self.parameters - 1) <= self.tolerance)
        left[FITTING] += int(fitting.sum())
        left[WITHIN] += int(within.sum())
        return self._with_width(code, _taken(numbers, within), steps[within])

    def _with_width(self, code: int, numbers: Numbers, steps: Any) -> Numbers:
        """Add a width of so many steps, and the fields that follow from others."""
        rows = _length(numbers)
        width = np.broadcast_to(self.width_step * np.asarray(steps), (rows,)).astype(np.int64)
        numbers = {**numbers, self.axes.width: width}
        for name, text in self.follows.items():
            value = evaluate(text, self._plain_columns(code, numbers))
            numbers[name] = np.broadcast_to(value, (rows,)).astype(np.int64)
        return numbers

    def _counted(self, code: int, numbers: Numbers) -> np.ndarray:
        config = structured_config(self.model_type, self.structures[code], numbers)
        count = getattr(read_architecture(config), self.counted)
        return np.broadcast_to(count, (_length(numbers),))

    def _table(self, code: int, numbers: Numbers) -> FamilyTable:
        return FamilyTable(
            model_type=self.model_type,
            structures=self.structures,
            structure=np.full(_length(numbers), code),
            numbers=numbers,
        )

    def _describe_empty(self, left: dict[str, int]) -> str:
        """Describe the limit that left no model, and the counts before it."""
        names = [*left]
        last = next(name for name in names if not left[name])
        before = names[names.index(last) - 1] if last != COMBINATIONS else ""
        if last == FITTING:
            way_out = "take fewer layers or smaller hidden sizes, or raise --params"
        elif last == WITHIN:
            way_out = "widen --tolerance or take a smaller --mlp-step"
        elif valid := nearest_valid(last, self.values):
            way_out = f"use {valid}"
        else:
            way_out = "relax it, or give other values by --axis"
        rule = last if last in (FITTING, WITHIN) else f"with `{last}`"
        return (
            f"no {self.model_type} has {format_count(self.parameters)} parameters "
            f"± {100 * self.tolerance:g} % ({self.convention}, those that a token uses): none of "
            f"{left[before]:,} combinations is left {rule}; {way_out}"
        )


def _length(numbers: Numbers) -> int:
    return len(next(iter(numbers.values())))


def _taken(numbers: Numbers, mask: np.ndarray) -> Numbers:
    return {name: column[mask] for name, column in numbers.items()}


def family_space(
    name: str,
    parameters: int,
    *,
    given: Mapping[str, tuple[Any, ...]] | None = None,
    constants: Mapping[str, Any] | None = None,
    hidden_step: int | None = None,
    mlp_step: int | None = None,
    deployable: bool = True,
    constraints: tuple[str, ...] = (),
    **options: Any,
) -> FamilySpace:
    """Make the space of a family, with its usual axes where none are given.

    Parameters
    ----------
    name
        Model type of the family.
    parameters
        Budget of active parameters.
    given
        Values of axes by field, in place of the usual ones.
    constants
        Fields with one value, such as ``vocab_size``; others are those of the family's reference.
    hidden_step, mlp_step
        Steps of hidden size and width; None: the usual ones of the size.
    deployable
        Keep the rules of models that serving programs run well.
    constraints
        Conditions on fields, counts and bytes.
    **options
        Other attributes of :class:`FamilySpace`.

    Raises
    ------
    InputError
        The family is unknown, or a value is out of range.

    Examples
    --------
    >>> space = family_space("qwen3_moe", 1_000_000_000, given={"num_experts": (64,)})
    >>> table = space.enumerate()
    >>> abs(table[0].n_active_non_embedding / 1e9 - 1) < 0.03
    True
    """
    family = family_named(name)
    axes = family.axes
    values = {**usual_values(family, parameters, hidden_step), **(given or {})}
    followed = {*axes.follows, axes.width, *values}
    fixed = {**axes.constants, **axes.reference, **(constants or {})}
    fixed = {field: value for field, value in fixed.items() if field not in followed}
    rules = (*axes.every_rule, *(deployable_conditions(axes, parameters) if deployable else ()))
    return FamilySpace(
        model_type=name,
        parameters=parameters,
        values=values,
        constants=fixed,
        width_step=mlp_step or width_step(parameters),
        rules=rules,
        constraints=constraints,
        **options,
    )


def given_axes(name: str, texts: list[str]) -> dict[str, tuple[Any, ...]]:
    """Read axes of a family, ``FIELD=VALUES`` each."""
    family = family_named(name)
    given: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        field, values = parse_axis(family, text)
        if field in given:
            raise InputError(
                f"`--axis {field}` must be given once, but got it twice; write all its values "
                "with commas"
            )
        given[field] = values
    return given
