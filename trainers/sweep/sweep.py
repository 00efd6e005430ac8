"""Training of the planned runs of a ledger on the workers of a launcher."""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from shapelaw.scaling.display.console import note
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.display.progress import track
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.runs.columns import with_loss_kinds
from shapelaw.scaling.runs.table import write_runs
from shapelaw.scaling.runs.validation import require_columns
from shapelaw.scaling.units import format_bytes
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.entry import DIVERGED, DONE, FAILED, PLANNED, RUNNING, Entry
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.ledger.registry import is_database, network_disk
from shapelaw.trainers.sweep.folder import Folder, existing_ledger, ledger_address, record_options
from shapelaw.trainers.sweep.launchers._base import Launcher, WorkerJob, supervise
from shapelaw.trainers.sweep.launchers.registry import launcher_named
from shapelaw.trainers.training.spec import RunSpec

MEBIBYTE = 2**20
MAX_EPOCHS = 10_000  # passes over a corpus
BYTES_PER_VALUE = 4
Report = Callable[[list[Entry]], None]


def run_plan(
    specs: Sequence[RunSpec],
    corpus: Corpus,
    folder: Folder,
    *,
    workers: int | None = None,
    report: Report = lambda entries: None,
    launcher: str | Launcher = "local",
    ledger: str | None = None,
    trackers: Sequence[str] = (),
    done: pd.DataFrame | None = None,
    pack: int | None = None,
) -> pd.DataFrame:
    """Train the runs of a plan that are not finished yet, and return their run table.

    The run table of the ledger is written to ``runs.csv`` in the folder whenever a run ends.

    Parameters
    ----------
    specs
        Runs of the plan.
    corpus
        Corpus to train on.
    folder
        Folder of the sweep.
    workers
        Number of workers; by default one per GPU or core, or as the launcher has room.
    report
        Function that is called several times a second with the entries of these runs.
    launcher
        Launcher of the workers, or its name.
    ledger
        Path or ``postgresql://`` URL of a ledger outside the folder.
    trackers
        Names of trackers of metrics besides ``metrics.csv``.
    done
        Run table of this plan from another ledger. Runs with rows of the same ``config_hash`` in it
        are not trained again.
    pack
        Largest number of runs of one shape that a worker trains at once; by default as many as
        increase the throughput of a GPU, and one on a CPU.

    Raises
    ------
    InputError
        The launcher cannot be used here, workers on several machines would share an SQLite file,
        or the folder has a run table that is not a sweep's.
    WorkError
        A run failed. Finished rows are kept, and the same call resumes the sweep. A run that
        diverged does not raise an error: its row has its status and no loss.
    """
    place = launcher_named(launcher) if isinstance(launcher, str) else launcher
    folder.refuse_foreign_table()
    for spec in specs:
        _check_size(spec, corpus, here=not place.several_machines)
    _check_space(folder.path, specs)
    address = ledger_address(folder, ledger)
    _check_disk(address, place.several_machines)
    book = Ledger(address)
    record_options(folder, ledger, trackers)
    run_ids = _plan_runs(book, specs, corpus, done)
    job = WorkerJob(ledger=address, folder=folder.path.absolute(), pack=pack)
    return _train_all(_Progress(book, folder, run_ids, report), job, place, workers)


def _check_size(spec: RunSpec, corpus: Corpus, *, here: bool) -> None:
    """Refuse a run that no machine can train, before anything of it is allocated.

    Parameters
    ----------
    here
        Whether this machine trains it, so that the model must fit its memory.
    """
    epochs = spec.tokens / corpus.tokens_train
    if epochs > MAX_EPOCHS:
        raise InputError(
            f"`epochs <= {MAX_EPOCHS}` must hold, but {spec.run_id} would read the corpus "
            f"{epochs:.3g} times; give fewer tokens, or more text"
        )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    batch = spec.recipe.batch_tokens * spec.shape.hidden_size
    needed = BYTES_PER_VALUE * (3 * spec.shape.n_total + batch)
    if here and needed > pages:
        raise InputError(
            f"{spec.run_id} needs at least {format_bytes(needed)} of memory for its weights, "
            f"gradients, momentum and batch, but this machine has {format_bytes(pages)}; give a "
            "smaller shape or batch"
        )


