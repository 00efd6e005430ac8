"""Cross-entropy of a language model without all of its logits in memory at once.

Letters: M positions, d hidden size, V vocabulary, C positions per chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 4096  # positions; C * V logits in fp32 are in memory at a time


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """Compute the mean loss ``F.cross_entropy(hidden @ weight.T, targets)`` chunk by chunk.

    The gradients of hidden states and head are computed in the forward pass, while the logits of a
    chunk are in memory, and only scaled in the backward pass. This takes two more tensors of the
    size of ``hidden`` and ``weight`` instead of M × V logits and their gradient. Under autocast the
    two matrix products run in the lower precision, the softmax and the head's gradient in fp32.

    Parameters
    ----------
    hidden
        Hidden states, (..., d).
    weight
        Weight of the output head, tied or not, (V, d).
    targets
        Next tokens, (...), int64.
    chunk
        Number of positions per chunk.

    Returns
    -------
    torch.Tensor
        Scalar loss in fp32 (float64 for float64 input) that can be differentiated once.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(lower), weight.to(lower)
    flat = hidden.flatten(0, -2)
    # `requires_grad` cannot be used here, because it is not visible inside `torch.func.vmap`.
    return _ChunkedLoss.apply(flat, weight, targets.flatten(), chunk, torch.is_grad_enabled())[0]


class _ChunkedLoss(torch.autograd.Function):
    """Mean loss with its gradients as non-differentiable outputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, with_gradients: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden.device)
        by_weight = torch.zeros((), dtype=exact, device=hidden.device)
        by_hidden = []
        with torch.autocast(hidden.device.type, enabled=False):
            for part, labels in zip(hidden.split(chunk), targets.split(chunk), strict=True):
                logits = (part @ weight.T).to(exact)
                total = total + F.cross_entropy(logits, labels, reduction="sum")
                if with_gradients:
                    by_logits = logits.softmax(dim=-1) - F.one_hot(labels, logits.shape[-1])
                    by_logits = (by_logits / len(targets)).to(hidden.dtype)
                    by_hidden.append(by_logits @ weight)
                    by_weight = by_weight + (by_logits.T @ part).to(exact)
        gradient = torch.cat(by_hidden) if with_gradients else hidden.new_zeros(())
        return total / len(targets), gradient, by_weight.to(weight.dtype)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx,
        inputs: tuple[object, ...],
        output: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        _, by_hidden, by_weight = output
        ctx.mark_non_differentiable(by_hidden, by_weight)
        ctx.save_for_backward(by_hidden, by_weight)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, scale: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        by_hidden, by_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        scale = scale.to(by_hidden.dtype)
        return scale * by_hidden, scale * by_weight, None, None, None
