"""Canon layers (arXiv 2512.17351): y_t = x_t + Σ_{j<k} w_j ⊙ x_{t-j}, at up to four places."""

from dataclasses import dataclass
from typing import Any

PLACES = "ABCD"


@dataclass(frozen=True, kw_only=True)
class CanonBlock:
    """Residual causal convolutions over time, one weight per channel and tap, without bias.

    Parameters
    ----------
    places
        Some of ``"ABCD"``: A before attention, on d channels, after the norm; B on queries, keys
        and values together, (H + 2·K)·h channels, before their norm and rotation; C before the MLP,
        d channels, after the norm; D on its projections, 2·f channels with a gate and f without,
        before the activation.
    kernel
        Taps k: the token itself and the k - 1 before it.
    gate_only
        D stands on one of gate and up, f channels instead of 2·f (Dhara-250M).
    """

    places: str
    kernel: Any = 4
    gate_only: bool = False

    def parameters(self, width: Any) -> Any:
        """Parameters on ``width`` channels: k per channel."""
        return self.kernel * width

    def flops(self, width: Any) -> Any:
        """FLOPs per token on ``width`` channels: 2·k per channel."""
        return 2 * self.kernel * width

    def state_values(self, width: Any) -> Any:
        """Numbers that decoding keeps of a sequence: the last k - 1 inputs."""
        return (self.kernel - 1) * width
