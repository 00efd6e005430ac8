"""Scores of a trained model on downstream tasks: BLiMP without lm-eval, other tasks through it."""

from collections.abc import Sequence

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.evaluation.blimp import blimp_accuracy
from shapelaw.trainers.evaluation.eval_sets import BLIMP, EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import Score
from shapelaw.trainers.evaluation.tasks import ALIASES, TASKS, items_of
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.noise import NEXT_TOKEN


def read_tasks(text: str, evals: EvalFiles) -> tuple[str, ...]:
    """Parse a list of task names such as ``blimp,lambada`` and check that their files exist.

    Parameters
    ----------
    text
        Names or aliases of tasks, separated by commas.
    evals
        Evaluation sets.

    Returns
    -------
    tuple of str
        Full names of the tasks without duplicates.

    Raises
    ------
    InputError
        A task is unknown, its file is missing, or there is no task.
    """
    names = dict.fromkeys(part.strip() for part in text.split(",") if part.strip())
    tasks = tuple(dict.fromkeys(ALIASES.get(name, name) for name in names))
    paradigms = [f"{BLIMP}_{name}" for name in evals.names(BLIMP)]
    for task in tasks:
        if task == BLIMP and not paradigms:
            evals.items(f"{BLIMP}/*.jsonl")  # raises an error that names the missing files
        if task in TASKS:
            items_of(task, evals)
        elif task != BLIMP and task not in paradigms:
            choices = ", ".join((BLIMP, *TASKS))
            raise InputError(
                f"`--tasks` must be one or more of {choices} (or {BLIMP}_PARADIGM), "
                f"but got {task!r}"
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
    objective: str = NEXT_TOKEN,
) -> list[Score]:
    """Score a model on tasks, in their order.

    Parameters
    ----------
    model
        Model to score.
    encoding
        Tokenizer of the model.
    evals
        Evaluation sets.
    tasks
        Names of tasks from :func:`read_tasks`.
    limit
        Number of items of each task, the first ones (pairs of each paradigm in BLiMP); all by
        default.
    objective
        Objective that the model was trained by; a diffusion model is scored by its bound.

    Raises
    ------
    InputError
        The tokenizer has more tokens than the model, lm-eval is needed and not installed, or a task
        asks for the most probable continuation of a diffusion model, which a bound does not tell.
    """
    if encoding.vocab_size > model.vocab_size:
        raise InputError(
            f"`tokens of the tokenizer <= vocab_size` must hold, but got {encoding.vocab_size} and "
            f"{model.vocab_size}; give the folder of the corpus that the model was trained on"
        )
    scores = []
    for task in tasks:
        if task == BLIMP:
            scores.append(blimp_accuracy(model, encoding, evals, limit=limit, objective=objective))
        else:
            scores.append(
                _through_harness(model, encoding, evals, task, limit=limit, objective=objective)
            )
    return scores


def _through_harness(
    model: Transformer,
    encoding: Encoding,
    evals: EvalFiles,
    task: str,
    *,
    limit: int | None,
    objective: str,
) -> Score:
    try:
        from shapelaw.trainers.evaluation import lm_eval as harness
    except ImportError as error:
        raise InputError(
            f"the task {task} needs lm-eval ({error}); install it by "
            f"`{installing('lm_eval')}`, or choose --tasks {BLIMP}, which does not need it"
        ) from None
    return harness.run_task(model, encoding, evals, task, limit=limit, objective=objective)
