"""Command that enumerates the shapes of a parameter budget, or the models of a family."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shapelaw.scaling.commands.options import (
    MOST,
    AxisValues,
    Convention,
    Family,
    HeadDims,
    Json,
    Layers,
    OutTable,
    Params,
    ShapesWhere,
    Tolerance,
    output_folder,
)
from shapelaw.scaling.display.console import print_result

if TYPE_CHECKING:
    from shapelaw.scaling.space.family_space import FamilySpace
    from shapelaw.scaling.space.space import Space

MOST_CONFIGS = 1000  # configs that one command writes


def space(
    params: Params,
    family: Family = None,
    axis: AxisValues = None,
    params_convention: Convention = "non-embedding",
    tolerance: Tolerance = 0.03,
    layers: Layers = "auto",
    head_dim: HeadDims = "auto",
    hidden_step: Annotated[
        str, typer.Option(help="Step of the hidden size; auto: by the size.", metavar="N")
    ] = "auto",
    mlp_step: Annotated[
        str, typer.Option(help="Step of the MLP width; auto: by the size.", metavar="N")
    ] = "auto",
    max_heads: Annotated[int, typer.Option(help="Most query heads.", metavar="N")] = 128,
    gqa: Annotated[
        str,
        typer.Option(help="Query heads per key-value head: 1,4,8, or 1:8; any: every divisor.",
                     metavar="LIST"),
    ] = "any",
    vocab: Annotated[
        int | None,
        typer.Option(help="Vocabulary size (default: 128256, or the family's).", metavar="N"),
    ] = None,
    untied: Annotated[
        bool, typer.Option("--untied", help="Count an output head untied from the embedding.")
    ] = False,
    value_bytes: Annotated[
        int, typer.Option(help="Bytes of a weight.", min=1, max=MOST, metavar="BYTES")
    ] = 2,
    kv_value_bytes: Annotated[
        int,
        typer.Option(help="Bytes of a value in the KV cache.", min=1, max=MOST, metavar="BYTES"),
    ] = 2,
    most: Annotated[
        list[str] | None,
        typer.Option(help="Upper limit on a column, such as weight_bytes=2.5G; repeatable.",
                     metavar="COLUMN=VALUE"),
    ] = None,
    where: ShapesWhere = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(help="Former name of --where.", hidden=True, metavar="EXPR"),
    ] = None,
    context: Annotated[
        int,
        typer.Option(help="Tokens of the sequence whose cache_bytes a family's space has.",
                     min=1, max=10**9, metavar="TOKENS"),
    ] = 4096,
    any_shape: Annotated[
        bool, typer.Option("--any", help="Lift the rules for deployable models of a family.")
    ] = False,
    configs: Annotated[
        Path | None,
        typer.Option(help="Folder for a config.json of each model of a family (default: none).",
                     metavar="FOLDER", callback=output_folder),
    ] = None,
    out: OutTable = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Enumerate the valid shapes of a budget, with counts by limit."""
    from shapelaw.scaling.space.statistics import survey

    grid = (layers, head_dim, hidden_step, mlp_step, gqa)
    conditions = (*(where or ()), *(constraint or ()))
    options: dict[str, Any] = {
        "tolerance": tolerance, "convention": params_convention, "bytes_per_value": value_bytes,
        "kv_bytes_per_value": kv_value_bytes,
    }  # fmt: skip
    if family is None:
        _refuse_without_family({"--axis": axis, "--any": any_shape, "--configs": configs})
        shapes = read_space(
            params, grid, most or [], max_heads=max_heads, vocab_size=vocab or 128_256,
            tie_word_embeddings=not untied, constraints=conditions, **options,
        )  # fmt: skip
        print_result(survey(shapes, out), json=json)
        return
    space = read_family_space(
        family, params, grid, axis or [], most or [], deployable=not any_shape,
        vocab_size=vocab, untied=untied, max_heads=max_heads, constraints=conditions,
        context=context, **options,
    )  # fmt: skip
    if configs is not None:
        write_configs(space, configs)
    print_result(survey(space, out), json=json)


def _refuse_without_family(given: dict[str, object]) -> None:
    """Refuse options that only the space of a family has."""
    from shapelaw.scaling.errors import InputError

    for name, value in given.items():
        if value:
            raise InputError(
                f"`{name}` belongs to --family, but got it without; add it, as --family qwen3_moe"
            )


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
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.space.family_axes import family_named
    from shapelaw.scaling.space.family_space import family_space, given_axes
    from shapelaw.scaling.units import parse_count, parse_numbers

    fields = family_named(family).axes
    layers, head_dim, hidden_step, mlp_step, gqa = grid
    given = given_axes(family, list(axes))
    for option, field, text in (
        ("--layers", fields.layers, layers), ("--head-dim", fields.head_dim, head_dim)
    ):  # fmt: skip
        if text != "auto":
            if field is None:
                raise InputError(
                    f"`{option}` must be left out for {family}, which has no such field; "
                    "give its own fields by --axis"
                )
            given[field] = parse_numbers(option, text)
    rules = [f"{fields.heads} <= {max_heads}"]
    if gqa != "any":
        ratios = ", ".join(map(str, parse_numbers("--gqa", gqa)))
        if fields.groups is None:
            raise InputError(
                f"`--gqa` must be left out for {family}, which has no key-value heads of its own"
            )
        rules.append(f"{fields.heads} / {fields.groups} in ({ratios})")
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


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(space)
