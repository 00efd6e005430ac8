"""Train every planned run that the ledger lacks, on the workers of a launcher."""

import math
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
from shapelaw.scaling.runs.table import write_runs
from shapelaw.scaling.runs.validation import require_columns
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.entry import Entry
from shapelaw.trainers.ledger.ledger import (
    DIVERGED,
    DONE,
    FAILED,
    PLANNED,
    RUNNING,
    Ledger,
    open_ledger,
)
from shapelaw.trainers.ledger.registry import is_database, network_disk
from shapelaw.trainers.sweep.folder import Folder, existing_ledger, ledger_address, record_options
from shapelaw.trainers.sweep.launchers._base import Launcher, WorkerJob, supervise
from shapelaw.trainers.sweep.launchers.registry import launcher_named
from shapelaw.trainers.training.spec import RunSpec

MEBIBYTE = 2**20
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
    """Train what the ledger lacks and return the run table of these specs.

    The table of all runs of the ledger is kept in the folder's ``runs.csv`` as they end.

    Parameters
    ----------
    workers
        How many; by default as many as the launcher's place is made for, here one per core or GPU.
    report
        Called several times a second with the entries of these runs, for a progress display.
    launcher
        Its name, or one with options.
    ledger
        Another one than the folder's file: a ``postgresql://`` URL or a path.
    trackers
        Where the metrics of runs go, besides ``metrics.csv``; see
        :mod:`shapelaw.trainers.training.trackers`.
    done
        A run table of this plan from another ledger: runs whose rows are there, of the same
        settings by their ``config_hash``, are not trained again.
    pack
        Most runs of one shape that a worker trains at once; by default as many as a GPU gains
        from, and one on a CPU.

    Raises
    ------
    InputError
        The launcher cannot be used here, or workers on several machines would share an SQLite file.
    WorkError
        A run failed; finished rows are kept, and the same call goes on from there. A run that
        diverged is no failure of the work: it has a row, with its status and without a loss.
    """
    place = launcher_named(launcher) if isinstance(launcher, str) else launcher
    _check_space(folder.path, specs)
    address = ledger_address(folder, ledger)
    _check_disk(address, place.several_machines)
    book = open_ledger(address)
    record_options(folder, ledger, trackers)
    specs = [spec.with_engine() for spec in specs]
    book.plan(specs, [spec.identity(corpus) for spec in specs])
    book.retry()
    if done is not None:
        _adopt(book, specs, corpus, done)
    watched = _Watched(book, folder, {spec.run_id for spec in specs}, report)
    job = WorkerJob(ledger=address, folder=folder.path.absolute(), pack=pack)
    return _train_all(watched, job, place, workers)


def _adopt(book: Ledger, specs: Sequence[RunSpec], corpus: Corpus, done: pd.DataFrame) -> None:
    """Take over the rows of runs that ended under another ledger."""
    require_columns(
        done, ("run_group", "config_hash", "status", "tokens"), "the table of done runs"
    )
    ended = done[done["status"] == DONE]
    taken = 0
    for spec in specs:
        same = ended["config_hash"].astype(str) == spec.identity(corpus)[:16]
        rows = ended[same & (ended["run_group"] == spec.run_id)].sort_values("tokens")
        if len(rows) == len(spec.ends):
            taken += book.adopt(spec.run_id, json_ready(rows))
    note(f"{taken} of {counted(len(specs), 'run')} are done by the rows of an earlier sweep")


def join(
    folder: Folder,
    *,
    workers: int | None = None,
    report: Report = lambda entries: None,
    ledger: str | None = None,
    pack: int | None = None,
) -> pd.DataFrame:
    """Help with a sweep that was started elsewhere, with processes of this machine.

    Returns the run table of all its runs; raises as :func:`run_plan` does.
    """
    address = ledger_address(folder, ledger)
    book = existing_ledger(folder.path, ledger)
    _check_disk(address, several_machines=True)
    watched = _Watched(book, folder, {entry.run_id for entry in book.entries()}, report)
    job = WorkerJob(ledger=address, folder=folder.path.absolute(), pack=pack)
    return _train_all(watched, job, launcher_named("local"), workers)


def _train_all(
    watched: "_Watched", job: WorkerJob, launcher: Launcher, workers: int | None
) -> pd.DataFrame:
    reasons: list[str] = []
    if watched.progress() is not None:
        launcher.open(job)
        left = sum(entry.state in (PLANNED, RUNNING) for entry in watched.entries())
        number = min(workers or launcher.default_workers(), left)
        job = replace(job, share=math.ceil(left / number))
        reasons = supervise(launcher, job, number, watched.progress)
    watched.progress()
    return _ended(watched.entries(), reasons)


