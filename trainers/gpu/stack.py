"""Stack of replicas of one shape: every weight has a leading axis over the replicas.

Letters: R replicas, S sequences, T positions; a weight of a model is (R, ...) in a stack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch, LossModule
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.optimizers.rules import Rule
from shapelaw.trainers.training.execution import Execution, attention_path
from shapelaw.trainers.training.loop import build_model
from shapelaw.trainers.training.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Weights of one optimiser of the recipe, with its settings as (R,) in float64."""

    part: Rule
    index: int
    names: tuple[str, ...]
    peak: Tensor
    settings: dict[str, Tensor]


class Stack:
    """Replicas of one shape with different seeds and rates, trained by the same operations.

    The forward pass is mapped over the replicas with :func:`torch.func.vmap`. The backward pass is
    ordinary autograd through it, so that fused attention needs no batching rule for its gradient.
    No operation mixes replicas, so that a diverging replica does not affect the others.

    Parameters
    ----------
    specs
        Runs of the same shape, steps, objective, optimiser, dtype, context and sequences (see
        :func:`shapelaw.trainers.gpu.packed_step.packs`). Peak rates, decays, clipping and seeds may
        differ.
    device
        Device of training.
    begun
        Model and optimiser of each run on the CPU to continue from; by default at step 0.

    Raises
    ------
    InputError
        The specs cannot be stacked.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        device: torch.device,
        *,
        begun: Sequence[tuple[Transformer, Optimizer]] | None = None,
    ) -> None:
        if len({stackable(spec) for spec in specs}) != 1:
            raise InputError(
                "`specs` of a stack must agree in shape, steps, optimiser, dtype, context and "
                f"sequences, but {', '.join(spec.run_id for spec in specs)} differ; use packs()"
            )
        self.specs, self.device = tuple(specs), device
        begun = begun or [begin(spec, device) for spec in specs]
        self.models = [model for model, _ in begun]
        self.optimizers = [optimizer for _, optimizer in begun]
        stacked, _ = stack_module_state(self.models)
        self.parameters = {
            name: value.detach().to(device).requires_grad_() for name, value in stacked.items()
        }
        self.objective = objective_of(specs[0].recipe)
        template, _ = begin(specs[0], device)
        self._template = LossModule(template, self.objective).to(device)
        self.generator = torch.Generator(device)
        self._groups = self._read_groups()
        self.moments = self._read_moments()
        self._clip = torch.tensor([spec.recipe.clip for spec in specs], device=device)

    def _read_groups(self) -> list[_Group]:
        """Read the rules and settings of the replicas' own optimisers."""
        names = {id(weight): name for name, weight in self.models[0].named_parameters()}
        groups = []
        for index, part in enumerate(self.optimizers[0].parts):
            settings = [each.parts[index].param_groups[0] for each in self.optimizers]
            groups.append(
                _Group(
                    part=part,
                    index=index,
                    names=tuple(names[id(weight)] for weight in settings[0]["params"]),
                    peak=self._numbers([each.peaks[index] for each in self.optimizers]),
                    settings={
                        name: self._numbers([each[name] for each in settings])
                        for name in ("weight_decay", "momentum")
                        if name in settings[0]
                    },
                )
            )
        return groups

    def _numbers(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _read_moments(self) -> dict[str, Tensor]:
        """Stack the optimiser states of the replicas, which are zero before the first step."""
        moments = {}
        for group in self._groups:
            parts = [optimizer.parts[group.index] for optimizer in self.optimizers]
            for place, name in enumerate(group.names):
                states = [part.state_of(part.param_groups[0]["params"][place]) for part in parts]
                for key in group.part.moments:
                    values = torch.stack([state[key] for state in states])
                    moments[f"{name}.{key}"] = values.to(self.device)
        return moments

    def shares(self, first: int, count: int, end: int) -> Tensor:
        """Return learning rates as shares of the peaks, (count, R), float64, on the host.

        ``end`` is the number of steps of the schedule.
        """
        rows = [
            [spec.recipe.share(step, end) for spec in self.specs]
            for step in range(first, first + count)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def losses(self, batch: Batch) -> Tensor:
        """Compute the training loss of every replica, (R,), on its sequences (R, S, T + 1)."""

        def replica_loss(parameters: dict[str, Tensor], sequences: Batch) -> Tensor:
            named = {f"model.{name}": value for name, value in parameters.items()}
            loss, _ = functional_call(self._template, named, (sequences, self.generator))
            return loss

        axes = Batch(*(None if value is None else 0 for value in batch))  # type: ignore[arg-type]
        return vmap(replica_loss, in_dims=(0, axes), randomness="different")(self.parameters, batch)

    def gradients(self, losses: Tensor) -> dict[str, Tensor]:
        """Compute the gradients of the losses of the replicas, by name of the weight."""
        values = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        return dict(zip(self.parameters, values, strict=True))

    @torch.no_grad()
    def update(self, gradients: dict[str, Tensor], share: Tensor, count: Tensor) -> None:
        """Clip the gradient of each replica and apply one optimiser step.

        ``share`` and ``count`` are tensors, so that the whole step can be captured in a CUDA graph.

        Parameters
        ----------
        gradients
            Gradients by name of the weight, (R, ...).
        share
            Learning rate as a share of each peak, (R,), float64.
        count
            Number of steps including this one, a float64 scalar.
        """
        scale = self._clipping(gradients)
        gradients = {name: value * _along(scale, value) for name, value in gradients.items()}
        for group in self._groups:
            group.part.update(
                [self.parameters[name] for name in group.names],
                [gradients[name] for name in group.names],
                [
                    [self.moments[f"{name}.{key}"] for key in group.part.moments]
                    for name in group.names
                ],
                {**group.settings, "lr": group.peak * share},
                count,
            )

    def _clipping(self, gradients: dict[str, Tensor]) -> Tensor:
        """Return the factor of the gradients of each replica, as in ``clip_grad_norm_``."""
        norms = [value.flatten(1).norm(dim=1) for value in gradients.values()]
        total = torch.stack(norms).norm(dim=0)
        return (self._clip / (total + 1e-6)).clamp(max=1.0)

    def restore(self, index: int, *, steps: int) -> tuple[Transformer, Optimizer]:
        """Copy one replica to an ordinary model and optimiser on the CPU, after ``steps`` steps."""
        model, optimizer = self.models[index], self.optimizers[index]
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(self.parameters[name][index])
        for group in self._groups:
            part = optimizer.parts[group.index]
            for name in group.names:
                part.state[weights[name]] = {
                    key.removeprefix(f"{name}."): value[index].to("cpu", copy=True)
                    for key, value in self.moments.items()
                    if key.startswith(f"{name}.")
                }
                if part.counts:
                    part.state[weights[name]]["step"] = torch.tensor(float(steps))
        return model, optimizer

    def state(self) -> dict[str, Tensor]:
        """Return weights and moments of all replicas by name."""
        weights = {f"weight.{name}": value.detach() for name, value in self.parameters.items()}
        return weights | {f"moment.{name}": value for name, value in self.moments.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors that :meth:`state` returned."""
        for name, value in self.state().items():
            value.copy_(tensors[name])


def stackable(spec: RunSpec) -> tuple[object, ...]:
    """Return the settings that specs must have in common to be trained in one stack."""
    recipe = spec.recipe
    common = (recipe.optimizer, recipe.dtype, recipe.context_length, recipe.sequences)
    return (spec.shape, tuple(spec.ends), *common, recipe.muon_scale, recipe.objective)


def begin(spec: RunSpec, device: torch.device) -> tuple[Transformer, Optimizer]:
    """Build the model of a spec, with the attention path of a stack, and its optimiser.

    Raises
    ------
    InputError
        The recipe has a setting of the loop of a CPU.
    """
    spec.recipe.require_plain_steps("train on a GPU")
    model = build_model(replace(spec, engine=Execution(attention=attention_path(device))))
    return model, Optimizer(model, spec.recipe, spec.steps)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (R,) numbers to multiply a stacked (R, ...) tensor, in its dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
