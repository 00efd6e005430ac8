"""Gated short convolution (LFM2): W_out(c ⊙ conv(b ⊙ x)) with [b, c, x] = W_in u."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ShortConvolutionBlock:
    """Gated short convolution, a layer's part in the place of attention.

    Parameters
    ----------
    kernel
        Taps k of the depthwise convolution: the token itself and the k - 1 before it.
    bias
        Biases of both projections and of the convolution.
    """

    hidden_size: Any
    kernel: Any
    bias: bool = False
    # It sees its taps only: no scores, positions and cache that grow with the context.
    window: int | None = None
    chunked: bool = False
    rotary: None = None
    score_flops: int = 0
    decode_score_flops: int = 0
    cache_values: int = 0
    read_cache_values: int = 0
    rotated_dimensions: int = 0

    @property
    def matmul_parameters(self) -> Any:
        """Parameters of the matrices: 4·d²."""
        return 4 * self.hidden_size**2

    @property
    def parameters(self) -> Any:
        """All parameters: matrices, k taps per channel, and biases."""
        return self.matmul_parameters + (self.kernel + 5 * self.bias) * self.hidden_size

    @property
    def flops(self) -> Any:
        """FLOPs per token of the convolution: 2·k·d."""
        return 2 * self.kernel * self.hidden_size

    @property
    def state_values(self) -> Any:
        """Numbers that decoding keeps of a sequence: the last k - 1 inputs of the convolution."""
        return (self.kernel - 1) * self.hidden_size
