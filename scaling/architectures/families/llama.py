"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Parameters per layer: d·(H + 2·K)·h + H·h·d + 3·d·f + 2·d, and biases where the config has them.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.embedding import EmbeddingBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.norm import NormBlock
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer, layer_runs


def norm_block(fields: ConfigFields, **properties: Any) -> NormBlock:
    """Make the RMSNorm of a config."""
    return NormBlock(epsilon=fields["rms_norm_eps"], **properties)


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
        norm=norm_block(fields),
        rotary=fields.rotary(),
    )


def feed_forward_block(
    fields: ConfigFields, *, gated: bool = True, activation: str = "hidden_act"
) -> FeedForwardBlock:
    """Make the MLP from the usual fields of a config; ``activation`` is the field that names it."""
    bias = "mlp_bias" in fields.fields and fields["mlp_bias"]
    return FeedForwardBlock(
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        gated=gated,
        bias=bias,
        activation=fields[activation],
    )


def windowed_layers(layer: DecoderLayer, windows: Iterable[int | None]) -> list[DecoderLayer]:
    """Make a layer for each window of attention; None sees all tokens."""
    assert isinstance(layer.attention, AttentionBlock)
    return [replace(layer, attention=replace(layer.attention, window=window)) for window in windows]


def dense_decoder(
    fields: ConfigFields,
    layers: DecoderLayer | Iterable[DecoderLayer],
    *,
    norm: NormBlock | None = None,
    embedding: EmbeddingBlock | None = None,
) -> Architecture:
    """Make a decoder from its layers.

    Parameters
    ----------
    fields
        Fields of the config.
    layers
        Every layer in order, or the one that all are.
    norm
        Norm after the last layer; None for the usual one.
    embedding
        Tables and head; None for the usual ones.
    """
    if isinstance(layers, DecoderLayer):
        runs = layer_runs([layers] * fields["num_hidden_layers"])
    else:
        runs = layer_runs(layers)
    return Architecture(
        model_type=fields.model_type,
        embedding=embedding or embedding_block(fields),
        layers=runs,
        norm=norm or norm_block(fields),
        fields=fields.resolved(),
        notes=tuple(fields.notes),
    )


def embedding_block(fields: ConfigFields, **properties: Any) -> EmbeddingBlock:
    """Make the embedding and the output head from the usual fields of a config."""
    return EmbeddingBlock(
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        tied=fields["tie_word_embeddings"],
        **properties,
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
        norm=norm_block(fields),
    )


# Llama 3.2 1B.
LLAMA_1B = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LLAMA = ConfigFamily(
    "llama",
    {
        **dense_fields((32_000, 4096, 11_008, 32, 32)),
        "head_dim": ConfigField(None, nullable=True),
        "attention_bias": switch(False),
        "mlp_bias": switch(False),
    },
    build_llama,
    class_name="LlamaForCausalLM",
    axes=Axes(heads_divide_hidden=True, reference=LLAMA_1B),
)
