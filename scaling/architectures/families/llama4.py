"""Llama 4 (text): experts with a shared one, chunked attention, full layers without positions."""

from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock, Router
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.families.llama import (
    attention_block,
    dense_decoder,
    feed_forward_block,
    norm_block,
)
from shapelaw.scaling.architectures.families.smollm3 import rotary_layers


def build_llama4(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Llama 4 text config."""
    number = fields["num_hidden_layers"]
    expert = feed_forward_block(fields)
    dense = replace(expert, intermediate_size=fields["intermediate_size_mlp"])
    mixture = ExpertsBlock(
        expert=expert,
        experts=fields["num_local_experts"],
        active=fields.active_experts("num_experts_per_tok", "num_local_experts"),
        shared=expert,
        router=Router(score="sigmoid", normalised=False, weighs_input=True),
    )
    attention = attention_block(fields, qk_norm="head" if fields["use_qk_norm"] else "none")
    attention = replace(
        attention,
        norm=norm_block(fields, weight=False),
        norm_after_rotation=True,
        rotary=replace(fields.rotary(), interleaved=True),
    )
    plain = replace(attention, rotary=None, qk_norm="none", temperature=_temperature(fields))
    step, given = fields["interleave_moe_layer_step"], fields["moe_layers"]
    sparse = list(range(step - 1, number, step)) if given is None else given
    if fields["no_rope_layers"] == []:  # as if absent
        fields.values = {**fields.values, "no_rope_layers": None}
    rotary = rotary_layers(fields)
    local = fields["attention_chunk_size"] is not None
    kinds = fields.layer_kinds(
        lambda i: "chunked_attention" if local and rotary[i] else "full_attention"
    )
    layers = []
    for index, kind in enumerate(kinds):
        block = attention if rotary[index] else plain
        if local and kind == "chunked_attention":
            block = replace(block, window=fields["attention_chunk_size"], chunked=True)
        layers.append(
            DecoderLayer(
                attention=block,
                feed_forward=mixture if index in sparse else dense,
                norm=norm_block(fields),
            )
        )
    return dense_decoder(fields, layers)


def _temperature(fields: ConfigFields) -> tuple[float, float] | None:
    tuned = fields["attn_temperature_tuning"]
    return (fields["attn_scale"], fields["floor_scale"]) if tuned else None


LLAMA4 = ConfigFamily(
    "llama4_text",
    {
        **dense_fields((202_048, 5120, 8192, 48, 40), epsilon=1e-5),
        "num_key_value_heads": ConfigField(8),
        "head_dim": ConfigField(128),
        "attention_bias": switch(False),
        "intermediate_size_mlp": ConfigField(16_384),
        "num_experts_per_tok": ConfigField(1),
        "num_local_experts": ConfigField(16),
        "moe_layers": ConfigField(
            None, "list", nullable=True, rule="every interleave_moe_layer_step-th layer"
        ),
        "interleave_moe_layer_step": ConfigField(1),
        "no_rope_layers": ConfigField(
            None, "list", nullable=True, rule="every no_rope_layer_interval-th layer"
        ),
        "no_rope_layer_interval": ConfigField(4),
        "attention_chunk_size": ConfigField(8192, nullable=True),
        "use_qk_norm": switch(True),
        "attn_temperature_tuning": switch(True),
        "floor_scale": ConfigField(8192),
        "attn_scale": ConfigField(0.1, "number"),
        "layer_types": ConfigField(None, "list", nullable=True),
    },
    build_llama4,
    class_name="Llama4ForCausalLM",
    axes=Axes(
        sizes={"num_local_experts": (16, 64, 128), "num_experts_per_tok": (1,)},
        structure={"interleave_moe_layer_step": (1, 2), "attention_chunk_size": (8192,)},
        follows={"intermediate_size_mlp": "intermediate_size * (num_experts_per_tok + 1)"},
        rules=("num_experts_per_tok <= num_local_experts",),
        active_width="intermediate_size_mlp",
        deployable=("num_local_experts % 8 == 0",),
    ),
    names={
        "mlp.gate_up_proj": "feed_forward.gate_proj|feed_forward.up_proj",
        "mlp.down_proj": "feed_forward.down_proj",
        "mlp.router": "feed_forward.router",
        "mlp.experts.gate_up_proj": "feed_forward.experts.gate_up_proj^T",
        "mlp.experts.down_proj": "feed_forward.experts.down_proj^T",
        "mlp.shared_expert.gate_up_proj": (
            "feed_forward.shared_expert.gate_proj|feed_forward.shared_expert.up_proj"
        ),
        "mlp.shared_expert.down_proj": "feed_forward.shared_expert.down_proj",
    },
    theta=500_000.0,
)
