"""Fits of links from loss to downstream accuracy, per task and over a fixed set of tasks.

A table has one row per model: a loss column, ``accuracy_<task>`` as fractions and, for two steps,
``bpb_<task>``, the bits per byte of the correct answers. A link holds for losses on the validation
set that it was fitted on and for no other. To predict accuracy from N and D by way of a task's own
loss (arXiv 2412.04403), fit a law to ``bpb_<task>`` and link that column by a sigmoid:
``loss="bpb_<task>"``.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from shapelaw.scaling.accuracy.curves import (
    FORMS,
    Curve,
    Form,
    Sigmoid,
    Solved,
    TwoStep,
    joint_covariance,
    solve,
)
from shapelaw.scaling.accuracy.files import load_links
from shapelaw.scaling.accuracy.link import Link, Links, LinkStage, with_other
from shapelaw.scaling.accuracy.predictions import LinkSource, Task
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder
from shapelaw.scaling.runs.table import RunTable, as_run_table, fingerprint
from shapelaw.scaling.runs.validation import (
    check_numbers,
    require_columns,
    require_comparable_losses,
)

MIN_ERRORS_ABOVE_CHANCE = 3.0  # standard errors by which a model must exceed chance to count
MIN_SPARE_ROWS = 2  # rows beyond the parameters; with fewer the noise cannot be estimated
SOURCE = "the table of models"


def fit_links(
    table: RunTable | pd.DataFrame,
    tasks: Sequence[str | Task],
    *,
    form: str | Form = "sigmoid",
    loss: str = "loss_c4_en",
    validation: str | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Links:
    """Fit links from loss to accuracy over a fixed set of tasks, on the same models.

    Parameters
    ----------
    table
        One row per model, its final checkpoint; rows are taken as independent.
    tasks
        Names of known tasks (:func:`known_tasks`), or tasks with their chance levels.
    form
        A name in :data:`shapelaw.scaling.accuracy.curves.FORMS`, or a form, such as
        ``Sigmoid(ceiling=1.0)``.
    loss
        The column of losses, in nats per token.
    validation
        The name of the validation set of the losses; by default the part of the column's name
        after ``loss_``.
    provenance
        Source, licence, tokenizer, metric and the like, as texts by name.

    Returns
    -------
    One link per task with their joint covariance. Where the form has a fitted ceiling, intervals
    beyond the fitted losses also span a second fit with the ceiling held at 1.

    Raises
    ------
    InputError
        A task or column is missing, a value breaks a rule, there are too few models, or the
        accuracies of a task are within noise of chance.
    """
    if not tasks:
        raise InputError("`tasks` must name at least one task, but is empty; name a task")
    chosen = [task if isinstance(task, Task) else _known_task(task) for task in tasks]
    form = _form(form)
    used = _checked(as_run_table(table).frame, chosen, form, loss)
    losses = used[loss].to_numpy(dtype=float)
    solved = [_solve(form, task, losses, used) for task in chosen]
    for task, steps in zip(chosen, solved, strict=True):
        _check_chance(task, used[f"accuracy_{task.name}"].to_numpy(dtype=float), steps[-1])
    measured = _source(used, loss, validation or _validation(loss), dict(provenance or {}))
    links = _joined(chosen, solved, form.name, measured)
    held_form = _with_ceiling_one(form)
    if held_form is None:
        return links
    other = [_solve(held_form, task, losses, used) for task in chosen]
    return with_other(links, _joined(chosen, other, f"{form.name}, ceiling 1", measured))


def held_out(
    links: Links, table: RunTable | pd.DataFrame, *, loss: str | None = None
) -> pd.DataFrame:
    """Compare measured against predicted accuracies of models that were not fitted.

    Parameters
    ----------
    links
        Links that were fitted on other models.
    table
        A table as for :func:`fit_links`, with every task of the set.
    loss
        The column of losses, in nats per token; by default that of the links' validation set.

    Returns
    -------
    One row per model and task, and one per model for the mean over the set. ``error`` is predicted
    minus measured accuracy, a fraction; ``inside`` is true where the 95 % interval contains the
    measured accuracy.

    Raises
    ------
    InputError
        A column is missing, or a model was fitted.
    """
    column = loss or f"loss_{links.measured.validation}"
    used = _checked(as_run_table(table).frame, [link.task for link in links.links], None, column)
    if fitted := sorted(set(used["run_id"]) & set(links.measured.run_ids)):
        raise InputError(
            f"`table` must not be fitted models, but `{fitted[0]}` is one; give other models only"
        )
    rows = []
    for row in used.to_dict("records"):
        measured = {task: float(row[f"accuracy_{task}"]) for task in links.tasks}
        measured["mean"] = float(np.mean(list(measured.values())))
        answers = links.predict(float(row[column]), validation=links.measured.validation)
        for answer in answers:
            low, high = float(answer.low or 0), float(answer.high or 0)
            truth = measured[answer.task]
            rows.append(
                {
                    "run_id": row["run_id"],
                    "task": answer.task,
                    "chance": answer.chance,
                    "loss": answer.loss,
                    "measured": truth,
                    "predicted": answer.value,
                    "low": low,
                    "high": high,
                    "error": float(answer.value or 0) - truth,
                    "inside": low <= truth <= high,
                }
            )
    return pd.DataFrame(rows)


@cache
def known_tasks() -> dict[str, Task]:
    """Read tasks with chance levels and numbers of test items, ``data/accuracy/tasks.csv``."""
    path = data_folder() / "accuracy" / "tasks.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["task"]: Task(name=row["task"], chance=float(row["chance"]), items=int(row["items"]))
        for row in rows
    }


def load_link(name: str | Path) -> Links:
    """Load the shipped links of a name (``olmo-ladder``), or the links of a file.

    Parameters
    ----------
    name
        The name of shipped links, or the path of a JSON file.

    Raises
    ------
    InputError
        No links of that name are shipped, or the file holds no links.
    """
    path = Path(name)
    if path.suffix == ".json":
        return load_links(path)
    shipped = {path.stem: path for path in (data_folder() / "accuracy").glob("*.json")}
    if str(name) not in shipped:
        raise InputError(
            f"a link's name must be one of {', '.join(sorted(shipped))} or end in .json, "
            f"but got {str(name)!r}"
        )
    return load_links(shipped[str(name)])


def _known_task(name: str) -> Task:
    if name not in known_tasks():
        raise InputError(
            f"`{name}` must be a known task; give its chance level as "
            f'Task(name="{name}", chance=...), or use one of {", ".join(known_tasks())}'
        )
    return known_tasks()[name]


def _form(form: str | Form) -> Form:
    if not isinstance(form, str):
        return form
    if form not in FORMS:
        raise InputError(f"`form` must be one of {', '.join(FORMS)}, but got {form!r}")
    return FORMS[form]


def _with_ceiling_one(form: Form) -> Form | None:
    """Return the form with its ceiling held at 1, or None where no ceiling is fitted."""
    last = form.second if isinstance(form, TwoStep) else form
    if not isinstance(last, Sigmoid) or last.ceiling is not None:
        return None
    held = Sigmoid(ceiling=1.0)
    return replace(form, second=held) if isinstance(form, TwoStep) else held


def _validation(loss: str) -> str:
    if loss == "loss":
        raise InputError(
            "the column `loss` must come with the validation set of the losses; name the set by "
            '`validation="..."`'
        )
    return loss.removeprefix("loss_")


def _source(
    used: pd.DataFrame, loss: str, validation: str, provenance: dict[str, str]
) -> LinkSource:
    """Describe the models and losses that links are fitted on."""
    return LinkSource(
        validation=validation,
        loss_range=(float(used[loss].min()), float(used[loss].max())),
        run_ids=tuple(used["run_id"]),
        data_sha256=fingerprint(used.drop(columns="tokenizer", errors="ignore")),
        provenance=_tokenizer(used) | provenance,
    )


def _tokenizer(used: pd.DataFrame) -> dict[str, str]:
    return {"tokenizer": str(used["tokenizer"].iloc[0])} if "tokenizer" in used else {}


def _checked(
    table: pd.DataFrame, tasks: Sequence[Task], form: Form | None, loss: str
) -> pd.DataFrame:
    """Select the columns that a fit uses, and refuse values that break a rule."""
    accuracies = [f"accuracy_{task.name}" for task in tasks]
    task_losses = [f"bpb_{task.name}" for task in tasks] if isinstance(form, TwoStep) else []
    require_columns(table, (loss, *accuracies, *task_losses), SOURCE)
    table = table.reset_index(drop=True)  # errors number rows as the lines of a file
    used = table[list(dict.fromkeys((loss, *accuracies, *task_losses)))].copy()
    names = table["run_id"] if "run_id" in table else [f"row-{i}" for i in range(len(table))]
    used.insert(0, "run_id", [str(name) for name in names])
    if "tokenizer" in table:
        used["tokenizer"] = table["tokenizer"]
    if loss == "loss" and "corpus" in table:
        require_comparable_losses(table, SOURCE)
    require_comparable_losses(used, SOURCE)
    repeated = used["run_id"].duplicated()
    if repeated.any():
        raise InputError(
            f"{SOURCE}: `run_id` must be unique, but {used['run_id'][repeated].iloc[0]!r} occurs "
            "twice; keep the final checkpoint of each run"
        )
    check_numbers(used, (loss, *task_losses), SOURCE)
    for name in accuracies:
        values = pd.to_numeric(used[name], errors="coerce")
        broken = ~values.between(0, 1)
        if broken.any():
            raise InputError(
                f"{SOURCE}: `0 <= {name} <= 1` must hold, but {used['run_id'][broken].iloc[0]} has "
                f"{used[name][broken].iloc[0]}; give fractions, and leave out models that lack a "
                "task: a mean needs all tasks of every model"
            )
    numbers = [name for name in used if name not in ("run_id", "tokenizer")]
    return used.astype(dict.fromkeys(numbers, float))


def _solve(form: Form, task: Task, losses: np.ndarray, used: pd.DataFrame) -> list[Solved]:
    """Fit the steps of a form, each to observed values."""
    accuracy = used[f"accuracy_{task.name}"].to_numpy(dtype=float)
    if isinstance(form, TwoStep):
        task_losses = used[f"bpb_{task.name}"].to_numpy(dtype=float)
        steps: list[tuple[Curve, np.ndarray, np.ndarray]]
        steps = [(form.first, losses, task_losses), (form.second, task_losses, accuracy)]
    else:
        steps = [(form, losses, accuracy)]
    solved = []
    for curve, x, y in steps:
        needed = len(curve.bounds(np.array([1.0, 2.0]))) + MIN_SPARE_ROWS
        distinct = len(np.unique(x))
        if distinct < needed:
            raise InputError(
                f"a {curve.name} for `{task.name}` needs at least {needed} models of "
                f"different loss, but got {distinct}; evaluate more models"
            )
        solved.append(solve(curve.settled(x, task.chance), x, y))
    return solved


def _check_chance(task: Task, accuracy: np.ndarray, solved: Solved) -> None:
    """Refuse a task whose accuracies are within noise of guessing."""
    error = task.sampling_error(task.chance)
    error_name = f"the standard error of guessing {task.items} items"
    if error is None:
        error = float(np.sqrt((solved.residuals**2).sum() / solved.degrees))
        error_name = "the noise of models around the curve"
    needed = len(solved.theta)
    above = int((accuracy > task.chance + MIN_ERRORS_ABOVE_CHANCE * error).sum())
    if above < needed:
        raise InputError(
            f"`{task.name}`: at least {needed} models must exceed chance ({task.chance:.4g}) by "
            f"{MIN_ERRORS_ABOVE_CHANCE:g} standard errors ({error:.4f}, {error_name}), but {above} "
            f"of {len(accuracy)} do, the best with {accuracy.max():.4f}; accuracy this close to "
            "chance is only noise: add better models or leave the task out"
        )


def _joined(
    tasks: Sequence[Task], solved: Sequence[Sequence[Solved]], form: str, measured: LinkSource
) -> Links:
    """Build links, each with its block of the joint covariance."""
    covariance, noise = joint_covariance([step for steps in solved for step in steps])
    links = []
    parameter = step = 0
    for task, steps in zip(tasks, solved, strict=True):
        count = sum(len(curve.theta) for curve in steps)
        parameters = slice(parameter, parameter := parameter + count)
        block = slice(step, step := step + len(steps))
        links.append(
            Link(
                task=task,
                form=form,
                stages=tuple(
                    LinkStage(curve=curve.curve, theta=curve.theta, at_bound=curve.at_bound)
                    for curve in steps
                ),
                covariance=covariance[parameters, parameters],
                noise=noise[block, block],
                degrees=min(curve.degrees for curve in steps),
                measured=measured,
                status=_status(steps),
            )
        )
    return Links(links=tuple(links), covariance=covariance, noise=noise)


def _status(steps: Sequence[Solved]) -> str:
    """Describe how the least squares ended."""
    converged = all(curve.converged for curve in steps)
    status = "converged" if converged else "stopped before it converged: do not trust it"
    single = [curve for curve in steps if curve.agreeing == 1 and curve.finished > 1]
    if single:
        status += f"; 1 of {single[-1].finished} finished starts reached the optimum"
    for curve in steps:
        for name in curve.at_bound:
            status += f"; {name} is at its bound: the data do not fix it"
    return status


def with_hold_out(links: Links, errors: pd.DataFrame) -> Links:
    """Attach the rows of :func:`held_out` to links."""
    rows = errors.to_dict("records")
    return replace(links, hold_out=tuple({str(k): v for k, v in row.items()} for row in rows))
