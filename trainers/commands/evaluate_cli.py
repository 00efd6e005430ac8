"""Commands that evaluate one trained model, or every model of a sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shapelaw.scaling.commands.options import Json, OutTable, Workers
from shapelaw.scaling.display.console import note, print_json, print_result, print_table
from shapelaw.scaling.display.printable import listed
from shapelaw.scaling.display.tables import counted

if TYPE_CHECKING:
    import pandas as pd

EvalsOption = Annotated[
    Path,
    typer.Option(
        help="Evaluation sets: a folder or .tar.zst with blimp/*.jsonl and tasks/*.jsonl.",
        metavar="PATH",
    ),
]
TasksOption = Annotated[
    str,
    typer.Option(
        help="Tasks: blimp, lambada, arc_easy, arc_challenge, piqa, winogrande, "
        "hellaswag_val_subset.",
        metavar="LIST",
    ),
]


def _ledger_address(address: str | None) -> str | None:
    """Refuse the address of a ledger that no store can have, before the command works."""
    from shapelaw.trainers.ledger.registry import check_ledger_address

    if address is not None:
        check_ledger_address(address)
    return address


LedgerOption = Annotated[
    str | None,
    typer.Option(
        "--ledger",
        help="Ledger in PostgreSQL, postgresql://USER@HOST/DATABASE?sweep=NAME, or a .sqlite file "
        "(default: the folder's own).",
        envvar="SHAPELAW_LEDGER",
        metavar="URL",
        callback=_ledger_address,
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        help="Items of each task, or pairs of each BLiMP paradigm (default: all).",
        min=1,
        metavar="N",
    ),
]


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="Folder of a finished run, with weights.", metavar="RUN")
    ],
    evals: Annotated[
        Path | None,
        typer.Option(
            help="Evaluation sets: a folder or .tar.zst (default: no downstream tasks).",
            metavar="PATH",
        ),
    ] = None,
    tasks: TasksOption = "blimp",
    corpus_folder: Annotated[
        Path | None,
        typer.Option(
            help="Prepared corpus, for held-out losses and the tokenizer (default: none).",
            metavar="FOLDER",
        ),
    ] = None,
    limit: LimitOption = None,
    json: Json = False,
) -> None:
    """Evaluate a model: held-out losses and downstream accuracy."""
    from shapelaw.trainers.evaluation.run_evaluation import evaluate_run

    print_result(evaluate_run(run, evals, tasks, corpus_folder, limit=limit), json=json)


def evaluate_sweep(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.", metavar="FOLDER")],
    evals: EvalsOption,
    tasks: TasksOption = "blimp",
    out: OutTable = None,
    workers: Workers = None,
    limit: LimitOption = None,
    ledger: LedgerOption = None,
    json: Json = False,
) -> None:
    """Score the models of a sweep on downstream tasks; resumable."""
    from shapelaw.scaling.runs.table import write_runs
    from shapelaw.trainers.evaluation.downstream import read_tasks
    from shapelaw.trainers.evaluation.eval_sets import read_evals
    from shapelaw.trainers.sweep.evaluate import score_exports

    names = read_tasks(tasks, read_evals(evals))
    runs = score_exports(
        folder, evals, tasks=names, limit=limit, workers=workers, ledger=ledger,
        report=_Progress(),
    )  # fmt: skip
    if left_out := runs.attrs["left_out"]:
        note(
            f"{counted(len(left_out), 'run')} without an exported model or a score: "
            + listed(left_out)
        )
    if out is not None:
        write_runs(out, runs)
        note(f"{counted(len(runs), 'run')} written to {out}")
    if json or out is None:
        _print_scores(runs, json)


class _Progress:
    """Report of progress: one line on standard error after every model."""

    def __call__(self, done: int, total: int) -> None:
        note(f"{done} of {total} models are scored")


def _print_scores(runs: "pd.DataFrame", json: bool) -> None:
    if json:
        print_json({"runs": runs})
        return
    columns = ["run_id", "loss", *(name for name in runs if str(name).startswith("accuracy_"))]
    print_table(runs[[name for name in columns if name in runs]])


def mount(app: typer.Typer, sweep: typer.Typer) -> None:
    """Add ``evaluate`` to an application and to its group of sweep commands."""
    app.command()(evaluate)
    sweep.command("evaluate")(evaluate_sweep)