class _Watched:
    """The runs of a plan as their workers go on."""

    def __init__(self, ledger: Ledger, folder: Folder, wanted: set[str], report: Report) -> None:
        self.ledger, self.folder, self.wanted, self.report = ledger, folder, wanted, report
        self.ended = 0

    def entries(self) -> list[Entry]:
        return [entry for entry in self.ledger.entries() if entry.run_id in self.wanted]

    def progress(self) -> float | None:
        """Show where the runs stand; the FLOPs done, or None when every run has ended."""
        every = self.ledger.entries()
        entries = [entry for entry in every if entry.run_id in self.wanted]
        self.report(entries)
        ended = sum(entry.row is not None for entry in every)
        if ended != self.ended or (ended and not self.folder.table.exists()):
            write_runs(self.folder.table, run_table(every))
            self.ended = ended
        if not any(entry.state in (PLANNED, RUNNING) for entry in entries):
            return None
        return sum(entry.flops * entry.step / entry.steps for entry in entries)


def _ended(entries: list[Entry], reasons: list[str]) -> pd.DataFrame:
    """The run table of runs that have all ended in order."""
    broken = [entry for entry in entries if entry.row is None]
    if broken:
        first = broken[0]
        why = first.message or (f"its worker {reasons[0]}" if reasons else "its worker ended early")
        raise WorkError(
            f"{len(broken)} of {counted(len(entries), 'run')} did not finish; {first.run_id} "
            f"{first.state}: {why}; start again to go on"
        )
    return run_table(entries)


def run_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """The rows of all runs that are done or diverged; a run with branches has several."""
    return pd.DataFrame([row for entry in entries for row in entry.rows])


def export_gguf_files(
    table: pd.DataFrame, folder: Folder, out: Path, run_ids: Sequence[str] | None = None
) -> list[Path]:
    """Write a GGUF file, RUN_ID.gguf, for every exported model of a run table.

    Parameters
    ----------
    table
        Rows of a sweep, as :func:`run_table` gives them.
    folder
        The sweep's folder, which holds the exported models.
    out
        Folder for the files.
    run_ids
        Runs to write; by default all that have an exported model.

    Raises
    ------
    InputError
        A named run, or every run, has no exported model, or gguf is not installed.
    """
    from shapelaw.trainers.models.gguf import export_gguf
    from shapelaw.trainers.models.hugging_face import WEIGHTS

    names = [str(name) for name in table["run_id"]] if len(table) else []
    exported = [name for name in names if (folder.run(name) / WEIGHTS).exists()]
    for name in run_ids or ():
        if name not in exported:
            raise InputError(
                f"`--run` must name a finished run with an exported model, but got {name!r}; "
                f"{folder.path} has {', '.join(exported) or 'none'}"
            )
    if not exported:
        raise InputError(
            f"no run of {folder.path} has a {WEIGHTS}; train the plan with `shapelaw sweep run` "
            "first"
        )
    paths = []
    for name in track(run_ids or exported, "GGUF files", total=len(run_ids or exported)):
        paths.append(out / f"{name}.gguf")
        export_gguf(folder.run(name), paths[-1])
    return paths


def _check_disk(address: str, several_machines: bool) -> None:
    """SQLite's locks and shared memory do not reach across a network."""
    if is_database(address):
        return
    kind = network_disk(Path(address))
    way_out = "give --ledger postgresql://USER@HOST/DATABASE?sweep=NAME"
    if kind and several_machines:
        raise InputError(
            f"`--ledger` must be a database where workers run on several machines: {address} is a "
            f"file on a network disk ({kind}), whose locks do not hold between machines; {way_out}"
        )
    if kind:
        note(
            f"note: {address} is on a network disk ({kind}); never start a second machine on it: "
            f"{way_out}"
        )


def _check_space(path: Path, specs: Sequence[RunSpec]) -> None:
    """Refuse to start where the checkpoints would not fit."""
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
    """Plan failed runs again, and diverged ones if asked to; returns their names.

    Raises
    ------
    InputError
        A named run is not in the ledger, or is in no state to be planned again.
    """
    states = (FAILED, DIVERGED) if diverged else (FAILED,)
    known = {entry.run_id: entry.state for entry in ledger.entries()}
    for run_id in run_ids or ():
        state = known.get(run_id)
        if state is None:
            raise InputError(f"the sweep has no run {run_id!r}; `shapelaw sweep status` lists them")
        if state not in states:
            way_out = "; give --diverged too" if state == DIVERGED else ""
            raise InputError(
                f"`state` of {run_id} must be {' or '.join(states)}, but is {state}{way_out}"
            )
    again = [name for name, state in known.items() if state in states]
    again = [name for name in again if not run_ids or name in run_ids]
    ledger.retry(states=states, run_ids=again)
    return again
