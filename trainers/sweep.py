"""Train every planned run that the ledger lacks: one process per core, one thread each."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.errors import InputError, WorkError
from scaling.printing import note
from scaling.runs import check_numbers, read_table, require_columns
from scaling.shape import INTEGER_FIELDS, Shape
from trainers.corpus import Corpus, count_windows
from trainers.ledger import DIVERGED, PLANNED, RUNNING, Entry, Ledger
from trainers.loop import Diverged, train
from trainers.optim import Recipe
from trainers.rows import settings_row
from trainers.spec import RunSpec

BEAT_SECONDS = 1.0
POLL_SECONDS = 0.25
MEBIBYTE = 2**20


class Orphaned(RuntimeError):
    """The process that started this worker is gone, or the row belongs to another worker."""


@dataclass(frozen=True)
class Folder:
    """Where a sweep keeps its things."""

    path: Path

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.path / "ledger.sqlite"

    @property
    def corpus(self) -> Path:
        """The prepared corpus."""
        return self.path / "corpus"

    def run(self, run_id: str) -> Path:
        """Checkpoint, weights and held-out losses of one run."""
        return self.path / "runs" / run_id


def run_name(shape: Shape, tokens: int, seed: int) -> str:
    """A name for a run that says what it is."""
    qk = "-qk" if shape.qk_norm else ""
    heads = f"{shape.num_attention_heads}-{shape.num_key_value_heads}x{shape.head_dim}"
    size = f"d{shape.hidden_size}-L{shape.num_hidden_layers}"
    return f"{size}-h{heads}-f{shape.intermediate_size}{qk}-t{tokens}-s{seed}"


def read_plan(path: Path, corpus: Corpus, recipe: Recipe) -> list[RunSpec]:
    """Read a plan: one run per row, the fields of a shape and ``tokens``.

    ``seed``, ``data_seed``, ``role``, ``run_id``, ``branches`` (token counts with ``;`` between
    them) and any field of the recipe may be columns too; the vocabulary is that of the corpus.

    Raises
    ------
    InputError
        A column is missing or a value breaks a rule; the line is named.
    """
    plan = read_table(path)
    require_columns(
        plan, (*(name for name in INTEGER_FIELDS if name != "vocab_size"), "tokens"), str(path)
    )
    check_numbers(plan, ["tokens"], str(path))
    specs = []
    for line, row in enumerate(plan.to_dict("records"), start=2):
        row = {name: value for name, value in row.items() if not pd.isna(value)}
        try:
            specs.append(_spec(row, corpus, recipe))
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"{path} line {line}: {error}") from None
    if len({spec.run_id for spec in specs}) < len(specs):
        raise InputError(
            f"{path}: every row must differ in shape, tokens or seed, or have a run_id"
        )
    return specs


def _spec(row: dict[Any, Any], corpus: Corpus, recipe: Recipe) -> RunSpec:
    vocabulary = int(row.get("vocab_size", corpus.vocab_size))
    if vocabulary != corpus.vocab_size:
        raise InputError(
            f"`vocab_size` must be the corpus's {corpus.vocab_size}, but got {vocabulary}"
        )
    shape = Shape.from_config(row | {"vocab_size": corpus.vocab_size})
    changes = {name: row[name] for name in asdict(recipe) if name in row}
    for name in ("seed", "data_seed", "context_length", "sequences"):
        value = float(row.get(name, 1))
        if value < 0 or not value.is_integer():
            raise InputError(f"`{name}` must be a whole number, but got {value:g}")
    settings = {name: type(getattr(recipe, name))(value) for name, value in changes.items()}
    count_windows(corpus.tokens_train, int(settings.get("context_length", recipe.context_length)))
    tokens, seed = round(float(row["tokens"])), int(row.get("seed", 0))
    return RunSpec(
        run_id=str(row.get("run_id", run_name(shape, tokens, seed))),
        shape=shape,
        tokens=tokens,
        recipe=Recipe(**(asdict(recipe) | settings)),
        seed=seed,
        data_seed=int(row.get("data_seed", 0)),
        role=str(row.get("role", "proxy")),
        branches=tuple(
            round(float(count)) for count in str(row.get("branches", "")).split(";") if count
        ),
    )


def run_plan(
    specs: Sequence[RunSpec],
    corpus: Corpus,
    folder: Folder,
    *,
    workers: int | None = None,
    report: Callable[[list[Entry]], None] = lambda entries: None,
) -> pd.DataFrame:
    """Train what the ledger lacks and return the run table of these specs.

    Parameters
    ----------
    workers
        Processes; by default one per core.
    report
        Called several times a second with the entries of these runs, for a progress display.

    Raises
    ------
    WorkError
        A run failed; finished rows are kept, and the same call goes on from there. A run that
        diverged is no failure of the work: it has a row, with its status and without a loss.
    """
    _check_space(folder.path, specs)
    ledger = Ledger(folder.ledger)
    ledger.plan(specs, [spec.identity(corpus) for spec in specs])
    ledger.retry()
    wanted = {spec.run_id for spec in specs}

    def current() -> list[Entry]:
        return [entry for entry in ledger.entries() if entry.run_id in wanted]

    unfinished = [entry for entry in current() if entry.state in (PLANNED, RUNNING)]
    if unfinished:
        _work(folder, min(workers or cores(), len(unfinished)), lambda: report(current()))
    entries = current()
    report(entries)
    broken = [entry for entry in entries if entry.row is None]
    if broken:
        first = broken[0]
        raise WorkError(
            f"{len(broken)} of {len(entries)} runs did not finish; {first.run_id} {first.state}: "
            f"{first.message or 'its worker ended early'}; start again to go on"
        )
    return pd.DataFrame([entry.row for entry in entries])


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


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


def _work(folder: Folder, workers: int, report: Callable[[], None]) -> None:
    """Run worker processes until none has anything left to do."""
    context = multiprocessing.get_context("spawn")
    arguments = (str(folder.path), os.getpid())
    processes = [
        context.Process(target=worker, args=arguments, daemon=True) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            report()
            time.sleep(POLL_SECONDS)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def worker(path: str, parent: int) -> None:
    """Take runs from the ledger until none is left; end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its workers
    try:
        _take_runs(Folder(Path(path)), parent)
    except WorkError as error:
        note(f"worker: {error}")
        raise SystemExit(1) from None


