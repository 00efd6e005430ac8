"""Command that checks the learning-rate rule at a few shapes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shapelaw.scaling.commands.options import (
    MOST,
    Columns,
    CorpusOption,
    Json,
    OutFolder,
    RecipeSettings,
    Vocabulary,
    Workers,
)
from shapelaw.scaling.display.console import print_result

if TYPE_CHECKING:
    from shapelaw.trainers.corpus.corpus import Corpus
    from shapelaw.trainers.ladder.lr_sweep import LRSweepSettings
    from shapelaw.trainers.sweep.folder import Folder
    from shapelaw.trainers.training.spec import RunSpec


PlanFile = Annotated[
    Path, typer.Argument(help="Plan whose shapes and recipe to check.", metavar="PLAN")
]
RunIds = Annotated[
    list[str] | None,
    typer.Option(
        "--run",
        help="Check the shape of this run; repeatable (default: the four extreme shapes).",
        metavar="RUN_ID",
    ),
]
ShapesOfSize = Annotated[
    str | None,
    typer.Option(
        help="Take the extreme shapes of this size, such as 100K (default: of all sizes).",
        metavar="N",
    ),
]
TokensPerRun = Annotated[
    str,
    typer.Option(
        help="Training tokens of every run: 2M, or 20x for 20 per parameter.", metavar="TOKENS"
    ),
]
RateFactor = Annotated[
    float,
    typer.Option(
        help="Factor between the rule's rate and the two others that are tried.",
        metavar="NUMBER",
    ),
]
SeedsPerRate = Annotated[
    int, typer.Option(help="Seeds at every rate.", min=1, max=MOST, metavar="N")
]
Rates = Annotated[
    str,
    typer.Option(
        help="Rates to check: both, matrix_learning_rate or learning_rate.", metavar="NAME"
    ),
]
SeedDeviation = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation between seeds as a share of the loss (default: measured).",
        metavar="SHARE",
    ),
]


def read_settings(
    factor: float, seeds: int, rates: str, tokens: str, seed_sd: float | None
) -> "LRSweepSettings":
    """Parse the options of a learning-rate check.

    Parameters
    ----------
    factor
        Factor between the rate of the rule and the two other rates.
    seeds
        Seeds at every rate.
    rates
        Names of rates, separated by commas, or ``both``.
    tokens
        Number of tokens such as ``2M``, or a multiple of the parameters such as ``20x``.
    seed_sd
        Standard deviation between seeds as a fraction of the loss; None to measure it.

    Raises
    ------
    InputError
        An option is invalid.
    """
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.units import parse_count
    from shapelaw.trainers.ladder.lr_sweep import RATES, LRSweepSettings

    count, per_parameter = None, 20.0
    if tokens.endswith("x"):
        try:
            per_parameter = float(tokens[:-1])
        except ValueError:
            raise InputError(
                f"`--tokens` must be 2M, or 20x for 20 · N, but got {tokens!r}"
            ) from None
    else:
        count = parse_count(tokens)
    return LRSweepSettings(
        factor=factor,
        seeds=seeds,
        rates=RATES if rates == "both" else tuple(rates.split(",")),
        tokens=count,
        tokens_per_parameter=per_parameter,
        seed_sd=seed_sd,
    )


def open_plan(
    plan: Path,
    corpus: str,
    vocab: int | None,
    out: Path,
    settings: Sequence[str],
    columns: str | None = None,
) -> "tuple[list[RunSpec], Corpus, Folder]":
    """Read a plan, prepare its corpus and change settings of the recipes.

    Parameters
    ----------
    plan
        Path of the plan.
    corpus
        Source of the corpus.
    vocab
        Vocabulary size of a tokenizer to train; None for bytes.
    out
        Folder of the check.
    settings
        Fields of the recipes as ``NAME=VALUE``.
    columns
        Changes of the columns of the plan.

    Returns
    -------
    specs : list of RunSpec
        Runs of the plan.
    corpus : Corpus
        Prepared corpus.
    folder : Folder
        Folder of the check.

    Raises
    ------
    InputError
        The plan, the corpus or a setting cannot be used. A new folder is then removed.
    """
    from shapelaw.scaling.files import nothing_left
    from shapelaw.trainers.corpus.preparation import prepare
    from shapelaw.trainers.ladder.plan_file import read_plan
    from shapelaw.trainers.optimizers.recipe import Recipe, parse_settings, read_pairs
    from shapelaw.trainers.sweep.folder import Folder

    changes, folder = parse_settings(read_pairs(settings)), Folder(out)
    with nothing_left(out):
        prepared = prepare(corpus, folder.corpus, vocab_size=vocab)
        specs = read_plan(plan, prepared, Recipe(), columns)
        changed = [replace(spec, recipe=replace(spec.recipe, **changes)) for spec in specs]
    return changed, prepared, folder


def specs_to_check(
    specs: "Sequence[RunSpec]", runs: Sequence[str], size: str | None
) -> "list[RunSpec]":
    """Select the runs whose shapes are checked by the options of the command."""
    from shapelaw.scaling.units import parse_count
    from shapelaw.trainers.ladder.lr_sweep import pick

    return pick(specs, names=runs, size=None if size is None else parse_count(size))


def lr_check(
    plan: PlanFile,
    corpus: CorpusOption = "stdlib",
    vocab: Vocabulary = None,
    runs: RunIds = None,
    size: ShapesOfSize = None,
    tokens: TokensPerRun = "20x",
    factor: RateFactor = 2.0,
    seeds: SeedsPerRate = 2,
    rates: Rates = "both",
    seed_sd: SeedDeviation = None,
    settings: RecipeSettings = None,
    columns: Columns = None,
    workers: Workers = None,
    out: OutFolder = Path("shapelaw-lr-check"),
    json: Json = False,
) -> None:
    """Check that one learning-rate rule suits all shapes of a plan."""
    from shapelaw.trainers.ladder.lr_sweep import lr_check as check
    from shapelaw.trainers.sweep.status import shown_progress

    options = read_settings(factor, seeds, rates, tokens, seed_sd)
    specs, prepared, folder = open_plan(plan, corpus, vocab, out, settings or [], columns)
    chosen = specs_to_check(specs, runs or [], size)
    with shown_progress() as report:
        result = check(chosen, prepared, folder, options, workers=workers, report=report)
    print_result(result, json=json)
    result.require()


def mount(sweep: typer.Typer) -> None:
    """Add the command to the group of sweep commands."""
    sweep.command("lr-check")(lr_check)
