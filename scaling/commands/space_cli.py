"""The command that says which shapes a budget allows."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shapelaw.scaling.commands.options import Json
from shapelaw.scaling.display.console import print_json, print_table

if TYPE_CHECKING:
    from shapelaw.scaling.space.space import Space
    from shapelaw.scaling.space.statistics import Survey


def space(
    params: Annotated[str, typer.Option(help="Parameters: 350M, 1B.", metavar="N")],
    params_convention: Annotated[
        str, typer.Option(help="What --params counts: non-embedding, total or active.")
    ] = "non-embedding",
    tolerance: Annotated[float, typer.Option(help="Fraction by which N may differ.")] = 0.03,
    layers: Annotated[
        str, typer.Option(help="12,16,24, or 8:32, or 8:32:4; auto: around the usual depth.")
    ] = "auto",
    head_dim: Annotated[str, typer.Option(help="Head dimensions: 64,128.")] = "auto",
    hidden_step: Annotated[str, typer.Option(help="Step of the hidden size.")] = "auto",
    mlp_step: Annotated[str, typer.Option(help="Step of the MLP width.")] = "auto",
    max_heads: Annotated[int, typer.Option(help="Most query heads.")] = 128,
    gqa: Annotated[
        str, typer.Option(help="Query heads per key-value head: 1,4,8; any: every divisor.")
    ] = "any",
    vocab: Annotated[int, typer.Option(help="Vocabulary size.")] = 128_256,
    untied: Annotated[bool, typer.Option("--untied", help="The head has its own table.")] = False,
    value_bytes: Annotated[int, typer.Option(help="Bytes of a weight.", min=1)] = 2,
    kv_value_bytes: Annotated[int, typer.Option(help="Bytes of a cached value.", min=1)] = 2,
    most: Annotated[
        list[str] | None,
        typer.Option(help="Upper limit on a column: kv_bytes=32768, weight_bytes=2.5G."),
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(help='Keep shapes where EXPR holds: "num_hidden_layers % 4 == 0".',
                     metavar="EXPR"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the shapes (.csv, .parquet).")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Enumerate every valid shape of a budget: how many, what each limit leaves, a table."""
    from shapelaw.scaling.space.statistics import survey

    asked = read_space(
        params, (layers, head_dim, hidden_step, mlp_step, gqa), most or [],
        tolerance=tolerance, convention=params_convention, max_heads=max_heads, vocab_size=vocab,
        tie_word_embeddings=not untied, constraints=tuple(constraint or ()),
        bytes_per_value=value_bytes, kv_bytes_per_value=kv_value_bytes,
    )  # fmt: skip
    found = survey(asked, out)
    print_json(found.as_json()) if json else print_survey(found)


def read_space(
    params: str, grid: tuple[str, str, str, str, str], most: list[str], **others: Any
) -> "Space":
    """A space from what a person types: layers, head dimensions, two steps and GQA as texts.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        Something cannot be read.
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
    asked = Space(
        parameters=parameters,
        layers=usual_layers(parameters) if layers == "auto" else parse_numbers("--layers", layers),
        head_dims=(usual[2],) if head_dim == "auto" else parse_numbers("--head-dim", head_dim),
        hidden_step=steps[0],
        mlp_step=steps[1],
        gqa=None if gqa == "any" else parse_numbers("--gqa", gqa),
        **others,
    )
    return asked.limited(**dict(_limit(text) for text in most))


def _limit(text: str) -> tuple[str, float]:
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.space.constraints import DERIVED, FIELDS
    from shapelaw.scaling.units import parse_count

    name, _, value = text.partition("=")
    if name not in (*DERIVED, *FIELDS):
        raise InputError(
            f"`--most` must be COLUMN=VALUE with a column of {', '.join((*DERIVED, *FIELDS))}, "
            f"but got {text!r}; write for example kv_bytes=32768"
        )
    try:
        return name, float(value)
    except ValueError:
        return name, parse_count(value)


def print_survey(found: "Survey") -> None:
    """Print what each limit leaves, and the range of each column."""
    import pandas as pd

    left = [{"left": f"{number:,}", "of": name} for name, number in found.left.items()]
    print_table(pd.DataFrame(left), f"{found.shapes:,} shapes")
    rows = [
        {"column": name, "least": f"{low:,.6g}", "greatest": f"{high:,.6g}"}
        for name, (low, high) in found.ranges.items()
    ]
    print_table(pd.DataFrame(rows))


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(space)
