"""Feed-forward blocks."""

from torch import Tensor, nn
from torch.nn import functional as F

from shapelaw.scaling.architectures.shape import Shape


class MLP(nn.Module):
    """SwiGLU feed-forward block, d -> f -> d (arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, T, d)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)
