"""Norms: of the root mean square (RMSNorm, arXiv 1910.07467), or of mean and variance."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class NormBlock:
    """Norm over the last axis.

    Parameters
    ----------
    kind
        ``"rms"`` divides by the root of the mean square, ``"layer"`` (LayerNorm) also subtracts the
        mean and has a bias.
    epsilon
        Added to the mean square or the variance.
    weight
        The result is multiplied by a learned vector.
    one_plus_weight
        The learned vector is added to 1 before it multiplies (Gemma), in float32.
    """

    kind: Literal["rms", "layer"] = "rms"
    epsilon: float = 1e-6
    weight: bool = True
    one_plus_weight: bool = False

    def parameters(self, width: Any) -> Any:
        """Parameters of a norm over ``width`` numbers."""
        return width * (self.weight + (self.kind == "layer"))


RMS_NORM = NormBlock()
