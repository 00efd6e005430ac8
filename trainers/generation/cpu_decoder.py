"""Decoding on a CPU: a step of one token per sequence that reads every weight once.

The step computes the same as :class:`~shapelaw.trainers.models.transformer.Transformer`, in fewer
operations. The transformer itself prefills the cache.

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
from shapelaw.trainers.models.attention import Attention
from shapelaw.trainers.models.feed_forward import FeedForward
from shapelaw.trainers.models.layer import Layer
from shapelaw.trainers.models.norms import NORM_EPS
from shapelaw.trainers.models.transformer import Transformer

MAX_BLOCK_LOGITS = 512  # in one block of the search for the greedy token


@dataclass(frozen=True)
class DecodingLayer:
    """One layer: its products in their fastest form, its norms' weights concatenated twice."""

    input_norm: Tensor
    qkv: Product
    qk_norm: Tensor | None
    o: Product
    mlp_norm: Tensor
    gate_up: Product
    down: Product


class Decoder:
    """Decoder for a CPU: a model with a static key-value cache.

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
        shape, weight = model.shape, model.embed_tokens.weight
        self.model, self.batch = model, batch
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.head_dim = shape.head_dim
        self.size = sum(parameter.nbytes for parameter in model.parameters())
        # One tensor holds the keys and then the values of a layer, so that one copy writes both.
        size = (shape.num_hidden_layers, batch, 2 * self.kv_heads, length, self.head_dim)
        self.cache = torch.zeros(size, dtype=weight.dtype, device=weight.device)
        self.layers = [self._layer(layer) for layer in cast(Sequence[Layer], model.layers)]
        self.norm = _repeated(model.norm.weight)
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
        assert isinstance(attention, Attention)
        assert isinstance(mlp, FeedForward)
        qk_norm = None
        if attention.qk_norm:
            qk_norm = torch.cat(
                (
                    attention.q_norm.weight.expand(self.heads, -1),
                    attention.k_norm.weight.expand(self.kv_heads, -1),
                )
            )
        return DecodingLayer(
            input_norm=_repeated(layer.input_layernorm.weight),
            qkv=self._product(attention.qkv_proj.weight),
            qk_norm=qk_norm,
            o=self._product(attention.o_proj.weight),
            mlp_norm=_repeated(layer.post_attention_layernorm.weight),
            gate_up=self._product(mlp.gate_up_proj.weight),
            down=self._product(mlp.down_proj.weight),
        )

    def prefill(self, prompt: Tensor) -> Tensor:
        """Fill the cache with (B, T) tokens and return the logits (B, V) after the last one."""
        cache = [(layer[:, : self.kv_heads], layer[:, self.kv_heads :]) for layer in self.cache]
        hidden = self.model(prompt, cache=cache, start=0)
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
            Next-token logits, (B, V).
        """
        rotated = self.heads + self.kv_heads
        self.cosines[:rotated] = self.table[0, position]
        self.sines[:rotated] = self.table[1, position]
        filled = self.cache[:, :, :, : position + 1]
        keys = filled[:, :, : self.kv_heads].unbind()
        values = filled[:, :, self.kv_heads :].unbind()
        slots = self.cache.select(3, position).unbind()
        x = F.embedding(tokens, self.model.embed_tokens.weight)
        for layer, k, v, slot in zip(self.layers, keys, values, slots, strict=True):
            heads = self._rotate(layer, layer.qkv(_rms_norm(x, layer.input_norm)))
            slot.copy_(heads[:, self.heads :])
            x = x + layer.o(self._attend(heads[:, : self.heads], k, v))
            gate, up = layer.gate_up(_rms_norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate).mul_(up))
        return self.head(_rms_norm(x, self.norm))

    def _rotate(self, layer: DecodingLayer, qkv: Tensor) -> Tensor:
        """Return the heads (B, H + 2K, h) with queries and keys normalised and rotated."""
        heads = qkv.view(self.batch, -1, self.head_dim)
        if layer.qk_norm is not None:
            qk = heads[:, : self.heads + self.kv_heads]
            qk.copy_(F.rms_norm(qk, (self.head_dim,), eps=NORM_EPS) * layer.qk_norm)
        swapped = heads.roll(self.head_dim // 2, -1)
        return torch.addcmul(heads * self.cosines, swapped, self.sines)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend with (B, H, h) queries to (B, K, S, h) keys and values -> (B, H * h).

        The query heads of a group are the rows of one product, so that the keys and values of the
        group are read once. PyTorch's kernel for grouped queries reads them once per head and takes
        ten times as long in bfloat16.
        """
        rows = q.view(self.batch, self.kv_heads, -1, self.head_dim)
        return F.scaled_dot_product_attention(rows, k, v).reshape(self.batch, -1)


def greedy(logits: Tensor) -> Tensor:
    """Return the most probable token of each row, the first one in a tie: logits (B, V) -> (B,).

    PyTorch uses vector instructions for the maximum but not for its position. The block with the
    maximum is therefore found first, then the position inside that block.
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
    """Return the largest block width that divides the number of logits."""
    return max(width for width in range(1, MAX_BLOCK_LOGITS + 1) if size % width == 0)


def _repeated(weight: Tensor) -> Tensor:
    return torch.cat((weight, weight)).detach()


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Apply RMSNorm to (B, d), given the norm's weight concatenated twice, (2d,).

    The mean of (x, -x) is zero, so the first half of its layer norm is the RMSNorm of x. PyTorch
    has one CPU kernel for the layer norm but several for the RMSNorm.
    """
    both = torch.cat((x, -x), dim=-1)
    return torch.layer_norm(both, (both.shape[-1],), weight, None, NORM_EPS)[:, : x.shape[-1]]
