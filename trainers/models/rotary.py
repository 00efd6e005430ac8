"""Rotary position embeddings."""

import torch
from torch import Tensor


def rotary_table(positions: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and signed sines of rotary positions, (2, positions, h).

    The sines carry the sign of ``rotate_half``, so that a rotation is ``x * cos + swap(x) * sin``
    with ``swap`` exchanging the two halves. Source: arXiv 2104.09864, in Hugging Face's layout.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    cosines = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sines = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return torch.stack((cosines, sines)).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate (B, T, heads, h) by the table's (2, T, h) rows."""
    cosines, sines = table.to(x.dtype).unsqueeze(2)
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((second, first), dim=-1) * sines
