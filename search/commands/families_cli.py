"""The ``compare-families`` command."""

from pathlib import Path
from typing import Annotated

import typer

from shapelaw.scaling.commands.options import (
    CorpusOption,
    EngineOption,
    Json,
    OutFolder,
    RecipeSettings,
    TokenizerOption,
    ValidationOption,
    Vocabulary,
    Workers,
)
from shapelaw.scaling.display.console import note, print_result
from shapelaw.scaling.extras import require_extra

ActiveParams = Annotated[
    str,
    typer.Option(help="Active non-embedding parameters of every model, such as 300K.", metavar="N"),
]
RunTokens = Annotated[
    str, typer.Option(help="Training tokens of every run, such as 6M.", metavar="TOKENS")
]
Families = Annotated[
    str | None,
    typer.Option(
        help="Families to compare: model types separated by commas, with +canon-AC for Canon "
        "layers or +block:16 for an objective (default: all, and Llama with these).",
        metavar="LIST",
    ),
]
BaselineFamily = Annotated[
    str, typer.Option(help="Family that the others are compared with.", metavar="NAME")
]
SeedsPerFamily = Annotated[
    int, typer.Option(help="Runs of every family.", min=2, max=1000, metavar="N")
]
RateValues = Annotated[
    str | None,
    typer.Option(
        help="Three learning rates of the matrices, tried for every family, such as "
        "0.005,0.01,0.02 (default: half, once and twice that of the recipe).",
        metavar="LIST",
    ),
]
RateParams = Annotated[
    str | None,
    typer.Option(
        help="Parameters of the models that try the learning rates (default: --params).",
        metavar="N",
    ),
]
RateTokens = Annotated[
    str | None,
    typer.Option(
        help="Tokens of the runs that try the learning rates (default: half of --tokens).",
        metavar="TOKENS",
    ),
]
ServedWorkload = Annotated[
    str | None,
    typer.Option(
        "--workload",
        help="Serving workload of the decoding speed, such as 128/128@8 (default: the training "
        "context, half of it prompt).",
        metavar="WORKLOAD",
    ),
]
DoneRuns = Annotated[
    Path | None,
    typer.Option(
        help="Run table of another comparison, whose equal runs need no training (default: none).",
        metavar="RUNS",
    ),
]


def mount(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("compare-families")(compare_families)


def compare_families(
    params: ActiveParams,
    tokens: RunTokens,
    corpus: CorpusOption = "stdlib",
    validation: ValidationOption = None,
    vocab: Vocabulary = None,
    tokenizer: TokenizerOption = None,
    families: Families = None,
    baseline: BaselineFamily = "llama",
    seeds: SeedsPerFamily = 3,
    lr_values: RateValues = None,
    lr_params: RateParams = None,
    lr_tokens: RateTokens = None,
    settings: RecipeSettings = None,
    engine: EngineOption = "torch",
    workload: ServedWorkload = None,
    done: DoneRuns = None,
    workers: Workers = None,
    out: OutFolder = Path("shapelaw-families"),
    json: Json = False,
) -> None:
    """Compare architecture families at one budget; resumable."""
    require_extra("train")
    from shapelaw.scaling.files import nothing_left
    from shapelaw.scaling.runs.mapping import read_rows
    from shapelaw.scaling.units import parse_count
    from shapelaw.search.engines.registry import engine_named
    from shapelaw.search.families.budget import parse_variants
    from shapelaw.search.families.run import comparison_of, parse_rates
    from shapelaw.search.families.speeds import usual_workload
    from shapelaw.search.families.training import ComparisonPlan
    from shapelaw.search.workload import parse_workload
    from shapelaw.trainers.corpus.options import CorpusOptions
    from shapelaw.trainers.optimizers.recipe import recipe_with
    from shapelaw.trainers.sweep.status import shown_progress

    recipe, budget, count = recipe_with(settings or []), parse_count(params), parse_count(tokens)
    plan = ComparisonPlan(
        variants=tuple(parse_variants(families, baseline)),
        parameters=budget,
        tokens=count,
        seeds=seeds,
        recipe=recipe,
        rates=parse_rates(lr_values, recipe),
        rate_parameters=budget if lr_params is None else parse_count(lr_params),
        rate_tokens=max(count // 2, 1) if lr_tokens is None else parse_count(lr_tokens),
    )
    server = engine_named(engine)
    usual = workload or usual_workload(recipe.context_length)
    served = server.served_workload(parse_workload(usual, dtype=server.default_dtype))
    text = CorpusOptions.from_command(
        corpus, validation=validation, vocab=vocab, tokenizer=tokenizer
    )
    finished = None if done is None else read_rows(done, optional=True)
    with nothing_left(out), shown_progress() as report:
        result = comparison_of(
            plan, text, out, (server, served), workers=workers, report=report, done=finished
        )
    print_result(result, json=json)
    if not json:
        note(f"table.csv, rates.csv, runs.csv, speeds.csv and families.png are in {out}")
