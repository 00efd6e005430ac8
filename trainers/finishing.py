"""What a run leaves when it is trained elsewhere than in the plain loop: files and a row."""

from pathlib import Path

import numpy as np
import torch

from scaling.files import write_whole
from trainers import checkpoint
from trainers.corpus import Corpus
from trainers.device import describe
from trainers.evaluate import evaluate
from trainers.loop import Diverged, RunSpec, settings_row
from trainers.model import Transformer

Row = dict[str, object]


def finish(
    spec: RunSpec, model: Transformer, corpus: Corpus, folder: Path, *, seconds: float
) -> Row:
    """Evaluate a trained model where it lies, write its files, and return its row.

    Parameters
    ----------
    folder
        Gets what :func:`trainers.loop.train` leaves.
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
        raise Diverged(f"held-out loss is {result.loss} after {spec.steps} steps")
    write_whole(folder / "windows.npy", lambda target: np.save(target, result.windows))
    length = spec.recipe.context_length
    checkpoint.export(folder, model.cpu(), max_position_embeddings=length)
    return settings_row(spec, corpus, status="done") | {
        "device": describe(device),
        "loss": result.loss,
        "loss_se": result.loss_se,
        "bits_per_byte": result.bits_per_byte,
        "seconds": seconds,
        "tokens_per_second": spec.steps * spec.recipe.batch_tokens / max(seconds, 1e-9),
    }


def diverged(spec: RunSpec, corpus: Corpus, device: torch.device) -> Row:
    """The row of a run whose loss stopped being a finite number."""
    return settings_row(spec, corpus, status="diverged") | {"device": describe(device)}
