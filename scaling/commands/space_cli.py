"""Command that enumerates the shapes of a parameter budget, or the models of a family."""

from pathlib import Path
from typing import Annotated, Any

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
from shapelaw.scaling.commands.space_options import read_family_space, read_space, write_configs
from shapelaw.scaling.display.console import print_result

HiddenStep = Annotated[
    str, typer.Option(help="Step of the hidden size; auto: by the size.", metavar="N")
]
MlpStep = Annotated[
    str, typer.Option(help="Step of the MLP width; auto: by the size.", metavar="N")
]
MaxHeads = Annotated[int, typer.Option(help="Most query heads.", metavar="N")]
Gqa = Annotated[
    str,
    typer.Option(
        help="Query heads per key-value head: 1,4,8, or 1:8; any: every divisor.", metavar="LIST"
    ),
]
Vocab = Annotated[
    int | None,
    typer.Option(help="Vocabulary size (default: 128256, or the family's).", metavar="N"),
]
Untied = Annotated[
    bool, typer.Option("--untied", help="Count an output head untied from the embedding.")
]
ValueBytes = Annotated[
    int, typer.Option(help="Bytes of a weight.", min=1, max=MOST, metavar="BYTES")
]
CacheValueBytes = Annotated[
    int,
    typer.Option(help="Bytes of a value in the KV cache.", min=1, max=MOST, metavar="BYTES"),
]
UpperLimits = Annotated[
    list[str] | None,
    typer.Option(
        help="Upper limit on a column, such as weight_bytes=2.5G; repeatable.",
        metavar="COLUMN=VALUE",
    ),
]
FormerWhere = Annotated[
    list[str] | None,
    typer.Option(help="Former name of --where.", hidden=True, metavar="EXPR"),
]
CacheContext = Annotated[
    int,
    typer.Option(
        help="Tokens of the sequence whose cache_bytes a family's space has.",
        min=1,
        max=10**9,
        metavar="TOKENS",
    ),
]
AnyModel = Annotated[
    bool, typer.Option("--any", help="Lift the rules for deployable models of a family.")
]
ConfigsFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder for a config.json of each model of a family (default: none).",
        metavar="FOLDER",
        callback=output_folder,
    ),
]


def space(
    params: Params,
    family: Family = None,
    axis: AxisValues = None,
    params_convention: Convention = "non-embedding",
    tolerance: Tolerance = 0.03,
    layers: Layers = "auto",
    head_dim: HeadDims = "auto",
    hidden_step: HiddenStep = "auto",
    mlp_step: MlpStep = "auto",
    max_heads: MaxHeads = 128,
    gqa: Gqa = "any",
    vocab: Vocab = None,
    untied: Untied = False,
    value_bytes: ValueBytes = 2,
    kv_value_bytes: CacheValueBytes = 2,
    most: UpperLimits = None,
    where: ShapesWhere = None,
    constraint: FormerWhere = None,
    context: CacheContext = 4096,
    any_shape: AnyModel = False,
    configs: ConfigsFolder = None,
    out: OutTable = None,
    json: Json = False,
) -> None:
    """Enumerate the valid shapes of a budget, with counts by limit."""
    from shapelaw.scaling.space.statistics import survey

    grid = (layers, head_dim, hidden_step, mlp_step, gqa)
    conditions = (*(where or ()), *(constraint or ()))
    options: dict[str, Any] = {
        "tolerance": tolerance, "convention": params_convention, "bytes_per_value": value_bytes,
        "kv_bytes_per_value": kv_value_bytes,
    }  # fmt: skip
    if family is None:
        tokens = 128_256 if vocab is None else vocab
        _refuse_without_family({"--axis": axis, "--any": any_shape, "--configs": configs})
        shapes = read_space(
            params, grid, most or [], max_heads=max_heads, vocab_size=tokens,
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


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(space)
