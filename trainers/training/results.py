"""What a run leaves: files and rows of the run table."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from shapelaw.scaling.files import read_json, write_json, write_whole
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.encoding import load_encoding
from shapelaw.trainers.evaluation.held_out import evaluate, evaluate_sets
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.training.device import describe
from shapelaw.trainers.training.rows import Row, result_columns, settings_row
from shapelaw.trainers.training.spec import Diverged, RunSpec

ROWS = "rows.json"


def measured(
    spec: RunSpec, model: Transformer, corpus: Corpus, folder: Path, *, end: int, seconds: float
) -> Row:
    """Evaluate a trained model where it lies, keep the loss of every window, return the row.

    Parameters
    ----------
    end
        Steps of the branch that the weights are of.
    seconds
        Of training.

    Raises
    ------
    Diverged
        The held-out loss is not a finite number; nothing is written.
    """
    device = model.embed_tokens.weight.device
    per_byte = corpus.bytes_per_token
    result = evaluate(model, corpus.validation(), spec.recipe, bytes_per_token=per_byte)
    if not np.isfinite(result.loss):
        raise Diverged(f"held-out loss is {result.loss} after {end} steps")
    sets = evaluate_sets(model, corpus.validation_sets(), spec.recipe)
    name = "windows.npy" if end == spec.steps else f"windows-{end}.npy"
    write_whole(folder / name, lambda target: np.save(target, result.windows))
    settings = settings_row(spec, corpus, status="done", end=end, device=describe(device))
    tokens = end * spec.recipe.batch_tokens
    return settings | result_columns(result, sets, seconds=seconds, tokens=tokens)


def export_run(spec: RunSpec, model: Transformer, corpus: Corpus, folder: Path) -> None:
    """Write the weights of a finished run as Hugging Face has them, with config and tokenizer."""
    export(
        folder,
        model.cpu(),
        max_position_embeddings=spec.recipe.context_length,
        tokenizer=load_encoding(Path(corpus.folder)),
    )


def keep_rows(spec: RunSpec, corpus: Corpus, folder: Path, rows: Sequence[Row]) -> None:
    """Write the rows that a run has given so far beside its model, with what they are rows of."""
    write_json(folder / ROWS, {"identity": spec.identity(corpus), "rows": list(rows)})


def rows_so_far(folder: Path, identity: str) -> list[Row]:
    """The rows that the run of this identity has given so far."""
    path = folder / ROWS
    known = read_json(path) if path.exists() else {}
    return known["rows"] if known.get("identity") == identity else []


def diverged(spec: RunSpec, corpus: Corpus, device: torch.device) -> Row:
    """The row of a run whose loss stopped being a finite number."""
    return settings_row(spec, corpus, status="diverged", device=describe(device))
