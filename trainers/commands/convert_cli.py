"""Command that converts a finished model to diffusion."""

from pathlib import Path
from typing import Annotated

import typer

from shapelaw.scaling.commands.options import Json, Seed
from shapelaw.scaling.display.console import print_fields
from shapelaw.scaling.extras import require_extra
from shapelaw.scaling.units import parse_numbers
from shapelaw.trainers.commands.evaluate_cli import LedgerOption

FinishedRun = Annotated[
    Path, typer.Argument(help="Folder of a finished run, SWEEP/runs/RUN_ID.", metavar="RUN")
]
Target = Annotated[
    str,
    typer.Option(
        help="Target: diffusion, block:16 (or another size), or d2f (d2f:16) from a diffusion run.",
        metavar="TARGET",
    ),
]
ConversionTokens = Annotated[
    str,
    typer.Option(help="Training tokens of the conversion, such as 400K.", metavar="TOKENS"),
]
Direct = Annotated[
    bool,
    typer.Option("--direct", help="Train on the target at once: no warm-up, no decay."),
]
WarmupBlocks = Annotated[
    str | None,
    typer.Option(
        help="Block sizes of the warm-up (default: those of 1,4,16,64 that divide the length).",
        metavar="LIST",
    ),
]
WarmupShare = Annotated[
    float | None,
    typer.Option(help="Share of the tokens in the warm-up (default: 0.4).", metavar="FRACTION"),
]
DecayShare = Annotated[
    float | None,
    typer.Option(
        help="Share of the tokens in the decay to blocks (default: 0.2).", metavar="FRACTION"
    ),
]
AveragedWeights = Annotated[
    int | None,
    typer.Option(
        help="Average so many of the best weights of the last third (default: 0, none).",
        metavar="N",
    ),
]
MaskNoise = Annotated[
    float | None,
    typer.Option(
        help="Noise of the mask token's embedding, in units of the others (default: 1).",
        metavar="NUMBER",
    ),
]
AdapterRank = Annotated[
    int | None, typer.Option(help="Rank of the adapters of d2f (default: 32).", metavar="N")
]
Shift = Annotated[
    bool,
    typer.Option(
        "--shift",
        help="Predict token i + 1 at position i as the parent does, like Dream (default: the "
        "token at each position, like LLaDA).",
    ),
]
ChangedSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Recipe field that differs from the parent's, such as learning_rate=1e-3; repeatable.",
        metavar="NAME=VALUE",
    ),
]


def convert(
    run: FinishedRun,
    to: Target,
    tokens: ConversionTokens,
    direct: Direct = False,
    warmup: WarmupBlocks = None,
    warmup_share: WarmupShare = None,
    decay_share: DecayShare = None,
    average: AveragedWeights = None,
    mask_noise: MaskNoise = None,
    rank: AdapterRank = None,
    shift: Shift = False,
    settings: ChangedSettings = None,
    ledger: LedgerOption = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Convert an autoregressive run to diffusion; resumable."""
    require_extra("train")
    from shapelaw.trainers.sweep.convert import ConversionRequest, convert_run

    request = ConversionRequest(
        to=to, tokens=tokens, direct=direct, warmup_share=warmup_share, decay_share=decay_share,
        warmup=None if warmup is None else parse_numbers("--warmup", warmup), average=average,
        mask_noise=mask_noise, rank=rank, shift=shift, seed=seed, settings=settings or (),
    )  # fmt: skip
    print_fields(convert_run(run, request, ledger=ledger), json=json)
