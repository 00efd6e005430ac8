"""Commands that train one model, and the group of sweep commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shapelaw.scaling.commands.options import (
    Columns,
    ConfigFile,
    CorpusOption,
    CorpusTokens,
    Json,
    OutFolder,
    OutTable,
    RecipeSettings,
    Seed,
    TokenizerOption,
    ValidationOption,
    Vocabulary,
    refuse_together,
)
from shapelaw.scaling.commands.plain_help import PlainTyper
from shapelaw.scaling.display.console import echo, note, print_fields, print_json, print_table
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.extras import require_extra
from shapelaw.trainers.commands import convert_cli, evaluate_cli, plan_cli
from shapelaw.trainers.commands import lr_check_cli as rate_cli
from shapelaw.trainers.commands.evaluate_cli import LedgerOption

if TYPE_CHECKING:
    import pandas as pd

sweep = PlainTyper(help="Plan, train, watch, evaluate and export many runs.", no_args_is_help=True)
Optimizer = Annotated[str, typer.Option(help="Optimiser: muon or adamw.", metavar="NAME")]
Context = Annotated[int, typer.Option(help="Tokens per sequence.", metavar="TOKENS")]
Sequences = Annotated[int, typer.Option(help="Sequences per step.", metavar="N")]
ObjectiveOption = Annotated[
    str,
    typer.Option(help="Objective: next_token, masked_diffusion or block:SIZE.", metavar="NAME"),
]
Trackers = Annotated[
    str,
    typer.Option(
        "--tracker",
        help="Trackers beside metrics.csv: tensorboard, wandb or both (default: none).",
        metavar="LIST",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Worker processes (default: one per GPU, or one per core without GPUs).",
        min=1,
        metavar="N",
    ),
]
PackOption = Annotated[
    int | None,
    typer.Option(
        "--pack",
        help="Most runs of one shape to train at once on a device (default: as many as a GPU "
        "gains from, measured; 1 on a CPU).",
        min=1,
        metavar="N",
    ),
]
Folder = Annotated[Path, typer.Argument(help="Folder of a sweep.", metavar="FOLDER")]


PlanFile = Annotated[
    Path, typer.Argument(help="Plan, a table of shapes and tokens.", metavar="PLAN")
]
LauncherName = Annotated[
    str,
    typer.Option(help="Launcher of the workers: local, ray or slurm.", metavar="NAME"),
]
LauncherSettings = Annotated[
    list[str] | None,
    typer.Option(
        help="Setting of the launcher, such as partition=gpu; repeatable.",
        metavar="NAME=VALUE",
    ),
]
DoneRuns = Annotated[
    Path | None,
    typer.Option(
        help="Run table of runs of this plan that need no training (default: none).",
        metavar="RUNS",
    ),
]


def train(
    config: ConfigFile,
    tokens: Annotated[
        str, typer.Option(help="Training tokens, such as 2M or 1e6.", metavar="TOKENS")
    ],
    corpus: CorpusOption = "stdlib",
    validation: ValidationOption = None,
    vocab: Vocabulary = None,
    tokenizer: TokenizerOption = None,
    corpus_tokens: CorpusTokens = None,
    out: OutFolder = Path("shapelaw-train"),
    optimizer: Optimizer = "muon",
    context_length: Context = 128,
    sequences: Sequences = 8,
    objective: ObjectiveOption = "next_token",
    settings: RecipeSettings = None,
    tracker: Trackers = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train one shape and print its row of the table; resumable."""
    from shapelaw.scaling.files import nothing_left
    from shapelaw.trainers.corpus.options import CorpusOptions
    from shapelaw.trainers.sweep.train_one import train_config

    text = CorpusOptions.from_command(
        corpus, validation=validation, vocab=vocab, tokenizer=tokenizer,
        corpus_tokens=corpus_tokens,
    )  # fmt: skip
    usual = (f"{optimizer=!s}", f"{context_length=}", f"{sequences=}", f"{objective=!s}")
    changes = [*usual, *(settings or [])]
    with nothing_left(out):
        row = train_config(config, tokens, text, out, changes, tracker=tracker, seed=seed)
    print_fields(row, json=json)


@sweep.command("run")
def run(
    plan: PlanFile,
    corpus: CorpusOption = "stdlib",
    validation: ValidationOption = None,
    vocab: Vocabulary = None,
    tokenizer: TokenizerOption = None,
    corpus_tokens: CorpusTokens = None,
    out: OutFolder = Path("shapelaw-sweep"),
    settings: RecipeSettings = None,
    tracker: Trackers = "",
    launcher: LauncherName = "local",
    workers: WorkersOption = None,
    pack: PackOption = None,
    option: LauncherSettings = None,
    ledger: LedgerOption = None,
    done: DoneRuns = None,
    columns: Columns = None,
    json: Json = False,
) -> None:
    """Train the runs of a plan that are not trained yet; resumable."""
    require_extra("train")
    from shapelaw.scaling.files import nothing_left
    from shapelaw.scaling.runs.mapping import read_rows
    from shapelaw.trainers.corpus.options import CorpusOptions
    from shapelaw.trainers.corpus.preparation import prepare_from_options
    from shapelaw.trainers.ladder.plan_file import read_plan
    from shapelaw.trainers.optimizers.recipe import recipe_with
    from shapelaw.trainers.sweep.folder import Folder
    from shapelaw.trainers.sweep.launchers.registry import launcher_named, parse_options
    from shapelaw.trainers.sweep.status import shown_progress
    from shapelaw.trainers.sweep.sweep import run_plan
    from shapelaw.trainers.training.trackers import read_trackers

    place, folder = launcher_named(launcher, parse_options(option or [])), Folder(out)
    recipe, trackers = recipe_with(settings or []), read_trackers(tracker)
    text = CorpusOptions.from_command(
        corpus, validation=validation, vocab=vocab, tokenizer=tokenizer,
        corpus_tokens=corpus_tokens,
    )  # fmt: skip
    folder.refuse_foreign_table()
    with nothing_left(out):
        prepared = prepare_from_options(text, folder.corpus)
        specs = read_plan(plan, prepared, recipe, columns)
        with shown_progress() as report:
            runs = run_plan(
                specs, prepared, folder, workers=workers, report=report, launcher=place,
                ledger=ledger, trackers=trackers, pack=pack,
                done=None if done is None else read_rows(done, columns, optional=True),
            )  # fmt: skip
    _print_runs(runs, json)


