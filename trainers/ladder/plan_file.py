"""Plans of runs as files: tables with one run per row."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.architectures.shape_config import read_trainable
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import parse_json
from shapelaw.scaling.runs.mapping import read_rows, require_or_suggest
from shapelaw.scaling.runs.validation import check_numbers
from shapelaw.trainers.corpus.batches import count_windows
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec, model_for, run_name


def read_plan(
    path: Path, corpus: Corpus, recipe: Recipe, columns: str | None = None
) -> list[RunSpec]:
    """Read a plan of runs from a table.

    Parameters
    ----------
    path
        Table with one run per row. ``tokens`` and the fields of a shape, or ``config`` (a Hugging
        Face config of any family as JSON), are required columns.
        ``seed``, ``data_seed``, ``role``, ``run_id``, ``branches`` (token counts separated by
        ``;``) and any field of the recipe are optional ones.
    corpus
        Corpus of the runs, which determines the vocabulary size.
    recipe
        Recipe for the fields that are not columns.
    columns
        Changes of the columns, as :class:`shapelaw.scaling.runs.mapping.ColumnMapping` parses them.

    Raises
    ------
    InputError
        A column is missing, a value breaks a rule, or two runs have the same name. The error names
        the line of the value.
    """
    plan = read_rows(path, columns)
    shape = [name for name in INTEGER_FIELDS if name != "vocab_size"]
    needed = ["config"] if "config" in plan else shape
    require_or_suggest(plan, (*needed, "tokens"), str(path))
    check_numbers(plan, ["tokens"], str(path))
    specs = []
    for line, row in enumerate(plan.to_dict("records"), start=2):
        row = {name: value for name, value in row.items() if not pd.isna(value)}
        try:
            specs.append(_spec(row, corpus, recipe))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path} line {line}: {error}") from None
    if len({spec.run_id for spec in specs}) < len(specs):
        raise InputError(
            f"{path}: `run_id` must be unique, but two rows have the same; change the "
            "shape, tokens or seed of one row, or give it a run_id"
        )
    return specs


def _fields(row: dict[Any, Any]) -> dict[Any, Any]:
    """Return the fields of the model: those of the column ``config``, or of the shape."""
    if "config" not in row:
        return row
    config = parse_json(str(row["config"]), "the column `config`")
    if not isinstance(config, dict):
        raise InputError(
            f"`config` must be a Hugging Face config as a JSON object, but got {shown(config)}; "
            'write the text of a config.json, such as {"model_type": "gpt2"}'
        )
    return config


def _spec(row: dict[Any, Any], corpus: Corpus, recipe: Recipe) -> RunSpec:
    vocabulary = int(row.get("vocab_size", corpus.vocab_size))
    if vocabulary != corpus.vocab_size:
        raise InputError(
            f"`vocab_size` must be {corpus.vocab_size}, that of the corpus, but got {vocabulary}; "
            "correct it or leave the column out"
        )
    shape = read_trainable(_fields(row) | {"vocab_size": corpus.vocab_size})
    changes = {name: row[name] for name in asdict(recipe) if name in row}
    for name in ("seed", "data_seed", "context_length", "sequences"):
        value = float(row.get(name, 1))
        if value < 0 or not value.is_integer():
            raise InputError(f"`{name}` must be a whole number, but got {value:g}")
    settings = {name: type(getattr(recipe, name))(value) for name, value in changes.items()}
    count_windows(corpus.tokens_train, int(settings.get("context_length", recipe.context_length)))
    tokens, seed = round(float(row["tokens"])), int(row.get("seed", 0))
    recipe = Recipe(**(asdict(recipe) | settings))
    shape = model_for(recipe, shape)
    return RunSpec(
        run_id=str(row.get("run_id", run_name(shape, tokens, seed, recipe.objective))),
        shape=shape,
        tokens=tokens,
        recipe=recipe,
        seed=seed,
        data_seed=int(row.get("data_seed", 0)),
        role=str(row.get("role", "proxy")),
        branches=tuple(
            round(float(count)) for count in str(row.get("branches", "")).split(";") if count
        ),
    )
