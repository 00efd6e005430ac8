"""Decoder layer: attention and feed-forward, each beside a residual connection.

The blocks of a layer are data (:mod:`shapelaw.scaling.architectures.blocks`); each has a module of
its own in this folder. Shape letters: B sequences, T positions, d hidden size, P streams, p width
of per-layer embeddings.
"""

import torch
from torch import Tensor, nn

from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.trainers.models.attention import Attention, LayerCache, SharedKeys
from shapelaw.trainers.models.canon import build_canon
from shapelaw.trainers.models.feed_forward import FeedForward
from shapelaw.trainers.models.latent_attention import LatentAttention
from shapelaw.trainers.models.laurel import Laurel
from shapelaw.trainers.models.mixture_of_experts import MixtureOfExperts
from shapelaw.trainers.models.norms import build_norm
from shapelaw.trainers.models.short_convolution import ShortConvolution
from shapelaw.trainers.models.streams import LayerStreams
from shapelaw.trainers.models.visibility import TokenView


class Layer(nn.Module):
    """One decoder layer: x + after(block(before(x))) for attention and then for the MLP.

    With a low-rank residual r, x + attention becomes (x + attention + r(before(x))) / √2. With
    parallel streams, the layer updates one of them.
    Canon layers act on what attention and the MLP are given (A and C), and inside them (B and D).
    The cache of a layer is that of its attention, then the states of its Canon layers A, C and D.
    """

    def __init__(self, block: DecoderLayer, *, attention: str) -> None:
        super().__init__()
        width = block.attention.hidden_size
        before, after = block.norms != "after", block.norms != "before"
        if before:
            self.input_layernorm = build_norm(block.norm, width)
        self.self_attn = build_attention(block, attention=attention)
        if after:
            self.attention_output_norm = build_norm(block.norm, width)
        if before:
            self.post_attention_layernorm = build_norm(block.norm, width)
        self.canon_a = build_canon(block, "A")
        self.canon_c = build_canon(block, "C")
        self.places = [place for place in "ACD" if place in block.canon_widths]
        self.mlp = build_feed_forward(block)
        if after:
            self.mlp_output_norm = build_norm(block.norm, width)
        self.before, self.after = before, after
        self.laurel = None if block.laurel is None else Laurel(block.laurel)
        self.streams = None if block.streams is None else LayerStreams(block.streams)

    def forward(
        self,
        x: Tensor,
        table: Tensor | None,
        cache: LayerCache | None,
        view: TokenView,
        shared: SharedKeys | None = None,
        token_input: Tensor | None = None,
    ) -> Tensor:
        """Apply the layer to (B, T, d), or to streams (P, B, T, d) and embeddings (B, T, p).

        ``shared`` are the keys and values of layers that others read; None if none do.
        """
        if self.streams is None:
            return self._update(x, table, cache, view, shared)
        assert token_input is not None
        predicted = self.streams.predict(x)
        updated = self._update(predicted[self.streams.active], table, cache, view, shared)
        return self.streams.correct(predicted, updated, token_input)

    def _update(
        self,
        x: Tensor,
        table: Tensor | None,
        cache: LayerCache | None,
        view: TokenView,
        shared: SharedKeys | None,
    ) -> Tensor:
        """Add attention and then the MLP to the residual stream (B, T, d)."""
        states: dict[str, Tensor] = {}
        if cache is not None and self.places:
            number = len(self.places)
            cache, states = cache[:-number], dict(zip(self.places, cache[-number:], strict=True))
        normed = self.input_layernorm(x) if self.before else x
        if self.canon_a is not None:
            normed = self.canon_a(normed, states.get("A"), view)
        keys = () if shared is None else (shared,)
        mixed = self.self_attn(normed, table, cache, view, *keys)
        x = x + (self.attention_output_norm(mixed) if self.after else mixed)
        if self.laurel is not None:
            x = (x + self.laurel(normed)) * 2**-0.5
        normed = self.post_attention_layernorm(x) if self.before else x
        if self.canon_c is not None:
            normed = self.canon_c(normed, states.get("C"), view)
        inside = (states.get("D"), view) if "D" in self.places else ()
        mixed = self.mlp(normed, *inside)
        return x + (self.mlp_output_norm(mixed) if self.after else mixed)

    def empty_cache(
        self, batch: int, length: int, *, dtype: torch.dtype, device: torch.device
    ) -> LayerCache:
        """Create the zeroed cache of the layer for ``batch`` sequences of at most ``length``."""
        kept: LayerCache = self.self_attn.empty_cache(batch, length, dtype=dtype, device=device)
        canons = {"A": self.canon_a, "C": self.canon_c, "D": getattr(self.mlp, "canon", None)}
        states = (canons[place] for place in self.places)
        return (
            *kept,
            *(state.empty_state(batch, dtype=dtype, device=device) for state in states if state),
        )


def build_attention(
    block: DecoderLayer, *, attention: str
) -> Attention | LatentAttention | ShortConvolution:
    """Build the attention of a layer, or what stands in its place."""
    if isinstance(block.attention, AttentionBlock):
        return Attention(block.attention, attention=attention, canon=build_canon(block, "B"))
    if isinstance(block.attention, ShortConvolutionBlock):
        return ShortConvolution(block.attention)
    return LatentAttention(block.attention, attention=attention)


def build_feed_forward(block: DecoderLayer) -> FeedForward | MixtureOfExperts:
    """Build the feed-forward block of a layer."""
    if isinstance(block.feed_forward, FeedForwardBlock):
        return FeedForward(block.feed_forward, canon=build_canon(block, "D"))
    return MixtureOfExperts(block.feed_forward)
