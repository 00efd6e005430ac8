"""Results of a run: its files and its rows of the run table."""

import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_json, write_whole
from shapelaw.scaling.schema import read_document
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.corpus.encoding import load_encoding
from shapelaw.trainers.evaluation.bounds import ROWS
from shapelaw.trainers.evaluation.held_out import (
    Evaluation,
    evaluate_sets,
    evaluate_tokens,
    loss_columns,
)
from shapelaw.trainers.models.hugging_face import WEIGHTS, export
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.noise import parse_objective
from shapelaw.trainers.training.device import device_label
from shapelaw.trainers.training.execution import Execution
from shapelaw.trainers.training.spec import Diverged, RunSpec

Row = dict[str, object]


def evaluate_branch(
    spec: RunSpec, model: Transformer, corpus: Corpus, folder: Path, *, end: int, seconds: float
) -> Row:
    """Evaluate a trained model on its device, write the loss of every window and return the row.

    Parameters
    ----------
    spec
        Run that was trained.
    model
        Trained model.
    corpus
        Corpus of the run.
    folder
        Folder of the run.
    end
        Number of steps of the branch of these weights.
    seconds
        Seconds of training.

    Raises
    ------
    Diverged
        The held-out loss is not a finite number; nothing is written.
    """
    device = model.embed_tokens.weight.device
    per_byte = corpus.bytes_per_token
    text = corpus.validation_shard()
    result = evaluate_tokens(
        model, text.tokens, spec.recipe, bytes_per_token=per_byte, starts=text.starts
    )
    if not np.isfinite(result.loss):
        raise Diverged(f"held-out loss is {result.loss} after {end} steps")
    sets = evaluate_sets(model, corpus.validation_sets(), spec.recipe)
    name = "windows.npy" if end == spec.steps else f"windows-{end}.npy"
    write_whole(folder / name, lambda target: np.save(target, result.windows))
    settings = settings_row(spec, corpus, status="done", end=end, device=device_label(device))
    tokens = end * spec.recipe.batch_tokens
    return settings | result_columns(result, sets, seconds=seconds, tokens=tokens)


def export_run(spec: RunSpec, model: Transformer, corpus: Corpus, folder: Path) -> None:
    """Write the weights of a finished run in Hugging Face's format, with config and tokenizer."""
    export(
        folder,
        model.cpu(),
        max_position_embeddings=spec.recipe.context_length,
        tokenizer=load_encoding(Path(corpus.folder)),
    )


class KeptRows(TypedDict):
    """Rows of a run beside its model."""

    identity: str
    rows: list[Row]


def keep_rows(spec: RunSpec, corpus: Corpus, folder: Path, rows: Sequence[Row]) -> None:
    """Write the rows of a run so far beside its model, with the identity of the run."""
    write_json(folder / ROWS, {"identity": spec.identity(corpus), "rows": list(rows)})


def rows_so_far(folder: Path, identity: str) -> list[Row]:
    """Return the rows so far of the run with this identity."""
    path = folder / ROWS
    if not path.exists():
        return []
    try:
        kept = read_document(path, KeptRows, "")
    except InputError:  # the run is trained again
        return []
    return kept["rows"] if kept["identity"] == identity else []


def finished_rows(spec: RunSpec, folder: Path, identity: str) -> list[Row] | None:
    """Return all rows of a finished run, or None for an unfinished one."""
    rows = rows_so_far(folder, identity)
    return rows if len(rows) == len(spec.ends) and (folder / WEIGHTS).exists() else None


def diverged_row(spec: RunSpec, corpus: Corpus, device: torch.device) -> Row:
    """Return the row of a run whose loss is not finite any more."""
    return settings_row(spec, corpus, status="diverged", device=device_label(device))


def settings_row(
    spec: RunSpec, corpus: Corpus, *, status: str, end: int | None = None, device: str | None = None
) -> Row:
    """Return the columns of the run table that are known before any result.

    See :mod:`shapelaw.scaling.runs.table` for the columns.

    Parameters
    ----------
    spec
        Run of the row.
    corpus
        Corpus of the run.
    status
        Value of the column ``status``.
    end
        Number of steps of the branch of the row; by default the whole run.
    device
        Name of the device of training; by default the CPU of this machine.
    """
    shape, recipe = spec.shape, spec.recipe
    steps = spec.steps if end is None else end
    seen = steps * recipe.batch_tokens
    scaled = recipe.for_shape(shape)
    engine = spec.engine or Execution()
    return {
        "run_id": spec.run_id if steps == spec.steps else f"{spec.run_id}-b{seen}",
        "role": spec.role,
        "family": shape.family,
        **shape.row(),
        "n_total": shape.n_total,
        "n_active": shape.n_active,
        "n_non_embedding": shape.n_non_embedding,
        "tokens": seen,
        "flops_6nd": 6 * shape.n_non_embedding * seen,
        "flops_counted": steps * spec.step_flops,
        "seed": spec.seed,
        "data_seed": spec.data_seed,
        "run_group": spec.run_id,
        "corpus": corpus.label,
        "tokenizer": corpus.tokenizer,
        "context_length": recipe.context_length,
        "batch_tokens": recipe.batch_tokens,
        **corpus.seen(seen),
        "learning_rate": scaled.matrix_learning_rate,
        "learning_rate_rest": scaled.learning_rate,
        "schedule": recipe.schedule,
        "decayed": recipe.decay > 0 and recipe.floor < 1,
        "optimizer": recipe.optimizer,
        **({} if spec.conversion is None else spec.conversion.columns(seen)),
        "residual_init": recipe.residual_init,
        "objective": recipe.objective,
        "loss_kind": parse_objective(recipe.objective).loss_kind,
        "device": device or f"cpu ({platform.machine()})",
        "dtype": recipe.dtype,
        "attention": engine.attention,
        "compilation": engine.compilation,
        "config_hash": spec.identity(corpus)[:16],
        "git_commit": code_version(),
        "versions": versions(),
        "status": status,
    }


def result_columns(
    result: Evaluation, sets: dict[str, Evaluation], *, seconds: float, tokens: int
) -> Row:
    """Return the result columns of the run table: loss, losses by validation set, speed."""
    return {
        "loss": result.loss,
        "loss_se": result.loss_se,
        "loss_se_clusters": result.clusters,
        "bits_per_byte": result.bits_per_byte,
        "seconds": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9),
        **loss_columns(sets),
    }


@cache
def versions() -> str:
    """Return the versions on which the numbers may depend."""
    return f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"


@cache
def code_version() -> str:
    """Return the commit of the checkout that runs, or the installed version."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        if (root / ".git").exists():
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
            return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"v{version('shapelaw')}"
    except PackageNotFoundError:
        return "unknown"
