"""Muon and AdamW as optimisers of torch, each with an update that also serves stacks of models."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shapelaw.trainers.optimizers.updates import Number, adamw_update, muon_update, nesterov


def original(rows: int, columns: int) -> float:
    """√max(1, rows/columns): Keller Jordan's scale of an update."""
    return math.sqrt(max(1.0, rows / columns))


def match_rms_adamw(rows: int, columns: int) -> float:
    """0.2·√max(rows, columns): Kimi K2's scale, which gives AdamW's size of update (2502.16982)."""
    return 0.2 * math.sqrt(max(rows, columns))


SCALES: dict[str, Callable[[int, int], float]] = {
    "original": original,
    "match_rms_adamw": match_rms_adamw,
}


class Rule(torch.optim.Optimizer):
    """An optimiser of one group of weights, each of which has a gradient in every step.

    ``moments`` names the tensors that it keeps of each weight; ``counts`` says that it keeps the
    number of its updates too.
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
        """Update weights, and the moments of each, in place.

        Parameters
        ----------
        weights
            All that the optimiser was made for, in their order; those of a stack of models have a
            leading axis.
        settings
            As in ``param_groups``; in a stack ``lr``, ``weight_decay`` and ``momentum`` are (R,).
        count
            Updates with this one.
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
        self.update(weights, [weight.grad for weight in weights], moments, group, count)

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """Return what is kept of a weight; zeros before its first update."""
        state = self.state[weight]
        if not state:
            state.update({name: torch.zeros_like(weight) for name in self.moments})
            if self.counts:
                state["step"] = torch.tensor(0.0)
        return state


class AdamW(Rule):
    """``torch.optim.AdamW`` with an update that stacks of models share."""

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
