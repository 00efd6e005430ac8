"""Replicas of one shape as one model: every weight has a leading axis over the replicas.

Letters: R replicas, S sequences, T positions; a weight of a model is (R, ...) in a stack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.next_token import MeanLoss
from shapelaw.trainers.optimizers.muon import Muon, orthogonalise
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.training.execution import Execution, attention_path
from shapelaw.trainers.training.loop import build
from shapelaw.trainers.training.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Weights under one of the recipe's optimisers; its numbers are (R,) in float64."""

    part: torch.optim.Optimizer
    index: int
    names: tuple[str, ...]
    peak: Tensor
    weight_decay: Tensor
    momentum: Tensor

    @property
    def moments(self) -> tuple[str, ...]:
        """What the optimiser keeps of each weight."""
        return ("momentum_buffer",) if isinstance(self.part, Muon) else ("exp_avg", "exp_avg_sq")


class Stack:
    """Replicas of one shape, of different seeds and rates, trained in the same operations.

    The forward pass is mapped over the replicas with :func:`torch.func.vmap`; the backward pass is
    plain autograd through it, so that fused attention needs no batching rule for its gradient. No
    operation mixes replicas: one that diverges leaves the others as they are.

    Parameters
    ----------
    specs
        Same shape, same steps, same optimiser, dtype, context and sequences (see
        :func:`shapelaw.trainers.gpu.packed_loop.packs`); peaks, decays, clipping and seeds are
        free.

    Raises
    ------
    InputError
        The specs cannot be stacked.
    """

    def __init__(self, specs: Sequence[RunSpec], device: torch.device) -> None:
        if len({stackable(spec) for spec in specs}) != 1:
            raise InputError(
                "`specs` of a stack must agree in shape, steps, optimiser, dtype, context and "
                f"sequences, but {', '.join(spec.run_id for spec in specs)} differ; use packs()"
            )
        self.specs, self.device = tuple(specs), device
        self.models = [_initial(spec, device) for spec in specs]
        self.optimizers = [
            Optimizer(model, spec.recipe, spec.steps)
            for model, spec in zip(self.models, specs, strict=True)
        ]
        losses = [MeanLoss(model, specs[0].recipe) for model in self.models]
        stacked, _ = stack_module_state(losses)
        self.parameters = {
            name.removeprefix("model."): value.detach().to(device).requires_grad_()
            for name, value in stacked.items()
        }
        self._template = MeanLoss(_initial(specs[0], device), specs[0].recipe).to(device)
        self._groups = self._read_groups()
        self.moments = self._zero_moments()
        self._clip = torch.tensor([spec.recipe.clip for spec in specs], device=device)

    def _read_groups(self) -> list[_Group]:
        """The rules of the replicas' own optimisers, which stay the one source of them."""
        names = {id(weight): name for name, weight in self.models[0].named_parameters()}
        groups = []
        for index, part in enumerate(self.optimizers[0].parts):
            settings = [own.parts[index].param_groups[0] for own in self.optimizers]
            groups.append(
                _Group(
                    part=part,
                    index=index,
                    names=tuple(names[id(weight)] for weight in settings[0]["params"]),
                    peak=self._numbers([own.peaks[index] for own in self.optimizers]),
                    weight_decay=self._numbers([each["weight_decay"] for each in settings]),
                    momentum=self._numbers([each.get("momentum", 0.0) for each in settings]),
                )
            )
        return groups

    def _numbers(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _zero_moments(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": torch.zeros_like(self.parameters[name].detach())
            for group in self._groups
            for name in group.names
            for key in group.moments
        }

    def shares(self, first: int, count: int, end: int) -> Tensor:
        """Learning rates of steps as shares of the peaks, (count, R), float64, on the host.

        ``end`` is the number of steps that the schedule is made for.
        """
        rows = [
            [spec.recipe.share(step, end) for spec in self.specs]
            for step in range(first, first + count)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def losses(self, batch: Tensor) -> Tensor:
        """Mean training loss of every replica, (R,), on its sequences (R, S, T + 1)."""

        def one(parameters: dict[str, Tensor], sequences: Tensor) -> Tensor:
            named = {f"model.{name}": value for name, value in parameters.items()}
            return functional_call(self._template, named, (sequences,))

        return vmap(one)(self.parameters, batch)

    def gradients(self, losses: Tensor) -> dict[str, Tensor]:
        """Gradient of every replica's own loss, by name."""
        values = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        return dict(zip(self.parameters, values, strict=True))

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor], share: Tensor, count: Tensor) -> None:
        """Clip each replica's gradient and take one optimiser step.

        Parameters
        ----------
        share
            (R,), float64: the learning rate as a share of each peak.
        count
            Steps taken with this one, a float64 scalar; both are tensors, so that the whole
            step can be captured in a CUDA graph.
        """
        scale = self._clipping(gradients)
        gradients = {name: value * _along(scale, value) for name, value in gradients.items()}
        for group in self._groups:
            rate = group.peak * share
            if isinstance(group.part, Muon):
                self._muon(group, gradients, rate)
            else:
                self._adamw(group, gradients, rate, count)

    def _clipping(self, gradients: dict[str, Tensor]) -> Tensor:
        """What each replica's gradients are multiplied with, as ``clip_grad_norm_`` does it."""
        norms = [value.flatten(1).norm(dim=1) for value in gradients.values()]
        total = torch.stack(norms).norm(dim=0)
        return (self._clip / (total + 1e-6)).clamp(max=1.0)

    def _adamw(
        self, group: _Group, gradients: dict[str, Tensor], rate: Tensor, count: Tensor
    ) -> None:
        settings = group.part.param_groups[0]
        first_beta, second_beta = settings["betas"]
        step_size = rate / (1 - first_beta**count)
        correction = (1 - second_beta**count).sqrt().float()
        for name in group.names:
            weight, gradient = self.parameters[name], gradients[name]
            first, second = self.moments[f"{name}.exp_avg"], self.moments[f"{name}.exp_avg_sq"]
            first.lerp_(gradient, 1 - first_beta)
            second.mul_(second_beta).addcmul_(gradient, gradient, value=1 - second_beta)
            weight.mul_(_along(1 - rate * group.weight_decay, weight))
            denominator = second.sqrt() / correction + settings["eps"]
            weight.sub_(first / denominator * _along(step_size, weight))

    def _muon(self, group: _Group, gradients: dict[str, Tensor], rate: Tensor) -> None:
        """:class:`Muon`; pieces of one size of all replicas go together."""
        assert isinstance(group.part, Muon)
        by_size: dict[torch.Size, tuple[list[Tensor], list[Tensor]]] = {}
        for name, rows in zip(group.names, group.part.pieces, strict=True):
            buffer, weight = self.moments[f"{name}.momentum_buffer"], self.parameters[name]
            buffer.lerp_(gradients[name], _along(1 - group.momentum, buffer))
            direction = gradients[name].lerp(buffer, _along(group.momentum, buffer))
            weight.mul_(_along(1 - rate * group.weight_decay, weight))
            for target, part in zip(
                weight.split(rows, dim=1), direction.split(rows, dim=1), strict=True
            ):
                targets, parts = by_size.setdefault(part.shape, ([], []))
                targets.append(target)
                parts.append(part)
        for size, (targets, parts) in by_size.items():
            turned = orthogonalise(torch.stack(parts)).to(targets[0].dtype)
            scaled = _along(rate * group.part.scale(*size[1:]), targets[0])
            for target, update in zip(targets, turned, strict=True):
                target.sub_(update * scaled)

    def restore(self, index: int, *, steps: int) -> tuple[Transformer, Optimizer]:
        """One replica as a plain model and optimiser on the CPU, as after ``steps`` steps."""
        model, optimizer = self.models[index], self.optimizers[index]
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(self.parameters[name][index])
        for group in self._groups:
            part = optimizer.parts[group.index]
            for name in group.names:
                part.state[own[name]] = {
                    key.removeprefix(f"{name}."): value[index].to("cpu", copy=True)
                    for key, value in self.moments.items()
                    if key.startswith(f"{name}.")
                }
                if not isinstance(part, Muon):
                    part.state[own[name]]["step"] = torch.tensor(float(steps))
        return model, optimizer

    def state(self) -> dict[str, Tensor]:
        """Weights and moments of all replicas, by name."""
        weights = {f"weight.{name}": value.detach() for name, value in self.parameters.items()}
        return weights | {f"moment.{name}": value for name, value in self.moments.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        for name, value in self.state().items():
            value.copy_(tensors[name])


def stackable(spec: RunSpec) -> tuple[object, ...]:
    """What specs must have in common to be trained in one stack."""
    recipe = spec.recipe
    common = (recipe.optimizer, recipe.dtype, recipe.context_length, recipe.sequences)
    return (spec.shape, tuple(spec.ends), *common, recipe.muon_scale)


def _initial(spec: RunSpec, device: torch.device) -> Transformer:
    """The model of a spec at its initial weights, with the attention path of a stack."""
    return build(replace(spec, engine=Execution(attention=attention_path(device))))


def _along(values: Tensor, like: Tensor) -> Tensor:
    """(R,) numbers beside a stacked (R, ...) tensor, in its dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
