"""Norms: x / √(mean(x²) + ε)·w (RMSNorm, arXiv 1910.07467), and LayerNorm (arXiv 1607.06450)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.norm import NormBlock

NORM_EPS = 1e-5  # added to the mean square in every RMSNorm of a shape


class OnePlusRMSNorm(nn.Module):
    """RMSNorm that multiplies by 1 + w in float32 (Gemma)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of (..., width)."""
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.epsilon)
        return (normed * (1 + self.weight.float())).to(x.dtype)


Norm = nn.RMSNorm | nn.LayerNorm | OnePlusRMSNorm


def build_norm(block: NormBlock, width: int) -> Norm:
    """Build a norm over the last axis of ``width`` numbers."""
    if block.kind == "layer":
        return nn.LayerNorm(width, eps=block.epsilon)
    if block.one_plus_weight:
        return OnePlusRMSNorm(width, block.epsilon)
    return nn.RMSNorm(width, eps=block.epsilon, elementwise_affine=block.weight)
