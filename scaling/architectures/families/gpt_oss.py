"""gpt-oss: experts with biases, attention sinks, and a window on every other layer."""

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


def build_gpt_oss(fields: ConfigFields) -> Architecture:
    """Make the architecture of a gpt-oss config."""
    hidden = fields["hidden_size"]
    layer = DecoderLayer(
        attention=replace(attention_block(fields), sinks=True),
        feed_forward=ExpertsBlock(
            expert=FeedForwardBlock(
                hidden_size=hidden, intermediate_size=fields["intermediate_size"], bias=True
            ),
            experts=fields["num_local_experts"],
            active=fields.active_experts("num_experts_per_tok", "num_local_experts"),
            router_bias=True,
        ),
        vectors=2 * hidden,
    )
    kinds = fields.layer_kinds(lambda i: "full_attention" if i % 2 else "sliding_attention")
    return dense_decoder(fields, layer, fields.windows(kinds, fields["sliding_window"]))


GPT_OSS = ConfigFamily(
    "gpt_oss",
    {
        **dense_fields((201_088, 2880, 2880, 36, 64)),
        "num_key_value_heads": ConfigField(8),
        "head_dim": ConfigField(64),
        "attention_bias": switch(True),
        "num_local_experts": ConfigField(128),
        "num_experts_per_tok": ConfigField(4),
        "sliding_window": ConfigField(128, nullable=True),
        "layer_types": ConfigField(None, "list", nullable=True),
    },
    build_gpt_oss,
    theta=150_000.0,
)
