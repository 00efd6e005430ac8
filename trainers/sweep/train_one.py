"""Training of the shape of one config file, through a ledger as in a sweep."""

from collections.abc import Sequence
from pathlib import Path

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape_config import read_trainable
from shapelaw.scaling.display.console import note
from shapelaw.scaling.display.documents import json_ready
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import nothing_left, read_json
from shapelaw.scaling.units import parse_count
from shapelaw.trainers.corpus.batches import count_windows
from shapelaw.trainers.corpus.options import CorpusOptions
from shapelaw.trainers.corpus.preparation import prepare_from_options
from shapelaw.trainers.optimizers.recipe import recipe_with
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.sweep.status import shown_progress
from shapelaw.trainers.sweep.sweep import run_plan
from shapelaw.trainers.training.spec import RunSpec, model_for, run_name, text_vocabulary
from shapelaw.trainers.training.trackers import read_trackers


def train_config(
    config: Path,
    tokens: str,
    corpus: CorpusOptions,
    out: Path,
    settings: Sequence[str] = (),
    *,
    tracker: str = "",
    seed: int = 0,
) -> dict[str, object]:
    """Train the shape of a config file and return its row of the run table.

    Parameters
    ----------
    config
        Config file of a model of any family that is trained here.
    tokens
        Training tokens, such as ``2M``.
    corpus
        Options of the corpus.
    out
        Folder to write to. The weights are in ``out/runs/<run_id>``.
    settings
        Fields of the recipe as ``NAME=VALUE``.
    tracker
        Names of trackers, separated by commas.
    seed
        Seed of the initial weights.

    Raises
    ------
    InputError
        The config is of no known family, or its vocabulary differs from the corpus.
    WorkError
        The run failed or diverged.
    """
    shape = read_trainable(read_json(config))
    if isinstance(shape, Architecture):
        for each in shape.notes:
            note(f"{config.name}: {each}")
    count = parse_count(tokens)
    folder, recipe, trackers = Folder(out), recipe_with(settings), read_trackers(tracker)
    shape = model_for(recipe, shape)
    folder.refuse_foreign_table()
    spec = RunSpec(
        run_id=run_name(shape, count, seed, recipe.objective),
        shape=shape,
        tokens=count,
        recipe=recipe,
        seed=seed,
    )
    with nothing_left(out):
        prepared = prepare_from_options(corpus, folder.corpus)
        count_windows(prepared.tokens_train, recipe.context_length)
        if (vocabulary := text_vocabulary(shape)) != prepared.vocab_size:
            raise InputError(
                f"`vocab_size` of {config} must be {prepared.vocab_size} as in the corpus, but is "
                f"{vocabulary}; change the config, or give --vocab {vocabulary}"
            )
        with shown_progress() as report:
            runs = run_plan([spec], prepared, folder, workers=1, report=report, trackers=trackers)
    row = runs.iloc[0].to_dict()
    if row["status"] != "done":
        raise WorkError(
            f"{spec.run_id} {row['status']}: its loss is not finite; lower the learning rate"
        )
    return dict(json_ready(row))
