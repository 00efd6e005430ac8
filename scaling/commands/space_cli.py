"""Command that enumerates the shapes of a parameter budget."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shapelaw.scaling.commands.options import (
    MOST,
    Convention,
    HeadDims,
    Json,
    Layers,
    OutTable,
    Params,
    ShapesWhere,
    Tolerance,
)
from shapelaw.scaling.display.console import print_result

if TYPE_CHECKING:
    from shapelaw.scaling.space.space import Space


def space(
    params: Params,
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
    vocab: Annotated[int, typer.Option(help="Vocabulary size.", metavar="N")] = 128_256,
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
    out: OutTable = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Enumerate the valid shapes of a budget, with counts by limit."""
    from shapelaw.scaling.space.statistics import survey

    shapes = read_space(
        params, (layers, head_dim, hidden_step, mlp_step, gqa), most or [],
        tolerance=tolerance, convention=params_convention, max_heads=max_heads, vocab_size=vocab,
        tie_word_embeddings=not untied, constraints=(*(where or ()), *(constraint or ())),
        bytes_per_value=value_bytes, kv_bytes_per_value=kv_value_bytes,
    )  # fmt: skip
    print_result(survey(shapes, out), json=json)


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
    return shapes.limited(**dict(_limit(text) for text in most))


def _limit(text: str) -> tuple[str, float]:
    """Parse an upper limit ``COLUMN=VALUE``."""
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.space.constraints import DERIVED, FIELDS
    from shapelaw.scaling.units import parse_count

    name, _, value = text.partition("=")
    if name not in (*DERIVED, *FIELDS) or not value:
        raise InputError(
            f"`--most` must be COLUMN=VALUE with a column of {', '.join((*DERIVED, *FIELDS))}, "
            f"but got {text!r}; write for example kv_bytes=32768"
        )
    try:
        return name, float(value)
    except ValueError:
        return name, parse_count(value)


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(space)
