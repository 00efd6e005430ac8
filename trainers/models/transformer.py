"""The transformer that a :class:`shapelaw.scaling.architectures.shape.Shape` describes.

The model is a pre-norm decoder of the dense Llama family: RMSNorm, rotary position embeddings,
grouped-query attention and SwiGLU, optionally with RMSNorm on queries and keys as in Qwen3. This
module does not depend on training.

Shape letters of tensors: B sequences, T positions, d hidden size, H query heads, K key-value
heads, h head dimension, f intermediate size, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.models.attention import Attention, LayerCache
from shapelaw.trainers.models.feed_forward import MLP
from shapelaw.trainers.models.norms import NORM_EPS
from shapelaw.trainers.models.rotary import rotary_table

# Initial scale of the output projections of attention and MLP, as a multiple of the usual scale.
RESIDUAL_INITS = {"scaled": 1.0, "zero": 0.0}


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape, *, attention: str) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)
        self.self_attn = Attention(shape, attention=attention)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, table: Tensor, cache: LayerCache | None, start: int) -> Tensor:
        """Add attention and then the MLP to the residual stream (B, T, d)."""
        x = x + self.self_attn(self.input_layernorm(x), table, cache, start)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Decoder-only language model with the parameter names of Hugging Face's Llama and Qwen3.

    Parameters
    ----------
    shape
        Shape of the model. A tied output head shares the weight of the embedding.
    context_length
        Longest sequence in tokens, cached tokens included.
    attention
        ``"sdpa"`` (PyTorch's fused kernel) or ``"matmul"`` (attention scores computed explicitly).
    """

    rotary: Tensor

    def __init__(self, shape: Shape, *, context_length: int, attention: str = "sdpa") -> None:
        super().__init__()
        shape.require_gate_without_biases("be trained or run here")
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(
            Layer(shape, attention=attention) for _ in range(shape.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        if shape.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        table = rotary_table(context_length, shape.head_dim, shape.rope_theta)
        self.register_buffer("rotary", table, persistent=False)

    def initialise(self, seed: int, residual_init: str = "scaled") -> None:
        """Draw every weight from one seed.

        Matrices are normal with standard deviation 1/√fan_in; embeddings have 0.02. The matrices
        that write to the residual stream are also divided by √(2·layers), as in GPT-2.

        Parameters
        ----------
        seed
            Seed of the random generator. The global generator is not used.
        residual_init
            ``"scaled"`` as above, or ``"zero"``: the matrices that write to the residual stream are
            0, so that every layer is the identity at first (arXiv 1901.09321).
        """
        generator = torch.Generator().manual_seed(seed)
        residual = RESIDUAL_INITS[residual_init] / math.sqrt(2 * self.shape.num_hidden_layers)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.ndim == 1:
                    weight.fill_(1.0)
                    continue
                scale = 0.02 if "embed_tokens" in name else 1 / math.sqrt(weight.shape[1])
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale *= residual
                weight.normal_(0.0, scale, generator=generator)

    def forward(
        self, tokens: Tensor, *, cache: list[LayerCache] | None = None, start: int = 0
    ) -> Tensor:
        """Compute the hidden states after the last norm.

        Parameters
        ----------
        tokens
            Token ids, (B, T).
        cache
            Keys and values of each layer; the new ones are written into it.
        start
            Position of the first token in the cache. Several tokens at once (prefill) are only
            allowed at position 0.

        Returns
        -------
        torch.Tensor
            Hidden states, (B, T, d).
        """
        x = self.embed_tokens(tokens)
        table = self.rotary[:, start : start + tokens.shape[1]]
        for index, layer in enumerate(self.layers):
            x = layer(x, table, None if cache is None else cache[index], start)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute next-token logits, (..., V), from hidden states (..., d)."""
        return self.lm_head(hidden)

    def empty_cache(self, batch: int, length: int, *, dtype: torch.dtype) -> list[LayerCache]:
        """Create a zeroed key-value cache for ``batch`` sequences of at most ``length`` tokens."""
        shape, device = self.shape, self.embed_tokens.weight.device
        size = (batch, shape.num_key_value_heads, length, shape.head_dim)
        return [
            (
                torch.zeros(size, dtype=dtype, device=device),
                torch.zeros(size, dtype=dtype, device=device),
            )
            for _ in range(shape.num_hidden_layers)
        ]

    def matrices(self) -> Iterator[nn.Parameter]:
        """Return the weight matrices of the layers, which Muon updates."""
        return (weight for weight in self.layers.parameters() if weight.ndim == 2)

    def pieces(self) -> list[tuple[int, ...]]:
        """Return the number of rows of each projection stacked in each of :meth:`matrices`."""
        shape, sizes = self.shape, list[tuple[int, ...]]()
        group = shape.num_key_value_heads * shape.head_dim
        for name, weight in self.layers.named_parameters():
            if name.endswith("qkv_proj.weight"):
                sizes.append((shape.num_attention_heads * shape.head_dim, group, group))
            elif name.endswith("gate_up_proj.weight"):
                sizes.append((shape.intermediate_size, shape.intermediate_size))
            elif weight.ndim == 2:
                sizes.append((weight.shape[0],))
        return sizes
