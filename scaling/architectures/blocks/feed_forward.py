"""Feed-forward block (MLP), with or without a gate."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class FeedForwardBlock:
    """MLP of three matrices with a gate (SwiGLU, GeGLU), or of two without (GELU, squared ReLU).

    ``activation`` is its name in transformers. ``sparsity`` is the share of the channels of
    the gate that become 0 if they are normal: what exceeds their mean and so many standard
    deviations is kept (Gemma 3n).
    """

    hidden_size: Any
    intermediate_size: Any
    gated: bool = True
    bias: bool = False
    activation: str = "silu"
    sparsity: float = 0.0

    @property
    def label(self) -> str:
        """Size in names: the width."""
        return f"f{self.intermediate_size}"

    @property
    def projected_width(self) -> Any:
        """Numbers that a token is projected to: 2·f with a gate, f without."""
        return (1 + self.gated) * self.intermediate_size

    @property
    def active_width(self) -> Any:
        """Width that one token passes: f."""
        return self.intermediate_size

    @property
    def matmul_parameters(self) -> Any:
        """Parameters of the matrices: 3·d·f with a gate, 2·d·f without."""
        return (2 + self.gated) * self.hidden_size * self.intermediate_size

    @property
    def active_matmul_parameters(self) -> Any:
        """Parameters of the matrices that one token uses: all."""
        return self.matmul_parameters

    @property
    def path_parameters(self) -> Any:
        """Parameters of the matrices that one token passes: all."""
        return self.matmul_parameters

    def idle_parameters(self, tokens: Any) -> Any:
        """Parameters that a step over so many tokens does not read: none."""
        return 0 * tokens

    @property
    def parameters(self) -> Any:
        """All parameters: matrices and biases."""
        return self.matmul_parameters + (self.projected_width + self.hidden_size) * self.bias

    @property
    def active_parameters(self) -> Any:
        """Parameters that one token uses: all."""
        return self.parameters
