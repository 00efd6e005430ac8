"""Grouped-query attention with rotary positions and an optional key-value cache."""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.models.norms import NORM_EPS
from shapelaw.trainers.models.rotary import rotate

# Blocks of queries in the matmul attention: at most so many, each of about so many queries or more.
MAX_QUERY_BLOCKS, MIN_BLOCK_QUERIES = 4, 32


# (keys, values), each (B, K, positions, h). Every layer has one pair.
LayerCache = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Grouped-query attention, d -> d (arXiv 2305.13245). ``H * h`` need not equal d.

    Parameters
    ----------
    shape
        Shape of the model that the layer belongs to.
    attention
        ``"sdpa"`` (PyTorch's fused kernel) or ``"matmul"`` (attention scores computed explicitly).
    """

    def __init__(self, shape: Shape, *, attention: str) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.head_dim = shape.head_dim
        self.path = attention
        d, h = shape.hidden_size, shape.head_dim
        self.qkv_proj = nn.Linear(d, (self.heads + 2 * self.kv_heads) * h, bias=False)
        self.o_proj = nn.Linear(self.heads * h, d, bias=False)
        if shape.qk_norm:
            self.q_norm = nn.RMSNorm(h, eps=NORM_EPS)
            self.k_norm = nn.RMSNorm(h, eps=NORM_EPS)
        self.qk_norm = shape.qk_norm

    def forward(self, x: Tensor, table: Tensor, cache: LayerCache | None, start: int) -> Tensor:
        """Apply attention to (B, T, d). With a cache, attend to its positions too."""
        batch, positions, _ = x.shape
        heads = self.qkv_proj(x).view(batch, positions, -1, self.head_dim)
        qk, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.qk_norm:
            scale = torch.cat(
                (
                    self.q_norm.weight.expand(self.heads, -1),
                    self.k_norm.weight.expand(self.kv_heads, -1),
                )
            )
            qk = F.rms_norm(qk, (self.head_dim,), eps=NORM_EPS) * scale
        qk = rotate(qk, table).to(v.dtype)
        q, k = qk.split((self.heads, self.kv_heads), dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = _extend(cache, k, v, start)
        mixed = _attend(q, k, v, self.path, causal=positions > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, -1))


def _extend(cache: LayerCache, k: Tensor, v: Tensor, start: int) -> LayerCache:
    """Write new keys and values at ``start`` and return all keys and values up to their end."""
    keys, values = cache
    end = start + k.shape[2]
    keys[:, :, start:end] = k
    values[:, :, start:end] = v
    return keys[:, :, :end], values[:, :, :end]


def _attend(q: Tensor, k: Tensor, v: Tensor, path: str, *, causal: bool) -> Tensor:
    """Attend with (B, H, T, h) queries to (B, K, S, h) keys and values -> (B, H, T, h).

    With ``causal``, T and S must be equal.
    """
    if path == "sdpa" or not causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return _matmul_attention(q, k, v)


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention with explicit scores, fast for small models on a CPU.

    The queries are processed in blocks, each with only the keys that precede its end: a quarter to
    three eighths of the scores are never computed. The product is added to the mask in one
    operation. PyTorch's fused CPU kernel takes 1.1 to 2.5 times as long at the short contexts of
    proxies (LOG.md).
    """
    batch, heads, positions, head_dim = q.shape
    groups = batch * k.shape[1]
    repeats = heads // k.shape[1]
    size = math.ceil(positions / min(MAX_QUERY_BLOCKS, math.ceil(positions / MIN_BLOCK_QUERIES)))
    q = q.reshape(groups, repeats, positions, head_dim)
    k, v = k.reshape(groups, positions, head_dim), v.reshape(groups, positions, head_dim)
    # A compiled model fuses the mask into its kernels; without compilation, building the mask in
    # every call would take a tenth of the time.
    make_mask = _causal_mask if torch.compiler.is_compiling() else _cached_causal_mask
    mixed = []
    for start in range(0, positions, size):
        end = min(start + size, positions)
        rows = q[:, :, start:end].reshape(groups, -1, head_dim)
        mask = make_mask(end - start, end, repeats, q.dtype, q.device)
        scores = torch.baddbmm(mask, rows, k[:, :end].transpose(1, 2), alpha=head_dim**-0.5)
        block = torch.bmm(scores.softmax(dim=-1).to(v.dtype), v[:, :end])
        mixed.append(block.view(groups, repeats, end - start, head_dim))
    return torch.cat(mixed, dim=2).view(batch, heads, positions, head_dim)


def _causal_mask(
    rows: int, columns: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return minus infinity where a key comes after a query, else 0: (1, repeats * rows, columns).

    The queries are the last ``rows`` of ``columns`` positions, repeated for each query head of a
    group.
    """
    mask = torch.full((rows, columns), -math.inf, dtype=dtype, device=device)
    return mask.triu(columns - rows + 1).repeat(repeats, 1)[None]


_cached_causal_mask = functools.lru_cache(maxsize=64)(_causal_mask)
