"""Downstream scores of every exported model of a sweep, stored beside the models."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict

import pandas as pd

from shapelaw.scaling.display.console import hide_warnings
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import sha256, write_json
from shapelaw.scaling.schema import Name, read_document
from shapelaw.scaling.signals import interrupts_left_to_parent
from shapelaw.trainers.corpus.encoding import TOKENIZER_FILE, load_encoding
from shapelaw.trainers.evaluation.bounds import trained_objective
from shapelaw.trainers.evaluation.downstream import score_tasks
from shapelaw.trainers.evaluation.eval_sets import BLIMP, EvalFiles, read_evals
from shapelaw.trainers.evaluation.loglikelihood import Score
from shapelaw.trainers.evaluation.tasks import file_of
from shapelaw.trainers.models.hugging_face import WEIGHTS, load_export
from shapelaw.trainers.sweep.folder import Folder, existing_ledger
from shapelaw.trainers.sweep.launchers._local import cores

SCORES = "scores.json"
SCHEMA = 1
ORPHAN_CHECK_SECONDS = 2.0
# Receives the number of scored models and of all models.
Report = Callable[[int, int], None]


class StoredScores(TypedDict):
    """Content of ``scores.json``, with the SHA-256 of the weights that were scored."""

    schema_version: Literal[1]
    weights: Name
    scores: dict[Name, Score]


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """One exported model and its tasks; ``corpus`` has the tokenizer if the model has none."""

    run: Path
    corpus: Path
    evals: Path
    tasks: tuple[str, ...]
    limit: int | None = None


def score_exports(
    sweep: Path,
    evals: Path,
    *,
    tasks: Sequence[str] = (BLIMP,),
    limit: int | None = None,
    workers: int | None = None,
    report: Report = lambda done, total: None,
    ledger: str | None = None,
) -> pd.DataFrame:
    """Score every exported model of a sweep and return its run table with columns of accuracy.

    Scores are stored in ``scores.json`` beside each model, with the digests of its weights and of
    the items. Stored scores with the same digests are not computed again, so that an interrupted
    call can be repeated.

    Parameters
    ----------
    sweep
        Folder of a sweep.
    evals
        Evaluation sets; see :func:`shapelaw.trainers.evaluation.eval_sets.read_evals`.
    tasks
        Names of tasks, as from :func:`shapelaw.trainers.evaluation.downstream.read_tasks`.
    limit
        Number of items of each task; all by default.
    workers
        Number of processes with one thread each; by default one per core.
    report
        Function that is called with the number of scored models and of all models.
    ledger
        Address of a ledger outside the folder.

    Returns
    -------
    pandas.DataFrame
        Run table with ``accuracy_TASK`` and ``accuracy_TASK_se`` (and ``_norm``). The values are
        missing for runs without an exported model, which ``frame.attrs["left_out"]`` names.

    Raises
    ------
    InputError
        There is no such sweep, or no run of it has an exported model.
    WorkError
        A model could not be scored; the scores of the others are kept.
    """
    folder = Folder(sweep)
    table = existing_ledger(sweep, ledger).table()
    ready = folder.exported(table)
    jobs = [
        EvaluationJob(run=folder.run(name), corpus=folder.corpus, evals=evals, tasks=tuple(tasks),
            limit=limit)
        for name in ready
    ]  # fmt: skip
    scored = dict(zip(ready, score_jobs(jobs, workers=workers, report=report), strict=True))
    table = with_scores(table, scored)
    table.attrs["left_out"] = [name for name in table["run_id"].astype(str) if name not in scored]
    return table


def with_scores(table: pd.DataFrame, scored: dict[str, list[Score]]) -> pd.DataFrame:
    """Add the columns of scores to a run table by ``run_id``, replacing columns of these names."""
    columns = {
        name: {column: value for score in scores for column, value in score.columns().items()}
        for name, scores in scored.items()
    }
    added = pd.DataFrame.from_dict(columns, orient="index")
    kept = table.drop(columns=[name for name in added if name in table])
    return kept.join(added, on="run_id")


def score_jobs(
    jobs: Sequence[EvaluationJob],
    *,
    workers: int | None = None,
    report: Report = lambda done, total: None,
) -> list[list[Score]]:
    """Score every job in processes of one thread each.

    Parameters
    ----------
    jobs
        Models and tasks.
    workers
        Number of processes; by default one per core.
    report
        Function that is called with the number of finished jobs and of all jobs.

    Returns
    -------
    list of list of Score
        Scores of each job.

    Raises
    ------
    WorkError
        A job failed. The other jobs are finished before the error is raised.
    """
    read_evals(jobs[0].evals)  # raises its errors before processes start
    results: dict[int, list[Score]] = {}
    failures: list[tuple[EvaluationJob, BaseException]] = []
    with _processes(min(workers or cores(), len(jobs))) as pool:
        with interrupts_left_to_parent():
            futures = {pool.submit(score_run, job): index for index, job in enumerate(jobs)}
        for done, future in enumerate(as_completed(futures), start=1):
            index = futures[future]
            error = future.exception()
            if error is None:
                results[index] = future.result()
            else:
                failures.append((jobs[index], error))
            report(done, len(jobs))
    if failures:
        job, error = failures[0]
        kind = InputError if isinstance(error, InputError) else WorkError
        raise kind(
            f"{len(failures)} of {counted(len(jobs), 'model')} have no score; "
            f"{job.run.name}: {error}"
        )
    return [results[index] for index in range(len(jobs))]


@contextmanager
def _processes(number: int) -> Iterator[ProcessPoolExecutor]:
    """Start a pool of processes, which are ended at once when the block is left by an exception."""
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(
        number, mp_context=context, initializer=_begin, initargs=(os.getpid(),)
    ) as pool:
        try:
            yield pool
        except BaseException:  # any interruption: no worker outlives the command
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise


def _begin(parent: int) -> None:
    """Use one thread in a process, and end the process when its parent has ended."""
    import torch

    hide_warnings()
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def score_run(job: EvaluationJob) -> list[Score]:
    """Return the scores of one exported model; compute those that are not stored in its folder."""
    evals = _evals(job.evals)
    path = job.run / SCORES
    weights = sha256(job.run / WEIGHTS)
    scores = _stored(path, weights)
    missing = [task for task in job.tasks if not _fits(scores.get(task), task, job.limit, evals)]
    if missing:
        model = load_export(job.run, attention="matmul")
        place = job.run if (job.run / TOKENIZER_FILE).exists() else job.corpus
        encoding = load_encoding(place)
        objective = trained_objective(job.run, model)
        for task in missing:
            (scores[task],) = score_tasks(
                model, encoding, evals, [task], limit=job.limit, objective=objective
            )
            document = {"schema_version": SCHEMA, "weights": weights, "scores": json_ready(scores)}
            write_json(path, document)
    return [scores[task] for task in job.tasks]


@cache
def _evals(path: Path) -> EvalFiles:
    return read_evals(path)


def _stored(path: Path, weights: str) -> dict[str, Score]:
    """Read the stored scores of these weights; none from a damaged file or for other weights."""
    try:
        stored = read_document(path, StoredScores, "")
    except InputError:
        return {}
    return stored["scores"] if stored["weights"] == weights else {}


def _fits(score: Score | None, task: str, limit: int | None, evals: EvalFiles) -> bool:
    """Return True if a score was computed on the same items."""
    names = [f"{BLIMP}/{name}.jsonl" for name in evals.names(BLIMP)]
    files = {name: evals.sha256(name) for name in (names if task == BLIMP else [file_of(task)])}
    expected: dict[str, Any] = {"files": files, "limit": limit}
    return score is not None and {key: score.details.get(key) for key in expected} == expected
