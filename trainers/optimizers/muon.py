"""Muon on stacks of same-shape matrices: one Newton-Schulz iteration for all of them at once."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Of the quintic iteration x -> a x + b x³ + c x⁵ on the singular values.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5
SMALLEST_NORM = 1e-7


def orthogonalise(matrices: Tensor, steps: int = STEPS) -> Tensor:
    """Move the singular values of each matrix towards 1 by Newton-Schulz steps in bfloat16.

    Parameters
    ----------
    matrices
        (..., rows, columns), any floating type.

    Returns
    -------
    The same shape in bfloat16.

    The iteration and its coefficients are those of ``torch.optim.Muon``
    (https://kellerjordan.github.io/posts/muon, arXiv 2502.16982); leading dimensions are batched,
    which pays because the matrices of small models are far too small to fill a core.
    """
    a, b, c = QUINTIC
    rows, columns = matrices.shape[-2:]
    x = matrices.bfloat16().reshape(-1, rows, columns)
    if rows > columns:
        x = x.transpose(1, 2)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    if rows > columns:
        x = x.transpose(1, 2)
    return x.reshape(matrices.shape)


def original(rows: int, columns: int) -> float:
    """√max(1, rows/columns): Keller Jordan's scale of an update."""
    return math.sqrt(max(1.0, rows / columns))


def match_rms_adamw(rows: int, columns: int) -> float:
    """.2·√max(rows, columns): Kimi K2's scale, which gives AdamW's size of update (2502.16982)."""
    return 0.2 * math.sqrt(max(rows, columns))


SCALES: dict[str, Callable[[int, int], float]] = {
    "original": original,
    "match_rms_adamw": match_rms_adamw,
}


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` with same-shape matrices batched and fused projections taken apart.

    Parameters
    ----------
    parameters
        Matrices, (rows, columns).
    pieces
        For each matrix the row counts of the projections that it holds, each orthogonalised on its
        own: queries, keys and values of one fused matrix are three matrices to Muon.
    scale
        A name in :data:`SCALES`.

    The rule is W <- (1 - lr·decay)·W - lr·scale·orthogonalise(Nesterov momentum of the gradient).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        pieces: Sequence[Sequence[int]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        scale: str = "original",
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, settings)
        self.scale = SCALES[scale]
        self.pieces = pieces

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        group = self.param_groups[0]
        weights, pieces, gradients = [], [], []
        for weight, rows in zip(group["params"], self.pieces, strict=True):
            if weight.grad is not None:
                weights.append(weight)
                pieces.append(rows)
                gradients.append(weight.grad)
        momenta = [self._momentum(weight) for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        self.apply(weights, updates, pieces, group["lr"])

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]

    def apply(
        self,
        weights: Sequence[Tensor],
        updates: Sequence[Tensor],
        pieces: Sequence[Sequence[int]],
        lr: float,
    ) -> None:
        """Orthogonalise updates, all pieces of one size together, and add them to their weights."""
        stacks: dict[tuple[int, ...], tuple[list[Tensor], list[Tensor]]] = {}
        for weight, update, rows in zip(weights, updates, pieces, strict=True):
            for target, part in zip(weight.split(rows), update.split(rows), strict=True):
                targets, parts = stacks.setdefault(tuple(part.shape), ([], []))
                targets.append(target)
                parts.append(part)
        for size, (targets, parts) in stacks.items():
            turned = orthogonalise(torch.stack(parts)).to(targets[0].dtype)
            torch._foreach_add_(targets, turned.unbind(), alpha=-lr * self.scale(*size))
