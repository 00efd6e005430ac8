"""Gated short convolution (LFM2): W_out(c ⊙ conv(b ⊙ x)) with [b, c, x] = W_in u.

The convolution is causal and depthwise; its state is the cache of the layer. Shape letters: B
sequences, T positions, d hidden size.
"""

import torch
from torch import Tensor, nn

from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock
from shapelaw.trainers.models.attention import LayerCache
from shapelaw.trainers.models.convolution import CausalConvolution
from shapelaw.trainers.models.visibility import TokenView


class ShortConvolution(nn.Module):
    """Gated short convolution, d -> d."""

    def __init__(self, block: ShortConvolutionBlock) -> None:
        super().__init__()
        d = block.hidden_size
        self.parts = {"in_proj": (d, d, d)}
        self.in_proj = nn.Linear(d, 3 * d, bias=block.bias)
        self.conv = CausalConvolution(d, block.kernel, bias=block.bias)
        self.out_proj = nn.Linear(d, d, bias=block.bias)

    def forward(
        self, x: Tensor, table: Tensor | None, cache: LayerCache | None, view: TokenView
    ) -> Tensor:
        """Apply the block to (B, T, d); it has no positions, hence no use for their table."""
        before, after, x = self.in_proj(x).chunk(3, dim=-1)
        mixed = self.conv(before * x, None if cache is None else cache[0], view)
        return self.out_proj(after * mixed)

    def empty_cache(
        self, batch: int, length: int, *, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        """Create the zeroed state, whatever the length of the sequences."""
        return (self.conv.empty_state(batch, dtype=dtype, device=device),)
