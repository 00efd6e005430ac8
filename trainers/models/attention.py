"""Grouped-query attention: softmax(q·kᵀ·scale + mask)·v (arXiv 2305.13245), with its cache.

The mask is one of :mod:`shapelaw.trainers.models.visibility`, in a sliding window or in chunks.
Shape letters: B sequences, T positions, d hidden size, H query heads, K key-value heads, h head
dimension, S positions of keys.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.trainers.models.attention_paths import fused_attention, matmul_attention
from shapelaw.trainers.models.canon import Canon
from shapelaw.trainers.models.norms import build_norm
from shapelaw.trainers.models.rotary import rotate
from shapelaw.trainers.models.visibility import TokenView

# What a layer keeps of earlier tokens: keys and values, each (B, K, positions, h), and the states
# of its convolutions.
LayerCache = tuple[Tensor, ...]
# Keys and values of the last layer with each window, for the layers that have none of their own.
SharedKeys = dict[int | None, tuple[Tensor, Tensor]]


class Attention(nn.Module):
    """Grouped-query attention, d -> d. ``H * h`` need not equal d.

    Parameters
    ----------
    block
        Heads, norms, positions and mask.
    attention
        ``"sdpa"`` (PyTorch's fused kernel) or ``"matmul"`` (attention scores computed explicitly).
    canon
        Canon layer on queries, keys and values; None without.
    """

    def __init__(
        self, block: AttentionBlock, *, attention: str, canon: Canon | None = None
    ) -> None:
        super().__init__()
        self.canon = canon
        self.heads, self.kv_heads = block.num_attention_heads, block.num_key_value_heads
        self.head_dim, self.rotary = block.head_dim, block.rotary
        self.window, self.chunked = block.window, block.chunked
        self.scale = block.head_dim**-0.5 if block.scale is None else block.scale
        self.temperature = block.temperature
        self.path = "matmul" if block.sinks else attention
        d, h = block.hidden_size, block.head_dim
        self.shares_cache, self.parts = block.shares_cache, {}
        if self.shares_cache:
            self.kv_heads = 0
            self.q_proj = nn.Linear(d, self.heads * h, bias=block.qkv_bias)
        else:
            self.parts = {"qkv_proj": (self.heads * h, self.kv_heads * h, self.kv_heads * h)}
            self.qkv_proj = nn.Linear(d, sum(self.parts["qkv_proj"]), bias=block.qkv_bias)
        self.o_proj = nn.Linear(self.heads * h, d, bias=block.output_bias)
        self.sinks = nn.Parameter(torch.zeros(self.heads)) if block.sinks else None
        self.qk_norm, self.norm_span = block.qk_norm != "none", block.qk_norm
        self.norm_after_rotation = block.norm_after_rotation
        if self.qk_norm:
            heads = (self.heads, self.kv_heads) if block.qk_norm == "full" else (1, 1)
            self.q_norm = build_norm(block.norm, heads[0] * h)
            if not self.shares_cache:
                self.k_norm = build_norm(block.norm, heads[1] * h)
        self.value_epsilon = block.norm.epsilon if block.value_norm else None
        self.watch: nn.Module | None = None  # of the largest logits, for QK-clip

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        cache: LayerCache | None,
        view: TokenView,
        shared: SharedKeys | None = None,
    ) -> Tensor:
        """Apply attention to (B, T, d). With a cache, attend to its positions too.

        Keys and values are left in ``shared``, or read from it by a layer that has none.
        """
        batch, positions, _ = x.shape
        heads = self.q_proj(x) if self.shares_cache else self.qkv_proj(x)
        if self.canon is not None:
            heads = self.canon(heads, None if cache is None else cache[-1], view)
        heads = heads.view(batch, positions, -1, self.head_dim)
        qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.qk_norm and not self.norm_after_rotation:
            qk = self._normalise(qk)
        if table is not None and self.rotary is not None:
            qk = rotate(qk, table, interleaved=self.rotary.interleaved).to(v.dtype)
        if self.qk_norm and self.norm_after_rotation:
            qk = self._normalise(qk)
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        if self.temperature is not None:
            q = q * self._temperatures(view, q)
        if self.value_epsilon is not None:
            v = F.rms_norm(v, (self.head_dim,), eps=self.value_epsilon)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.shares_cache:
            assert shared is not None
            k, v = shared[self.window]
        elif cache is not None:
            k, v = self._extend(cache[:2], k, v, view)
        if shared is not None:
            shared[self.window] = k, v
        mixed = self._attend(q, k, v, view)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, -1))

    def empty_cache(
        self, batch: int, length: int, *, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        """Create a zeroed cache of at most ``length`` tokens; a window keeps no more than its own.

        The token at position p of a window or chunk of W tokens lies at p mod W.
        """
        kept = length if self.window is None else min(length, self.window)
        size = (batch, self.kv_heads, kept, self.head_dim)
        parts = range(0 if self.shares_cache else 2)
        cache = tuple(torch.zeros(size, dtype=dtype, device=device) for _ in parts)
        if self.canon is None:
            return cache
        return *cache, self.canon.empty_state(batch, dtype=dtype, device=device)

    def _normalise(self, qk: Tensor) -> Tensor:
        """Apply the norms of queries and keys to (B, T, H + K, h)."""
        if self.shares_cache:
            return self.q_norm(qk)
        q_norm, k_norm = self.q_norm, self.k_norm
        if self.norm_span == "head" and isinstance(q_norm, nn.RMSNorm):
            normed = F.rms_norm(qk, (self.head_dim,), eps=q_norm.eps)
            if not q_norm.elementwise_affine:
                return normed
            weights = (
                q_norm.weight.expand(self.heads, -1),
                k_norm.weight.expand(self.kv_heads, -1),
            )
            return normed * torch.cat(weights)
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        if self.norm_span == "full":
            q, k = (norm(x.flatten(2)).view_as(x) for norm, x in ((q_norm, q), (k_norm, k)))
        else:
            q, k = q_norm(q), k_norm(k)
        return torch.cat((q, k), dim=2)

    def _temperatures(self, view: TokenView, q: Tensor) -> Tensor:
        """Factors of the queries, (T, 1, 1)."""
        assert self.temperature is not None
        share, step = self.temperature
        position = view.positions(q.device).float()
        factors = 1 + share * torch.log1p(((position + 1) / step).floor())
        return factors.to(q.dtype)[:, None, None]

    def _extend(
        self, cache: LayerCache, k: Tensor, v: Tensor, view: TokenView
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values, (B, K, T, h), and return those that the queries may see.

        Except for one token with a plain view, these are in the order of their positions, the
        cached ones first.
        """
        start, kept = view.start, cache[0].shape[2]
        if not view.plain and start:
            places = torch.arange(max(start - kept, 0), start, device=k.device) % kept
            olds = (part.index_select(2, places).to(k.dtype) for part in cache)
            seen = [torch.cat(pair, dim=2) for pair in zip(olds, (k, v), strict=True)]
        else:
            seen = [k, v]
        end = start + view.kept
        first = (end - 1) // kept * kept if self.chunked else max(end - kept, 0)
        first = max(first, start)  # the oldest new token that is kept
        place: slice | Tensor
        if view.kept == 1:
            place = slice(start % kept, start % kept + 1)
        elif end <= kept:
            place = slice(first, end)
        else:
            place = torch.arange(first, end, device=k.device) % kept
        if view.kept:
            for part, new in zip(cache, (k, v), strict=True):
                part[:, :, place] = new[:, :, first - start : end - start]
        if view.count > 1 or not view.plain:
            return seen[0], seen[1]
        filled = start % kept + 1 if self.chunked else min(end, kept)
        keys, values = cache
        return keys[:, :, :filled], values[:, :, :filled]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, view: TokenView) -> Tensor:
        """Attend with (B, H, T, h) queries to (B, K, S, h) keys and values -> (B, H, T, h).

        One query with a plain view sees every key; else the keys end with those of the queries.
        """
        single = view.plain and view.count == 1
        if self.watch is not None:
            self.watch(q, k, view, scale=self.scale, reach=(self.window, self.chunked))
        if self.path == "matmul" and (not single or self.sinks is not None):
            reach = (None, False) if single else (self.window, self.chunked)
            softmax = partial(self._softmax, batch=q.shape[0])
            return matmul_attention(q, k, v, view, scale=self.scale, reach=reach, softmax=softmax)
        reach = (self.window, self.chunked)
        return fused_attention(q, k, v, view, scale=self.scale, reach=reach)

    def _softmax(self, scores: Tensor, batch: int) -> Tensor:
        """Softmax of (B·K, repeats·T, S) scores; sinks take their share."""
        if self.sinks is None:
            return scores.softmax(dim=-1)
        groups = scores.shape[0] // batch  # K, of another layer if its keys are shared
        rows = scores.shape[1] * groups // self.heads
        sinks = self.sinks.to(scores.dtype).view(1, groups, -1, 1, 1)
        sinks = sinks.expand(batch, -1, -1, rows, 1).reshape(*scores.shape[:2], 1)
        return torch.cat((scores, sinks), dim=-1).softmax(dim=-1)[..., :-1]
