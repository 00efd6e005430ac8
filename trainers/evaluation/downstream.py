"""Downstream tasks of a trained model: BLiMP by a path of our own, the rest through lm-eval."""

from collections.abc import Sequence

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.evaluation.blimp import blimp_accuracy
from shapelaw.trainers.evaluation.eval_sets import BLIMP, EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import Score
from shapelaw.trainers.evaluation.tasks import ALIASES, TASKS, file_of
from shapelaw.trainers.models.transformer import Transformer


def read_tasks(text: str, evals: EvalFiles) -> tuple[str, ...]:
    """Task names from ``blimp,lambada``, each once and with its file at hand.

    Raises
    ------
    InputError
        A task is not known, or its file is missing.
    """
    names = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
    tasks = tuple(dict.fromkeys(ALIASES.get(name, name) for name in names))
    paradigms = [f"{BLIMP}_{name}" for name in evals.names(BLIMP)]
    for task in tasks:
        if task == BLIMP and not paradigms:
            evals.items(f"{BLIMP}/*.jsonl")  # says what is missing
        if task in TASKS:
            evals.items(file_of(task))
        elif task != BLIMP and task not in paradigms:
            known = ", ".join((BLIMP, *TASKS))
            raise InputError(
                f"a task must be one of {known} (or {BLIMP}_PARADIGM), but got {task!r}"
            )
    if not tasks:
        raise InputError(f"`--tasks` must name at least one of {', '.join((BLIMP, *TASKS))}")
    return tasks


def score_tasks(
    model: Transformer,
    encoding: Encoding,
    evals: EvalFiles,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
) -> list[Score]:
    """Score a model on tasks, in their order.

    Parameters
    ----------
    tasks
        As :func:`read_tasks` gives them.
    limit
        Items of each task, the first ones (of BLiMP: pairs of each paradigm); all by default.

    Raises
    ------
    InputError
        The tokenizer is not that of the model, or lm-eval is needed and not installed.
    """
    if encoding.vocab_size > model.shape.vocab_size:
        raise InputError(
            f"`tokenizer's tokens <= vocab_size` must hold, but got {encoding.vocab_size} and "
            f"{model.shape.vocab_size}; give the folder of the corpus that the model was trained on"
        )
    scores = []
    for task in tasks:
        if task == BLIMP:
            scores.append(blimp_accuracy(model, encoding, evals, limit=limit))
        else:
            scores.append(_through_harness(model, encoding, evals, task, limit=limit))
    return scores


def _through_harness(
    model: Transformer, encoding: Encoding, evals: EvalFiles, task: str, *, limit: int | None
) -> Score:
    try:
        from shapelaw.trainers.evaluation import lm_eval as harness
    except ImportError as error:
        raise InputError(
            f"the task {task} needs lm-eval ({error}); install it by "
            f"`{installing('lm_eval')}`, or choose --tasks {BLIMP}, which does without"
        ) from None
    return harness.run_task(model, encoding, evals, task, limit=limit)
