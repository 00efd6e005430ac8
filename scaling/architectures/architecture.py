"""Architecture of a language model as data: embedding, layers made of blocks, and their costs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.blocks.attention import (
    mean_context,
    mean_visible_tokens,
)
from shapelaw.scaling.architectures.blocks.embedding import EmbeddingBlock
from shapelaw.scaling.architectures.blocks.norm import RMS_NORM, NormBlock
from shapelaw.scaling.architectures.blocks.streams import StreamsBlock
from shapelaw.scaling.architectures.costs import FORWARD_AND_BACKWARD
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.units import format_count


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A decoder of any known family, with its parameters, FLOPs and cache.

    The sizes of blocks and the numbers of layers may also be NumPy columns of one length, for many
    shapes of one structure; then each count is a column.

    Parameters
    ----------
    model_type
        Model type of the Hugging Face config.
    layers
        Layers in order: equal ones that follow each other are one entry, with their number.
    norm
        The norm after the last layer.
    block_length
        Tokens that see each other in both directions: 1 in a causal model, None for the whole
        sequence.
    predictions
        Modules of multi-token prediction, which only training uses; the counts leave them out.
    fields
        Fields of the config by name, with the defaults of the family.
    notes
        Fields of the config that the counts leave out, one sentence each.
    """

    model_type: str
    embedding: EmbeddingBlock
    layers: tuple[tuple[DecoderLayer, Any], ...]
    norm: NormBlock = RMS_NORM
    block_length: int | None = 1
    predictions: int = 0
    fields: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def family(self) -> str:
        """Family of the run table: the model type."""
        return self.model_type

    def row(self) -> dict[str, Any]:
        """Return the columns of a run table.

        ``config`` is the whole architecture; the columns of a shape are those of one token's path,
        as means over the layers.
        """
        return {
            **{name: getattr(self, name) for name in INTEGER_FIELDS},
            "tie_word_embeddings": bool(self.embedding.tied),
            "config": self.config_text(),
        }

    def to_config(self, *, max_position_embeddings: int = 2048) -> dict[str, Any]:
        """Write the Hugging Face config of the architecture.

        See :func:`shapelaw.scaling.architectures.config.architecture_config`.
        """
        from shapelaw.scaling.architectures.config import architecture_config

        return architecture_config(self, max_position_embeddings=max_position_embeddings)

    def config_text(self) -> str:
        """Return the config as JSON, with every field of the family."""
        return json.dumps({"model_type": self.model_type, **dict(self.fields)})

    @property
    def name(self) -> str:
        """Name in files and tables: the sizes, and numbers of layers of other kinds than most."""
        labels = [getattr(layer.attention, "label", "") for layer, _ in self.layers]
        sparse = sum(n for layer, n in self.layers if layer.inactive_parameters)
        local = sum(n for layer, n in self.layers if layer.attention.window is not None)
        convolutions = sum(n for layer, n in self.layers if hasattr(layer.attention, "kernel"))
        canon = self.first_layer.canon
        parts = (
            f"d{self.hidden_size}-L{self.num_hidden_layers}",
            next(filter(None, labels), ""),
            self.layers[-1][0].feed_forward.label,
            f"sparse{sparse}" if 0 < sparse < self.num_hidden_layers else "",
            f"w{self.local_window}x{local}" if local else "",
            f"conv{convolutions}" if convolutions else "",
            f"canon{canon.places}" if canon else "",
        )
        return "-".join(filter(None, parts))

    def __str__(self) -> str:
        return f"{self.model_type} of {format_count(self.n_total)} parameters"

    @property
    def num_hidden_layers(self) -> Any:
        """Number of layers of all kinds."""
        return sum(number for _, number in self.layers)

    def each_layer(self) -> Iterator[DecoderLayer]:
        """Return the layers one by one."""
        return (layer for layer, number in self.layers for _ in range(number))

    @property
    def hidden_size(self) -> Any:
        """Width of the residual stream, d."""
        return self.embedding.hidden_size

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the vocabulary."""
        return int(self.embedding.vocab_size)

    @property
    def intermediate_size(self) -> Any:
        """Width of the MLP that one token passes, the mean over the layers."""
        return self._mean("feed_forward", "active_width")

    @property
    def num_attention_heads(self) -> Any:
        """Query heads, the mean over the layers with attention."""
        return self._mean("attention", "num_attention_heads")

    @property
    def num_key_value_heads(self) -> Any:
        """Key-value heads, the mean over the layers with attention."""
        return self._mean("attention", "key_value_heads")

    @property
    def head_dim(self) -> Any:
        """Head dimension, the mean over the layers; of values in latent attention."""
        return self._mean("attention", "head_dim")

    def _mean(self, block: str, name: str) -> Any:
        """Return the mean of a number over the layers whose block has it; 1 if none has."""
        blocks = [(getattr(layer, block), number) for layer, number in self.layers]
        having = [(getattr(each, name), number) for each, number in blocks if hasattr(each, name)]
        layers = sum(number for _, number in having) or 1
        mean = 1.0 * sum(number * value for value, number in having) / layers
        if isinstance(mean, float):
            return max(round(mean), 1)
        return mean.round().astype("int64").clip(1)

    @property
    def sparsity(self) -> Any:
        """All parameters over those that one token uses, without tables and head."""
        return self.n_non_embedding / self.n_active_non_embedding

    @property
    def mlp_to_attention(self) -> Any:
        """Ratio of the MLP matrices that one token passes to those of attention."""
        mlp = sum(number * layer.feed_forward.path_parameters for layer, number in self.layers)
        return mlp / sum(
            number * layer.attention.matmul_parameters for layer, number in self.layers
        )

    @property
    def hidden_over_sqrt_n(self) -> Any:
        """Hidden size over √N, with N active non-embedding parameters."""
        return self.hidden_size / self.n_active_non_embedding**0.5

    @property
    def aspect_ratio(self) -> Any:
        """Hidden size per layer, d / L."""
        return self.hidden_size / self.num_hidden_layers

    @property
    def gqa(self) -> Any:
        """Query heads per key-value head, H / K; 1 in latent attention."""
        return self.num_attention_heads / self.num_key_value_heads

    @property
    def first_layer(self) -> DecoderLayer:
        """First layer."""
        return self.layers[0][0]

    @property
    def streams(self) -> StreamsBlock | None:
        """Parallel residual streams, which every layer has or none."""
        return self.first_layer.streams

    @property
    def n_non_embedding(self) -> Any:
        """Parameters without the head and every table that is looked up."""
        layers = sum(number * layer.parameters for layer, number in self.layers)
        streams = self.streams.model_parameters(self.num_hidden_layers) if self.streams else 0
        return layers + streams + self.norm.parameters(self.embedding.hidden_size)

    @property
    def n_total(self) -> Any:
        """All parameters; a tied output head counts once."""
        return self.n_non_embedding + self.embedding.parameters

    @property
    def prediction_parameters(self) -> Any:
        """Parameters of multi-token prediction: per module a layer, 2·d² and three norms."""
        layer, width = self.layers[-1][0], self.hidden_size
        own = layer.parameters + 2 * width**2 + 3 * self.norm.parameters(width)
        return self.predictions * own

    @property
    def _inactive(self) -> Any:
        return sum(number * layer.inactive_parameters for layer, number in self.layers)

    @property
    def n_active(self) -> Any:
        """Parameters that one token uses, tables and head included."""
        return self.n_total - self._inactive

    @property
    def n_active_non_embedding(self) -> Any:
        """Parameters that one token uses, without tables and head."""
        return self.n_non_embedding - self._inactive

    @property
    def active_matmul_parameters(self) -> Any:
        """Parameters of the matrices that one token passes, without the head."""
        layers = sum(number * layer.active_matmul_parameters for layer, number in self.layers)
        number = self.num_hidden_layers
        streams = self.streams.model_matmul_parameters(number) if self.streams else 0
        return layers + streams

    def training_flops(self, context_length: int) -> Any:
        """Count the FLOPs per training token, forward and backward, at the mean causal context.

        Parameters
        ----------
        context_length
            Tokens of the training sequences.
        """
        return FORWARD_AND_BACKWARD * self.mean_forward_flops(context_length)

    def diffusion_training_flops(
        self, context_length: int, block: int | None, *, doubled: bool = False
    ) -> Any:
        """Count the FLOPs per training token of diffusion, forward and backward.

        Parameters
        ----------
        context_length
            Tokens of the training sequences.
        block
            Tokens of a block; None for one block, the sequence.
        doubled
            A pass reads the noisy and the clean sequence, 2T tokens, and the head only the first.
        """
        per_token = self._forward_flops_in_blocks(context_length, block)
        if doubled:
            per_token = 2 * per_token - 2 * self.embedding.head_matmul_parameters
        return FORWARD_AND_BACKWARD * per_token

    def mean_forward_flops(self, length: int) -> Any:
        """Count the FLOPs of a forward pass per token, averaged over a sequence.

        2·(matrices that a token passes + head) + FLOPs of attention at the mean visible context,
        of convolutions and of streams; look-ups and norms cost nothing.

        Parameters
        ----------
        length
            Tokens of the sequence.
        """
        return self._forward_flops_in_blocks(length, self.block_length)

    def _forward_flops_in_blocks(self, length: int, block: int | None) -> Any:
        """Count the FLOPs of a forward pass per token, with blocks seen in both directions."""
        attention = sum(
            number
            * layer.attention.score_flops
            * mean_visible_tokens(
                length, layer.attention.window, chunked=layer.attention.chunked, block=block
            )
            for layer, number in self.layers
        )
        flops = self._fixed_flops + attention
        return round(flops) if isinstance(flops, int | float) else flops.round().astype("int64")

    def forward_flops(self, context: float) -> Any:
        """Count the FLOPs of a forward pass for one token with ``context`` tokens before it."""
        attention = sum(
            number * layer.attention.score_flops * _visible(layer, context)
            for layer, number in self.layers
        )
        return 1.0 * (self._fixed_flops + attention)

    def prefill_flops(self, length: int) -> Any:
        """Count the FLOPs per token of a prompt, at its mean context."""
        return self._flops_between(0, length, "score_flops")

    def decode_flops(self, begin: int, end: int) -> Any:
        """Count the FLOPs per generated token, at the mean context from ``begin`` to ``end``."""
        return self._flops_between(begin, end, "decode_score_flops")

    def _flops_between(self, begin: int, end: int, kind: str) -> Any:
        attention = sum(
            number * getattr(layer.attention, kind) * _context(layer, begin, end)
            for layer, number in self.layers
        )
        return 1.0 * (self._fixed_flops + attention)

    def decode_cache_bytes(self, begin: int, end: int, bytes_per_element: float = 2) -> Any:
        """Count the bytes of cache and states that a step reads, at the same mean context."""
        values = sum(
            number * layer.attention.read_cache_values * _context(layer, begin, end)
            for layer, number in self.layers
        )
        return 1.0 * bytes_per_element * (values + self.state_values)

    def read_parameters(self, tokens: Any) -> Any:
        """Count the parameters that a step over so many tokens reads.

        All but tables that are looked up beside the embedding, and experts that no token chooses.
        """
        idle = sum(n * layer.feed_forward.idle_parameters(tokens) for layer, n in self.layers)
        return self.n_total - self.embedding.looked_up - idle

    def splits_over(self, devices: int) -> Any:
        """Return whether devices can share the heads of every layer; convolutions need none."""
        split: Any = True
        for layer, _ in self.layers:
            if hasattr(layer.attention, "splits_over"):
                split = split & layer.attention.splits_over(devices)
        return split

    def cache_share(self, devices: int) -> Any:
        """Return the share of the cache on each of some devices, of the layer with the largest."""
        share: Any = 1 / devices
        for layer, _ in self.layers:
            if hasattr(layer.attention, "cache_share"):
                share = np.maximum(share, layer.attention.cache_share(devices))
        return share

    @property
    def _fixed_flops(self) -> Any:
        """FLOPs per token that do not depend on the context."""
        others = sum(number * layer.other_flops for layer, number in self.layers)
        matrices = self.active_matmul_parameters + self.embedding.head_matmul_parameters
        return 2 * matrices + others

    def weight_bytes(self, bytes_per_element: float = 2) -> Any:
        """Count the bytes of all weights (bf16 by default)."""
        return bytes_per_element * self.n_total

    def cache_bytes(self, length: float, bytes_per_element: float = 2) -> Any:
        """Count the bytes of the cache of a sequence, and of the states of its convolutions.

        Layers with a window keep no more tokens.
        """
        values = sum(
            number * layer.attention.cache_values * _visible(layer, length)
            for layer, number in self.layers
        )
        return 1.0 * bytes_per_element * (values + self.state_values)

    @property
    def state_values(self) -> Any:
        """Numbers that decoding keeps of a sequence of any length."""
        return sum(number * layer.state_values for layer, number in self.layers)

    def kv_bytes(self, bytes_per_element: int = 2) -> Any:
        """Count the cache bytes per token of the layers that see every earlier token."""
        return self._kv_bytes(bytes_per_element, local=False)

    def kv_bytes_per_token(self, bytes_per_element: int = 2) -> Any:
        """Count the cache bytes per token of layers without a window; if all have one, of these."""
        full = self.kv_bytes(bytes_per_element)
        return full if np.any(full) else self.kv_bytes_local(bytes_per_element)

    def kv_bytes_local(self, bytes_per_element: int = 2) -> Any:
        """Count the cache bytes per token of the layers with a window or chunks, up to it."""
        return self._kv_bytes(bytes_per_element, local=True)

    def _kv_bytes(self, bytes_per_element: int, *, local: bool) -> Any:
        values = sum(
            number * layer.attention.cache_values
            for layer, number in self.layers
            if (layer.attention.window is not None) is local
        )
        return bytes_per_element * values

    def counts(self, length: int) -> dict[str, str | int | None]:
        """Count parameters, FLOPs per token of a sequence, and cache bytes per token in bf16.

        ``kv_bytes_per_token_local`` are the bytes of layers with a window, up to its tokens. Where
        every layer has one, ``kv_bytes_per_token`` are the same bytes.

        Parameters
        ----------
        length
            Tokens of the sequence.
        """
        return {
            "model_type": self.model_type,
            "n_total": self.n_total,
            "n_active": self.n_active,
            "n_non_embedding": self.n_non_embedding,
            "n_active_non_embedding": self.n_active_non_embedding,
            "flops_forward_per_token": self.mean_forward_flops(length),
            "kv_bytes_per_token": self.kv_bytes_per_token(),
            "kv_bytes_per_token_local": self.kv_bytes_local(),
            "local_window": self.local_window,
        }

    def cache_notes(self) -> list[str]:
        """Describe the parts of the cache that do not grow with every token."""
        local, window = self.kv_bytes_local(), self.local_window
        layers = sum(n for layer, n in self.layers if layer.attention.window is not None)
        state = 2 * self.state_values
        states = [f"{state:,} more bytes per sequence keep the states of convolutions"] * bool(
            state
        )
        if self.block_length is None:
            states.append(
                "every token sees the whole sequence: FLOPs are those of attention to all tokens, "
                "and a cache is kept only where blocks are decoded one after the other"
            )
        if not layers:
            return states
        if not self.kv_bytes():
            whole = f"every layer keeps at most {window:,} tokens: the cache grows no further"
            return [whole, *states]
        return [
            *states,
            f"{layers} of {self.num_hidden_layers} layers keep at most {window:,} tokens: "
            f"{local:,} more cache bytes per token up to there (kv_bytes_per_token_local)",
        ]

    @property
    def local_window(self) -> int | None:
        """Longest window or chunk of a layer, in tokens; None if every layer sees all tokens."""
        windows = [layer.attention.window for layer, _ in self.layers]
        return max((window for window in windows if window is not None), default=None)


def _context(layer: DecoderLayer, begin: int, end: int) -> float:
    """Compute the mean context of a layer between two positions."""
    return mean_context(begin, end, layer.attention.window, chunked=layer.attention.chunked)


def _visible(layer: DecoderLayer, context: float) -> Any:
    window = layer.attention.window
    return context if window is None else min(context, window)
