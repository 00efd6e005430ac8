"""Decoding on a CPU: one token for every sequence, with few operations and every weight read once.

The trainer's model computes the same, and prefills the cache; this is its step for one position.

Shape letters of tensors: B sequences, S filled positions, d hidden size, H query heads, K key-value
heads, h head dimension, f intermediate size, V vocabulary, L layers.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from shapelaw.trainers.generation.matvec import Product, fastest_product
from shapelaw.trainers.models.norms import NORM_EPS
from shapelaw.trainers.models.transformer import Layer, Transformer

WIDEST_BLOCK = 512  # logits


@dataclass(frozen=True)
class DecodingLayer:
    """One layer: its products in their fastest form, its norms' weights twice over."""

    input_norm: Tensor
    qkv: Product
    qk_norm: Tensor | None
    o: Product
    mlp_norm: Tensor
    gate_up: Product
    down: Product


class Decoder:
    """A model with a static key-value cache.

    Parameters
    ----------
    model
        Its weights decide device and number format.
    batch, length
        Sequences, and the most positions of each.
    """

    def __init__(self, model: Transformer, *, batch: int, length: int) -> None:
        shape, weight = model.shape, model.embed_tokens.weight
        self.model, self.batch = model, batch
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.head_dim = shape.head_dim
        self.size = sum(parameter.nbytes for parameter in model.parameters())
        # Keys, then values, of a layer in one tensor: one copy writes both.
        size = (shape.num_hidden_layers, batch, 2 * self.kv_heads, length, self.head_dim)
        self.cache = torch.zeros(size, dtype=weight.dtype, device=weight.device)
        self.layers = [self._layer(layer) for layer in cast(Sequence[Layer], model.layers)]
        self.norm = _twice(model.norm.weight)
        self.head = self._product(model.lm_head.weight)
        self.table = model.rotary.to(weight.dtype)
        # Values are not rotated: their rows stay at cosine 1, sine 0.
        rows = self.heads + 2 * self.kv_heads
        self.cosines = torch.ones(rows, self.head_dim, dtype=weight.dtype, device=weight.device)
        self.sines = torch.zeros_like(self.cosines)

    def _product(self, weight: Tensor) -> Product:
        return fastest_product(weight.detach(), self.batch, self.size)

    def _layer(self, layer: Layer) -> DecodingLayer:
        attention, mlp = layer.self_attn, layer.mlp
        qk_norm = None
        if attention.qk_norm:
            qk_norm = torch.cat(
                (
                    attention.q_norm.weight.expand(self.heads, -1),
                    attention.k_norm.weight.expand(self.kv_heads, -1),
                )
            )
        return DecodingLayer(
            input_norm=_twice(layer.input_layernorm.weight),
            qkv=self._product(attention.qkv_proj.weight),
            qk_norm=qk_norm,
            o=self._product(attention.o_proj.weight),
            mlp_norm=_twice(layer.post_attention_layernorm.weight),
            gate_up=self._product(mlp.gate_up_proj.weight),
            down=self._product(mlp.down_proj.weight),
        )

    def prefill(self, prompt: Tensor) -> Tensor:
        """Fill the cache with (B, T) tokens; logits (B, V) after the last."""
        cache = [(layer[:, : self.kv_heads], layer[:, self.kv_heads :]) for layer in self.cache]
        hidden = self.model(prompt, cache=cache, start=0)
        return self.model.logits(hidden[:, -1])

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """Logits (B, V) after (B,) tokens at a position; the cache holds what comes before."""
        turned = self.heads + self.kv_heads
        self.cosines[:turned] = self.table[0, position]
        self.sines[:turned] = self.table[1, position]
        filled = self.cache[:, :, :, : position + 1]
        keys = filled[:, :, : self.kv_heads].unbind()
        values = filled[:, :, self.kv_heads :].unbind()
        slots = self.cache.select(3, position).unbind()
        x = F.embedding(tokens, self.model.embed_tokens.weight)
        for layer, k, v, slot in zip(self.layers, keys, values, slots, strict=True):
            heads = self._rotated(layer, layer.qkv(_rms_norm(x, layer.input_norm)))
            slot.copy_(heads[:, self.heads :])
            x = x + layer.o(self._attended(heads[:, : self.heads], k, v))
            gate, up = layer.gate_up(_rms_norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate).mul_(up))
        return self.head(_rms_norm(x, self.norm))

    def _rotated(self, layer: DecodingLayer, qkv: Tensor) -> Tensor:
        """Heads (B, H + 2K, h), queries and keys normed and rotated."""
        heads = qkv.view(self.batch, -1, self.head_dim)
        if layer.qk_norm is not None:
            turned = heads[:, : self.heads + self.kv_heads]
            turned.copy_(F.rms_norm(turned, (self.head_dim,), eps=NORM_EPS) * layer.qk_norm)
        swapped = heads.roll(self.head_dim // 2, -1)
        return torch.addcmul(heads * self.cosines, swapped, self.sines)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of (B, H, h) over (B, K, S, h) -> (B, H * h).

        The query heads of a group are the rows of one product: its keys and values are read once.
        Grouped queries in torch's kernel read them once per head, and take ten times as long in
        bfloat16.
        """
        rows = q.view(self.batch, self.kv_heads, -1, self.head_dim)
        return F.scaled_dot_product_attention(rows, k, v).reshape(self.batch, -1)


def greedy(logits: Tensor) -> Tensor:
    """The first of the likeliest tokens, (B,), of logits (B, V).

    torch finds a largest value with vector instructions, but its place without: look for the block
    first, then inside it.
    """
    batch, size = logits.shape
    width = _block_width(size)
    if logits.device.type != "cpu" or width == 1:
        return logits.argmax(dim=-1)
    blocks = logits.reshape(batch, -1, width)
    block = blocks.amax(dim=-1).argmax(dim=-1)
    inside = blocks[torch.arange(batch), block].argmax(dim=-1)
    return block * width + inside


@functools.lru_cache
def _block_width(size: int) -> int:
    """The largest block of logits that divides their number."""
    return max(width for width in range(1, WIDEST_BLOCK + 1) if size % width == 0)


def _twice(weight: Tensor) -> Tensor:
    return torch.cat((weight, weight)).detach()


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of (B, d) with the norm's weight twice over, (2d,).

    The layer norm of (x, -x) has mean zero: its first half is the RMSNorm. Unlike that, it is one
    kernel on a CPU.
    """
    both = torch.cat((x, -x), dim=-1)
    return torch.layer_norm(both, (both.shape[-1],), weight, None, NORM_EPS)[:, : x.shape[-1]]
