"""LFM2: gated short convolutions beside attention layers with QK-norm per head.

Parameters per layer: 4·d² + k·d or d·(H + 2·K)·h + H·h·d + 2·h; and 3·d·f' + 2·d, where f' is the
width that the rule of the config makes of its MLP width.
"""

from typing import Any

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.norm import NormBlock
from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.families.llama import dense_decoder

LAYERS = ("full_attention", "conv")
OTHER_NAMES = {"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"}


def build_lfm2(fields: ConfigFields) -> Architecture:
    """Make the architecture of an LFM2 config."""
    renamed = {OTHER_NAMES[n]: v for n, v in fields.values.items() if n in OTHER_NAMES}
    fields.values = {**fields.values, **renamed}
    hidden, norm = fields["hidden_size"], NormBlock(epsilon=fields["norm_eps"])
    attention = AttentionBlock(
        hidden_size=hidden,
        num_attention_heads=fields["num_attention_heads"],
        num_key_value_heads=fields.key_value_heads(),
        head_dim=fields.head_dim(),
        qk_norm="head",
        norm=norm,
        rotary=fields.rotary(),
    )
    convolution = ShortConvolutionBlock(
        hidden_size=hidden, kernel=fields["conv_L_cache"], bias=fields["conv_bias"]
    )
    mlp = FeedForwardBlock(hidden_size=hidden, intermediate_size=mlp_width(fields))
    given = fields["full_attn_idxs"]

    def kind(index: int) -> str:
        return LAYERS[0] if given is None or index in given else LAYERS[1]

    if given is not None and fields["layer_types"] is None:
        kinds = [kind(index) for index in range(fields["num_hidden_layers"])]
        fields.values = {**fields.values, "layer_types": kinds, "full_attn_idxs": None}
    layers = [
        DecoderLayer(
            attention=convolution if each == "conv" else attention, feed_forward=mlp, norm=norm
        )
        for each in fields.layer_kinds(kind, LAYERS)
    ]
    return dense_decoder(fields, layers, norm=norm)


def mlp_width(fields: ConfigFields) -> Any:
    """Return the MLP width: two thirds of the field, times a factor, rounded up to a multiple."""
    width = fields["intermediate_size"]
    if not fields["block_auto_adjust_ff_dim"]:
        return width
    width = int(fields["block_ffn_dim_multiplier"] * int(2 * width / 3))
    step = int(fields["block_multiple_of"])
    return step * -(-width // step)


LFM2 = ConfigFamily(
    "lfm2",
    {
        "vocab_size": ConfigField(65_536),
        "hidden_size": ConfigField(2560),
        "intermediate_size": ConfigField(12_288),
        "num_hidden_layers": ConfigField(32),
        "num_attention_heads": ConfigField(32),
        "num_key_value_heads": ConfigField(8),
        "norm_eps": ConfigField(1e-5, "number"),
        "tie_word_embeddings": switch(True),
        "conv_bias": switch(False),
        "conv_L_cache": ConfigField(3),
        "block_multiple_of": ConfigField(256),
        "block_ffn_dim_multiplier": ConfigField(1.0, "number"),
        "block_auto_adjust_ff_dim": switch(True),
        "full_attn_idxs": ConfigField(None, "list", nullable=True),
        "layer_types": ConfigField(None, "list", nullable=True),
    },
    build_lfm2,
    class_name="Lfm2ForCausalLM",
    axes=Axes(
        head_dim=None,
        structure={"layer_types": (("conv", "conv", "full_attention"),)},
        constants={"block_auto_adjust_ff_dim": False},
        exact_width={"block_auto_adjust_ff_dim": False},
        reference={"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    ),
    also_read=tuple(OTHER_NAMES),
    layer_kinds=LAYERS,
    names={
        "norm": "model.embedding_norm",
        "input_layernorm": "operator_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_norm": "self_attn.q_layernorm",
        "self_attn.k_norm": "self_attn.k_layernorm",
        "self_attn.o_proj": "self_attn.out_proj",
        "self_attn.in_proj": "conv.in_proj",
        "self_attn.conv": "conv.conv",
        "self_attn.out_proj": "conv.out_proj",
        "mlp.gate_up_proj": "feed_forward.w1|feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    },
    theta=1_000_000.0,
)
