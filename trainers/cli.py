"""Commands that train: train and sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.options import CorpusOption, Json, OutFolder, Seed, Vocabulary, Workers
from scaling.printing import json_row, note, print_json, print_table
from trainers import plan_cli, rate_cli

if TYPE_CHECKING:
    import pandas as pd

sweep = typer.Typer(
    help="Train the runs of a plan and keep a ledger of them.", no_args_is_help=True
)
Optimizer = Annotated[str, typer.Option(help="muon or adamw.")]
Context = Annotated[int, typer.Option(help="Tokens per sequence.")]
Sequences = Annotated[int, typer.Option(help="Sequences per step.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a sweep.")]


def train(
    config: Annotated[Path, typer.Argument(help="Hugging Face config.json of a shape.")],
    tokens: Annotated[str, typer.Option(help="Training tokens: 2M, 1e6.")],
    corpus: CorpusOption = "stdlib",
    vocab: Vocabulary = None,
    out: OutFolder = Path("shapelaw-train"),
    optimizer: Optimizer = "muon",
    context_length: Context = 128,
    sequences: Sequences = 8,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train one shape and print its row of the run table; a killed run goes on."""
    from scaling.files import nothing_left
    from trainers.optim import Recipe
    from trainers.single import train_config

    recipe = Recipe(context_length=context_length, sequences=sequences, optimizer=optimizer)
    with nothing_left(out):
        row = train_config(config, tokens, corpus, vocab, out, recipe, seed)
    if json:
        print_json(row)
    else:
        typer.echo("\n".join(f"{name:<20} {value}" for name, value in row.items()))


@sweep.command("run")
def run(
    plan: Annotated[Path, typer.Argument(help="Table with the fields of a shape and tokens.")],
    corpus: CorpusOption = "stdlib",
    vocab: Vocabulary = None,
    out: OutFolder = Path("shapelaw-sweep"),
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Train every planned run that the ledger lacks; a killed sweep goes on."""
    from scaling.files import nothing_left
    from trainers.corpus import prepare
    from trainers.optim import Recipe
    from trainers.single import progress_lines
    from trainers.sweep import Folder, read_plan, run_plan

    folder = Folder(out)
    with nothing_left(out):
        prepared = prepare(corpus, folder.corpus, vocab_size=vocab)
        specs = read_plan(plan, prepared, Recipe())
    runs = run_plan(specs, prepared, folder, workers=workers, report=progress_lines())
    _print_runs(runs, json)


@sweep.command("status")
def status(folder: Folder, json: Json = False) -> None:
    """Show the state of every run."""
    import pandas as pd

    from trainers.sweep import existing_ledger

    rows = [
        {"run_id": e.run_id, "state": e.state, "step": e.step, "steps": e.steps,
         "message": e.message or ""}
        for e in existing_ledger(folder).entries()
    ]  # fmt: skip
    print_json(rows) if json else print_table(pd.DataFrame(rows))


@sweep.command("export")
def export(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(help="Write the run table, CSV or Parquet.")] = None,
    json: Json = False,
) -> None:
    """Write the run table of the finished runs."""
    from scaling.runs import write_runs
    from trainers.sweep import existing_ledger

    runs = existing_ledger(folder).table()
    if out is not None:
        write_runs(out, runs)
        note(f"{len(runs)} runs written to {out}")
    if json or out is None:
        _print_runs(runs, json)


def _print_runs(runs: "pd.DataFrame", json: bool) -> None:
    if json:
        print_json([json_row(row) for row in runs.to_dict("records")])
    else:
        shown = [
            name for name in ("run_id", "tokens", "loss", "bits_per_byte", "status") if name in runs
        ]
        print_table(runs[shown])


def mount(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(train)
    plan_cli.mount(sweep)
    rate_cli.mount(sweep)
    app.add_typer(sweep, name="sweep")
