"""Growth of a trained model's vocabulary by a mask token."""

import torch
from torch import nn

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.models.transformer import Transformer


def grow_vocabulary(
    model: Transformer, grown: Shape | Architecture, *, noise: float, seed: int, attention: str
) -> Transformer:
    """Copy a model into one whose vocabulary has more tokens at its end.

    Parameters
    ----------
    model
        Trained model.
    grown
        The same shape or architecture with the larger vocabulary.
    noise
        Standard deviation of the new rows of tables that are looked up, as a multiple of the root
        mean square of the table. New rows of an untied output head are 0.
    seed
        Seed of the noise.
    attention
        Attention path of the copy, as in :class:`Transformer`.
    """
    copy = Transformer(grown, context_length=model.context_length, attention=attention)
    tables = {f"{n}.weight" for n, m in copy.named_modules() if isinstance(m, nn.Embedding)}
    generator = torch.Generator().manual_seed(seed)
    before = model.tensors()
    with torch.no_grad():
        for name, weight in copy.tensors().items():
            trained = before[name]
            rows = trained.shape[0] if trained.ndim else 1
            if weight.shape == trained.shape:
                weight.copy_(trained)
                continue
            weight[:rows] = trained
            scale = noise * trained.square().mean().sqrt() if name in tables else 0.0
            drawn = torch.empty(weight[rows:].shape).normal_(generator=generator)
            weight[rows:] = scale * drawn
    return copy
