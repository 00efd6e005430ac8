"""Command ``shapelaw count``: parameters, FLOPs and cache of a Hugging Face config."""

from typing import Annotated

import typer

from shapelaw.scaling.commands.options import ConfigOrName, Json
from shapelaw.scaling.display.console import note, print_fields
from shapelaw.scaling.errors import InputError

MAX_CONTEXT = 10**9


def count(
    config: ConfigOrName,
    context: Annotated[
        int,
        typer.Option(help="Tokens of a sequence, over which FLOPs are averaged.", metavar="TOKENS"),
    ] = 4096,
    json: Json = False,
) -> None:
    """Count the parameters, FLOPs and cache of a config."""
    from shapelaw.scaling.architectures.config import read_architecture
    from shapelaw.scaling.architectures.named_shapes import read_config

    if not 1 <= context <= MAX_CONTEXT:
        raise InputError(
            f"`--context` must be between 1 and {MAX_CONTEXT:,}, but got {context}; "
            "give the tokens of a sequence"
        )
    architecture = read_architecture(read_config(config))
    for each in architecture.notes:
        note(f"{config.name}: {each}")
    for each in architecture.cache_notes():
        note(f"{config.name}: {each}")
    print_fields(architecture.counts(context), json=json)


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(count)
