"""What the run table says of a run: its settings, its results, what it ran on."""

import platform
import subprocess
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.evaluation.held_out import Evaluation, loss_columns
from shapelaw.trainers.training.execution import Execution
from shapelaw.trainers.training.spec import RunSpec

Row = dict[str, object]


def settings_row(
    spec: RunSpec, corpus: Corpus, *, status: str, end: int | None = None, device: str | None = None
) -> Row:
    """What the run table says of a run before any result; see :mod:`shapelaw.scaling.runs.table`.

    Parameters
    ----------
    end
        Steps of the branch that the row is for; the whole run without.
    device
        What trained it, in words; this machine's CPU without.
    """
    shape, recipe = spec.shape, spec.recipe
    steps = spec.steps if end is None else end
    seen = steps * recipe.batch_tokens
    scaled = recipe.for_shape(shape)
    engine = spec.engine or Execution()
    return {
        "run_id": spec.run_id if steps == spec.steps else f"{spec.run_id}-b{seen}",
        "role": spec.role,
        "family": "qwen3" if shape.qk_norm else "llama",
        **asdict(shape),
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
        "residual_init": recipe.residual_init,
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
    """What the run table says of how a run ended: loss, losses by validation set, speed."""
    return {
        "loss": result.loss,
        "loss_se": result.loss_se,
        "bits_per_byte": result.bits_per_byte,
        "seconds": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9),
        **loss_columns(sets),
    }


@cache
def versions() -> str:
    """The versions that the numbers may depend on."""
    return f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"


@cache
def code_version() -> str:
    """Commit of the checkout that the code runs from, or the installed version."""
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
