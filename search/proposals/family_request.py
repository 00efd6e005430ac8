"""A request for proposals among the models of one family, at equal active N."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.config_fields import ConfigFamily
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json
from shapelaw.scaling.space.family_axes import (
    DEPLOYED,
    MOST_GQA,
    WIDEST_MLP,
    family_named,
    growth,
    reference_config,
    shrunk,
    usual_values,
    width_step,
)
from shapelaw.scaling.space.family_space import ACTIVE_CONVENTIONS, FamilySpace, family_space
from shapelaw.scaling.space.family_table import FamilyTable
from shapelaw.scaling.space.space import depths_around
from shapelaw.search.proposals.request import SAME_SIZE, ProposalRequest

USUAL = "llama-3.2-1b"  # baseline of shapes; a family has a reference of its own
NEAR = 0.3  # share by which the hidden size of a rescaled baseline may differ from the scaled one
WIDE = 0.05  # difference in N that a rescaled baseline may have from the budget


@dataclass(frozen=True, kw_only=True)
class FamilyRequest(ProposalRequest):
    """A request whose shapes are models of a family.

    Attributes
    ----------
    family
        Model type of the family. The baseline of :class:`SpaceOptions` is the path of a config of
        the family; ``llama-3.2-1b``, the default, stands for the reference of the family.
    axes
        Values of config fields to search, in place of the usual ones.

    Raises
    ------
    InputError
        The family is unknown, the baseline is of another one, the engine cannot answer for whole
        tables of its models, or the space is invalid.
    """

    family: str
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        engine = self.serving.engine
        if not engine.is_formula:
            raise InputError(
                f"`--family` needs an engine that computes speeds, but got {engine.label}, which "
                "serves one shape at a time; use --engine roofline:HARDWARE, and shapelaw measure "
                "for single configs"
            )
        if self.model.embedding.mask_token is not None:
            raise InputError(
                f"`--family` must be one that generates token by token, but got {self.family}, a "
                f"diffusion model, which {engine.label} cannot serve; use shapelaw space to list "
                "its models"
            )
        super().__post_init__()

    @property
    def _family(self) -> ConfigFamily:
        return family_named(self.family)

    @cached_property
    def model(self) -> Architecture:  # type: ignore[override]
        """Return the baseline model as published, with the vocabulary asked for."""
        config = reference_config(self._family)
        if (name := self.space.baseline) != USUAL:
            if not name.endswith(".json") and not Path(name).is_file():
                raise InputError(
                    f"`--baseline` must be a config.json of {self.family} with --family, but got "
                    f"{name!r}; give its path, or leave it out for the family's reference"
                )
            config = read_json(Path(name))
        model = read_architecture(config)
        if model.model_type != self.family:
            raise InputError(
                f"`--baseline` must be a config of {self.family}, but {name} is of "
                f"{model.model_type}; give one of the family, or --family {model.model_type}"
            )
        axes, fields = self._family.axes, {"model_type": self.family, **dict(model.fields)}
        if axes.exact_width:
            fields |= {**axes.exact_width, axes.width: model.intermediate_size}
        if self.space.vocab_size is not None:
            fields["vocab_size"] = self.space.vocab_size
        return read_architecture(fields)

    @cached_property
    def baseline_name(self) -> str:
        """Return the name of the baseline in texts."""
        usual = self.space.baseline == USUAL
        return f"the reference of {self.family}" if usual else self.space.baseline

    @cached_property
    def rescaled(self) -> bool:
        """Return whether the model is of another size, so that only its proportions count."""
        sizes = (getattr(self.model, self._counted), self.model.n_active)
        return all(abs(size / self.budget.parameters - 1) > SAME_SIZE for size in sizes)

    @property
    def _counted(self) -> str:
        return ACTIVE_CONVENTIONS[self.budget.convention]

    @cached_property
    def rules(self) -> str | None:  # type: ignore[override]
        """Return the rules for deployable models as text; None if they are lifted."""
        if self.space.any_shape:
            return None
        axes, parameters = self._family.axes, self.budget.parameters
        low, high = axes.attention_range
        more = axes.deployable if parameters >= DEPLOYED else ()
        return (
            ", ".join(
                (
                    f"deployable models only: attention width {low:g} to {high:g} d",
                    f"at most {MOST_GQA} query heads for each key-value head",
                    f"MLP of a token 1 to {WIDEST_MLP} d",
                    f"{axes.width} a multiple of {self.space.mlp_step or width_step(parameters)}",
                    *more,
                )
            )
            + "; --any lifts this"
        )

    @cached_property
    def baseline(self) -> Architecture:  # type: ignore[override]
        """Return the model to compare with: the published one, or one of its proportions."""
        return self.model if not self.rescaled else self._rescaled_model()

    def _rescaled_model(self) -> Architecture:
        """Return the model of the budget's size whose proportions are nearest to the published.

        Depth and hidden size are scaled with the cube root of the size; experts, ranks and windows
        stay.
        """
        axes, model, parameters = self._family.axes, self.model, self.budget.parameters
        scale = growth(model, parameters)
        depth = max(round(model.num_hidden_layers * scale), 2)
        small = (axes.groups, axes.head_dim) if parameters < DEPLOYED else ()
        own = {
            name: shrunk(name, (value,), parameters, scale)
            for name, value in self._own_values(model).items()
            if name not in (axes.layers, axes.hidden, axes.heads, *small)
        }
        own[axes.layers] = self.space.layers or (depth,)
        hidden = usual_values(self._family, parameters, self.space.hidden_step)[axes.hidden]
        near = [d for d in hidden if abs(d / (model.hidden_size * scale) - 1) <= NEAR]
        own[axes.hidden] = tuple(near) or hidden
        try:
            table = self._around(parameters, own, WIDE).enumerate()
        except InputError:  # the published structure does not fit the depth
            own = {name: values for name, values in own.items() if name not in axes.structure}
            table = self._around(parameters, own, WIDE).enumerate()
        return table[self._nearest(table, scale)]

    def _nearest(self, table: FamilyTable, scale: float) -> int:
        """Find the row whose proportions are nearest to those of the published model."""

        def proportions(model: Any) -> np.ndarray:
            width = model.num_attention_heads * model.head_dim / model.hidden_size
            ratios = [model.hidden_size, width, model.gqa, model.intermediate_size]
            return np.asarray(np.log(np.array(ratios, dtype=float)))

        wanted = proportions(self.model) + np.log(scale) * np.array([1, 0, 0, 1])
        difference = proportions(table) - wanted[:, None]
        size = np.abs(np.log(table.counted_as(self._counted) / self.budget.parameters))
        return int(np.argmin((difference**2).sum(axis=0) + 10 * size**2))

    def _own_values(self, model: Architecture) -> dict[str, Any]:
        """Return the values of the axes in a model; a list of layers as a pattern."""
        axes, fields = self._family.axes, dict(model.fields)
        names = (axes.layers, axes.hidden, axes.heads, axes.groups, axes.head_dim)
        varied = dict.fromkeys((*names, *axes.sizes, *axes.structure, "canon_set", "layer_types"))
        values = {name: fields.get(name) for name in varied if name is not None and name in fields}
        if axes.head_dim in values and values[axes.head_dim] is None:
            values[axes.head_dim] = model.head_dim
        if axes.groups in values and values[axes.groups] is None:
            values[axes.groups] = model.num_key_value_heads
        kinds = values.get("layer_types")
        if isinstance(kinds, list):
            values["layer_types"] = pattern_of(kinds)
        elif values.get("layer_types", "") is None:
            del values["layer_types"]
        return values

    @cached_property
    def shape_space(self) -> FamilySpace:  # type: ignore[override]
        """Return the space of models of the baseline's size, around its own values."""
        size = int(getattr(self.baseline, self._counted))
        return self._around(size, self._values(size), self.budget.largest_difference)

    def _values(self, size: int) -> dict[str, tuple[Any, ...]]:
        """Return the usual values of each axis with those of the baseline, and given ones."""
        axes, space = self._family.axes, self.space
        own = self._own_values(self.baseline)
        usual = usual_values(self._family, size, space.hidden_step)
        usual[axes.layers] = depths_around(self.baseline.num_hidden_layers)
        values = {
            name: tuple(dict.fromkeys((*usual.get(name, ()), value))) for name, value in own.items()
        }
        for option, name, given in (
            ("--layers", axes.layers, space.layers),
            ("--head-dim", axes.head_dim, space.head_dims),
        ):
            if given is not None and name is None:
                raise InputError(
                    f"`{option}` must be left out for {self.family}, which has no such field; "
                    "give its own fields by --axis"
                )
            if given is not None and name is not None:
                values[name] = given
        return {**values, **self.axes}

    def _around(
        self, parameters: int, given: Mapping[str, tuple[Any, ...]], tolerance: float
    ) -> FamilySpace:
        """Return the space around a size; fields that are no axes are those of the model."""
        space, workload = self.space, self.serving.workload
        left_out = "head_dim" if self._family.axes.head_dim is None else ""
        constants = {
            name: value
            for name, value in dict(self.model.fields).items()
            if not isinstance(value, list) and name != left_out
        }
        return family_space(
            self.family,
            parameters,
            given=given,
            constants=constants,
            hidden_step=space.hidden_step,
            mlp_step=space.mlp_step,
            deployable=not space.any_shape,
            constraints=space.where,
            convention=self.budget.convention,
            tolerance=tolerance,
            bytes_per_value=workload.bytes_per_value,
            kv_bytes_per_value=workload.kv_bytes_per_value,
            context=workload.input_tokens + workload.output_tokens,
            layer_lists=self.layer_lists,
            listed_at=self._listed_at,
        )

    @cached_property
    def layer_lists(self) -> dict[str, list[Any]]:
        """Lists over the layers of the baseline that no axis holds, by field."""
        axes = {"layer_types", self._family.axes.width}  # a pattern, and solved for the budget
        fields = dict(self.model.fields).items()
        return {n: value for n, value in fields if isinstance(value, list) and n not in axes}

    @cached_property
    def _listed_at(self) -> dict[str, Any]:
        """Depth and other values of structure of the baseline."""
        axes, own = self._family.axes, self._own_values(self.model)
        names = (axes.layers, *axes.structure, "layer_types")
        return {name: own[name] for name in names if name in own}

    def layer_notes(self) -> list[str]:
        """Say where lists over the layers of the baseline are kept, and what replaces them."""
        depth, kinds = self.model.num_hidden_layers, dict(self.model.fields).get("layer_types")
        notes = [
            f"`{name}` of the baseline holds for models of its {depth} layers and pattern; others "
            f"have the rule of {self.family}: {self._family.fields[name].rule or 'its default'}"
            for name in self.layer_lists
        ]
        if isinstance(kinds, list) and 2 * len(pattern_of(kinds)) > depth:
            notes.append(
                f"`layer_types` of the baseline has no period: models of other depths than {depth} "
                "repeat it from the first layer, or have its first part"
            )
        return notes


def pattern_of(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest pattern that gives the kinds of layers when it is repeated.

    Examples
    --------
    >>> pattern_of(["conv", "conv", "full_attention", "conv"])
    ('conv', 'conv', 'full_attention')
    """
    for length in range(1, len(kinds)):
        if all(kinds[place] == kinds[place - length] for place in range(length, len(kinds))):
            return tuple(kinds[:length])
    return tuple(kinds)
