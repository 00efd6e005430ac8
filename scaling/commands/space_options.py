"""Parsing of the options of ``shapelaw space`` into a space of shapes or of a family."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shapelaw.scaling.space.family_space import FamilySpace
    from shapelaw.scaling.space.space import Space

MOST_CONFIGS = 1000  # configs that one command writes


def read_space(
    params: str, grid: tuple[str, str, str, str, str], most: list[str], **others: Any
) -> "Space":
    """Parse the options of ``shapelaw space`` into a space of shapes.

    Parameters
    ----------
    params
        Parameter budget, such as 350M.
    grid
        Layers, head dimensions, step of the hidden size, step of the MLP width, and GQA.
    most
        Upper limits of the form ``COLUMN=VALUE``.
    **others
        Other fields of :class:`shapelaw.scaling.space.space.Space`.

    Returns
    -------
    Space
        Shapes of the budget within the limits.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        A text cannot be parsed.
    """
    from shapelaw.scaling.space.constraints import DERIVED, FIELDS
    from shapelaw.scaling.space.space import Space, usual_layers, usual_steps
    from shapelaw.scaling.units import parse_count, parse_numbers

    parameters = parse_count(params)
    layers, head_dim, hidden_step, mlp_step, gqa = grid
    usual = usual_steps(parameters)
    steps = [
        default if text == "auto" else parse_count(text)
        for text, default in zip((hidden_step, mlp_step), usual, strict=False)
    ]
    shapes = Space(
        parameters=parameters,
        layers=usual_layers(parameters) if layers == "auto" else parse_numbers("--layers", layers),
        head_dims=(usual[2],) if head_dim == "auto" else parse_numbers("--head-dim", head_dim),
        hidden_step=steps[0],
        mlp_step=steps[1],
        gqa=None if gqa == "any" else parse_numbers("--gqa", gqa),
        **others,
    )
    return shapes.limited(**dict(_limit(text, (*DERIVED, *FIELDS)) for text in most))


def read_family_space(
    family: str,
    params: str,
    grid: tuple[str, str, str, str, str],
    axes: Sequence[str],
    most: Sequence[str],
    *,
    vocab_size: int | None = None,
    untied: bool = False,
    max_heads: int = 128,
    constraints: tuple[str, ...] = (),
    **others: Any,
) -> "FamilySpace":
    """Parse the options of ``shapelaw space --family`` into the space of a family.

    Parameters
    ----------
    family
        Model type of the family.
    params
        Budget of active parameters.
    grid
        Layers, head dimensions, step of the hidden size, step of the width, and GQA, as for shapes.
    axes
        Values of fields, ``FIELD=VALUES`` each.
    most
        Upper limits of the form ``COLUMN=VALUE``.
    vocab_size, untied
        Vocabulary and output head, where they are not those of the family.
    max_heads
        Most query heads.
    constraints
        Conditions on fields, counts and bytes.
    **others
        Other options of :func:`shapelaw.scaling.space.family_space.family_space`.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        A text cannot be parsed, or the family has no such field.
    """
    from shapelaw.scaling.space.family_axes import family_named
    from shapelaw.scaling.space.family_space import family_space, given_axes
    from shapelaw.scaling.units import parse_count, parse_numbers

    axes_of = family_named(family).axes
    layers, head_dim, hidden_step, mlp_step, gqa = grid
    given = given_axes(family, list(axes))
    sizes = (("--layers", axes_of.layers, layers), ("--head-dim", axes_of.head_dim, head_dim))
    for option, field, text in sizes:
        if text != "auto":
            given[_field_for(option, field, family)] = parse_numbers(option, text)
    rules = [f"{axes_of.heads} <= {max_heads}"]
    if gqa != "any":
        ratios = ", ".join(map(str, parse_numbers("--gqa", gqa)))
        groups = _field_for("--gqa", axes_of.groups, family)
        rules.append(f"{axes_of.heads} / {groups} in ({ratios})")
    constants: dict[str, Any] = {} if vocab_size is None else {"vocab_size": vocab_size}
    if untied:
        constants["tie_word_embeddings"] = False
    space = family_space(
        family,
        parse_count(params),
        given=given,
        constants=constants,
        hidden_step=None if hidden_step == "auto" else parse_count(hidden_step),
        mlp_step=None if mlp_step == "auto" else parse_count(mlp_step),
        constraints=(*rules, *constraints),
        **others,
    )
    return space.limited(**dict(_limit(text, space.column_names) for text in most))


def _field_for(option: str, field: str | None, family: str) -> str:
    """Return the field that an option of shapes sets in a family, which must have one."""
    from shapelaw.scaling.errors import InputError

    if field is None:
        raise InputError(
            f"`{option}` must be left out for {family}, which has no such field; give its own "
            "fields by --axis"
        )
    return field


def write_configs(space: "FamilySpace", folder: Path) -> None:
    """Write a config.json for every model of a space, each in a folder of its name.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The space has more than :data:`MOST_CONFIGS` models.
    """
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.files import write_json

    table = space.enumerate()
    if len(table) > MOST_CONFIGS:
        raise InputError(
            f"`--configs` writes at most {MOST_CONFIGS} configs, but the space has {len(table):,} "
            "models; add --where, --most or --axis"
        )
    names: dict[str, int] = {}
    for row in range(len(table)):
        architecture = table[row]
        number = names[architecture.name] = names.get(architecture.name, 0) + 1
        place = architecture.name + (f"-{number}" if number > 1 else "")
        length = max(2048, space.context)
        write_json(
            folder / place / "config.json", architecture.to_config(max_position_embeddings=length)
        )


def _limit(text: str, known: Sequence[str]) -> tuple[str, float]:
    """Parse an upper limit ``COLUMN=VALUE`` on a known column."""
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.units import parse_count

    name, _, value = text.partition("=")
    if name not in known or not value:
        raise InputError(
            f"`--most` must be COLUMN=VALUE with a column of {', '.join(known)}, "
            f"but got {text!r}; write for example kv_bytes=32768"
        )
    try:
        return name, float(value)
    except ValueError:
        return name, parse_count(value)
