"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), with its cache of one latent.

    c = norm(W_a x),  k_rot = rope(W_r x),  [k_h, v_h] = W_b,h c  for each head h,
    [q_h, q_rot,h] = W_q,h norm(W_qa x),
    o_h = softmax((q_h·k_h + rope(q_rot,h)·k_rot)·scale + mask)·v_h.

A step with a cache keeps keys and values compressed: q_h·k_h = (W_k,hᵀ q_h)·c, and the weighted sum
of v_h is W_v,h times that of c.

Shape letters: B sequences, T positions, S positions of keys, d hidden size, H heads, n and r
dimensions of a key without and with rotary positions, v dimension of a value, r_kv rank of c.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.attention import LayerCache
from shapelaw.trainers.models.attention_paths import fused_attention, matmul_attention
from shapelaw.trainers.models.norms import build_norm
from shapelaw.trainers.models.rotary import rotate
from shapelaw.trainers.models.visibility import TokenView


class LatentAttention(nn.Module):
    """Multi-head latent attention, d -> d.

    Parameters
    ----------
    block
        Heads, ranks of the latents, norms and positions.
    attention
        ``"sdpa"`` (PyTorch's fused kernel) or ``"matmul"`` (attention scores computed explicitly).
    """

    def __init__(self, block: LatentAttentionBlock, *, attention: str) -> None:
        super().__init__()
        if block.window is not None:
            raise InputError(
                f"`window` of latent attention must be None to be computed, but got {block.window}"
            )
        self.heads, self.path, self.rotary = block.num_attention_heads, attention, block.rotary
        self.plain, self.turned = block.plain_head_dim, block.rotary_head_dim
        self.value_dim, self.rank = block.value_head_dim, block.latent_rank
        width = self.plain + self.turned
        self.scale = width**-0.5 if block.scale is None else block.scale
        d, bias = block.hidden_size, block.bias
        if block.query_rank is None:
            self.q_proj = nn.Linear(d, self.heads * width, bias=False)
        else:
            self.q_a_proj = nn.Linear(d, block.query_rank, bias=bias)
            self.q_a_layernorm = build_norm(block.norm, block.query_rank)
            self.q_b_proj = nn.Linear(block.query_rank, self.heads * width, bias=False)
        self.direct = block.query_rank is None
        self.kv_a_proj_with_mqa = nn.Linear(d, self.rank + self.turned, bias=bias)
        self.kv_a_layernorm = build_norm(block.norm, self.rank)
        outputs = self.heads * (self.plain + self.value_dim)
        self.kv_b_proj = nn.Linear(self.rank, outputs, bias=False)
        self.o_proj = nn.Linear(self.heads * self.value_dim, d, bias=bias)
        self.watch: nn.Module | None = None  # of the largest logits, for QK-clip

    def forward(
        self, x: Tensor, table: Tensor | None, cache: LayerCache | None, view: TokenView
    ) -> Tensor:
        """Apply attention to (B, T, d). With a cache, attend to its positions too."""
        assert table is not None
        q, latent, turned = self._project(x, table)
        if cache is not None:
            start, kept = view.start, view.start + view.kept
            new = torch.cat((latent, turned), dim=-1)
            cache[0][:, start:kept] = new[:, : view.kept]
            if view.plain and view.count == 1:
                return self.o_proj(self._step(q.squeeze(1), cache[0][:, :kept])[:, None])
            if start:
                new = torch.cat((cache[0][:, :start].to(new.dtype), new), dim=1)
                latent, turned = new.split((self.rank, self.turned), dim=-1)
        return self.o_proj(self._attend(q, latent, turned, view))

    def empty_cache(
        self, batch: int, length: int, *, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        """Create a zeroed cache of latents and rotated keys, (B, positions, r_kv + r)."""
        size = (batch, length, self.rank + self.turned)
        return (torch.zeros(size, dtype=dtype, device=device),)

    def _project(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries (B, T, H, n + r), latents (B, T, r_kv), rotated keys (B, T, r)."""
        q = self.q_proj(x) if self.direct else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.view(*x.shape[:2], self.heads, -1)
        latent, turned = self.kv_a_proj_with_mqa(x).split((self.rank, self.turned), dim=-1)
        plain, q_turned = q.split((self.plain, self.turned), dim=-1)
        both = torch.cat((q_turned, turned[:, :, None]), dim=2)
        both = rotate(both, table, interleaved=self.rotary.interleaved).to(q.dtype)
        q = torch.cat((plain, both[:, :, :-1]), dim=-1)
        return q, self.kv_a_layernorm(latent), both[:, :, -1]

    def _attend(self, q: Tensor, latent: Tensor, turned: Tensor, view: TokenView) -> Tensor:
        """Attend to expanded keys and values of S positions -> (B, T, H·v)."""
        expanded = self.kv_b_proj(latent).view(*latent.shape[:2], self.heads, -1)
        plain, v = expanded.split((self.plain, self.value_dim), dim=-1)
        k = torch.cat((plain, turned[:, :, None].expand(-1, -1, self.heads, -1)), dim=-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.watch is not None:
            self.watch(q, k, view, scale=self.scale)
        if self.path == "matmul":
            mixed = matmul_attention(q, k, v, view, scale=self.scale)
        else:  # fused kernels want keys and values of one width
            width = max(k.shape[-1], self.value_dim)
            q, k, v = (F.pad(part, (0, width - part.shape[-1])) for part in (q, k, v))
            mixed = fused_attention(q, k, v, view, scale=self.scale)
            mixed = mixed[..., : self.value_dim]
        return mixed.transpose(1, 2).flatten(2)

    def _step(self, q: Tensor, cached: Tensor) -> Tensor:
        """Attend with (B, H, n + r) to (B, S, r_kv + r) without expanding them -> (B, H·v)."""
        up = self.kv_b_proj.weight.to(q.dtype).view(self.heads, -1, self.rank)
        up_k, up_v = up.split((self.plain, self.value_dim), dim=1)
        plain, turned = q.split((self.plain, self.turned), dim=-1)
        absorbed = torch.einsum("bhn,hnc->bhc", plain, up_k)
        query = torch.cat((absorbed, turned), dim=-1)
        weights = (self.scale * (query @ cached.transpose(1, 2))).softmax(dim=-1)
        mixed = weights @ cached[..., : self.rank]
        return torch.einsum("bhc,hvc->bhv", mixed, up_v).flatten(1)
