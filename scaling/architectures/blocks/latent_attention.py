"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one latent."""

from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.blocks.norm import RMS_NORM, NormBlock
from shapelaw.scaling.architectures.blocks.positions import INTERLEAVED, RotaryPositions


@dataclass(frozen=True, kw_only=True)
class LatentAttentionBlock:
    """Multi-head latent attention.

    Letters: r_q and r_kv ranks of the latents, n and r dimensions of a key without and with rotary
    positions, v dimension of a value. ``query_rank`` None projects to queries directly. ``scale``
    is the factor of the scores, None for 1/√(n + r).
    """

    hidden_size: Any
    num_attention_heads: Any
    query_rank: Any
    latent_rank: Any
    plain_head_dim: Any
    rotary_head_dim: Any
    value_head_dim: Any
    bias: bool = False
    norm: NormBlock = RMS_NORM
    rotary: RotaryPositions = INTERLEAVED
    scale: float | None = None
    window: int | None = None
    chunked: bool = False

    @property
    def label(self) -> str:
        """Sizes in names: heads and dimension of values, and the ranks of the latents."""
        queries = "" if self.query_rank is None else f"-q{self.query_rank}"
        return f"h{self.num_attention_heads}x{self.value_head_dim}-kv{self.latent_rank}{queries}"

    @property
    def key_value_heads(self) -> Any:
        """Heads of keys and values that the latent expands to: H."""
        return self.num_attention_heads

    @property
    def head_dim(self) -> Any:
        """Dimension of a value, v."""
        return self.value_head_dim

    @property
    def rotated_dimensions(self) -> Any:
        """Dimensions of a head that rotary positions rotate: r."""
        return self.rotary_head_dim

    @property
    def matmul_parameters(self) -> Any:
        """Parameters of the matrices.

        d·r_q + r_q·H·(n + r), or d·H·(n + r) without a latent of queries; and
        d·(r_kv + r) + r_kv·H·(n + v) + H·v·d.
        """
        heads, hidden = self.num_attention_heads, self.hidden_size
        keys = heads * (self.plain_head_dim + self.rotary_head_dim)
        rank = self.query_rank
        queries = hidden * keys if rank is None else rank * (hidden + keys)
        down = hidden * (self.latent_rank + self.rotary_head_dim)
        up = self.latent_rank * heads * (self.plain_head_dim + self.value_head_dim)
        return queries + down + up + heads * self.value_head_dim * hidden

    @property
    def parameters(self) -> Any:
        """All parameters: matrices, the norms of both latents, and biases of d-wide projections."""
        rank = 0 if self.query_rank is None else self.query_rank
        biases = self.bias * (rank + self.cache_values + self.hidden_size)
        return self.matmul_parameters + rank + self.latent_rank + biases

    @property
    def score_flops(self) -> Any:
        """FLOPs per visible token with expanded keys and values: 2·H·(n + r + v)."""
        width = self.plain_head_dim + self.rotary_head_dim + self.value_head_dim
        return 2 * self.num_attention_heads * width

    @property
    def decode_score_flops(self) -> Any:
        """FLOPs per visible token in decoding, on latents that are not expanded: 2·H·(2·r_kv + r).

        The expansions of keys and values become part of queries and outputs (arXiv 2405.04434).
        """
        return 2 * self.num_attention_heads * (2 * self.latent_rank + self.rotary_head_dim)

    @property
    def read_cache_values(self) -> Any:
        """Numbers of the cache that a step reads per visible token: r_kv + r."""
        return self.cache_values

    def splits_over(self, devices: int) -> Any:
        """Return whether devices can share the heads."""
        return self.num_attention_heads % devices == 0

    def cache_share(self, devices: int) -> Any:
        """Return the share of the cache on each of some devices: each has the whole latent."""
        del devices
        return 1.0

    @property
    def cache_values(self) -> Any:
        """Numbers that the cache keeps per token, once for keys and values: r_kv + r."""
        return self.latent_rank + self.rotary_head_dim
