"""QK-clip of MuonClip (Kimi K2, arXiv 2507.20534, section 2.1): a bound on the logits of attention.

    S_h = max over the batch of scale·q_h·k,  γ_h = min(1, τ/S_h) for each head h, after a step:
    grouped-query:  W_k,g *= √γ_g,  W_q,h *= γ_h/√γ_g,  γ_g the least γ of the heads of key head g;
    latent:         W_q,h *= √γ_h and W_k,h *= √γ_h without positions, rotary W_q,h *= γ_h.

Every logit of head h is multiplied by γ_h. With one key head per query head the first line is that
of the paper, √γ_h for both. The rotary key that the heads of latent attention share stays.

Shape letters: B sequences, T positions, H query heads, K key-value heads, h head dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.attention import Attention
from shapelaw.trainers.models.attention_paths import Reach
from shapelaw.trainers.models.latent_attention import LatentAttention
from shapelaw.trainers.models.visibility import TokenView

ROWS = 128  # queries whose logits are computed at once
PLAIN: Reach = (None, False)


class LogitWatch(nn.Module):
    """Largest logit of each head in forward passes with gradients since the last clip.

    Attributes
    ----------
    largest : torch.Tensor
        Logits with their scale, (H,); minus infinity before the first pass.
    """

    largest: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("largest", torch.full((heads,), -torch.inf), persistent=False)

    def forward(
        self, q: Tensor, k: Tensor, view: TokenView, *, scale: float, reach: Reach = PLAIN
    ) -> None:
        """Note the logits of queries (B, H, T, h) on keys (B, K, T, h) that they see."""
        if not torch.is_grad_enabled():
            return
        with torch.no_grad():
            q = q.detach().unflatten(1, (k.shape[1], -1))
            keys = k.detach()[:, :, None].transpose(-1, -2)
            for first in range(0, view.count, ROWS):
                rows = (first, min(first + ROWS, view.count))
                seen = view.visible(
                    rows, ((0, view.count),), window=reach[0], chunked=reach[1], device=q.device
                )
                seen = seen if seen.ndim == 2 else seen[:, None, None]
                logits = (q[..., rows[0] : rows[1], :] @ keys).float() * scale
                best = logits.masked_fill(~seen, -torch.inf).amax(dim=(0, 3, 4)).flatten()
                self.largest.copy_(torch.maximum(self.largest, best))


def watch_logits(model: nn.Module) -> None:
    """Let every attention of a model note its largest logits.

    Raises
    ------
    InputError
        An attention normalises its queries and keys, so that no weight of theirs moves a logit.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            if module.qk_norm or module.shares_cache:
                raise InputError(
                    "`qk_clip` must be 0 for a model with QK-norm, whose norms bound the logits; "
                    "leave it out"
                )
            module.watch = LogitWatch(module.heads)
        elif isinstance(module, LatentAttention):
            module.watch = LogitWatch(module.heads)


@torch.no_grad()
def clip_logits(model: nn.Module, threshold: float) -> dict[str, float]:
    """Scale the weights of the heads whose largest logit exceeds a threshold, and forget them.

    Parameters
    ----------
    model
        Model that watches its logits (:func:`watch_logits`), after the update of its weights.
    threshold
        Largest logit τ.

    Returns
    -------
    dict
        ``max_logit``: largest logit of the step; ``clipped_heads``: number of heads over τ.
    """
    largest, clipped = -float("inf"), 0
    for module in model.modules():
        watch = getattr(module, "watch", None)
        if not isinstance(watch, LogitWatch):
            continue
        factors = (threshold / watch.largest.clamp(min=threshold)).to(torch.float32)
        largest = max(largest, float(watch.largest.max()))
        over = int((factors < 1).sum())
        watch.largest.fill_(-torch.inf)
        if over:
            clipped += over
            _scale_heads(module, factors)
    return {"max_logit": largest, "clipped_heads": clipped}


def _scale_heads(module: Any, factors: Tensor) -> None:
    """Multiply the logits of each head by its factor, (H,), through weights and biases."""
    if isinstance(module, LatentAttention):
        root = factors.sqrt()[:, None, None]
        query = module.q_proj if module.direct else module.q_b_proj
        rows = query.weight.unflatten(0, (module.heads, -1))
        rows[:, : module.plain] *= root
        rows[:, module.plain :] *= factors[:, None, None]
        keys = module.kv_b_proj.weight.unflatten(0, (module.heads, -1))
        keys[:, : module.plain] *= root
        return
    key = factors.view(module.kv_heads, -1).amin(dim=1).sqrt()
    both = torch.cat((factors / key.repeat_interleave(module.heads // module.kv_heads), key))
    for weight in (module.qkv_proj.weight, module.qkv_proj.bias):
        if weight is not None:
            rows = weight[: len(both) * module.head_dim].unflatten(0, (len(both), -1))
            rows *= both.view(-1, *[1] * (rows.ndim - 1))
