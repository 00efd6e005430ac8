"""A language model of ours that lm-eval can ask, and its tasks over local items.

Importing this module needs lm-eval (``pip install "shapelaw[eval]"``). Nothing is downloaded: the
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
from shapelaw.trainers.evaluation.eval_sets import EvalFiles
from shapelaw.trainers.evaluation.loglikelihood import (
    LogLikelihoodRequest,
    Score,
    likelihoods,
    request_of,
)
from shapelaw.trainers.evaluation.tasks import ACCURACY, NORMALISED, chance_of, file_of, settings_of
from shapelaw.trainers.models.transformer import Transformer


class LanguageModel(LM):  # type: ignore[misc]  # lm-eval has no types
    """A :class:`Transformer` with its tokenizer, as lm-eval asks models.

    ``truncated`` counts the requests since the start that were longer than the model's context.
    """

    def __init__(self, model: Transformer, encoding: Encoding) -> None:
        super().__init__()
        self.model, self.encoding = model, encoding
        self.truncated = 0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is greedy's."""
        return self._ask([request_of(self.encoding, *request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each text as a document of its own."""
        texts = [request_of(self.encoding, "", request.args[0]) for request in requests]
        return [value for value, _ in self._ask(texts)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """No task here asks for generated text."""
        raise InputError("a task that generates text is not supported; choose tasks of choices")

    def _ask(self, requests: list[LogLikelihoodRequest]) -> list[tuple[float, bool]]:
        found = likelihoods(self.model, requests)
        self.truncated += found.truncated
        return list(zip(found.log_probability.tolist(), found.greedy.tolist(), strict=True))


def run_task(
    model: Transformer, encoding: Encoding, evals: EvalFiles, task: str, *, limit: int | None = None
) -> Score:
    """Score a model on a task of :data:`TASKS`, or on ``blimp_PARADIGM``.

    Raises
    ------
    InputError
        The evaluation sets lack the file of the task.
    """
    items = evals.items(file_of(task))[:limit]
    lm = LanguageModel(model, encoding)
    found = _measure(lm, task, items)
    has_normalised = f"{NORMALISED},none" in found
    settings = settings_of(task)
    return Score(
        task=task,
        accuracy=float(found[f"{ACCURACY},none"]),
        standard_error=_error(found, ACCURACY),
        chance=chance_of(task, items),
        items=len(items),
        truncated=lm.truncated,
        normalised=float(found[f"{NORMALISED},none"]) if has_normalised else None,
        normalised_standard_error=_error(found, NORMALISED) if has_normalised else None,
        details={
            "harness": harness_name(),
            "files": {file_of(task): evals.sha256(file_of(task))},
            "limit": limit,
            "settings": settings | {"metrics": list(settings["metrics"])},
        },
    )


def harness_name() -> str:
    """What the scores of this module were made with."""
    return f"lm-eval {version('lm-eval')}"


def _measure(lm: LanguageModel, task: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of lm-eval over the items, by its names."""
    settings = dict(settings_of(task))
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
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every local dataset
    errors = 1 if len(items) > 1 else 0  # an accuracy's error has a closed form: nothing is drawn
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        built = ConfigurableTask(config=config)
        results = evaluator.evaluate(lm, {task: built}, bootstrap_iters=errors, log_samples=False)
    found: dict[str, Any] = results["results"][task]
    return found


def _error(found: dict[str, Any], metric: str) -> float:
    value = found.get(f"{metric}_stderr,none", "N/A")
    return 0.0 if value == "N/A" else float(value)
