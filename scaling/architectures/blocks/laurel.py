"""Learned augmented residual layer of low rank (arXiv 2411.07501): x + norm(W_r W_l x)."""

from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.blocks.norm import RMS_NORM, NormBlock


@dataclass(frozen=True, kw_only=True)
class LaurelBlock:
    """Low-rank residual beside attention, on the same input; both are added and scaled by 1/√2."""

    hidden_size: Any
    rank: Any
    norm: NormBlock = RMS_NORM

    @property
    def matmul_parameters(self) -> Any:
        """Parameters of the matrices: 2·d·rank."""
        return 2 * self.hidden_size * self.rank

    @property
    def parameters(self) -> Any:
        """All parameters: matrices and the norm."""
        return self.matmul_parameters + self.norm.parameters(self.hidden_size)
