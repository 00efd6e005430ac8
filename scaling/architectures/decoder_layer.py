"""One layer of an architecture: blocks beside residual connections, and their costs."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from shapelaw.scaling.architectures.blocks.attention import (
    AttentionBlock,
)
from shapelaw.scaling.architectures.blocks.canon import CanonBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.architectures.blocks.laurel import LaurelBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.blocks.norm import RMS_NORM, NormBlock
from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock
from shapelaw.scaling.architectures.blocks.streams import StreamsBlock


@dataclass(frozen=True, kw_only=True)
class DecoderLayer:
    """One layer: attention and feed-forward, each beside a residual connection.

    Parameters
    ----------
    attention
        Attention, or a short convolution in its place.
    norm
        Kind of the layer's norms.
    norms
        Where they stand: ``"before"`` each block, ``"after"`` each block and inside its residual
        connection (OLMo 2), or ``"both"`` (Gemma 3).
    canon
        Its Canon layers; None without.
    laurel
        Low-rank residual beside attention; None without.
    streams
        Parallel residual streams, equal in every layer; None for a single one.
    """

    attention: AttentionBlock | LatentAttentionBlock | ShortConvolutionBlock
    feed_forward: FeedForwardBlock | ExpertsBlock
    norm: NormBlock = RMS_NORM
    norms: Literal["before", "after", "both"] = "before"
    canon: CanonBlock | None = None
    laurel: LaurelBlock | None = None
    streams: StreamsBlock | None = None

    @property
    def canon_widths(self) -> dict[str, Any]:
        """Channels of the Canon layer at each place that has one."""
        if self.canon is None:
            return {}
        width = self.attention.hidden_size
        inner = "intermediate_size" if self.canon.gate_only else "projected_width"
        widths = {
            "A": width,
            "B": getattr(self.attention, "projected_width", 0),
            "C": width,
            "D": getattr(self.feed_forward, inner, 0),
        }
        return {place: widths[place] for place in self.canon.places}

    @property
    def parameters(self) -> Any:
        """All parameters."""
        norms = (4 if self.norms == "both" else 2) * self.norm.parameters(
            self.attention.hidden_size
        )
        canon = self.canon.parameters(self._canon_width) if self.canon else 0
        others = canon + sum(part.parameters for part in self._residuals)
        return self.attention.parameters + self.feed_forward.parameters + norms + others

    @property
    def _residuals(self) -> list[LaurelBlock | StreamsBlock]:
        return [part for part in (self.laurel, self.streams) if part is not None]

    @property
    def _canon_width(self) -> Any:
        return sum(self.canon_widths.values())

    @property
    def other_flops(self) -> Any:
        """FLOPs per token beside those of matrices and scores: convolutions and streams."""
        canon = self.canon.flops(self._canon_width) if self.canon else 0
        streams = self.streams.flops if self.streams else 0
        return canon + streams + getattr(self.attention, "flops", 0)

    @property
    def state_values(self) -> Any:
        """Numbers that decoding keeps of a sequence of any length: states of convolutions."""
        canon = self.canon.state_values(self._canon_width) if self.canon else 0
        return canon + getattr(self.attention, "state_values", 0)

    @property
    def inactive_parameters(self) -> Any:
        """Parameters that one token does not use: experts that the router does not choose."""
        return self.feed_forward.parameters - self.feed_forward.active_parameters

    @property
    def active_matmul_parameters(self) -> Any:
        """Parameters of the matrices that one token passes."""
        residuals = sum(part.matmul_parameters for part in self._residuals)
        matrices = self.attention.matmul_parameters + self.feed_forward.active_matmul_parameters
        return matrices + residuals


def layer_runs(layers: Iterable[DecoderLayer]) -> tuple[tuple[DecoderLayer, int], ...]:
    """Merge equal layers that follow each other into one, with their number."""
    return tuple((layer, len(list(run))) for layer, run in groupby(layers))
