"""Checkpoints as safetensors, written whole or not at all."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scaling.files import write_whole
from trainers.export import export as export  # a finished run ends with one
from trainers.model import Transformer
from trainers.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: steps done and seconds of training spent on them.

    ``identity`` is a digest of everything that decides the run's numbers; a checkpoint of another
    identity is not resumed.
    """

    step: int
    seconds: float
    identity: str


def save(path: Path, model: Transformer, optimizer: Optimizer, progress: Progress) -> None:
    """Write weights, optimiser state and progress in one step."""
    weights = {f"model.{name}": weight for name, weight in _own(model).items()}
    metadata = {"progress": json.dumps(vars(progress))}
    tensors = {name: value.contiguous() for name, value in (weights | optimizer.state()).items()}
    write_whole(path, lambda target: _write(tensors, target, metadata))


def _write(tensors: dict[str, torch.Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Safetensors' own error for a full disk is no OSError."""
    try:
        save_file(tensors, target, metadata)
    except SafetensorError as error:
        raise OSError(0, str(error)) from error


def resume(path: Path, model: Transformer, optimizer: Optimizer, identity: str) -> Progress:
    """Restore a checkpoint of this very run, if there is one; else stand at step 0.

    A file that is damaged or belongs to a run with other settings is not used.
    """
    fresh = Progress(step=0, seconds=0.0, identity=identity)
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return fresh
    if progress.identity != identity:
        return fresh
    with torch.no_grad():
        for name, weight in _own(model).items():
            weight.copy_(tensors[f"model.{name}"])
    optimizer.load(tensors)
    return progress


def _own(model: Transformer) -> dict[str, torch.Tensor]:
    """Weights by name, a tied head once."""
    return dict(model.named_parameters())
