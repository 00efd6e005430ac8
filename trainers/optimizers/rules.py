"""Muon and AdamW as PyTorch optimisers with updates that also apply to stacks of models."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shapelaw.trainers.optimizers.updates import Number, adamw_update, muon_update, nesterov


def original(rows: int, columns: int) -> float:
    """Return √max(1, rows/columns), Keller Jordan's scale of an update."""
    return math.sqrt(max(1.0, rows / columns))


def match_rms_adamw(rows: int, columns: int) -> float:
    """Return 0.2·√max(rows, columns), the scale of arXiv 2502.16982, with AdamW's update size."""
    return 0.2 * math.sqrt(max(rows, columns))


SCALES: dict[str, Callable[[int, int], float]] = {
    "original": original,
    "match_rms_adamw": match_rms_adamw,
}


class Rule(torch.optim.Optimizer):
    """Optimiser of one group of weights; one that the loss does not use has a gradient of 0.

    ``moments`` are the names of the state tensors of each weight. ``counts`` is true if the state
    also contains the number of updates.
    """

    moments: ClassVar[tuple[str, ...]]
    counts: ClassVar[bool] = False

    @abstractmethod
    def update(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        settings: Mapping[str, Any],
        count: Number,
    ) -> None:
        """Update weights and their moments in place.

        Parameters
        ----------
        weights
            All weights of the optimiser in their order, with a leading axis for a stack of models.
        gradients
            Gradient of each weight.
        moments
            State tensors of each weight, in the order of the names.
        settings
            As in ``param_groups``; in a stack ``lr``, ``weight_decay`` and ``momentum`` are (R,).
        count
            Number of updates, including this one.
        """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every weight from its gradient."""
        group = self.param_groups[0]
        weights = group["params"]
        states = [self.state_of(weight) for weight in weights]
        count = 0.0
        if self.counts:
            for state in states:
                state["step"] += 1
            count = float(states[0]["step"])
        moments = [[state[name] for name in self.moments] for state in states]
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        self.update(weights, gradients, moments, group, count)

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the state of a weight, which is zero before its first update."""
        state = self.state[weight]
        if not state:
            state.update({name: torch.zeros_like(weight) for name in self.moments})
            if self.counts:
                state["step"] = torch.tensor(0.0)
        return state


class AdamW(Rule):
    """``torch.optim.AdamW`` with an update that also applies to stacks of models."""

    moments = ("exp_avg", "exp_avg_sq")
    counts = True

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    def update(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        settings: Mapping[str, Any],
        count: Number,
    ) -> None:
        """Update each weight by :func:`adamw_update`."""
        for weight, gradient, (first, second) in zip(weights, gradients, moments, strict=True):
            adamw_update(weight, gradient, (first, second), rate=settings["lr"],
                         weight_decay=settings["weight_decay"], count=count)  # fmt: skip


class Muon(Rule):
    """``torch.optim.Muon`` with batched matrices of one shape and separated fused projections.

    Parameters
    ----------
    parameters
        Matrices, (rows, columns).
    pieces
        Numbers of rows of the projections in each matrix. Each projection is orthogonalised
        separately: queries, keys and values of one fused matrix are three matrices for Muon.
    scale
        Key of :data:`SCALES`.
    """

    moments = ("momentum_buffer",)

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

    def update(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        moments: Sequence[Sequence[Tensor]],
        settings: Mapping[str, Any],
        count: Number,
    ) -> None:
        """Update the momenta by :func:`nesterov` and the matrices by :func:`muon_update`."""
        directions = [
            nesterov(gradient, momentum, settings["momentum"])
            for gradient, (momentum,) in zip(gradients, moments, strict=True)
        ]
        self.apply(weights, directions, settings)

    def apply(
        self, weights: Sequence[Tensor], directions: Sequence[Tensor], settings: Mapping[str, Any]
    ) -> None:
        """Add the orthogonalised directions to their matrices."""
        muon_update(weights, directions, self.pieces, rate=settings["lr"],
                    weight_decay=settings["weight_decay"], scale=self.scale)  # fmt: skip
