"""Optimisers of a recipe with its learning-rate schedule."""

from collections.abc import Callable

import torch

from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.optimizers.rules import AdamW, Muon, Rule


def muon(model: Transformer, recipe: Recipe) -> list[Rule]:
    """Build Muon for the matrices inside layers, AdamW for embedding, head and norms."""
    matrices = list(model.matrices())
    matrix = Muon(
        matrices,
        model.pieces(),
        lr=recipe.matrix_learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        scale=recipe.muon_scale,
    )
    ids = {id(weight) for weight in matrices}
    rest = [weight for weight in model.parameters() if id(weight) not in ids]
    return [matrix, AdamW(rest, lr=recipe.learning_rate, weight_decay=0.0)]


def adamw(model: Transformer, recipe: Recipe) -> list[Rule]:
    """Build AdamW for all weights; matrices decay, norms do not."""
    inner = list(model.matrices())
    named, ids = dict(model.named_parameters()), {id(weight) for weight in inner}
    outer = [
        weight
        for name, weight in named.items()
        if not name.startswith("layers.") and weight.ndim == 2 and id(weight) not in ids
    ]
    ids |= {id(weight) for weight in outer}
    vectors = [weight for weight in named.values() if id(weight) not in ids]
    return [
        AdamW(inner, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay),
        AdamW(outer, lr=recipe.learning_rate, weight_decay=recipe.weight_decay),
        AdamW(vectors, lr=recipe.learning_rate, weight_decay=0.0),
    ]


def adapters(model: Transformer, recipe: Recipe) -> list[Rule]:
    """Build AdamW for the weights that are trained, of a model whose other weights are frozen."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return [AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)]


BUILDERS: dict[str, Callable[[Transformer, Recipe], list[Rule]]] = {
    "muon": muon,
    "adamw": adamw,
}


class Optimizer:
    """Optimisers of a recipe as one, with the schedule applied to each peak learning rate.

    ``steps`` is the length of the schedule. It may be changed between steps.
    """

    def __init__(self, model: Transformer, recipe: Recipe, steps: int) -> None:
        self.recipe, self.steps = recipe, steps
        scaled = recipe.for_shape(model.architecture)
        frozen = not all(weight.requires_grad for weight in model.parameters())
        build = adapters if frozen else BUILDERS[recipe.optimizer]
        self.parts = build(model, scaled)
        self.peaks = [part.param_groups[0]["lr"] for part in self.parts]

    def step(self, index: int) -> None:
        """Update the weights at step ``index`` and clear the gradients."""
        share = self.recipe.share(index, self.steps)
        for part, peak in zip(self.parts, self.peaks, strict=True):
            part.param_groups[0]["lr"] = peak * share
            part.step()
            part.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        """Return every state tensor by name."""
        tensors = {}
        for i, part in enumerate(self.parts):
            for j, weight in enumerate(part.param_groups[0]["params"]):
                for key, value in part.state[weight].items():
                    tensors[f"optimizer.{i}.{j}.{key}"] = value
        return tensors

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore the state from the tensors of :meth:`state`."""
        for i, part in enumerate(self.parts):
            for j, weight in enumerate(part.param_groups[0]["params"]):
                prefix = f"optimizer.{i}.{j}."
                part.state[weight] = {
                    name.removeprefix(prefix): value.clone()
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
