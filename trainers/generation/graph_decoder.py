"""Decoding on a GPU: a step is one CUDA graph, launched whole.

On a GPU a small model's step is bound by launching its kernels, not by reading its weights. A
recorded graph is launched at once, but its tensors keep their places and sizes: the position is a
tensor, and attention covers a fixed number of cached positions, those not yet filled masked out.
There is one graph for every ``BUCKET`` positions, so that at most that many are read in vain.

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
from shapelaw.trainers.models.norms import NORM_EPS
from shapelaw.trainers.models.rotary import rotate
from shapelaw.trainers.models.transformer import Layer, Transformer

BUCKET = 512  # cached positions


class GraphDecoder:
    """A model with a static key-value cache, its step recorded where the device is a GPU.

    Elsewhere the same step runs as it is.

    Parameters
    ----------
    model
        Its weights decide device and number format.
    batch, length
        Sequences, and the most positions of each.
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
        with torch.inference_mode():  # now, so that no timed step has to record a graph
            for step in self.steps.values():
                step.prepare()  # it writes where a prefill writes later

    def covers(self) -> list[int]:
        """How many cached positions the steps attend to: multiples of ``BUCKET``, and all."""
        return [*range(BUCKET, self.length, BUCKET), self.length]

    def prefill(self, prompt: Tensor) -> Tensor:
        """Fill the cache with (B, T) tokens; logits (B, V) after the last."""
        hidden = self.model(prompt, cache=self.cache, start=0)
        return self.model.logits(hidden[:, -1])

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """Logits (B, V) after (B,) tokens at a position; the cache holds what comes before.

        On a GPU they stand until the next step.
        """
        self.tokens.copy_(tokens)
        self.position.fill_(position)
        covered = min(-(-(position + 1) // BUCKET) * BUCKET, self.length)
        return self.steps[covered]()

    def _logits(self, covered: int) -> Tensor:
        """One step with nothing that depends on the position but the contents of tensors."""
        model = self.model
        table = model.rotary.index_select(1, self.position)
        mask = (self.places[:covered] <= self.position).view(1, 1, 1, -1)
        x = model.embed_tokens(self.tokens)[:, None]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            x = x + self._mixed(layer, x, table, (keys, values), mask)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.logits(model.norm(x[:, 0]))

    def _mixed(
        self, layer: Layer, x: Tensor, table: Tensor, cache: tuple[Tensor, Tensor], mask: Tensor
    ) -> Tensor:
        """Attention of (B, 1, d) over the covered positions -> (B, 1, d)."""
        attention = layer.self_attn
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
        # The query heads of a group are rows of one product, as in the decoder for a CPU.
        rows = rotate(q, table).to(q.dtype).view(self.batch, kv_heads, -1, head_dim)
        mixed = F.scaled_dot_product_attention(
            rows, keys[:, :, :covered], values[:, :, :covered], attn_mask=mask
        )
        out: Tensor = attention.o_proj(mixed.reshape(self.batch, 1, -1))
        return out
