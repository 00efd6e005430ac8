"""Configurations of downstream tasks in the format of lm-eval: prompts, fields and metrics.

The prompts are those of lm-eval's own tasks, over the fields of the local files. A task whose items
differ has another name: ``hellaswag_val_subset`` is a part of HellaSwag's validation set, and its
scores are not comparable with published ones. This module does not import lm-eval.
"""

from typing import Annotated, Any, TypedDict

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.schema import Count, Within
from shapelaw.trainers.evaluation.eval_sets import BLIMP, EvalFiles


class OpenItem(TypedDict):
    """Item with a text to complete."""

    context: str
    continuation: str


class ChoiceItem(TypedDict):
    """Item with a question, its answers and the number of the right one."""

    query: str
    choices: Annotated[list[str], Within(1)]
    gold: Count


class ContextItem(TypedDict):
    """Item with several contexts of one continuation, and the number of the right one."""

    context_options: Annotated[list[str], Within(1)]
    continuation: str
    gold: Count


class MinimalPair(TypedDict):
    """Item of BLiMP."""

    sentence_good: str
    sentence_bad: str


ACCURACY, NORMALISED = "acc", "acc_norm"
CHOICES: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": " ",
    "metrics": (ACCURACY, NORMALISED),
}
QUESTION = CHOICES | {"doc_to_text": "{{query.strip()}}\nAnswer:"}
# Task -> fields of a configuration; `metrics` becomes its metric_list.
TASKS: dict[str, dict[str, Any]] = {
    "lambada_openai": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + continuation}}",
        "metrics": (ACCURACY,),
    },
    "arc_easy": QUESTION,
    "arc_challenge": QUESTION,
    "piqa": QUESTION,
    "winogrande": {  # the options are contexts, and the continuation after them is scored
        "output_type": "multiple_choice",
        "doc_to_text": "gold",
        "doc_to_choice": "context_options",
        "doc_to_target": "continuation",
        "target_delimiter": " ",
        "metrics": (ACCURACY,),
    },
    "hellaswag_val_subset": CHOICES | {"doc_to_text": "{{query}}"},
}
# A sentence begins a document, without a space before it, unlike in lm-eval's own task.
PARADIGM: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "",
    "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
    "doc_to_target": 0,
    "target_delimiter": "",
    "metrics": (ACCURACY,),
}
# Task -> type of its items; the others are questions with choices, or paradigms of BLiMP.
ITEMS: dict[str, type] = {"lambada_openai": OpenItem, "winogrande": ContextItem}
ALIASES = {"lambada": "lambada_openai", "hellaswag": "hellaswag_val_subset"}


def task_configuration(task: str) -> dict[str, Any]:
    """Return the configuration of a task or of a paradigm of BLiMP (``blimp_PARADIGM``)."""
    return TASKS.get(task, PARADIGM)


def file_of(task: str) -> str:
    """Return the path of the file with the items of a task."""
    if task in TASKS:
        return f"tasks/{task}.jsonl"
    return f"{BLIMP}/{task.removeprefix(f'{BLIMP}_')}.jsonl"


def items_of(task: str, evals: EvalFiles) -> list[dict[str, Any]]:
    """Read the items of a task.

    Raises
    ------
    InputError
        The file is missing, or a line of it is no item of the task.
    """
    kind = ITEMS.get(task, ChoiceItem if task in TASKS else MinimalPair)
    items = evals.items(file_of(task), kind)
    options = TASKS.get(task, {}).get("doc_to_choice")
    for number, item in enumerate(items, start=1):
        if options and item["gold"] >= len(item[options]):
            raise InputError(
                f"`gold < {len(item[options])}` must hold in {file_of(task)} line {number}, the "
                f"number of the right answer from 0, but got {item['gold']}; correct the line"
            )
    return items


def chance_of(task: str, items: list[dict[str, Any]]) -> float:
    """Return the expected accuracy of guessing.

    This is the mean of 1 / number of choices over the items, and 0 for free answers.
    """
    if task not in TASKS:
        return 0.5
    field = TASKS[task].get("doc_to_choice")
    return sum(1 / len(item[field]) for item in items) / len(items) if field else 0.0
