"""Command group ``shapelaw data`` for public run tables."""

from typing import Annotated

import typer

from shapelaw.scaling.commands.options import (
    Json,
    OutTable,
)
from shapelaw.scaling.commands.plain_help import PlainTyper
from shapelaw.scaling.commands.table_options import ALL_RUNS, RunOptions, with_table_options
from shapelaw.scaling.display.console import echo, note, print_json, print_result, print_table
from shapelaw.scaling.display.tables import counted

data = PlainTyper(
    help="List, download and describe public run tables.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[
    str,
    typer.Argument(
        help="Name of a table that `shapelaw data list` prints, or a CSV or Parquet file.",
        metavar="NAME",
    ),
]


@data.command("list")
def list_tables(json: Json = False) -> None:
    """List the tables: size, ranges, licence and source."""
    from shapelaw.scaling.runs.catalog import listed_tables, listing

    if json:
        print_json({"tables": listed_tables()})
        return
    print_table(listing(), "Run tables (N in parameters, D in tokens, loss in nats per token)")
    note("shapelaw data show NAME describes one, data get NAME --out FILE writes it to a file")


@data.command()
@with_table_options
def get(
    name: Name,
    out: OutTable = None,
    read: RunOptions = ALL_RUNS,
    json: Json = False,
) -> None:
    """Download a table, validate it and write it as a run table."""
    from shapelaw.scaling.runs.table import write_runs

    runs = read.load(name)
    source = runs.source
    if out is not None:
        write_runs(out, runs)
    if json:
        about = {field: source[field] for field in sorted(source)}
        print_json({"runs": len(runs), "file": str(out) if out else None, "source": about})
        return
    note("; ".join(source[key] for key in ("citation", "licence", "address") if key in source))
    echo(
        f"{counted(len(runs), 'run')}, {len(runs.columns)} columns" + (f" -> {out}" if out else "")
    )


@data.command()
@with_table_options
def show(
    name: Name,
    read: RunOptions = ALL_RUNS,
    json: Json = False,
) -> None:
    """Describe a table: ranges, levels, replicates, warnings."""
    from shapelaw.scaling.runs.summary import describe

    print_result(describe(read.load(name)), json=json)


def mount(app: typer.Typer) -> None:
    """Add the commands to an application, under ``data``."""
    app.add_typer(data, name="data")
