"""Configurations of downstream tasks in the format of lm-eval: prompts, fields and metrics.

The prompts are those of lm-eval's own tasks, over the fields of the local files. A task whose items
differ has another name: ``hellaswag_val_subset`` is a part of HellaSwag's validation set, and its
scores are not comparable with published ones. This module does not import lm-eval.
"""

from typing import Any

from shapelaw.trainers.evaluation.eval_sets import BLIMP

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
ALIASES = {"lambada": "lambada_openai", "hellaswag": "hellaswag_val_subset"}


def task_configuration(task: str) -> dict[str, Any]:
    """Return the configuration of a task or of a paradigm of BLiMP (``blimp_PARADIGM``)."""
    return TASKS.get(task, PARADIGM)


def file_of(task: str) -> str:
    """Return the path of the file with the items of a task."""
    if task in TASKS:
        return f"tasks/{task}.jsonl"
    return f"{BLIMP}/{task.removeprefix(f'{BLIMP}_')}.jsonl"


def chance_of(task: str, items: list[dict[str, Any]]) -> float:
    """Return the expected accuracy of guessing.

    This is the mean of 1 / number of choices over the items, and 0 for free answers.
    """
    if task not in TASKS:
        return 0.5
    field = TASKS[task].get("doc_to_choice")
    return sum(1 / len(item[field]) for item in items) / len(items) if field else 0.0