def _take_runs(folder: Folder, parent: int) -> None:
    ledger = Ledger(folder.ledger)
    corpus = Corpus.load(folder.corpus)
    while os.getppid() == parent:
        spec = ledger.claim()
        if spec is None:
            if not any(entry.state == RUNNING for entry in ledger.entries()):
                return
            time.sleep(POLL_SECONDS)  # another worker may die and leave its row
            continue
        _train_one(spec, corpus, folder, ledger, parent)


def _train_one(spec: RunSpec, corpus: Corpus, folder: Folder, ledger: Ledger, parent: int) -> None:
    last = 0.0

    def watch(step: int) -> None:
        nonlocal last
        if os.getppid() != parent:
            raise Orphaned
        if time.monotonic() - last >= BEAT_SECONDS:
            last = time.monotonic()
            if not ledger.beat(spec.run_id, step):
                raise Orphaned

    try:
        ledger.finish(spec.run_id, train(spec, corpus, folder.run(spec.run_id), watch=watch))
    except Orphaned:
        return
    except Diverged as error:
        row = settings_row(spec, corpus, status=DIVERGED)
        ledger.diverge(spec.run_id, str(error), row)
    except Exception as error:  # whatever it is, the other runs of the plan go on
        ledger.fail(spec.run_id, f"{type(error).__name__}: {error}")


def existing_ledger(path: Path) -> Ledger:
    """The ledger of a sweep's folder.

    Raises
    ------
    InputError
        There is none.
    """
    folder = Folder(path)
    if not folder.ledger.exists():
        raise InputError(f"{path} has no ledger.sqlite; give the --out folder of a sweep")
    return Ledger(folder.ledger)
