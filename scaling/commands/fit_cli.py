"""Commands that fit laws and predict losses: fit, predict and laws."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import shapelaw.scaling.commands.check_cli
import shapelaw.scaling.commands.count_cli
import shapelaw.scaling.commands.data_cli
import shapelaw.scaling.commands.decide_cli
import shapelaw.scaling.commands.next_runs_cli
import shapelaw.scaling.commands.plot_cli
import shapelaw.scaling.commands.space_cli
from shapelaw.scaling.commands.options import (
    MOST,
    Delta,
    Extrapolate,
    FitFile,
    Json,
    LawOption,
    OutTable,
    PriorOption,
    Seed,
    Size,
    Tokens,
    output_file,
    refuse_together,
)
from shapelaw.scaling.commands.table_options import (
    ALL_ROWS,
    ALL_RUNS,
    RowOptions,
    RunOptions,
    with_table_options,
)
from shapelaw.scaling.display.console import note, print_json, print_result, print_table
from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.pooled import PooledFit
    from shapelaw.scaling.fitting.result import Fit

FitOut = Annotated[
    Path | None,
    typer.Option(
        help="Write the fit to this JSON file (default: only print it).",
        metavar="FILE",
        callback=output_file(),
    ),
]
Objective = Annotated[
    str,
    typer.Option(help="Cost of a residual: huber, squares, student or asymmetric.", metavar="NAME"),
]
Residuals = Annotated[
    str,
    typer.Option(help="Residuals: log (of ln loss) or raw (of loss, in nats).", metavar="NAME"),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Column of weights that multiply the cost of each run (default: equal weights).",
        metavar="COLUMN",
    ),
]
Starts = Annotated[int, typer.Option(help="Starts of the optimiser.", min=1, max=MOST, metavar="N")]
Resamples = Annotated[
    int,
    typer.Option(
        help="Draws of the posterior, or bootstrap resamples, for the intervals.",
        min=0,
        max=MOST,
        metavar="N",
    ),
]
Tables = Annotated[
    list[str],
    typer.Argument(
        help="Run table: a CSV or Parquet file, or a name that `shapelaw data list` prints; "
        "several with --pool.",
        metavar="RUNS",
    ),
]
Pool = Annotated[
    bool,
    typer.Option(
        "--pool", help="Fit one law to several tables: a base for each, shared shape parameters."
    ),
]


@with_table_options
def fit(
    runs: Tables,
    law: LawOption = None,
    out: FitOut = None,
    delta: Delta = "auto",
    objective: Objective = "huber",
    on: Residuals = "log",
    weights: Weights = None,
    size: Size = "auto",
    starts: Starts = 1024,
    resamples: Resamples = 1000,
    prior: PriorOption = None,
    pool: Pool = False,
    read: RunOptions = ALL_RUNS,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fit a scaling law to a run table."""
    from shapelaw.scaling.commands.output import law_for
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.scaling.fitting.fit_law import fit
    from shapelaw.scaling.fitting.law_problem import parse_delta
    from shapelaw.scaling.fitting.with_prior import fit_pooled
    from shapelaw.scaling.laws.registry import law_named
    from shapelaw.scaling.runs.best_loss import with_best_loss
    from shapelaw.scaling.solver.objectives import FitObjective

    if (len(runs) > 1) != pool:
        raise InputError(
            f"`--pool` must be given with two run tables or more, but got {len(runs)} "
            f"{'with' if pool else 'without'} it; write `shapelaw fit TABLE TABLE --pool`"
        )
    tables = [read.load(name, size) for name in runs]
    law = law_for(law, tables)
    if "best_loss" in law_named(law).columns:
        tables = [each if "best_loss" in each else with_best_loss(each) for each in tables]
    minimised = FitObjective(kind=objective, on=on, weights=weights)
    fitted: Fit | PooledFit
    with progress_shown():
        if pool:
            named = dict(zip((Path(name).stem for name in runs), tables, strict=True))
            fitted = fit_pooled(law, named, starts=starts, resamples=resamples, seed=seed)
        else:
            fitted = fit(
                law, tables[0], objective=minimised, delta=parse_delta(delta), starts=starts,
                resamples=resamples, seed=seed, prior=prior,
            )  # fmt: skip
    if out is not None:
        fitted.save(out)
    print_result(fitted, json=json)


@with_table_options
def predict(
    fit: FitFile,
    shapes: Annotated[
        Path, typer.Argument(help="Table of shapes, a CSV, JSON or Parquet file.", metavar="SHAPES")
    ],
    tokens: Tokens = None,
    read: RowOptions = ALL_ROWS,
    extrapolate: Extrapolate = False,
    out: OutTable = None,
    json: Json = False,
) -> None:
    """Predict the loss of shapes, with 95 % intervals."""
    from shapelaw.scaling.commands.output import note_warnings
    from shapelaw.scaling.commands.predicting import (
        PREDICTED,
        lined_rows,
        named_rows,
        read_shapes,
    )
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import write_runs

    fitted = Fit.load(fit)
    table = read_shapes(fitted, shapes, tokens, read, extrapolate=extrapolate)
    predicted = fitted.predict(table)[PREDICTED]
    note_warnings(fitted)
    if not fitted.has_intervals:
        note("note: the fit has no resamples, so the intervals are of the noise of a run alone")
    if out is not None:
        write_runs(out, table.join(predicted))
    if json:
        predictions = named_rows(table, predicted)
        kind = {"loss_kind": fitted.loss_kind}
        print_json(kind | {"warnings": fitted.table_warnings, "predictions": predictions})
    else:
        bound = f"Predicted {fitted.loss_name}" if fitted.loss_kind == "bound" else ""
        print_table(lined_rows(table, predicted), bound)


def laws(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the page of the documentation as Markdown.")
    ] = False,
    json: Json = False,
) -> None:
    """List the named laws with their equations."""
    refuse_together({"--markdown": markdown, "--json": json})
    import pandas as pd

    from shapelaw.scaling.laws.registry import LAWS, laws_page

    if markdown:
        typer.echo(laws_page(), nl=False)
        return
    rows = [{"law": name, "equation": make().describe()} for name, make in LAWS.items()]
    print_json({"laws": rows}) if json else print_table(pd.DataFrame(rows))


def mount(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(fit)
    app.command()(predict)
    app.command()(laws)
    shapelaw.scaling.commands.check_cli.mount(app)
    shapelaw.scaling.commands.count_cli.mount(app)
    shapelaw.scaling.commands.data_cli.mount(app)
    shapelaw.scaling.commands.decide_cli.mount(app)
    shapelaw.scaling.commands.next_runs_cli.mount(app)
    shapelaw.scaling.commands.plot_cli.mount(app)
    shapelaw.scaling.commands.space_cli.mount(app)
