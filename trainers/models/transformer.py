"""The transformer that a :class:`shapelaw.scaling.architectures.shape.Shape` describes.

Pre-norm decoder of the dense Llama family: RMSNorm, rotary positions, grouped-query attention,
SwiGLU, optionally RMSNorm on queries and keys as Qwen3 has it. Nothing here knows about training.

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

# Output projections of attention and MLP begin at this multiple of their usual scale.
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
        """Attention, then MLP, each added to (B, T, d)."""
        x = x + self.self_attn(self.input_layernorm(x), table, cache, start)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A decoder-only language model; parameter names are those of Hugging Face's Llama and Qwen3.

    Parameters
    ----------
    shape
        What to build; tied heads share the embedding's weight.
    context_length
        Longest sequence, in tokens, including what a cache holds.
    attention
        ``"sdpa"`` (torch's fused kernel) or ``"matmul"`` (scores written out).
    """

    rotary: Tensor

    def __init__(self, shape: Shape, *, context_length: int, attention: str = "sdpa") -> None:
        super().__init__()
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

        Matrices are normal with standard deviation 1/√fan_in, embeddings .02. Those matrices that
        write to the residual stream are divided by √(2·layers) (GPT-2) where ``residual_init`` is
        ``scaled``; where it is ``zero`` every layer begins as the identity (arXiv 1901.09321).
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
        """Hidden states after the last norm, (B, T, d), of tokens (B, T).

        With a cache, ``start`` is the position of the first token; more than one token at once
        (prefill) is only allowed at position 0.
        """
        x = self.embed_tokens(tokens)
        table = self.rotary[:, start : start + tokens.shape[1]]
        for index, layer in enumerate(self.layers):
            x = layer(x, table, None if cache is None else cache[index], start)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits, (..., V), of hidden states (..., d)."""
        return self.lm_head(hidden)

    def empty_cache(self, batch: int, length: int, *, dtype: torch.dtype) -> list[LayerCache]:
        """A zeroed key-value cache for ``batch`` sequences of at most ``length`` tokens."""
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
        """The weights that mix features inside a layer: what Muon is meant for."""
        return (weight for weight in self.layers.parameters() if weight.ndim == 2)

    def pieces(self) -> list[tuple[int, ...]]:
        """Rows of the projections that each of :meth:`matrices` holds one below the other."""
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
