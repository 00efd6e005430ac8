"""Feed-forward blocks: W_down(a(W_gate x) ⊙ W_up x) (arXiv 2002.05202), or W_down a(W_up x)."""

from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.canon import Canon
from shapelaw.trainers.models.visibility import TokenView

_tanh_gelu = partial(F.gelu, approximate="tanh")


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # by their names in transformers
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": F.relu,
    "relu2": _relu_squared,
    "tanh": torch.tanh,
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """Return an activation by its name in transformers.

    Raises
    ------
    InputError
        The activation is not computed here.
    """
    if name not in ACTIVATIONS:
        raise InputError(
            f"`hidden_act` must be one of {', '.join(ACTIVATIONS)} to be computed, but got {name!r}"
        )
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """MLP, d -> f -> d, with or without a gate, and with an optional Canon layer inside."""

    def __init__(self, block: FeedForwardBlock, *, canon: Canon | None = None) -> None:
        super().__init__()
        d, f = block.hidden_size, block.intermediate_size
        self.gated, self.activation = block.gated, activation_of(block.activation)
        # Standard deviations above the mean that a channel of the gate must exceed.
        self.cutoff = NormalDist().inv_cdf(block.sparsity) if block.sparsity else None
        if block.gated:
            self.gate_up_proj = nn.Linear(d, 2 * f, bias=block.bias)
            self.parts = {"gate_up_proj": (f, f), **({"canon": (f, f)} if canon else {})}
        else:
            self.up_proj = nn.Linear(d, f, bias=block.bias)
            self.parts = {}
        self.down_proj = nn.Linear(f, d, bias=block.bias)
        self.canon = canon

    def forward(
        self, x: Tensor, state: Tensor | None = None, view: TokenView | None = None
    ) -> Tensor:
        """Apply the block to (B, T, d); the state and the view are for its Canon layer."""
        projected = self.gate_up_proj(x) if self.gated else self.up_proj(x)
        if self.canon is not None:
            assert view is not None
            projected = self.canon(projected, state, view)
        if not self.gated:
            return self.down_proj(self.activation(projected))
        gate, up = projected.chunk(2, dim=-1)
        if self.cutoff is not None:
            deviation, mean = torch.std_mean(gate, dim=-1, correction=0, keepdim=True)
            gate = F.relu(gate - (mean + self.cutoff * deviation))
        return self.down_proj(self.activation(gate) * up)
