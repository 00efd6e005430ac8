"""Adapter of a trained model to lm-eval, and lm-eval's tasks over local items.

This module needs lm-eval (``pip install "shapelaw[eval]"``). Nothing is downloaded, because the
items come from :mod:`shapelaw.trainers.evaluation.eval_sets`.
"""

import contextlib
import io
import logging
from importlib.metadata import version
from typing import Any

from datasets import Dataset
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.encoding import Encoding
from shapelaw.trainers.evaluation.bounds import DRAWS, log_probabilities
from shapelaw.trainers.evaluation.eval_sets import EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import (
    LogLikelihoodRequest,
    Score,
    request_of,
)
from shapelaw.trainers.evaluation.tasks import (
    ACCURACY,
    NORMALISED,
    chance_of,
    file_of,
    items_of,
    task_configuration,
)
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.noise import NEXT_TOKEN


class LanguageModel(LM):  # type: ignore[misc]  # lm-eval has no types
    """lm-eval's model interface over a :class:`Transformer` and its tokenizer.

    ``truncated`` counts the requests so far that were longer than the model's context. A diffusion
    model is scored by its bound, with the same masks for all answers to one item.
    """

    def __init__(self, model: Transformer, encoding: Encoding, objective: str = NEXT_TOKEN) -> None:
        super().__init__()
        self.model, self.encoding, self.objective = model, encoding, objective
        self.truncated = 0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability and whether greedy decoding gives it."""
        scored = []
        for request in requests:
            context, continuation = request.args
            scored.append(request_of(self.encoding, context, continuation, request.doc_id or 0))
        return self._score(scored)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-probability of each text as a document of its own."""
        texts = [request_of(self.encoding, "", request.args[0]) for request in requests]
        return [value for value, _ in self._score(texts)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Refuse to generate text, because no supported task needs generation."""
        raise InputError(
            "a task that generates text is not supported; choose a multiple-choice task"
        )

    def _score(self, requests: list[LogLikelihoodRequest]) -> list[tuple[float, bool]]:
        results = log_probabilities(self.model, requests, self.objective)
        self.truncated += results.truncated
        greedy = [False] * len(requests) if results.greedy is None else results.greedy.tolist()
        return list(zip(results.log_probability.tolist(), greedy, strict=True))


def run_task(
    model: Transformer,
    encoding: Encoding,
    evals: EvalFiles,
    task: str,
    *,
    limit: int | None = None,
    objective: str = NEXT_TOKEN,
) -> Score:
    """Score a model on a task through lm-eval.

    Parameters
    ----------
    model
        Model to score.
    encoding
        Tokenizer of the model.
    evals
        Evaluation sets.
    task
        Key of :data:`~shapelaw.trainers.evaluation.tasks.TASKS`, or ``blimp_PARADIGM``.
    limit
        Number of items, the first ones; all by default.
    objective
        Objective that the model was trained by.

    Raises
    ------
    InputError
        The evaluation sets lack the file of the task, or the task asks for the most probable
        continuation of a diffusion model.
    """
    items = items_of(task, evals)[:limit]
    masked = objective != NEXT_TOKEN
    if masked and task_configuration(task)["output_type"] == "loglikelihood":
        raise InputError(
            f"`--tasks` must compare answers where a diffusion model is scored, but {task} asks "
            "for the most probable continuation, which a bound does not tell; leave it out"
        )
    lm = LanguageModel(model, encoding, objective)
    metrics = _metrics(lm, task, items)
    has_normalised = f"{NORMALISED},none" in metrics
    settings = task_configuration(task)
    return Score(
        task=task,
        accuracy=float(metrics[f"{ACCURACY},none"]),
        standard_error=_error(metrics, ACCURACY),
        chance=chance_of(task, items),
        items=len(items),
        truncated=lm.truncated,
        normalised=float(metrics[f"{NORMALISED},none"]) if has_normalised else None,
        normalised_standard_error=_error(metrics, NORMALISED) if has_normalised else None,
        details={
            "harness": harness_name(),
            "files": {file_of(task): evals.sha256(file_of(task))},
            "limit": limit,
            "settings": settings | {"metrics": list(settings["metrics"])},
            **({"loss_kind": "bound", "draws": DRAWS} if masked else {}),
        },
    )


def harness_name() -> str:
    """Return name and version of the harness, for the records of the scores."""
    return f"lm-eval {version('lm-eval')}"


def _metrics(lm: LanguageModel, task: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Run lm-eval on items and return the metrics by the names that lm-eval gives them."""
    settings = dict(task_configuration(task))
    metrics = settings.pop("metrics")
    config = settings | {
        "task": task,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(items)},
        "test_split": "test",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
    }
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # lm-eval warns of every local dataset
    errors = 1 if len(items) > 1 else 0  # positive: closed-form error of a mean, no bootstrap
    with contextlib.redirect_stderr(io.StringIO()):  # hides progress bars
        built = ConfigurableTask(config=config)
        results = evaluator.evaluate(lm, {task: built}, bootstrap_iters=errors, log_samples=False)
    of_task: dict[str, Any] = results["results"][task]
    return of_task


def _error(metrics: dict[str, Any], metric: str) -> float:
    value = metrics.get(f"{metric}_stderr,none", "N/A")
    return 0.0 if value == "N/A" else float(value)
