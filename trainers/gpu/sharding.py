"""Model, optimiser and batch of one run, distributed over a group of processes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch, LossModule, reseed
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.rules import Muon
from shapelaw.trainers.optimizers.updates import muon_update
from shapelaw.trainers.training import checkpoint
from shapelaw.trainers.training.device import attention_kernels
from shapelaw.trainers.training.loop import build_model
from shapelaw.trainers.training.spec import Diverged, RunSpec


@dataclass(frozen=True, kw_only=True)
class World:
    """Group of processes that train together, and the rank of this process in it."""

    mode: str
    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    def rows(self, sequences: int) -> slice:
        """Return the rows of a batch that belong to this process."""
        share = sequences // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def mean(self, values: Tensor) -> Tensor:
        """Compute the mean over the processes, which is the same on all of them."""
        dist.all_reduce(values)
        return values / self.size


class GatheredMuon(Muon):
    """Muon for matrices whose rows are distributed over the processes.

    The momentum stays sharded. Newton-Schulz needs whole matrices, so each update is gathered
    (``full_tensor``) and orthogonalised on every process, which keeps only its own rows. One matrix
    is gathered at a time. The repeated work is acceptable for confirmation models of up to a few
    billion parameters.
    """

    def apply(
        self, weights: Sequence[Tensor], directions: Sequence[Tensor], settings: Mapping[str, Any]
    ) -> None:
        """Add the orthogonalised directions of gathered matrices to the rows of this process."""
        for weight, direction, rows in zip(weights, directions, self.pieces, strict=True):
            whole = _full(direction)
            change = torch.zeros_like(whole)
            muon_update([change], [whole], [rows], rate=settings["lr"], weight_decay=0.0,
                        scale=self.scale)  # fmt: skip
            weight.mul_(1 - settings["lr"] * settings["weight_decay"])
            weight.add_(_sharded_like(change, weight))


def _sharded_like(full: Tensor, like: Tensor) -> Tensor:
    """Return the part of this process of a tensor that every process has, without communication."""
    if not isinstance(like, DTensor):
        return full
    whole = DTensor.from_local(
        full.to(like.device), like.device_mesh, [Replicate()], run_check=False
    )
    return whole.redistribute(placements=like.placements)


def _full(value: Tensor) -> Tensor:
    """Gather a tensor that may be distributed over the processes on all of them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _gathered(part: Muon) -> GatheredMuon:
    group = part.param_groups[0]
    settings = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
    other = GatheredMuon(group["params"], part.pieces, **settings)
    other.scale = part.scale
    return other


class Trainer:
    """Model and optimiser distributed over a group of processes."""

    def __init__(self, spec: RunSpec, world: World, path: Path, identity: str) -> None:
        self.spec, self.world, self.path = spec, world, path
        spec.recipe.require_plain_steps("train in several processes")
        model = build_model(spec)
        plain = Optimizer(model, spec.recipe, spec.steps)
        self.begun = checkpoint.resume(path, model, plain, identity)
        self.model = model.to(world.device)
        self.objective, self.draws = objective_of(spec.recipe), torch.Generator()
        loss = LossModule(self.model, self.objective)
        self.loss: nn.Module = loss
        state = [
            [part.state[weight] for weight in part.param_groups[0]["params"]]
            for part in plain.parts
        ]
        if world.mode == "fsdp":
            for layer in self.model.layers:
                fully_shard(layer, mesh=world.mesh)
            fully_shard(loss, mesh=world.mesh)
        else:
            self.loss = DistributedDataParallel(loss)
        self.generator = torch.Generator(world.device)
        self.metrics: dict[str, SupportsFloat] = {}
        self.optimizer = self._optimizer()
        self._take_over(state)

    def _optimizer(self) -> Optimizer:
        optimizer = Optimizer(self.model, self.spec.recipe, self.spec.steps)
        if self.world.mode == "fsdp":
            optimizer.parts = [
                _gathered(part) if isinstance(part, Muon) else part for part in optimizer.parts
            ]
        return optimizer

    def _take_over(self, state: list[list[dict[str, Tensor]]]) -> None:
        """Load the part of this process of the optimiser state of a checkpoint."""
        for part, kept in zip(self.optimizer.parts, state, strict=True):
            for weight, values in zip(part.param_groups[0]["params"], kept, strict=True):
                if values:
                    part.state[weight] = {
                        name: value if name == "step" else _sharded_like(value, weight)
                        for name, value in values.items()
                    }

    def step(self, batch: Batch, index: int, *, checkpoint_due: bool) -> bool:
        """Train one step.

        Parameters
        ----------
        batch
            Whole batch of the step.
        index
            Number of the step.
        checkpoint_due
            True if this process requests a checkpoint, which only the first process does.

        Returns
        -------
        bool
            True on all processes if the first process requests a checkpoint.

        Raises
        ------
        Diverged
            The mean loss is not finite; raised on all processes at once.
        """
        world, recipe = self.world, self.spec.recipe
        # Every process draws the noise of the whole batch, as one process alone on a CPU would.
        reseed(self.draws, self.spec.data_seed, index)
        noise = self.objective.draw(recipe.sequences, recipe.context_length, self.draws)
        batch = batch._replace(noise=noise)
        own = batch.rows(world.rows(recipe.sequences)).to(world.device)
        draws = reseed(self.generator, self.spec.data_seed * world.size + world.rank, index)
        with attention_kernels(world.device):
            loss, count = self.loss(own, draws)
        exact = count.double()
        shared = [loss.detach() * exact, exact, torch.full_like(exact, float(checkpoint_due))]
        total, count_mean, requested = world.mean(torch.stack(shared)).tolist()
        mean = total / max(count_mean, 1.0)
        if not math.isfinite(mean):
            raise Diverged(f"training loss is {mean} at step {index}")
        # Gradients are averaged over the processes, weighted by their numbers of tokens.
        (loss * (count / max(count_mean, 1.0))).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step(index)
        self.metrics = {
            "tokens": (index + 1) * recipe.batch_tokens,
            "loss": mean,
            "learning_rate": self.optimizer.parts[0].param_groups[0]["lr"],
            "gradient_norm": _full(norm),
        }
        return requested > 0

    def gather(self) -> tuple[Transformer, Optimizer]:
        """Gather model and optimiser on the CPU; all processes must call this method."""
        model = build_model(self.spec)
        plain = Optimizer(model, self.spec.recipe, self.spec.steps)
        with torch.no_grad():
            for own, weight in zip(model.parameters(), self.model.parameters(), strict=True):
                own.copy_(_full(weight.detach()))
        for part, spread in zip(plain.parts, self.optimizer.parts, strict=True):
            pairs = zip(
                part.param_groups[0]["params"], spread.param_groups[0]["params"], strict=True
            )
            for own, weight in pairs:
                kept = spread.state[weight].items()
                part.state[own] = {
                    name: _full(torch.as_tensor(value)).cpu() for name, value in kept
                }
        return model, plain

    def save(self, progress: checkpoint.Progress) -> None:
        """Gather model and optimiser and write the checkpoint in the first process."""
        model, optimizer = self.gather()
        if self.world.rank == 0:
            checkpoint.save(self.path, model, optimizer, progress)
