"""Cross-entropy of a language model whose logits are never whole in memory.

Letters: M positions, d hidden size, V vocabulary, C positions per chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 4096  # positions; C * V logits in fp32 exist at a time


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """Mean next-token loss, ``F.cross_entropy(hidden @ weight.T, targets)``, chunk by chunk.

    The gradients of hidden states and head are computed in the forward pass, while a chunk's
    logits are there, and only scaled in the backward pass: two more tensors of the size of
    ``hidden`` and ``weight`` instead of M × V logits and their gradient. Under autocast the two
    matrix products run in the lower precision, the softmax and the head's gradient in fp32.

    Parameters
    ----------
    hidden
        (..., d).
    weight
        The head, (V, d); tied or not makes no difference.
    targets
        (...), int64.

    Returns
    -------
    A scalar in fp32 (float64 for float64 input); it can be differentiated once.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        lower = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(lower), weight.to(lower)
    flat = hidden.flatten(0, -2)
    # `requires_grad` cannot be asked here: under `torch.func.vmap` it is not seen from inside
    return _ChunkedLoss.apply(flat, weight, targets.flatten(), chunk, torch.is_grad_enabled())[0]


class _ChunkedLoss(torch.autograd.Function):
    """Mean loss and, as outputs that nobody differentiates, its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, wanted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=exact, device=hidden.device)
        by_weight = torch.zeros((), dtype=exact, device=hidden.device)
        by_hidden = []
        with torch.autocast(hidden.device.type, enabled=False):
            for part, wished in zip(hidden.split(chunk), targets.split(chunk), strict=True):
                logits = (part @ weight.T).to(exact)
                total = total + F.cross_entropy(logits, wished, reduction="sum")
                if wanted:
                    spread = logits.softmax(dim=-1) - F.one_hot(wished, logits.shape[-1])
                    spread = (spread / len(targets)).to(hidden.dtype)
                    by_hidden.append(spread @ weight)
                    by_weight = by_weight + (spread.T @ part).to(exact)
        gradient = torch.cat(by_hidden) if wanted else hidden.new_zeros(())
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