def _plan_runs(
    book: Ledger, specs: Sequence[RunSpec], corpus: Corpus, done: pd.DataFrame | None
) -> set[str]:
    """Plan runs, also failed ones again, adopt those done elsewhere, and return their ids."""
    specs = [spec.with_engine() for spec in specs]
    book.plan(specs, [spec.identity(corpus) for spec in specs])
    book.retry()
    if done is not None:
        _adopt(book, specs, corpus, done)
    return {spec.run_id for spec in specs}


def _adopt(book: Ledger, specs: Sequence[RunSpec], corpus: Corpus, done: pd.DataFrame) -> None:
    """Record runs as done whose rows are in the run table of another ledger."""
    require_columns(
        done, ("run_group", "config_hash", "status", "tokens"), "the table of done runs"
    )
    ended = done[done["status"] == DONE]
    adopted = 0
    for spec in specs:
        same = ended["config_hash"].astype(str) == spec.identity(corpus)[:16]
        rows = ended[same & (ended["run_group"] == spec.run_id)].sort_values("tokens")
        if len(rows) == len(spec.ends):
            adopted += book.adopt(spec.run_id, json_ready(rows))
    note(f"{adopted} of {counted(len(specs), 'run')} are done in the given run table")


def join(
    folder: Folder,
    *,
    workers: int | None = None,
    report: Report = lambda entries: None,
    ledger: str | None = None,
    pack: int | None = None,
) -> pd.DataFrame:
    """Add workers on this machine to a sweep that was started elsewhere.

    Parameters and errors are those of :func:`run_plan`.

    Returns
    -------
    pandas.DataFrame
        Run table of all runs of the sweep.
    """
    address = ledger_address(folder, ledger)
    book = existing_ledger(folder.path, ledger)
    _check_disk(address, several_machines=True)
    progress = _Progress(book, folder, {entry.run_id for entry in book.entries()}, report)
    job = WorkerJob(ledger=address, folder=folder.path.absolute(), pack=pack)
    return _train_all(progress, job, launcher_named("local"), workers)


def _train_all(
    progress: "_Progress", job: WorkerJob, launcher: Launcher, workers: int | None
) -> pd.DataFrame:
    reasons: list[str] = []
    if progress.update() is not None:
        launcher.open(job)
        left = sum(entry.state in (PLANNED, RUNNING) for entry in progress.entries())
        number = min(workers or launcher.default_workers(), left)
        job = replace(job, share=math.ceil(left / number))
        reasons = supervise(launcher, job, number, progress.update)
    progress.update()
    return _finished_table(progress.entries(), reasons)


class _Progress:
    """Progress of the runs of a plan while workers train them."""

    def __init__(self, ledger: Ledger, folder: Folder, run_ids: set[str], report: Report) -> None:
        self.ledger, self.folder, self.run_ids, self.report = ledger, folder, run_ids, report
        self.ended = 0

    def entries(self) -> list[Entry]:
        return [entry for entry in self.ledger.entries() if entry.run_id in self.run_ids]

    def update(self) -> float | None:
        """Report the entries and return the FLOPs done, or None if every run has ended."""
        every = self.ledger.entries()
        entries = [entry for entry in every if entry.run_id in self.run_ids]
        ended = sum(entry.row is not None for entry in every)
        if ended != self.ended or (ended and not self.folder.table.exists()):
            write_runs(self.folder.table, run_table(every))
            self.ended = ended
        self.report(entries)  # the table has what is reported
        if not any(entry.state in (PLANNED, RUNNING) for entry in entries):
            return None
        return sum(entry.flops * entry.step / entry.steps for entry in entries)


def _finished_table(entries: list[Entry], reasons: list[str]) -> pd.DataFrame:
    """Return the run table of runs; raise an error if one did not finish."""
    broken = [entry for entry in entries if entry.row is None]
    if broken:
        first = broken[0]
        why = first.message or (f"its worker {reasons[0]}" if reasons else "its worker ended early")
        raise WorkError(
            f"{len(broken)} of {counted(len(entries), 'run')} did not finish; {first.run_id} "
            f"{first.state}: {why}; run the same command again to continue"
        )
    return run_table(entries)


