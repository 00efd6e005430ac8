"""Checkpoints in safetensors files, written atomically."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shapelaw.scaling.files import parse_json, write_whole
from shapelaw.scaling.schema import Count, NonNegative, conform
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.optimizer import Optimizer

LOG = logging.getLogger(__name__)
# Receives a sentence about a run that continues after an unexpected event.
Tell = Callable[[str], None]
UNREADABLE = (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError)


class _Damaged(ValueError):
    """Error for a checkpoint whose content differs from what was written."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run: steps done and seconds of training spent on them.

    ``identity`` is a digest of everything that affects the numbers of the run; a checkpoint of
    another identity is not resumed. ``branch`` counts the finished branches. ``compilation`` is the
    compilation mode in use.
    """

    step: Count
    seconds: NonNegative
    identity: str
    branch: Count = 0
    compilation: str | None = None


class Stateful(Protocol):
    """Further state of a run that a checkpoint keeps."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return every state tensor by a name that the rest of the checkpoint does not use."""

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state from the tensors of a checkpoint."""


def save(
    path: Path,
    model: Transformer,
    optimizer: Optimizer,
    progress: Progress,
    *,
    further: Stateful | None = None,
) -> None:
    """Write weights, optimiser state and progress atomically, with a digest of their content."""
    weights = {f"model.{name}": weight.detach() for name, weight in model.tensors().items()}
    more = {} if further is None else further.state()
    write(path, weights | optimizer.state() | more, vars(progress))


def write(path: Path, tensors: dict[str, torch.Tensor], progress: dict[str, Any]) -> None:
    """Write tensors and progress, which must be valid JSON, atomically with a digest."""
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    text = json.dumps(progress)
    metadata = {"progress": text, "sha256": _digest(text, tensors)}
    write_whole(path, lambda target: _write(tensors, target, metadata))


def _write(tensors: dict[str, torch.Tensor], target: Path, metadata: dict[str, str]) -> None:
    """Save tensors; raise an OSError where safetensors raises its own error (a full disk)."""
    try:
        save_file(tensors, target, metadata)
    except SafetensorError as error:
        raise OSError(0, str(error)) from error


def _digest(progress: str, tensors: dict[str, torch.Tensor]) -> str:
    """Compute the SHA-256 of the progress and of every tensor with its name, type and shape."""
    digest = hashlib.sha256(progress.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def resume(
    path: Path,
    model: Transformer,
    optimizer: Optimizer,
    identity: str,
    *,
    tell: Tell = LOG.warning,
    further: Stateful | None = None,
) -> Progress:
    """Restore a checkpoint of a run, or start at step 0 without one.

    A file with a damaged byte, or of a run with other settings, is not used; ``tell`` is called
    with a sentence about it.
    """
    fresh = Progress(step=0, seconds=0.0, identity=identity)
    if not path.exists():
        return fresh
    try:
        progress, tensors = _read(path)
    except UNREADABLE as error:
        tell(f"{path} is damaged ({error}); the run begins again at step 0")
        return fresh
    if progress.identity != identity:
        tell(f"{path} is of a run with other settings; this run begins at step 0")
        return fresh
    with torch.no_grad():
        for name, weight in model.tensors().items():
            weight.copy_(tensors[f"model.{name}"])
    optimizer.load(tensors)
    if further is not None:
        further.load(tensors)
    return progress


def intact(path: Path, identity: str) -> bool:
    """Return True if a file is an undamaged checkpoint of a run."""
    try:
        return _read(path)[0].identity == identity
    except UNREADABLE:
        return False


def _read(path: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    progress, tensors = read(path)
    return conform(progress, Progress), tensors


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read progress and tensors that :func:`write` wrote.

    A damaged file raises one of the errors of :data:`UNREADABLE`.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _digest(metadata["progress"], tensors) != metadata["sha256"]:
        raise _Damaged("its content has another digest than it was written with")
    return conform(parse_json(metadata["progress"], "its progress"), dict), tensors
