"""Commands that evaluate laws: check and compare."""

from typing import Annotated

import typer

from shapelaw.scaling.commands.options import (
    MOST,
    Cutoffs,
    Delta,
    Json,
    LawOption,
    LeaveOutBy,
    PriorOption,
    Runs,
    Seed,
    Size,
)
from shapelaw.scaling.commands.table_options import ALL_RUNS, RunOptions, with_table_options
from shapelaw.scaling.display.console import print_result

Starts = Annotated[
    int, typer.Option(help="Starts of the optimiser for each fit.", min=1, max=MOST, metavar="N")
]
Resamples = Annotated[
    int | None,
    typer.Option(
        help="Draws of the posterior, or bootstrap resamples, of each fit (default: 100, and 1000 "
        "with --decisions).",
        min=0,
        max=MOST,
        metavar="N",
    ),
]


@with_table_options
def check(
    runs: Runs,
    law: LawOption = None,
    delta: Delta = "auto",
    starts: Starts = 64,
    resamples: Resamples = None,
    compute: Annotated[
        float | None,
        typer.Option(
            help="Compute budget in FLOPs of the compute-optimal N and D (default: the largest of "
            "the runs).",
            metavar="FLOPS",
        ),
    ] = None,
    decisions: Annotated[
        bool,
        typer.Option(
            "--decisions",
            help="Test decisions instead: fit the smaller models, state which of two larger shapes "
            "has the lower loss, and score these probabilities.",
        ),
    ] = False,
    size: Size = "auto",
    prior: PriorOption = None,
    read: RunOptions = ALL_RUNS,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Check a law: hold-outs, regret, identifiability, decisions."""
    from shapelaw.scaling.checks.decisions import backtest_decisions
    from shapelaw.scaling.checks.report import check
    from shapelaw.scaling.commands.output import law_for
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.scaling.fitting.law_problem import parse_delta
    from shapelaw.scaling.fitting.refits import FitSettings

    table = read.load(runs, size)
    law = law_for(law, [table])
    settings: FitSettings = {
        "delta": parse_delta(delta), "starts": starts, "seed": seed, "prior": prior,
    }  # fmt: skip
    if resamples is not None:
        settings["resamples"] = resamples
    with progress_shown():
        if decisions:
            print_result(backtest_decisions(law, {runs: table}, **settings), json=json)
        else:
            print_result(check(law, table, compute=compute, **settings), json=json)


@with_table_options
def compare(
    runs: Runs,
    law: Annotated[
        list[str],
        typer.Option(help="Law to compare, a name or an expression; repeatable.", metavar="LAW"),
    ],
    by: LeaveOutBy = "size",
    cutoff: Cutoffs = None,
    delta: Delta = "auto",
    starts: Starts = 64,
    size: Size = "auto",
    prior: PriorOption = None,
    read: RunOptions = ALL_RUNS,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rank laws by their errors on the largest runs, held out."""
    from shapelaw.scaling.checks.comparison import compare
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.scaling.fitting.law_problem import parse_delta

    table = read.load(runs, size)
    with progress_shown():
        comparison = compare(
            law, table, by=by, cutoffs=cutoff or 4, delta=parse_delta(delta), starts=starts,
            seed=seed, prior=prior,
        )  # fmt: skip
    print_result(comparison, json=json)


def mount(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(check)
    app.command()(compare)