def run_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """Return the rows of all done or diverged runs; a run with branches has several rows."""
    return pd.DataFrame(with_loss_kinds([row for entry in entries for row in entry.rows]))


def export_gguf_files(
    table: pd.DataFrame, folder: Folder, out: Path, run_ids: Sequence[str] | None = None
) -> list[Path]:
    """Write a GGUF file, RUN_ID.gguf, for every exported model of a run table.

    Parameters
    ----------
    table
        Run table of a sweep, as from :func:`run_table`.
    folder
        Folder of the sweep with the exported models.
    out
        Folder for the files.
    run_ids
        Ids of the runs to write; by default all runs with an exported model.

    Returns
    -------
    list of pathlib.Path
        Paths of the files.

    Raises
    ------
    InputError
        A named run, or every run, has no exported model, or gguf is not installed.
    """
    from shapelaw.trainers.models.gguf import export_gguf

    exported = folder.exported(table)
    for name in run_ids or ():
        if name not in exported:
            raise InputError(
                f"`--run` must name a finished run with an exported model, but got {name!r}; "
                f"{folder.path} has {', '.join(exported)}"
            )
    paths = []
    for name in track(run_ids or exported, "GGUF files", total=len(run_ids or exported)):
        paths.append(out / f"{name}.gguf")
        export_gguf(folder.run(name), paths[-1])
    return paths


def _check_disk(address: str, several_machines: bool) -> None:
    """Refuse or warn of an SQLite ledger on a network disk.

    The locks and the shared memory of SQLite do not work across a network.
    """
    if is_database(address):
        return
    kind = network_disk(Path(address))
    way_out = "give --ledger postgresql://USER@HOST/DATABASE?sweep=NAME"
    if kind and several_machines:
        raise InputError(
            f"`--ledger` must be a database where workers run on several machines: {address} is a "
            f"file on a network disk ({kind}), whose locks do not work between machines; {way_out}"
        )
    if kind:
        note(
            f"note: {address} is on a network disk ({kind}); only one machine may use it; "
            f"for several, {way_out}"
        )


def _check_space(path: Path, specs: Sequence[RunSpec]) -> None:
    """Refuse to start if the disk has too little space for the checkpoints."""
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    need = sum(8 * spec.shape.n_total for spec in specs) + 64 * MEBIBYTE
    if free < need:
        raise WorkError(
            f"{path} needs about {need // MEBIBYTE} MiB, but {free // MEBIBYTE} MiB are free; "
            "free space or choose another --out folder"
        )


def retry_runs(
    ledger: Ledger, run_ids: Sequence[str] | None = None, *, diverged: bool = False
) -> list[str]:
    """Plan failed runs again.

    Parameters
    ----------
    ledger
        Ledger of the sweep.
    run_ids
        Ids of the runs to plan again; by default all.
    diverged
        True to plan diverged runs again too.

    Returns
    -------
    list of str
        Ids of the runs planned again.

    Raises
    ------
    InputError
        A given run is not in the ledger, or its state does not allow a retry.
    """
    states = (FAILED, DIVERGED) if diverged else (FAILED,)
    states_by_run = {entry.run_id: entry.state for entry in ledger.entries()}
    for run_id in run_ids or ():
        state = states_by_run.get(run_id)
        if state is None:
            raise InputError(
                f"`RUN_ID` must be a run of the sweep, but got {run_id!r}; `shapelaw sweep status` "
                "lists the runs"
            )
        if state not in states:
            way_out = "; give --diverged too" if state == DIVERGED else ""
            raise InputError(
                f"`state` of {run_id} must be {' or '.join(states)}, but is {state}{way_out}"
            )
    again = [name for name, state in states_by_run.items() if state in states]
    again = [name for name in again if not run_ids or name in run_ids]
    ledger.retry(states=states, run_ids=again)
    return again
