"""Causal depthwise convolution over time: y_t = Σ_{j<k} w_j ⊙ x_{t-j} + b.

Shape letters: B sequences, T positions, w channels, k taps. What decoding keeps of a sequence is
its state, the last k - 1 inputs, (B, k - 1, w).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.trainers.models.visibility import TokenView


class CausalConvolution(nn.Module):
    """Convolution of each channel over its last k inputs.

    The weight has the layout of ``nn.Conv1d``, (w, 1, k): its last tap multiplies the newest input.
    """

    def __init__(self, width: int, kernel: int, *, bias: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.zeros(width, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor, state: Tensor | None, view: TokenView) -> Tensor:
        """Convolve (B, T, w). A state is replaced by that after the tokens that are kept.

        Before position 0, and of other documents, every input is 0. A tap of a noisy token that
        reaches into an earlier block reads the clean text there, as decoding does.
        """
        positions, kept = x.shape[1], self.kernel - 1
        if view.half:
            noisy, clean = (F.pad(part, (0, 0, kept, 0)) for part in x.chunk(2, dim=1))
            inputs = [self._shifted(noisy, clean, index, view) for index in range(self.kernel)]
        else:
            if state is None or view.start == 0:
                padded = F.pad(x, (0, 0, kept, 0))
            else:
                padded = torch.cat((state, x), dim=1)
            if state is not None and view.kept:
                state.copy_(padded[:, view.kept : view.kept + kept])
            inputs = [padded[:, index : index + positions] for index in range(self.kernel)]
        if view.documents is not None:
            inputs = [
                part * self._within(view, kept - index).to(part)
                for index, part in enumerate(inputs)
            ]
        taps = self.weight[:, 0].unbind(1)
        y = inputs[0] * taps[0]
        for part, tap in zip(inputs[1:], taps[1:], strict=True):
            y = torch.addcmul(y, part, tap)
        return y if self.bias is None else y + self.bias

    def _shifted(self, noisy: Tensor, clean: Tensor, index: int, view: TokenView) -> Tensor:
        """Return the inputs of one tap of both halves, (B, 2L, w), from padded halves."""
        half, back = view.half, self.kernel - 1 - index
        earlier, later = clean[:, index : index + half], noisy[:, index : index + half]
        if back:
            blocks = view.visibility.blocks(torch.arange(-back, half, device=noisy.device))
            crosses = blocks[:half] < blocks[back:]
            later = torch.where(crosses[:, None], earlier, later)
        return torch.cat((later, earlier), dim=1)

    def _within(self, view: TokenView, back: int) -> Tensor:
        """Return 1 where the token ``back`` places before is of the same document, (B, T, 1)."""
        documents = view.documents
        assert documents is not None
        halves = documents.chunk(2, dim=1) if view.half else (documents,)
        same = [part == part.roll(back, dims=1) for part in halves]
        return torch.cat(same, dim=1)[:, -view.count :, None]

    def empty_state(self, batch: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Create the state of ``batch`` sequences before their first token."""
        return torch.zeros(
            (batch, self.kernel - 1, self.weight.shape[0]), dtype=dtype, device=device
        )
