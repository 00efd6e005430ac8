"""Canon layer (arXiv 2512.17351): y_t = x_t + Σ_{j<k} w_j ⊙ x_{t-j}, on (B, T, channels)."""

from torch import Tensor

from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.convolution import CausalConvolution
from shapelaw.trainers.models.visibility import TokenView


class Canon(CausalConvolution):
    """Causal depthwise convolution beside a residual connection."""

    def forward(self, x: Tensor, state: Tensor | None, view: TokenView) -> Tensor:
        """Add the convolution of (B, T, channels) to it."""
        return x + super().forward(x, state, view)


def build_canon(layer: DecoderLayer, place: str) -> Canon | None:
    """Build the Canon layer of a place of a layer; None where it has none there."""
    width = layer.canon_widths.get(place)
    if layer.canon is not None and layer.canon.gate_only and place == "D" and width is not None:
        raise InputError(
            "`canon_gate_only` must be false to be computed, but got true: it is not published "
            "whether it stands on the gate; count such a model, or leave D out of `canon_set`"
        )
    return None if layer.canon is None or width is None else Canon(width, layer.canon.kernel)
