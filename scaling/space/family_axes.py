"""Values of the axes of a family: the usual ones of a size, those given as text, valid ones."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import lcm
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.canon import PLACES
from shapelaw.scaling.architectures.config import CANON_FIELDS, read_architecture
from shapelaw.scaling.architectures.config_fields import ConfigFamily, ConfigField
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import names_in, select
from shapelaw.scaling.space.space import depths_around, usual_steps
from shapelaw.scaling.units import parse_numbers

DEPLOYED = 10**8  # parameters from which models are built for serving programs
HEAD_DIMS = (64, 128)
GROUPS, SMALL_GROUPS = (1, 2, 4, 8), (1, 2, 4)  # key-value heads
WIDTH_STEPS = ((10**6, 4), (DEPLOYED, 16), (np.inf, 64))  # of the MLP or expert width, up to a size
HIDDEN_RANGE = (0.6, 1.6)  # usual hidden sizes over the reference's at the size of the budget
MOST_HIDDEN, MOST_HEADS = 16, 24  # usual hidden sizes and numbers of heads
WIDEST_MLP, MOST_GQA = 8, 16  # f/d and H/K of deployable models
CANON = "canon_set"


def family_named(name: str) -> ConfigFamily:
    """Return a family by its model type.

    Raises
    ------
    InputError
        The family is unknown.
    """
    if name not in FAMILIES:
        raise InputError(
            f"`--family` must be one of {', '.join(FAMILIES)}, but got {name[:40]!r}; choose one"
        )
    return FAMILIES[name]


def reference_config(family: ConfigFamily) -> dict[str, Any]:
    """Return the config of the published model whose proportions are usual in a family."""
    axes = family.axes
    config = {"model_type": family.model_type, **axes.constants, **axes.reference}
    pattern = axes.structure.get("layer_types", (None,))[0]
    if pattern is not None:
        layers = config.get(axes.layers, family.fields[axes.layers].default)
        config["layer_types"] = [pattern[place % len(pattern)] for place in range(layers)]
    return config


def growth(reference: Architecture, parameters: float) -> float:
    """Return the factor of depth and hidden size from a reference to a budget of active N."""
    return float((parameters / reference.n_active_non_embedding) ** (1 / 3))


def width_step(parameters: float) -> int:
    """Return the usual step of the MLP or expert width at a size."""
    return next(step for limit, step in WIDTH_STEPS if parameters < limit)


def usual_values(
    family: ConfigFamily, parameters: float, hidden_step: int | None = None
) -> dict[str, tuple[Any, ...]]:
    """Return the usual values of every axis of a family at a budget of active parameters.

    Depth and hidden size lie around those of the reference, scaled with the cube root of the size.
    Numbers of heads give usual head dimensions. Below 100M parameters ranks and head dimensions
    shrink with the hidden size.

    Parameters
    ----------
    family
        The family.
    parameters
        Active non-embedding parameters.
    hidden_step
        Step of the hidden size; None: the usual one of the size.
    """
    axes, reference = family.axes, read_architecture(reference_config(family))
    scale = growth(reference, parameters)
    depth = max(round(reference.num_hidden_layers * scale), 2)
    sizes = {name: shrunk(name, values, parameters, scale) for name, values in axes.sizes.items()}
    dims = _head_dims(axes, sizes, parameters, int(reference.head_dim))
    step = hidden_step or usual_steps(parameters)[0]
    if axes.heads_follow_hidden:
        step = lcm(step, min(dims))
    hidden = _hidden_sizes(reference.hidden_size * scale, step)
    values: dict[str, tuple[Any, ...]] = {
        axes.layers: depths_around(depth),
        axes.hidden: hidden,
        axes.heads: _heads(axes, hidden, dims),
    }
    if axes.groups is not None:
        groups = SMALL_GROUPS if parameters < DEPLOYED else GROUPS
        values[axes.groups] = groups
    if axes.head_dim is not None:
        values[axes.head_dim] = dims
    structure = {
        name: shrunk(name, each, parameters, scale) for name, each in axes.structure.items()
    }
    return {**values, **sizes, **structure}


def _hidden_sizes(middle: float, step: int) -> tuple[int, ...]:
    """Return multiples of a step around a hidden size, at most :data:`MOST_HIDDEN`."""
    low, high = (max(round(share * middle / step), 1) for share in HIDDEN_RANGE)
    by = -(-(high - low + 1) // MOST_HIDDEN)
    return tuple(step * multiple for multiple in range(by * -(-low // by), high + 1, by))


def shrunk(name: str, values: Sequence[Any], parameters: float, scale: float) -> tuple[Any, ...]:
    """Return values of an axis; ranks and dimensions of small models shrink with their width."""
    if parameters >= DEPLOYED or not name.endswith(("_rank", "_dim", "_per_layer_input")):
        return tuple(values)
    shrunk = [each if each is None else 8 * max(round(scale * each / 8), 1) for each in values]
    return tuple(dict.fromkeys(shrunk))


def _head_dims(
    axes: Axes, sizes: Mapping[str, Sequence[int]], parameters: float, usual: int
) -> tuple[int, ...]:
    """Return the usual dimensions of a head, of values in latent attention."""
    if axes.attention_width is not None:
        return tuple(sizes[axes.attention_width.split()[-1]])
    if parameters < DEPLOYED:
        return (usual_steps(parameters)[2],)
    return tuple(sorted({*HEAD_DIMS, usual}))


def _heads(axes: Axes, hidden: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
    """Return the usual numbers of query heads for the given hidden sizes and head dimensions."""
    if axes.heads_follow_hidden:
        return tuple(sorted({size // dim for size in hidden for dim in dims if size % dim == 0}))
    low, high = axes.attention_range
    least, most = max(low * hidden[0] / max(dims), 1), max(high * hidden[-1] / min(dims), 1)
    step = 2 ** max(int(np.ceil(np.log2(most / MOST_HEADS))), 0)
    return tuple(range(step * -(-int(least) // step), int(most) + 1, step)) or (1,)


def deployable_conditions(axes: Axes, parameters: float) -> tuple[str, ...]:
    """Return the conditions of models that serving programs run well, as texts."""
    width = axes.attention_width
    if width is None and axes.head_dim is not None:
        width = f"{axes.heads} * {axes.head_dim}"
    active = axes.active_width or axes.width
    rules = [] if width is None else [
        f"{width} >= {axes.attention_range[0]:g} * {axes.hidden}",
        f"{width} <= {axes.attention_range[1]:g} * {axes.hidden}",
    ]  # fmt: skip
    if width is None:
        dims = HEAD_DIMS if parameters >= DEPLOYED else (usual_steps(parameters)[2],)
        rules.append(f"{axes.hidden} / {axes.heads} in ({', '.join(map(str, dims))})")
    if axes.groups is not None:
        rules.append(f"{axes.heads} <= {MOST_GQA} * {axes.groups}")
    rules += [f"{active} >= {axes.hidden}", f"{active} <= {WIDEST_MLP} * {axes.hidden}"]
    return (*rules, *(axes.deployable if parameters >= DEPLOYED else ()))


def parse_axis(family: ConfigFamily, text: str) -> tuple[str, tuple[Any, ...]]:
    """Read the values of an axis, ``FIELD=VALUES``.

    Values are those of ``parse_numbers``, ``none``, ``true`` or ``false``, letters of Canon places,
    or patterns of kinds of layers such as ``conv*2/full_attention``.

    Raises
    ------
    InputError
        The family has no such field, or a value is not one of the field.
    """
    name, equals, listed_values = text.partition("=")
    known = [n for n, spec in family.fields.items() if spec.kind in ("count", "whole", "switch")]
    # A head dimension may also be given where the class takes it without naming it.
    known += [n for n in (family.axes.head_dim,) if n is not None and n not in family.fields]
    known += [n for n in ("layer_types",) if n in family.fields]
    known += [CANON, *(n for n, spec in CANON_FIELDS.items() if spec.kind == "count")]
    if family.axes.width in known:
        known.remove(family.axes.width)
    if not equals or name not in known:
        solved = f"; {family.axes.width} is solved for the budget: limit it with --where"
        raise InputError(
            f"`--axis` must be FIELD=VALUES with a field of {listed(known, 40)}, but got "
            f"{text[:60]!r}{solved if name == family.axes.width else ''}"
        )
    parts = [part.strip() for part in listed_values.split(",")]
    values = [value for part in parts for value in _axis_values(family, name, part)]
    return name, tuple(dict.fromkeys(values))


def _axis_values(family: ConfigFamily, name: str, text: str) -> Iterable[Any]:
    """Read one part of the values of an axis."""
    if name == CANON:
        places = "" if text == "none" else text
        if not set(places) <= set(PLACES) or len(set(places)) < len(places):
            raise InputError(
                f"`--axis {CANON}` must be none or letters of {PLACES}, but got {text[:40]!r}; "
                "write for example none,AC,ABCD"
            )
        return [places]
    if name == "layer_types":
        return [_pattern(family, text)]
    spec = family.fields.get(name) or CANON_FIELDS.get(name) or ConfigField(64)
    if spec.kind == "switch":
        if text not in ("true", "false"):
            raise InputError(f"`--axis {name}` must be true or false, but got {text[:40]!r}")
        return [text == "true"]
    if text == "none":
        if not spec.nullable:
            raise InputError(
                f"`--axis {name}` must be whole numbers for {family.model_type}, but got none; "
                "leave none out"
            )
        return [None]
    if text == "0" and spec.kind == "whole":
        return [0]
    return parse_numbers(f"--axis {name}", text)


def _pattern(family: ConfigFamily, text: str) -> tuple[str, ...]:
    """Read a pattern of kinds of layers, such as ``conv*2/full_attention``."""
    kinds: list[str] = []
    for part in text.split("/"):
        match = re.fullmatch(r"(\w+)(?:\*([1-9]\d{0,3}))?", part)
        if match is None or match[1] not in family.layer_kinds:
            raise InputError(
                f"`--axis layer_types` must be kinds of {', '.join(family.layer_kinds)} with "
                f"slashes between, but got {text[:60]!r}; write for example "
                f"{family.layer_kinds[-1]}*2/{family.layer_kinds[0]}"
            )
        kinds += [match[1]] * int(match[2] or 1)
    return tuple(kinds)


def nearest_valid(rule: str, values: Mapping[str, Sequence[Any]]) -> str:
    """Name for each axis in a rule the values nearest to the given ones that keep the rule.

    Parameters
    ----------
    rule
        A condition on axes.
    values
        Values of the axes by field.

    Returns
    -------
    For example ``n_group 2 or 4, or n_routed_experts 63 or 66``; empty if no axis has such values.
    """
    names = [name for name in values if name in names_in(rule) and _whole(values[name])]
    if set(names) != names_in(rule):
        return ""
    found = []
    for name in names:
        given = [each for each in values[name] if each is not None]
        candidates = np.arange(2 * max(given) + 64)
        valid: set[int] = set()
        for others in product(*(values[other] for other in names if other != name)):
            fixed = dict(zip((other for other in names if other != name), others, strict=True))
            mask = select(rule, {**fixed, name: candidates}, len(candidates))
            valid |= {int(each) for each in candidates[mask] if each}
        nearest = _nearest(sorted(valid), given)
        if nearest:
            found.append(f"{name} {' or '.join(map(str, nearest))}")
    return ", or ".join(found)


def _nearest(valid: Sequence[int], given: Sequence[int]) -> list[int]:
    """Return the valid values next below and above the first given one."""
    below = [each for each in valid if each <= given[0]][-1:]
    return below + [each for each in valid if each > given[0]][:1]


def _whole(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