@sweep.command("work")
def work(
    folder: Folder,
    workers: WorkersOption = None,
    pack: PackOption = None,
    ledger: LedgerOption = None,
    json: Json = False,
) -> None:
    """Add workers to a sweep that was started elsewhere."""
    require_extra("train")
    from shapelaw.trainers.sweep.folder import Folder
    from shapelaw.trainers.sweep.status import shown_progress
    from shapelaw.trainers.sweep.sweep import join

    with shown_progress() as report:
        runs = join(Folder(folder), workers=workers, report=report, ledger=ledger, pack=pack)
    _print_runs(runs, json)


@sweep.command("status")
def status(
    folder: Folder,
    watch: Annotated[
        bool, typer.Option("--watch", help="Update the table until every run has ended.")
    ] = False,
    ledger: LedgerOption = None,
    json: Json = False,
) -> None:
    """Show every run, its speed and the time left."""
    refuse_together({"--watch": watch, "--json": json})
    from shapelaw.trainers.sweep.folder import existing_ledger
    from shapelaw.trainers.sweep.status import show_status, status_of

    book = existing_ledger(folder, ledger)
    if json:
        print_json(status_of(book.entries()))
    else:
        show_status(lambda: status_of(book.entries()), watch=watch)


@sweep.command("retry")
def retry(
    folder: Folder,
    run_id: Annotated[
        list[str] | None,
        typer.Argument(help="Runs to plan again (default: all that failed).", metavar="RUN_ID"),
    ] = None,
    diverged: Annotated[
        bool, typer.Option("--diverged", help="Plan diverged runs again, too.")
    ] = False,
    ledger: LedgerOption = None,
    json: Json = False,
) -> None:
    """Plan failed runs again, for `shapelaw sweep run` to train."""
    from shapelaw.trainers.sweep.folder import existing_ledger
    from shapelaw.trainers.sweep.sweep import retry_runs

    again = retry_runs(existing_ledger(folder, ledger), run_id, diverged=diverged)
    if json:
        print_json({"planned": again})
    else:
        echo("\n".join([f"planned again: {len(again)}; `shapelaw sweep run` trains them", *again]))


@sweep.command("export")
def export(
    folder: Folder,
    out: OutTable = None,
    gguf: Annotated[
        bool,
        typer.Option(
            "--gguf",
            help="Also write each model as a GGUF file for llama.cpp, into the folder gguf beside "
            "the table (without --out: in FOLDER).",
        ),
    ] = False,
    run_id: Annotated[
        list[str] | None,
        typer.Option("--run", help="With --gguf: only this run; repeatable.", metavar="RUN_ID"),
    ] = None,
    ledger: LedgerOption = None,
    json: Json = False,
) -> None:
    """Write the run table of the finished and diverged runs."""
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.runs.table import write_runs
    from shapelaw.trainers.sweep.folder import Folder, existing_ledger
    from shapelaw.trainers.sweep.sweep import export_gguf_files, run_table

    if run_id and not gguf:
        raise InputError("`--run` must come with --gguf; the run table always has every run")
    runs = run_table(existing_ledger(folder, ledger).entries())
    if gguf:
        place = (folder if out is None else out.parent) / "gguf"
        with progress_shown():
            files = export_gguf_files(runs, Folder(folder), place, run_id)
        note(f"{len(files)} GGUF file{'s'[: len(files) != 1]} written to {place}")
    if out is not None:
        write_runs(out, runs)
        note(f"{counted(len(runs), 'run')} written to {out}{_left_out(runs)}")
    if json or out is None:
        _print_runs(runs, json)


def _left_out(runs: "pd.DataFrame") -> str:
    """Describe the runs of an exported table that a fit leaves out."""
    diverged = int((runs["status"] == "diverged").sum()) if "status" in runs else 0
    return f"; {diverged} of them diverged: `shapelaw fit` leaves them out" if diverged else ""


def _print_runs(runs: "pd.DataFrame", json: bool) -> None:
    if json:
        print_json({"runs": runs})
    else:
        columns = [
            name for name in ("run_id", "tokens", "loss", "bits_per_byte", "status") if name in runs
        ]
        print_table(runs[columns])


def mount(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(train)
    app.command()(convert_cli.convert)
    plan_cli.mount(sweep)
    rate_cli.mount(sweep)
    evaluate_cli.mount(app, sweep)
    app.add_typer(sweep, name="sweep")
