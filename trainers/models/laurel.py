"""Learned augmented residual layer of low rank (arXiv 2411.07501): x + norm(W_r W_l x)."""

from torch import Tensor, nn

from shapelaw.scaling.architectures.blocks.laurel import LaurelBlock
from shapelaw.trainers.models.norms import build_norm


class Laurel(nn.Module):
    """Low-rank residual, d -> rank -> d."""

    def __init__(self, block: LaurelBlock) -> None:
        super().__init__()
        self.linear_left = nn.Linear(block.hidden_size, block.rank, bias=False)
        self.linear_right = nn.Linear(block.rank, block.hidden_size, bias=False)
        self.norm = build_norm(block.norm, block.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, T, d)."""
        return x + self.norm(self.linear_right(self.linear_left(x)))
