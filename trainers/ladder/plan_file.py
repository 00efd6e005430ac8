"""Read a plan of runs from a table: one run per row."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.validation import check_numbers, require_columns
from shapelaw.trainers.corpus.batches import count_windows
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec, run_name


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
