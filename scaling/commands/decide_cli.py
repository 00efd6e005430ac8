"""Command that compares shapes: decide."""

from pathlib import Path
from typing import Annotated

import typer

from shapelaw.scaling.commands.options import Extrapolate, FitFile, Json, OutTable, Tokens
from shapelaw.scaling.commands.table_options import ALL_ROWS, RowOptions, with_table_options
from shapelaw.scaling.display.console import print_json, print_table


@with_table_options
def decide(
    fit: FitFile,
    shapes: Annotated[
        Path,
        typer.Argument(
            help="Table of shapes, a CSV, JSON or Parquet file; the first row is the baseline.",
            metavar="SHAPES",
        ),
    ],
    tokens: Tokens = None,
    read: RowOptions = ALL_ROWS,
    extrapolate: Extrapolate = False,
    out: OutTable = None,
    json: Json = False,
) -> None:
    """Compare shapes: the chance that each is best."""
    from shapelaw.scaling.commands.output import note_warnings
    from shapelaw.scaling.commands.predicting import lined_rows, named_rows, read_shapes
    from shapelaw.scaling.decisions.decide import decide
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import write_runs

    fitted = Fit.load(fit)
    table = read_shapes(fitted, shapes, tokens, read, extrapolate=extrapolate)
    note_warnings(fitted)
    decided = decide(fitted, table)
    if out is not None:
        write_runs(out, table.join(decided))
    if json:
        print_json({"warnings": fitted.table_warnings, "rows": named_rows(table, decided)})
    else:
        print_table(lined_rows(table, decided))


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(decide)
