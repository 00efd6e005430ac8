"""A loss that is minimised beside the training loss without being part of its value."""

from typing import Any

import torch
from torch import Tensor


class AddedLoss(torch.autograd.Function):
    """Values as they are; their backward pass differentiates a loss, a scalar, as well.

    The training loss stays that of the text, comparable between models.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor) -> Tensor:
        """Return the values."""
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of the values, and 1 for the loss."""
        return gradient, torch.ones((), dtype=torch.float32, device=gradient.device)
