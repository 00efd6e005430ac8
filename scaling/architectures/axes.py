"""Axes of a family: the config fields that a search varies, and the rules that bind them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Fields that a search varies, by their names in the config.

    Conditions and arithmetic are texts in the grammar of :mod:`shapelaw.scaling.filters`.

    Parameters
    ----------
    layers, hidden, heads, groups, head_dim
        Fields of depth, hidden size, query heads, key-value heads and head dimension; None where
        the family has none.
    width
        Field of the MLP or expert width, which is solved so that the parameters meet the budget.
    sizes
        Further numbers, with the values that a search tries unless it is given others.
    structure
        Fields whose value decides which blocks a layer has, with the values that a search tries. A
        tuple of kinds is a pattern that is repeated over the layers.
    follows
        Fields that are computed from others.
    constants
        Fields that differ from the family's default in every model of a search.
    exact_width
        Fields with which the width is the one that the config names; without them the class
        computes another one from it.
    reference
        Fields of a published model whose proportions are those of the usual baseline, as far as
        they differ from the defaults of the family.
    heads_divide_hidden
        The class refuses a number of heads that does not divide the hidden size.
    rules
        Conditions that every model keeps.
    attention_width
        Width of attention over all heads.
    attention_range
        Smallest and largest width of attention over the hidden size in deployable models.
    active_width
        Width of the MLP that one token passes; None: ``width``.
    deployable
        Conditions that models for usual serving programs keep beyond those of every family.
    """

    layers: str = "num_hidden_layers"
    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    groups: str | None = "num_key_value_heads"
    head_dim: str | None = "head_dim"
    width: str = "intermediate_size"
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    structure: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    follows: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    exact_width: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    heads_divide_hidden: bool = False
    rules: tuple[str, ...] = ()
    attention_width: str | None = None
    attention_range: tuple[float, float] = (0.5, 2.0)
    active_width: str | None = None
    deployable: tuple[str, ...] = ()

    @property
    def heads_follow_hidden(self) -> bool:
        """Return True if the heads must divide the hidden size, by the class or as h = d/H."""
        return self.heads_divide_hidden or (self.head_dim is None and self.attention_width is None)

    @property
    def every_rule(self) -> tuple[str, ...]:
        """Conditions that every model keeps, those on heads included."""
        rules = []
        if self.heads_divide_hidden:
            rules.append(f"{self.hidden} % {self.heads} == 0")
        if self.head_dim is None and self.attention_width is None:
            rules.append(f"{self.hidden} % (2 * {self.heads}) == 0")
        if self.groups is not None:
            rules.append(f"{self.heads} % {self.groups} == 0")
        return (*rules, *self.rules)
