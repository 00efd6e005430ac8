"""Random models of any family: at their first values, many mistakes change nothing."""

from typing import Any

import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.trainers.models.transformer import Transformer, is_matrix
from support.tiny_configs import TINY_CONFIGS


def config_of(name: str, **fields: object) -> dict[str, Any]:
    """Return a tiny config with its model type, some fields changed."""
    return {"model_type": name.partition("-")[0], **TINY_CONFIGS[name], **fields}


def model_of(name: str, **fields: object) -> Transformer:
    """Build the random model of a tiny config, with some fields changed."""
    model = Transformer(read_architecture(config_of(name, **fields)), context_length=256).eval()
    randomise(model)
    return model


def randomise(model: Transformer, seed: int = 0) -> None:
    """Draw parameters and buffers: matrices of deviation 0.5/√fan_in, vectors near their value."""
    model.initialise(seed)  # the layers of PyTorch begin with biases from the global generator
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.tensors().items():
            if not is_matrix(name, weight):
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
            else:
                scale = 0.05 if "embed_" in name else 0.5 / weight.shape[-1] ** 0.5
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
