"""Causal depthwise convolution over time: y_t = Σ_{j<k} w_j ⊙ x_{t-j} + b.

Shape letters: B sequences, T positions, w channels, k taps. What decoding keeps of a sequence is
its state, the last k - 1 inputs, (B, k - 1, w).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CausalConvolution(nn.Module):
    """Convolution of each channel over its last k inputs.

    The weight has the layout of ``nn.Conv1d``, (w, 1, k): its last tap multiplies the newest input.
    """

    def __init__(self, width: int, kernel: int, *, bias: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.zeros(width, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor, state: Tensor | None, start: int) -> Tensor:
        """Convolve (B, T, w). A state is replaced by that after these tokens.

        Before position 0 every input is 0.
        """
        positions, kept = x.shape[1], self.kernel - 1
        if state is None or start == 0:
            inputs = F.pad(x, (0, 0, kept, 0))
        else:
            inputs = torch.cat((state, x), dim=1)
        if state is not None:
            state.copy_(inputs[:, positions:])
        taps = self.weight[:, 0].unbind(1)
        y = inputs[:, :positions] * taps[0]
        for index in range(1, self.kernel):
            y = torch.addcmul(y, inputs[:, index : index + positions], taps[index])
        return y if self.bias is None else y + self.bias

    def empty_state(self, batch: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Create the state of ``batch`` sequences before their first token."""
        return torch.zeros(
            (batch, self.kernel - 1, self.weight.shape[0]), dtype=dtype, device=device
        )
