"""The transformer that a :class:`shapelaw.scaling.architectures.shape.Shape` describes.

Pre-norm decoder of the dense Llama family: RMSNorm, rotary positions, grouped-query attention,
SwiGLU, optionally RMSNorm on queries and keys as Qwen3 has it. Nothing here knows about training.

Shape letters of tensors: B sequences, T positions, d hidden size, H query heads, K key-value
heads, h head dimension, f intermediate size, V vocabulary.
"""

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.trainers.optimizers.recipe import RESIDUAL_INITS

NORM_EPS = 1e-5
MOST_BLOCKS, SMALLEST_BLOCK = 4, 32  # of queries in attention by matmul
# (keys, values), each (B, K, positions, h): one pair per layer.
LayerCache = tuple[Tensor, Tensor]


def rotary_table(positions: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and signed sines of rotary positions, (2, positions, h).

    The sines carry the sign of ``rotate_half``, so that a rotation is ``x * cos + swap(x) * sin``
    with ``swap`` exchanging the two halves. Source: arXiv 2104.09864, in Hugging Face's layout.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    cosines = torch.cat((angle.cos(), angle.cos()), dim=-1)
    sines = torch.cat((-angle.sin(), angle.sin()), dim=-1)
    return torch.stack((cosines, sines)).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate (B, T, heads, h) by the table's (2, T, h) rows."""
    cosines, sines = table.to(x.dtype).unsqueeze(2)
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((second, first), dim=-1) * sines


class Attention(nn.Module):
    """Grouped-query attention, d -> d, with ``H * h`` free of d."""

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
        """Mix (B, T, d) over positions; with a cache, over what it holds too."""
        batch, positions, _ = x.shape
        heads = self.qkv_proj(x).view(batch, positions, -1, self.head_dim)
        turned, v = heads.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.qk_norm:
            scale = torch.cat(
                (
                    self.q_norm.weight.expand(self.heads, -1),
                    self.k_norm.weight.expand(self.kv_heads, -1),
                )
            )
            turned = F.rms_norm(turned, (self.head_dim,), eps=NORM_EPS) * scale
        turned = rotate(turned, table).to(v.dtype)
        q, k = turned.split((self.heads, self.kv_heads), dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = _extend(cache, k, v, start)
        mixed = _attend(q, k, v, self.path, causal=positions > 1)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, positions, -1))


def _extend(cache: LayerCache, k: Tensor, v: Tensor, start: int) -> LayerCache:
    """Write new keys and values at ``start`` and return all up to and with them."""
    keys, values = cache
    end = start + k.shape[2]
    keys[:, :, start:end] = k
    values[:, :, start:end] = v
    return keys[:, :, :end], values[:, :, :end]


def _attend(q: Tensor, k: Tensor, v: Tensor, path: str, *, causal: bool) -> Tensor:
    """Attention of (B, H, T, h) queries over (B, K, S, h) keys and values -> (B, H, T, h).

    With ``causal`` T and S are equal.
    """
    if path == "sdpa" or not causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return _matmul_attention(q, k, v)


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention with the scores written out, as fast as small models allow on a CPU.

    The queries go in blocks, each over the keys that it may see: a quarter to three eighths of the
    scores are never computed. The mask is what the product is added to. On the CPU's fused kernel
    the short contexts of proxies take 1.1 to 2.5 times as long (LOG.md).
    """
    batch, heads, positions, head_dim = q.shape
    groups = batch * k.shape[1]
    repeats = heads // k.shape[1]
    size = math.ceil(positions / min(MOST_BLOCKS, math.ceil(positions / SMALLEST_BLOCK)))
    q = q.reshape(groups, repeats, positions, head_dim)
    k, v = k.reshape(groups, positions, head_dim), v.reshape(groups, positions, head_dim)
    # A compiled model folds the mask into its kernels; without one, making it costs a tenth.
    future = _future if torch.compiler.is_compiling() else _kept_future
    mixed = []
    for start in range(0, positions, size):
        end = min(start + size, positions)
        rows = q[:, :, start:end].reshape(groups, -1, head_dim)
        mask = future(end - start, end, repeats, q.dtype, q.device)
        scores = torch.baddbmm(mask, rows, k[:, :end].transpose(1, 2), alpha=head_dim**-0.5)
        block = torch.bmm(scores.softmax(dim=-1).to(v.dtype), v[:, :end])
        mixed.append(block.view(groups, repeats, end - start, head_dim))
    return torch.cat(mixed, dim=2).view(batch, heads, positions, head_dim)


def _future(
    rows: int, columns: int, repeats: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Minus infinity where a key comes after a query, (1, repeats * rows, columns).

    The queries are the last ``rows`` of ``columns`` positions, once for each query head of a group.
    """
    mask = torch.full((rows, columns), -math.inf, dtype=dtype, device=device)
    return mask.triu(columns - rows + 1).repeat(repeats, 1)[None]


_kept_future = functools.lru_cache(maxsize=64)(_future)


class MLP(nn.Module):
    """SwiGLU, d -> f -> d (arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the features of (B, T, d)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


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
