"""Rotary position embeddings, and their scaling to longer contexts."""

import math

import torch
from torch import Tensor

from shapelaw.scaling.architectures.blocks.positions import RotaryPositions, RotaryScaling


def rotary_table(positions: int, head_dim: int, rotary: RotaryPositions) -> Tensor:
    """Compute the cosines and signed sines of rotary position embeddings (arXiv 2104.09864).

    The layout is that of Hugging Face. The sines carry the sign of ``rotate_half``, so that a
    rotation is ``x * cos + swap(x) * sin``, where ``swap`` exchanges the two halves of a head.

    Parameters
    ----------
    positions
        Number of positions.
    head_dim
        Dimensions that are rotated, h, an even number.
    rotary
        Base, direction and scaling.

    Returns
    -------
    torch.Tensor
        Cosines and signed sines in float32, (2, positions, h).
    """
    frequency = rotary.theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    scale = 1.0
    if rotary.scaling is not None:
        frequency = _scaled(frequency, rotary.theta, rotary.scaling)
        scale = rotary.scaling.rotation_scale
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    cosines, sines = scale * angle.cos(), scale * angle.sin() * (-1 if rotary.reversed else 1)
    cosines, sines = torch.cat((cosines, cosines), dim=-1), torch.cat((-sines, sines), dim=-1)
    return torch.stack((cosines, sines)).float()


def _scaled(frequency: Tensor, theta: float, scaling: RotaryScaling) -> Tensor:
    """Scale rotation frequencies, (h/2,)."""
    divided = frequency / scaling.factor
    if scaling.kind == "linear":
        return divided
    if scaling.kind == "llama3":
        rotations = scaling.original_length * frequency / (2 * math.pi)
        kept = (rotations - scaling.low) / (scaling.high - scaling.low)
        return torch.lerp(divided, frequency, kept.clamp(0, 1))
    dimensions = len(frequency)

    def dimension(rotations: float) -> float:
        """Return the dimension with so many rotations within the original context."""
        turns = scaling.original_length / (rotations * 2 * math.pi)
        return dimensions * math.log(turns) / math.log(theta)

    first, last = dimension(scaling.high), dimension(scaling.low)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * dimensions - 1)
    last = last + 0.001 if first == last else last
    ramp = (torch.arange(dimensions, dtype=torch.float64) - first) / (last - first)
    return torch.lerp(frequency, divided, ramp.clamp(0, 1))


def rotate(x: Tensor, table: Tensor, *, interleaved: bool = False) -> Tensor:
    """Apply rotary position embeddings.

    Parameters
    ----------
    x
        Queries or keys, (B, T, heads, h).
    table
        Rows of :func:`rotary_table` for the T positions, (2, T, h), or narrower: then only the
        first dimensions of a head are rotated.
    interleaved
        A rotation mixes neighbours. The result has the first of every pair in its first half;
        products of queries and keys do not depend on the order.

    Returns
    -------
    torch.Tensor
        Rotated queries or keys, (B, T, heads, h).
    """
    cosines, sines = table.to(x.dtype).unsqueeze(2)
    if cosines.shape[-1] < x.shape[-1]:
        rotated, kept = x.split((cosines.shape[-1], x.shape[-1] - cosines.shape[-1]), dim=-1)
        return torch.cat((rotate(rotated, table, interleaved=interleaved), kept), dim=-1)
    if interleaved:
        first, second = x[..., 0::2], x[..., 1::2]
        x = torch.cat((first, second), dim=-1)
    else:
        first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((second, first), dim=-1) * sines
