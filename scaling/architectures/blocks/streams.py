"""Parallel residual streams (AltUp, arXiv 2301.13310) with per-layer embeddings (Gemma 3n)."""

from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures.blocks.norm import RMS_NORM, NormBlock


@dataclass(frozen=True, kw_only=True)
class StreamsBlock:
    """P streams of d numbers in place of one, of which a layer updates one and predicts the rest.

    A layer also adds the embedding that a table of its own has for the token, of p numbers.

    Parameters
    ----------
    streams, active
        Number of streams P, and the one that attention and MLP update.
    clip
        Largest size of a coefficient in training.
    scaled
        A learned vector multiplies the updated stream that meets the embedding.
    token_width, token_vocab
        Width p of the per-layer embeddings, and their number of tokens.
    activation
        Activation of the gate of an embedding, by its name in transformers.
    """

    hidden_size: Any
    streams: Any
    active: int = 0
    clip: float = 120.0
    scaled: bool = True
    token_width: Any
    token_vocab: Any
    activation: str = "gelu_pytorch_tanh"
    norm: NormBlock = RMS_NORM

    @property
    def matmul_parameters(self) -> Any:
        """Parameters of the matrices of a layer: d·P + P² + P³ + 2·d·p."""
        streams, width = self.streams, self.hidden_size
        return width * streams + streams**2 + streams**3 + 2 * width * self.token_width

    @property
    def parameters(self) -> Any:
        """All parameters of a layer: matrices, two norms and the scale."""
        vectors = 2 * self.norm.parameters(self.hidden_size) + self.hidden_size
        return self.matmul_parameters + vectors

    @property
    def flops(self) -> Any:
        """FLOPs per token and layer that no parameter shows.

        2·P²·d for the prediction, and 2·P·d for the router, which acts twice.
        """
        return 2 * self.streams * self.hidden_size * (self.streams + 1)

    def model_matmul_parameters(self, layers: Any) -> Any:
        """Parameters of the matrices beside the layers: 2·(P - 1)·d² + d·L·p."""
        width = self.hidden_size
        return 2 * (self.streams - 1) * width**2 + width * layers * self.token_width

    def model_parameters(self, layers: Any) -> Any:
        """Parameters beside the layers, without the table."""
        return self.model_matmul_parameters(layers) + self.norm.parameters(self.token_width)

    def table_parameters(self, layers: Any) -> Any:
        """Parameters of the table of per-layer embeddings, which is looked up."""
        return self.token_vocab * layers * self.token_width
