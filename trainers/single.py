"""Train the shape of one config file, through the same ledger as a sweep."""

from pathlib import Path

from scaling.errors import InputError, WorkError
from scaling.files import read_json
from scaling.printing import json_row
from scaling.quantities import parse_count
from scaling.shape import Shape
from trainers.corpus import count_windows, prepare
from trainers.optim import Recipe
from trainers.spec import RunSpec
from trainers.status import shown_progress
from trainers.sweep import Folder, run_name, run_plan


def train_config(
    config: Path,
    tokens: str,
    corpus: str,
    vocab_size: int | None,
    out: Path,
    recipe: Recipe,
    seed: int,
) -> dict[str, object]:
    """Train a config's shape and return its row; weights go to ``out/runs/<run_id>``.

    Raises
    ------
    InputError
        The config is none of the dense Llama family, or its vocabulary is not the corpus's.
    WorkError
        The run failed or diverged.
    """
    shape, count = Shape.from_config(read_json(config)), parse_count(tokens)
    folder = Folder(out)
    prepared = prepare(corpus, folder.corpus, vocab_size=vocab_size)
    count_windows(prepared.tokens_train, recipe.context_length)
    if shape.vocab_size != prepared.vocab_size:
        raise InputError(
            f"`vocab_size` of {config} must be the corpus's {prepared.vocab_size}, but is "
            f"{shape.vocab_size}; change the config, or give --vocab {shape.vocab_size}"
        )
    spec = RunSpec(
        run_id=run_name(shape, count, seed), shape=shape, tokens=count, recipe=recipe, seed=seed
    )
    with shown_progress() as report:
        runs = run_plan([spec], prepared, folder, workers=1, report=report)
    row = runs.iloc[0].to_dict()
    if row["status"] != "done":
        raise WorkError(f"{spec.run_id} {row['status']}: its loss is not finite; lower the rate")
    return json_row(row)
