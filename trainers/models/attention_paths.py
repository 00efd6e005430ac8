"""Attention with masks by two paths: PyTorch's fused kernel, and explicit matrix products.

Shape letters: B sequences, T new tokens, H query heads, K key-value heads, h head dimension, v
dimension of a value, S tokens with keys, the last T of which are the new ones.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from shapelaw.trainers.models.visibility import Span, TokenView, cached_score_mask, score_mask

# Blocks of queries in the matmul attention: at most so many, each of about so many queries or more.
MAX_QUERY_BLOCKS, MIN_BLOCK_QUERIES = 4, 32

Reach = tuple[int | None, bool]  # window or chunk in tokens, and whether it is a chunk


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, view: TokenView, *, scale: float, reach: Reach = (None, False)
) -> Tensor:
    """Compute attention with PyTorch's fused kernel.

    Parameters
    ----------
    q
        Queries, (B, H, T, h).
    k, v
        Keys and values, (B, K, S, h). One query with a plain view sees all of them.
    view
        Tokens that each query sees.
    scale
        Factor of the scores.
    reach
        Window or chunk in tokens, and whether it is a chunk.

    Returns
    -------
    torch.Tensor
        Weighted values, (B, H, T, h).
    """

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped
        )

    seen = k.shape[2]
    near = reach[0] is None or (seen <= reach[0] and view.end == seen)
    if view.plain and (view.count == 1 or near):
        return attend(q, k, v, None, view.count > 1)
    if _sees_all(view, reach, seen):
        return attend(q, k, v, None, False)
    mixed = []
    # On a CPU the kernel computes every score, hidden or not.
    for first, end in _query_blocks(view, MAX_QUERY_BLOCKS if q.device.type == "cpu" else 1):
        spans = view.spans(view.start + first, view.start + end, seen)
        mask = _visible(view, (first, end), spans, reach, q.device)
        keys, values = (_columns(part, spans, view.end - seen) for part in (k, v))
        mixed.append(attend(q[:, :, first:end], keys, values, mask, False))
    return torch.cat(mixed, dim=2)


def matmul_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    view: TokenView,
    *,
    scale: float,
    reach: Reach = (None, False),
    softmax: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(dim=-1),
) -> Tensor:
    """Compute attention with explicit scores, fast for small models on a CPU.

    The queries are processed in blocks, each with only the keys that one of them may see: of causal
    attention, a quarter to three eighths of the scores are never computed. The product is added to
    the mask in one operation. PyTorch's fused CPU kernel takes 1.1 to 2.5 times as long at the
    short contexts of proxies (LOG.md).

    Parameters
    ----------
    q
        Queries, (B, H, T, h).
    k, v
        Keys, (B, K, S, h), and values, (B, K, S, v). One query with a plain view sees all of them.
    view
        Tokens that each query sees.
    scale
        Factor of the scores.
    reach
        Window or chunk in tokens, and whether it is a chunk.
    softmax
        Weights of (B·K, repeats·T, S) scores.

    Returns
    -------
    torch.Tensor
        Weighted values, (B, H, T, v).
    """
    batch, heads, positions, head_dim = q.shape
    seen, width = v.shape[2:]
    groups, repeats = batch * k.shape[1], heads // k.shape[1]
    q = q.reshape(groups, repeats, positions, head_dim)
    k, v = k.reshape(groups, seen, head_dim), v.reshape(groups, seen, width)
    everything = _sees_all(view, reach, seen) or (view.plain and positions == 1)
    mixed = []
    for first, end in _query_blocks(view, MAX_QUERY_BLOCKS):
        rows = q[:, :, first:end].reshape(groups, -1, head_dim)
        if everything:
            keys, values = k, v
            scores = scale * torch.bmm(rows, k.transpose(1, 2))
        else:
            spans = view.spans(view.start + first, view.start + end, seen)
            keys, values = (_columns(part, spans, view.end - seen) for part in (k, v))
            mask = _score_mask(view, (first, end), spans, reach, q, groups // batch)
            scores = torch.baddbmm(mask, rows, keys.transpose(1, 2), alpha=scale)
        block = torch.bmm(softmax(scores).to(v.dtype), values)
        mixed.append(block.view(groups, repeats, end - first, width))
    return torch.cat(mixed, dim=2).view(batch, heads, positions, width)


def _sees_all(view: TokenView, reach: Reach, seen: int) -> bool:
    """Return True if every query sees every key."""
    if view.visibility.kind != "full" or view.documents is not None:
        return False
    window, chunked = reach
    return window is None or (seen <= window and (not chunked or view.end <= window))


def _query_blocks(view: TokenView, most: int) -> list[Span]:
    """Divide the new tokens into blocks, none of them across the border of two halves.

    The tokens after a cache are few, and see most of it: they stay together.
    """
    length = view.half or view.count
    if view.start:
        return [(0, length)]
    size = math.ceil(length / min(most, math.ceil(length / MIN_BLOCK_QUERIES)))
    if view.half and (block := view.visibility.block) < size:
        size = math.ceil(size / block) * block
    return [
        (begin + first, begin + min(first + size, length))
        for begin in range(0, view.count, length)
        for first in range(0, length, size)
    ]


def _columns(part: Tensor, spans: tuple[Span, ...], oldest: int) -> Tensor:
    """Return the keys or values of some spans of tokens, of which the first is ``oldest``."""
    parts = [part[..., begin - oldest : end - oldest, :] for begin, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _visible(
    view: TokenView, rows: Span, spans: tuple[Span, ...], reach: Reach, device: torch.device
) -> Tensor:
    """Return the mask of the fused kernel, (rows, columns) or (B, 1, rows, columns)."""
    queries = (view.start + rows[0], view.start + rows[1])
    mask = view.visible(queries, spans, window=reach[0], chunked=reach[1], device=device)
    return mask if mask.ndim == 2 else mask[:, None]


def _score_mask(
    view: TokenView, rows: Span, spans: tuple[Span, ...], reach: Reach, q: Tensor, kv_heads: int
) -> Tensor:
    """Return what is added to the scores of queries (B·K, repeats, T, h)."""
    queries = (view.start + rows[0], view.start + rows[1])
    repeats = q.shape[1]
    if view.documents is None:
        # A compiled model fuses the mask into its kernels; without compilation, building the mask
        # in every call would take a tenth of the time.
        make = score_mask if torch.compiler.is_compiling() else cached_score_mask
        return make(view.visibility, view.half, queries, spans, reach, repeats, q.dtype, q.device)
    seen = view.visible(queries, spans, window=reach[0], chunked=reach[1], device=q.device)
    mask = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -math.inf)
    return mask.repeat_interleave(kv_heads, dim=0).repeat(1, repeats, 1)
