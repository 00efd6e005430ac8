"""Llama 4 (text): experts with a shared one, chunked attention, full layers without positions."""

from collections import Counter
from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture, DecoderLayer
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    switch,
)
from shapelaw.scaling.architectures.families.llama import attention_block, dense_decoder
from shapelaw.scaling.architectures.families.smollm3 import rotary_layers


def build_llama4(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Llama 4 text config."""
    hidden, number = fields["hidden_size"], fields["num_hidden_layers"]
    expert = FeedForwardBlock(hidden_size=hidden, intermediate_size=fields["intermediate_size"])
    dense = FeedForwardBlock(hidden_size=hidden, intermediate_size=fields["intermediate_size_mlp"])
    mixture = ExpertsBlock(
        expert=expert,
        experts=fields["num_local_experts"],
        active=fields.active_experts("num_experts_per_tok", "num_local_experts"),
        shared=expert,
    )
    attention = attention_block(fields)
    chunked = replace(attention, window=fields["attention_chunk_size"], chunked=True)
    step, given = fields["interleave_moe_layer_step"], fields["moe_layers"]
    sparse = list(range(step - 1, number, step)) if given is None else given
    if fields["no_rope_layers"] == []:  # as if absent
        fields.values = {**fields.values, "no_rope_layers": None}
    rotary = rotary_layers(fields)
    local = fields["attention_chunk_size"] is not None
    kinds = fields.layer_kinds(
        lambda i: "chunked_attention" if local and rotary[i] else "full_attention"
    )
    layers = Counter(
        DecoderLayer(
            attention=chunked if local and kind == "chunked_attention" else attention,
            feed_forward=mixture if index in sparse else dense,
            vectors=2 * hidden,
        )
        for index, kind in enumerate(kinds)
    )
    first = next(iter(layers))
    return replace(dense_decoder(fields, first), layers=tuple(layers.items()))


LLAMA4 = ConfigFamily(
    "llama4_text",
    {
        **dense_fields((202_048, 5120, 8192, 48, 40)),
        "num_key_value_heads": ConfigField(8),
        "head_dim": ConfigField(128),
        "attention_bias": switch(False),
        "intermediate_size_mlp": ConfigField(16_384),
        "num_experts_per_tok": ConfigField(1),
        "num_local_experts": ConfigField(16),
        "moe_layers": ConfigField(None, "list", nullable=True),
        "interleave_moe_layer_step": ConfigField(1),
        "no_rope_layers": ConfigField(None, "list", nullable=True),
        "no_rope_layer_interval": ConfigField(4),
        "attention_chunk_size": ConfigField(8192, nullable=True),
        "layer_types": ConfigField(None, "list", nullable=True),
    },
    build_llama4,
    theta=500_000.0,
)
