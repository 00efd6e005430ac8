"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Parameters per layer: d·(H + 2·K)·h + H·h·d + 3·d·f + 2·d, and biases where the config has them.
"""

from collections import Counter
from dataclasses import replace
from typing import Literal

from shapelaw.scaling.architectures.architecture import Architecture, DecoderLayer
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.embedding import EmbeddingBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    switch,
)


def attention_block(
    fields: ConfigFields, *, qk_norm: Literal["none", "head", "full"] = "none"
) -> AttentionBlock:
    """Make attention over all tokens from the usual fields of a config."""
    bias = "attention_bias" in fields.fields and fields["attention_bias"]
    return AttentionBlock(
        hidden_size=fields["hidden_size"],
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=fields.key_value_heads(),
        head_dim=fields.head_dim(),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=qk_norm,
    )


def feed_forward_block(fields: ConfigFields, *, gated: bool = True) -> FeedForwardBlock:
    """Make the MLP from the usual fields of a config."""
    bias = "mlp_bias" in fields.fields and fields["mlp_bias"]
    return FeedForwardBlock(
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        gated=gated,
        bias=bias,
    )


def dense_decoder(
    fields: ConfigFields,
    layer: DecoderLayer,
    windows: "Counter[int | None] | None" = None,
    *,
    activation: str = "hidden_act",
    final_norm: bool = True,
) -> Architecture:
    """Make a decoder whose layers differ in the window of attention only.

    Parameters
    ----------
    fields
        Fields of the config.
    layer
        One layer with attention over all tokens.
    windows
        Number of layers by window; None for all layers without a window.
    activation
        Field that names the activation.
    final_norm
        The last norm has weights.
    """
    windows = windows or Counter({None: fields["num_hidden_layers"]})
    layers = {
        replace(layer, attention=replace(layer.attention, window=window)): number
        for window, number in windows.items()
    }
    return Architecture(
        model_type=fields.model_type,
        embedding=EmbeddingBlock(
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            tied=fields["tie_word_embeddings"],
        ),
        layers=tuple(layers.items()),
        vectors=fields["hidden_size"] * final_norm,
        hidden_act=fields[activation],
        rope_theta=fields.rope_theta(),
        notes=tuple(fields.notes),
    )


def build_llama(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Llama config."""
    fields.require_divisible_heads()
    return dense_decoder(fields, plain_layer(fields))


def plain_layer(fields: ConfigFields, *, gated: bool = True) -> DecoderLayer:
    """Make a pre-norm layer with two norms."""
    return DecoderLayer(
        attention=attention_block(fields),
        feed_forward=feed_forward_block(fields, gated=gated),
        vectors=2 * fields["hidden_size"],
    )


LLAMA = ConfigFamily(
    "llama",
    {
        **dense_fields((32_000, 4096, 11_008, 32, 32)),
        "head_dim": ConfigField(None, nullable=True),
        "attention_bias": switch(False),
        "mlp_bias": switch(False),
    },
    build_llama,
)
