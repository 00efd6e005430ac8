"""Rotary position embeddings."""

import torch
from torch import Tensor


def rotary_table(positions: int, head_dim: int, theta: float) -> Tensor:
    """Compute the cosines and signed sines of rotary position embeddings (arXiv 2104.09864).

    The layout is that of Hugging Face. The sines carry the sign of ``rotate_half``, so that a
    rotation is ``x * cos + swap(x) * sin``, where ``swap`` exchanges the two halves of a head.

    Parameters
    ----------
    positions
        Number of positions.
    head_dim
        Head dimension h, an even number.
    theta
        Base of the rotation frequencies.

    Returns
    -------
    torch.Tensor
        Cosines and signed sines in float32, (2, positions, h).
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    cosines = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sines = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return torch.stack((cosines, sines)).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply rotary position embeddings.

    Parameters
    ----------
    x
        Queries or keys, (B, T, heads, h).
    table
        Rows of :func:`rotary_table` for the T positions, (2, T, h).

    Returns
    -------
    torch.Tensor
        Rotated queries or keys, (B, T, heads, h).
    """
    cosines, sines = table.to(x.dtype).unsqueeze(2)
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((second, first), dim=-1) * sines
