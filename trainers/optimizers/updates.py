"""Updates of the optimisers as functions, for one model or a stack of models.

In a stack every tensor has a leading axis over its R models, and a learning rate, decay or momentum
is a tensor (R,) in float64 instead of a float. All updates are in place.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Number = float | Tensor  # for one model, or (R,) for a stack

# Coefficients of the quintic iteration x -> a x + b x³ + c x⁵ on the singular values.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5  # of the iteration
MIN_NORM = 1e-7


def adamw_update(
    weight: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    *,
    rate: Number,
    weight_decay: Number,
    count: Number,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> None:
    """Update a weight by AdamW (arXiv 1711.05101), with the same operations as PyTorch.

    m <- β₁ m + (1 - β₁) g; v <- β₂ v + (1 - β₂) g²;
    W <- (1 - lr·decay) W - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε).

    Parameters
    ----------
    weight
        Weight W.
    gradient
        Gradient g.
    moments
        First and second moments m and v.
    rate
        Learning rate lr.
    weight_decay
        Decay.
    count
        Number t of updates, including this one.
    betas
        β₁ and β₂.
    eps
        ε.
    """
    first, second = moments
    first_beta, second_beta = betas
    _decay(weight, rate, weight_decay)
    first.lerp_(gradient, 1 - first_beta)
    second.mul_(second_beta).addcmul_(gradient, gradient, value=1 - second_beta)
    correction = (1 - second_beta**count) ** 0.5
    denominator = (second.sqrt() / _beside(correction, second)).add_(eps)
    step_size = rate / (1 - first_beta**count)
    if isinstance(step_size, Tensor):
        weight.addcdiv_(first * _beside(-step_size, first), denominator)
    else:
        weight.addcdiv_(first, denominator, value=-step_size)


def nesterov(gradient: Tensor, momentum: Tensor, share: Number) -> Tensor:
    """Update the momentum and return the direction of Nesterov's method."""
    momentum.lerp_(gradient, _beside(1 - share, momentum))
    return gradient.lerp(momentum, _beside(share, momentum))


def muon_update(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    pieces: Sequence[Sequence[int]],
    *,
    rate: Number,
    weight_decay: Number,
    scale: Callable[[int, int], float],
) -> None:
    """Update matrices by their orthogonalised directions, batching all pieces of one size.

    W <- (1 - lr·decay) W - lr·scale(rows, columns)·orthogonalise(direction), for each piece.

    Parameters
    ----------
    weights
        Matrices W, (rows, columns).
    directions
        Directions from :func:`nesterov`.
    pieces
        Numbers of rows of the stacked projections in each matrix.
    rate
        Learning rate lr.
    weight_decay
        Decay.
    scale
        Scale of an update as a function of rows and columns.
    """
    by_size: dict[torch.Size, tuple[list[Tensor], list[Tensor]]] = {}
    for weight, direction, rows in zip(weights, directions, pieces, strict=True):
        _decay(weight, rate, weight_decay)
        for target, part in zip(
            weight.split(rows, dim=-2), direction.split(rows, dim=-2), strict=True
        ):
            targets, parts = by_size.setdefault(part.shape, ([], []))
            targets.append(target)
            parts.append(part)
    for size, (targets, parts) in by_size.items():
        updates = orthogonalise(torch.stack(parts)).to(targets[0].dtype)
        factor = -rate * scale(*size[-2:])
        if isinstance(factor, Tensor):
            updates = updates * _beside(factor, targets[0])
            factor = 1.0
        torch._foreach_add_(targets, updates.unbind(), alpha=factor)


def orthogonalise(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Move the singular values of each matrix towards 1 by Newton-Schulz steps in bfloat16.

    The iteration and its coefficients are those of ``torch.optim.Muon``
    (https://kellerjordan.github.io/posts/muon, arXiv 2502.16982). Leading dimensions are batched,
    which is faster because the matrices of small models are too small to use a core fully.

    Parameters
    ----------
    matrices
        Matrices of any floating type, (..., rows, columns).
    steps
        Number of Newton-Schulz steps.

    Returns
    -------
    torch.Tensor
        Matrices of the same shape in bfloat16.
    """
    a, b, c = QUINTIC
    rows, columns = matrices.shape[-2:]
    x = matrices.bfloat16().reshape(-1, rows, columns)
    if rows > columns:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=MIN_NORM)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    if rows > columns:
        x = x.transpose(1, 2)
    return x.reshape(matrices.shape)


def _decay(weight: Tensor, rate: Number, weight_decay: Number) -> None:
    if isinstance(weight_decay, Tensor) or weight_decay:
        weight.mul_(_beside(1 - rate * weight_decay, weight))


def _beside(number: Number, like: Tensor) -> Number:
    """Reshape the numbers of a stack (R,) to multiply a tensor (R, ...); floats stay."""
    if not isinstance(number, Tensor):
        return number
    return number.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1)) if number.ndim else number
