"""Optimisers and learning-rate schedules, both from torch; the recipe is data."""

from dataclasses import dataclass

import torch

from scaling.errors import InputError
from trainers.model import Transformer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a shape is trained: one recipe for all rows of a table.

    The defaults were chosen for low noise between seeds on bytes at .05M to .2M parameters
    (LOG.md has the trials): small batches, Muon with momentum .9 on the matrices, a high learning
    rate for embedding and norms. Learning rates are peaks of a warm-up, stable, decay schedule;
    ``warmup`` and ``decay`` are shares of the steps.
    """

    context_length: int = 128
    sequences: int = 8
    optimizer: str = "muon"
    matrix_learning_rate: float = 0.01
    learning_rate: float = 0.006
    momentum: float = 0.9
    weight_decay: float = 0.1
    warmup: float = 0.05
    decay: float = 0.3
    clip: float = 1.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, but got {self.optimizer!r}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"`dtype` must be float32 or bfloat16, but got {self.dtype!r}")
        for name, top in (("matrix_learning_rate", 1e9), ("learning_rate", 1e9), ("clip", 1e9)):
            if not 0 < getattr(self, name) <= top:
                raise InputError(f"`{name} > 0` must hold, but got {getattr(self, name)}")
        for name in ("momentum", "weight_decay", "warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`0 <= {name} <= 1` must hold, but got {getattr(self, name)}")
        if not (self.context_length >= 8 and self.sequences >= 1):
            raise InputError(
                "`context_length >= 8` and `sequences >= 1` must hold, "
                f"but got {self.context_length} and {self.sequences}"
            )

    @property
    def batch_tokens(self) -> int:
        """Tokens per step."""
        return self.context_length * self.sequences

    @property
    def schedule(self) -> str:
        """The schedule's name in the run table."""
        return f"wsd-{self.warmup:g}-{self.decay:g}"

    def steps(self, tokens: int) -> int:
        """Whole steps that come closest to a token budget, at least one."""
        return max(1, round(tokens / self.batch_tokens))

    def share(self, step: int, steps: int) -> float:
        """Learning rate of a step as a share of the peak: linear up, flat, linear down to zero."""
        up = (step + 1) / max(self.warmup * steps, 1.0)
        down = (steps - step) / max(self.decay * steps, 1.0)
        return min(1.0, up, down)


def muon(model: Transformer, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for embedding, head and norms.

    Updates are scaled by √max(1, rows/columns), the original rule of Muon.
    """
    matrices = list(model.matrices())
    matrix = torch.optim.Muon(
        matrices,
        lr=recipe.matrix_learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    ids = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in ids]
    return [matrix, _adamw(rest, recipe, weight_decay=0.0)]


def adamw(model: Transformer, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for everything; only matrices decay."""
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim != 2]
    return [
        _adamw(matrices, recipe, weight_decay=recipe.weight_decay),
        _adamw(vectors, recipe, weight_decay=0.0),
    ]


def _adamw(
    weights: list[torch.nn.Parameter], recipe: Recipe, *, weight_decay: float
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        weights, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
    )


OPTIMIZERS = {"muon": muon, "adamw": adamw}


class Optimizer:
    """The optimisers of a recipe as one, with the schedule applied to each peak rate."""

    def __init__(self, model: Transformer, recipe: Recipe, steps: int) -> None:
        self.recipe, self.steps = recipe, steps
        self.parts = OPTIMIZERS[recipe.optimizer](model, recipe)
        self.peaks = [part.param_groups[0]["lr"] for part in self.parts]

    def step(self, index: int) -> None:
        """Update the weights at step ``index`` and clear the gradients."""
        share = self.recipe.share(index, self.steps)
        for part, peak in zip(self.parts, self.peaks, strict=True):
            part.param_groups[0]["lr"] = peak * share
            part.step()
            part.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """Every state tensor by name; step counters become tensors."""
        tensors = {}
        for i, part in enumerate(self.parts):
            for j, weight in enumerate(part.param_groups[0]["params"]):
                for key, value in part.state[weight].items():
                    tensors[f"optimizer.{i}.{j}.{key}"] = torch.as_tensor(value)
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state` gave."""
        for i, part in enumerate(self.parts):
            for j, weight in enumerate(part.param_groups[0]["params"]):
                prefix = f"optimizer.{i}.{j}."
                own = {name: value for name, value in tensors.items() if name.startswith(prefix)}
                part.state[weight] = {
                    name.removeprefix(prefix): value.clone() for name, value in own.items()
                }
