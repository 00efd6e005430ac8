"""Train one shape for one token budget, resumable at any step, and return its row of the table."""

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from scaling.files import write_whole
from scaling.shape import Shape
from trainers import checkpoint
from trainers.corpus import Batches, Corpus
from trainers.evaluate import Evaluation, evaluate, token_losses
from trainers.model import Transformer
from trainers.optim import Optimizer, Recipe

CHECKPOINT_SECONDS = 10.0
ATTENTION_ON_CPU = "matmul"
# Called after every step with the steps done; may raise to stop the run.
Watch = Callable[[int], None]


class Diverged(RuntimeError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides the numbers of one run."""

    run_id: str
    shape: Shape
    tokens: int
    recipe: Recipe
    seed: int = 0
    data_seed: int = 0
    role: str = "proxy"

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.recipe.steps(self.tokens)

    @property
    def flops(self) -> float:
        """Training FLOPs, head and attention counted."""
        per_token = self.shape.training_flops(self.recipe.context_length)
        return float(per_token * self.steps * self.recipe.batch_tokens)

    def identity(self, corpus: Corpus) -> str:
        """Digest of everything that decides the numbers; names and roles do not."""
        deciding = [asdict(self.shape), self.steps, asdict(self.recipe), self.seed, self.data_seed]
        text = json.dumps([*deciding, corpus.sha256, corpus.tokenizer, torch.__version__])
        return hashlib.sha256(text.encode()).hexdigest()

    def as_json(self) -> str:
        """Text from which :meth:`from_json` makes the same spec."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """Read a spec."""
        values = json.loads(text)
        values["shape"] = Shape(**values["shape"])
        values["recipe"] = Recipe(**values["recipe"])
        return cls(**values)


def build(spec: RunSpec) -> Transformer:
    """The model of a spec at its initial weights."""
    model = Transformer(
        spec.shape, context_length=spec.recipe.context_length, attention=ATTENTION_ON_CPU
    )
    model.initialise(spec.seed)
    return model


def train(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    watch: Watch = lambda step: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> dict[str, object]:
    """Train one run to its end, from its checkpoint if there is one.

    Parameters
    ----------
    folder
        Holds ``checkpoint.safetensors`` while the run goes on; at the end ``model.safetensors``
        and ``config.json`` (Hugging Face) and ``windows.npy``, the held-out loss of every window.
    watch
        Called after every step.

    Returns
    -------
    The row of the run table.

    Raises
    ------
    Diverged
        The loss became infinite or NaN.
    """
    torch.set_num_threads(1)
    model = build(spec)
    optimizer = Optimizer(model, spec.recipe, spec.steps)
    path = folder / "checkpoint.safetensors"
    identity = spec.identity(corpus)
    begun = checkpoint.resume(path, model, optimizer, identity)
    batches = Batches(
        corpus.train(),
        context_length=spec.recipe.context_length,
        sequences=spec.recipe.sequences,
        seed=spec.data_seed,
    )
    clock = saved = time.perf_counter()
    for step in range(begun.step, spec.steps):
        _step(model, optimizer, torch.from_numpy(batches(step)), step, spec.recipe)
        watch(step + 1)
        now = time.perf_counter()
        if now - saved >= checkpoint_seconds and step + 1 < spec.steps:
            spent = begun.seconds + now - clock
            progress = checkpoint.Progress(step=step + 1, seconds=spent, identity=identity)
            checkpoint.save(path, model, optimizer, progress)
            saved = time.perf_counter()
    seconds = begun.seconds + time.perf_counter() - clock
    result = evaluate(
        model, corpus.validation(), spec.recipe, bytes_per_token=corpus.bytes_per_token
    )
    if not np.isfinite(result.loss):
        raise Diverged(f"held-out loss is {result.loss} after {spec.steps} steps")
    write_whole(folder / "windows.npy", lambda target: np.save(target, result.windows))
    checkpoint.export(folder, model, max_position_embeddings=spec.recipe.context_length)
    row = _row(spec, corpus, result, seconds)
    path.unlink(missing_ok=True)
    return row


def _step(
    model: Transformer, optimizer: Optimizer, batch: torch.Tensor, step: int, recipe: Recipe
) -> None:
    loss = token_losses(model, batch, recipe).mean()
    if not torch.isfinite(loss):
        raise Diverged(f"training loss is {loss.item()} at step {step}")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step(step)


def settings_row(spec: RunSpec, corpus: Corpus, *, status: str) -> dict[str, object]:
    """What the run table says of a run before any result; see :mod:`scaling.runs`."""
    shape, recipe = spec.shape, spec.recipe
    seen = spec.steps * recipe.batch_tokens
    return {
        "run_id": spec.run_id,
        "role": spec.role,
        "family": "qwen3" if shape.qk_norm else "llama",
        **asdict(shape),
        "n_total": shape.n_total,
        "n_active": shape.n_active,
        "n_non_embedding": shape.n_non_embedding,
        "tokens": seen,
        "flops_6nd": 6 * shape.n_non_embedding * seen,
        "flops_counted": spec.flops,
        "seed": spec.seed,
        "data_seed": spec.data_seed,
        "corpus": corpus.label,
        "tokenizer": corpus.tokenizer,
        "context_length": recipe.context_length,
        "batch_tokens": recipe.batch_tokens,
        "learning_rate": (
            recipe.matrix_learning_rate if recipe.optimizer == "muon" else recipe.learning_rate
        ),
        "schedule": recipe.schedule,
        "optimizer": recipe.optimizer,
        "device": f"cpu ({platform.machine()})",
        "dtype": recipe.dtype,
        "git_commit": code_version(),
        "status": status,
    }


def _row(spec: RunSpec, corpus: Corpus, result: Evaluation, seconds: float) -> dict[str, object]:
    row = settings_row(spec, corpus, status="done")
    measured = {
        "loss": result.loss,
        "loss_se": result.loss_se,
        "bits_per_byte": result.bits_per_byte,
        "seconds": seconds,
        "tokens_per_second": spec.steps * spec.recipe.batch_tokens / max(seconds, 1e-9),
    }
    return row | measured


@cache
def code_version() -> str:
    """Commit of the checkout that the code runs from, or the installed version."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    try:
        if (here.parent / ".git").exists():
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
            return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"v{version('shapelaw')}"
    except PackageNotFoundError:
        return "unknown"
