"""Decoding on a GPU, where one step is one CUDA graph.

On a GPU the step of a small model is limited by kernel launches, not by reading the weights. A
captured graph takes one launch, but the addresses and sizes of its tensors are fixed. The position
is therefore a tensor, and attention covers a fixed number of cached positions, with a mask over
those not yet filled. There is one graph for every ``BUCKET`` positions, so that a step reads at
most that many unused positions.

Shape letters of tensors: B sequences, S cached positions, d hidden size, H query heads, K key-value
heads, h head dimension, f intermediate size, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from shapelaw.trainers.cuda_graph import Captured
from shapelaw.trainers.models.attention import Attention
from shapelaw.trainers.models.layer import Layer
from shapelaw.trainers.models.norms import NORM_EPS
from shapelaw.trainers.models.rotary import rotate
from shapelaw.trainers.models.transformer import Transformer

BUCKET = 512  # cached positions between two captured graphs


class GraphDecoder:
    """Decoder for a GPU: a model with a static key-value cache and its step as a CUDA graph.

    On other devices the same step runs without a graph.

    Parameters
    ----------
    model
        Model to decode with. The weights determine the device and the number format.
    batch
        Number of sequences B.
    length
        Largest number of positions of each sequence.
    """

    def __init__(self, model: Transformer, *, batch: int, length: int) -> None:
        weight = model.embed_tokens.weight
        self.model, self.batch, self.length = model, batch, length
        self.layers = cast(Sequence[Layer], model.layers)
        self.cache = model.empty_cache(batch, length, dtype=weight.dtype)
        self.tokens = torch.zeros(batch, dtype=torch.long, device=weight.device)
        self.position = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.places = torch.arange(length, device=weight.device)
        self.steps = {
            covered: Captured(partial(self._logits, covered), weight.device)
            for covered in self.covers()
        }
        with torch.inference_mode():  # capture now, so that no timed step includes it
            for step in self.steps.values():
                step.prepare()  # writes only to cache entries that a prefill overwrites

    def covers(self) -> list[int]:
        """Return the numbers of cached positions with a graph: multiples of ``BUCKET``, and all."""
        return [*range(BUCKET, self.length, BUCKET), self.length]

    def prefill(self, prompt: Tensor) -> Tensor:
        """Fill the cache with (B, T) tokens and return the logits (B, V) after the last one."""
        hidden = self.model(prompt, cache=self.cache, start=0)
        return self.model.logits(hidden[:, -1])

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """Decode one token per sequence.

        Parameters
        ----------
        tokens
            Current tokens, (B,).
        position
            Position of these tokens. The cache holds the positions before it.

        Returns
        -------
        torch.Tensor
            Next-token logits, (B, V). On a GPU the next step overwrites them.
        """
        self.tokens.copy_(tokens)
        self.position.fill_(position)
        covered = min(-(-(position + 1) // BUCKET) * BUCKET, self.length)
        return self.steps[covered]()

    def _logits(self, covered: int) -> Tensor:
        """Compute one step in which only the contents of tensors depend on the position."""
        model = self.model
        table = model.rotary.index_select(1, self.position)
        mask = (self.places[:covered] <= self.position).view(1, 1, 1, -1)
        x = model.embed_tokens(self.tokens)[:, None]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            x = x + self._attend(layer, x, table, (keys, values), mask)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.logits(model.norm(x[:, 0]))

    def _attend(
        self, layer: Layer, x: Tensor, table: Tensor, cache: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        """Attend with (B, 1, d) to the covered positions -> (B, 1, d)."""
        attention = layer.self_attn
        assert isinstance(attention, Attention)
        kv_heads, head_dim = attention.kv_heads, attention.head_dim
        heads = attention.qkv_proj(layer.input_layernorm(x)).view(self.batch, 1, -1, head_dim)
        q, k, v = heads.split((attention.heads, kv_heads, kv_heads), dim=2)
        if attention.qk_norm:
            q = F.rms_norm(q, (head_dim,), attention.q_norm.weight, NORM_EPS)
            k = F.rms_norm(k, (head_dim,), attention.k_norm.weight, NORM_EPS)
        keys, values = cache
        keys.index_copy_(2, self.position, rotate(k, table).to(k.dtype).transpose(1, 2))
        values.index_copy_(2, self.position, v.transpose(1, 2))
        covered = mask.shape[-1]
        # The query heads of a group are the rows of one product, as in the decoder for a CPU.
        rows = rotate(q, table).to(q.dtype).view(self.batch, kv_heads, -1, head_dim)
        mixed = F.scaled_dot_product_attention(
            rows, keys[:, :, :covered], values[:, :, :covered], attn_mask=mask
        )
        out: Tensor = attention.o_proj(mixed.reshape(self.batch, 1, -1))
        return out
