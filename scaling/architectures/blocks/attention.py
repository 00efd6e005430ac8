"""Attention with grouped key-value heads, over all earlier tokens, a window or a chunk of them."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from shapelaw.scaling.architectures.blocks.norm import RMS_NORM, NormBlock
from shapelaw.scaling.architectures.blocks.positions import ROTARY, RotaryPositions


def mean_visible_tokens(
    length: int, window: int | None = None, *, chunked: bool = False, block: int | None = 1
) -> float:
    """Compute how many tokens a token of a sequence attends to on average, with itself.

    The mean of a causal sequence is (T + 1) / 2 without a window, W - W·(W - 1) / (2·T) with a
    window of W tokens, and (C + 1) / 2 with chunks of C tokens that divide T. With blocks of B
    tokens that divide T it is (T + B) / 2, and over the whole sequence in both directions T.

    Parameters
    ----------
    length
        Tokens of the sequence, T.
    window
        Newest tokens that are visible, or the tokens of a chunk; None for all. In a block, a window
        reaches as far forwards as backwards, and a chunk to its end.
    chunked
        Tokens attend within chunks of ``window`` tokens instead of a sliding window.
    block
        Tokens that see each other in both directions, and all earlier ones; None for the whole
        sequence.
    """
    size = length if block is None else min(block, length)
    reach = length if window is None else min(window, length)
    earlier = _seen_backwards(length, reach, chunked)
    if size == 1:
        return earlier
    if chunked:  # tokens see ahead to the end of their block or chunk
        borders = sorted({*range(0, length, size), *range(0, length, reach), length})
        later = sum((end - begin) * (end - begin - 1) / 2 for begin, end in pairwise(borders))
        return float(earlier + later / length)
    whole, rest = divmod(length, size)
    seen = whole * size * _seen_backwards(size, min(reach, size), chunked)
    if rest:
        seen += rest * _seen_backwards(rest, min(reach, rest), chunked)
    return earlier + seen / length - 1


def _seen_backwards(length: int, reach: int, chunked: bool) -> float:
    """Compute how many tokens a token sees on average among itself and earlier ones."""
    if chunked:
        whole, rest = divmod(length, reach)
        return (whole * reach * (reach + 1) + rest * (rest + 1)) / (2 * length)
    return reach - reach * (reach - 1) / (2 * length)


def mean_context(
    begin: float, end: float, window: int | None = None, *, chunked: bool = False
) -> float:
    """Compute the mean number of earlier tokens that are visible between two positions.

    Without a window it is (begin + end) / 2; layers with one see no more than its tokens.
    """

    def total(length: float) -> float:
        if window is None or length <= window:
            return length**2 / 2
        if chunked:
            return length // window * window**2 / 2 + (length % window) ** 2 / 2
        return window * (length - window / 2)

    return (total(end) - total(begin)) / (end - begin)


@dataclass(frozen=True, kw_only=True)
class AttentionBlock:
    """Grouped-query attention.

    Parameters
    ----------
    qkv_bias, output_bias
        Biases of the projections to queries, keys and values, and of the output projection.
    qk_norm
        What the norm of queries and keys spans: each head (h numbers), the full width, or none.
    norm
        That norm.
    value_norm
        Values have such a norm per head too, without a weight.
    norm_after_rotation
        It follows the rotation by positions instead of preceding it.
    rotary
        Rotary positions; None without.
    scale
        Factor of the scores; None for 1/√h.
    temperature
        Of layers without rotary positions: (a, b) scales the query at position p by
        1 + a·ln(1 + ⌊(p + 1)/b⌋) (Llama 4); None for no scaling.
    window
        Newest tokens that are visible, or the tokens of a chunk if ``chunked``; None for all.
    sinks
        One learned logit per head that takes part in the softmax.
    shares_cache
        The layer reads keys and values of an earlier layer, and has no projections to them.
    """

    hidden_size: Any
    num_attention_heads: Any
    num_key_value_heads: Any
    head_dim: Any
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    norm: NormBlock = RMS_NORM
    value_norm: bool = False
    norm_after_rotation: bool = False
    rotary: RotaryPositions | None = ROTARY
    scale: float | None = None
    temperature: tuple[float, float] | None = None
    window: int | None = None
    chunked: bool = False
    sinks: bool = False
    shares_cache: bool = False

    @property
    def label(self) -> str:
        """Sizes in names: query heads, key-value heads and head dimension."""
        return f"h{self.num_attention_heads}-{self.num_key_value_heads}x{self.head_dim}"

    @property
    def key_value_heads(self) -> Any:
        """Heads of keys and values: K."""
        return self.num_key_value_heads

    @property
    def rotated_dimensions(self) -> Any:
        """Dimensions of a head that rotary positions rotate: h, or an even share of it."""
        if self.rotary is None or self.rotary.share == 1.0:
            return self.head_dim
        return int(self.head_dim * self.rotary.share)

    @property
    def projected_heads(self) -> Any:
        """Heads of queries, keys and values that the layer projects to: H + 2·K."""
        return self.num_attention_heads + 2 * self.num_key_value_heads * (not self.shares_cache)

    @property
    def projected_width(self) -> Any:
        """Numbers that a token is projected to, (H + 2·K)·h."""
        return self.projected_heads * self.head_dim

    @property
    def matmul_parameters(self) -> Any:
        """Parameters of the matrices: d·(H + 2·K)·h + H·h·d."""
        heads = self.projected_heads + self.num_attention_heads
        return self.hidden_size * self.head_dim * heads

    @property
    def parameters(self) -> Any:
        """All parameters: matrices, biases, norms of queries and keys, and sinks."""
        biases = self.projected_width * self.qkv_bias
        biases = biases + self.hidden_size * self.output_bias
        return self.matmul_parameters + biases + self._norms + self.num_attention_heads * self.sinks

    @property
    def _norms(self) -> Any:
        keys = not self.shares_cache
        if self.qk_norm == "head":
            return (1 + keys) * self.norm.parameters(self.head_dim)
        if self.qk_norm == "full":
            heads = self.num_attention_heads + keys * self.num_key_value_heads
            return self.norm.parameters(heads * self.head_dim)
        return 0

    @property
    def score_flops(self) -> Any:
        """FLOPs of scores and weighted values per visible token: 4·H·h."""
        return 4 * self.num_attention_heads * self.head_dim

    @property
    def decode_score_flops(self) -> Any:
        """FLOPs per visible token in decoding: those of scores."""
        return self.score_flops

    @property
    def read_cache_values(self) -> Any:
        """Numbers of the cache that a step reads per visible token, also of a shared one: 2·K·h."""
        return 2 * self.num_key_value_heads * self.head_dim

    def splits_over(self, devices: int) -> Any:
        """Return whether devices can share the heads; a key-value head may be copied."""
        groups = self.num_key_value_heads
        split = (groups % devices == 0) | (devices % groups == 0)
        return (self.num_attention_heads % devices == 0) & split

    def cache_share(self, devices: int) -> Any:
        """Return the share of the cache on each of some devices: at least one key-value head."""
        return np.maximum(1 / devices, 1 / self.num_key_value_heads)

    @property
    def cache_values(self) -> Any:
        """Numbers that the cache keeps per token: 2·K·h, or 0 for a shared cache."""
        return 2 * self.num_key_value_heads * self.head_dim * (not self.shares_cache)
