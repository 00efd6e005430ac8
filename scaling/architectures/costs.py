"""Parameters, FLOPs and key-value bytes of shapes, for integers and integer arrays alike."""

from typing import Any

import numpy as np

FORWARD_AND_BACKWARD = 3  # forward passes; a backward pass costs two of them


class Costs:
    """Parameters, FLOPs and bytes of the dense Llama family, from the fields of a shape.

    The fields are integers or integer arrays of one length. Letters in formulas: d hidden size,
    H query heads, K key-value heads, h head dimension, f intermediate size, L layers, V vocabulary.
    """

    hidden_size: Any
    intermediate_size: Any
    num_hidden_layers: Any
    num_attention_heads: Any
    num_key_value_heads: Any
    head_dim: Any
    vocab_size: Any
    tie_word_embeddings: Any
    qk_norm: Any
    gated: Any
    qkv_bias: Any
    output_bias: Any
    mlp_bias: Any

    @property
    def attention_parameters(self) -> Any:
        """Parameters of the attention matrices of one layer: d·(H + 2K)·h + H·h·d."""
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads)
        return self.hidden_size * self.head_dim * heads

    @property
    def mlp_parameters(self) -> Any:
        """Parameters of the MLP matrices of one layer: 3·d·f with a gate, 2·d·f without."""
        return (2 + 1 * self.gated) * self.hidden_size * self.intermediate_size

    @property
    def bias_parameters(self) -> Any:
        """Biases of one layer: (H + 2K)·h of queries, keys and values, d of the output, MLP."""
        heads = self.num_attention_heads + 2 * self.num_key_value_heads
        mlp = (1 + 1 * self.gated) * self.intermediate_size + self.hidden_size
        output = self.hidden_size * self.output_bias
        return heads * self.head_dim * self.qkv_bias + output + mlp * self.mlp_bias

    @property
    def n_non_embedding(self) -> Any:
        """Parameters without embedding and output head, but with norms and biases."""
        norms = 2 * self.hidden_size + 2 * self.head_dim * self.qk_norm
        matrices = self.attention_parameters + self.mlp_parameters
        layer = matrices + norms + self.bias_parameters
        return self.num_hidden_layers * layer + self.hidden_size

    @property
    def n_total(self) -> Any:
        """All parameters; a tied output head counts once."""
        tables = 2 - 1 * self.tie_word_embeddings
        return self.n_non_embedding + tables * self.vocab_size * self.hidden_size

    @property
    def n_active(self) -> Any:
        """Parameters used for one token: all parameters of a dense model."""
        return self.n_total

    def forward_flops(self, context: float) -> Any:
        """Count the FLOPs of a forward pass for one token that attends to ``context`` tokens.

        The count is 2·(non-embedding parameters + V·d) + 4·H·h·context·L, without embedding
        look-ups.

        Parameters
        ----------
        context
            Number of tokens that the token attends to.
        """
        head = self.vocab_size * self.hidden_size
        width = self.num_attention_heads * self.head_dim
        attention = 4 * width * context * self.num_hidden_layers
        return 2 * (self.n_non_embedding + head) + attention

    def prefill_flops(self, length: int) -> Any:
        """Count the FLOPs per token of a prompt, at its mean context."""
        return self.forward_flops(length / 2)

    def decode_flops(self, begin: int, end: int) -> Any:
        """Count the FLOPs per generated token, at the mean context from ``begin`` to ``end``."""
        return self.forward_flops((begin + end) / 2)

    def decode_cache_bytes(self, begin: int, end: int, bytes_per_element: float = 2) -> Any:
        """Count the bytes of the cache that a step reads, at the same mean context."""
        return self.cache_bytes((begin + end) / 2, bytes_per_element)

    def read_parameters(self, tokens: Any) -> Any:
        """Count the parameters that a step reads: all, with an untied embedding as well."""
        del tokens  # only experts depend on them
        return self.n_total

    def splits_over(self, devices: int) -> Any:
        """Return whether devices can share the heads; a key-value head may be copied."""
        groups = self.num_key_value_heads
        split = (groups % devices == 0) | (devices % groups == 0)
        return (self.num_attention_heads % devices == 0) & split

    def cache_share(self, devices: int) -> Any:
        """Return the share of the cache on each of some devices: at least one key-value head."""
        return np.maximum(1 / devices, 1 / self.num_key_value_heads)

    def training_flops(self, context_length: int) -> Any:
        """Count the FLOPs per training token, forward and backward, at the mean causal context.

        Parameters
        ----------
        context_length
            Length of the training sequences, in tokens; the mean causal context is half of it.
        """
        return FORWARD_AND_BACKWARD * self.forward_flops(context_length / 2)

    def kv_bytes(self, bytes_per_element: float = 2) -> Any:
        """Count the bytes of the KV cache per token, over all layers (bf16 by default)."""
        width = self.num_key_value_heads * self.head_dim
        return 2 * bytes_per_element * width * self.num_hidden_layers

    def kv_bytes_per_token(self, bytes_per_element: float = 2) -> Any:
        """Count the bytes of the KV cache per token, as :meth:`kv_bytes`."""
        return self.kv_bytes(bytes_per_element)

    def cache_bytes(self, length: float, bytes_per_element: float = 2) -> Any:
        """Count the bytes of the KV cache of one sequence of ``length`` tokens."""
        return length * self.kv_bytes(bytes_per_element)

    def weight_bytes(self, bytes_per_element: float = 2) -> Any:
        """Count the bytes of all weights (bf16 by default)."""
        return bytes_per_element * self.n_total

    @property
    def mlp_to_attention(self) -> Any:
        """Ratio of MLP to attention parameters, without norms (arXiv 2510.18245)."""
        return self.mlp_parameters / self.attention_parameters

    @property
    def hidden_over_sqrt_n(self) -> Any:
        """Hidden size over √N, with N non-embedding parameters (arXiv 2510.18245)."""
        return self.hidden_size / self.n_non_embedding**0.5

    @property
    def aspect_ratio(self) -> Any:
        """Hidden size per layer, d / L (arXiv 2501.18107)."""
        return self.hidden_size / self.num_hidden_layers

    @property
    def gqa(self) -> Any:
        """Query heads per key-value head, H / K."""
        return self.num_attention_heads / self.num_key_value_heads
