"""gpt-oss: experts with biases, attention sinks, and a window on every other layer."""

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
    windowed_layers,
)


def build_gpt_oss(fields: ConfigFields) -> Architecture:
    """Make the architecture of a gpt-oss config."""
    if not (fields.values.get("rope_scaling") or fields.values.get("rope_parameters")):
        fields.values = {**fields.values, "rope_parameters": YARN}
    layer = DecoderLayer(
        attention=replace(attention_block(fields), sinks=True),
        feed_forward=ExpertsBlock(
            expert=replace(feed_forward_block(fields), bias=True),
            experts=fields["num_local_experts"],
            active=fields.active_experts("num_experts_per_tok", "num_local_experts"),
            router=Router(score="softmax_of_chosen", normalised=False),
            router_bias=True,
            clamp=(fields["swiglu_limit"], fields["swiglu_alpha"]),
        ),
        norm=norm_block(fields),
    )
    kinds = fields.layer_kinds(lambda i: "full_attention" if i % 2 else "sliding_attention")
    windows = fields.windows(kinds, fields["sliding_window"])
    return dense_decoder(fields, windowed_layers(layer, windows))


YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
GPT_OSS = ConfigFamily(
    "gpt_oss",
    {
        **dense_fields((201_088, 2880, 2880, 36, 64), epsilon=1e-5),
        "num_key_value_heads": ConfigField(8),
        "head_dim": ConfigField(64),
        "attention_bias": switch(True),
        "num_local_experts": ConfigField(128),
        "num_experts_per_tok": ConfigField(4),
        "swiglu_limit": ConfigField(7.0, "number"),
        "swiglu_alpha": ConfigField(1.702, "number"),
        "sliding_window": ConfigField(128, nullable=True),
        "layer_types": ConfigField(None, "list", nullable=True),
    },
    build_gpt_oss,
    class_name="GptOssForCausalLM",
    axes=Axes(
        sizes={"num_local_experts": (32, 64, 128), "num_experts_per_tok": (2, 4)},
        structure={
            "sliding_window": (128,),
            "layer_types": (("sliding_attention", "full_attention"),),
        },
        reference={"num_local_experts": 32, "num_hidden_layers": 24},
        rules=("num_experts_per_tok <= num_local_experts",),
        active_width="intermediate_size * num_experts_per_tok",
        deployable=("num_local_experts % 8 == 0", "8 * intermediate_size >= hidden_size"),
    ),
    names={
        "mlp.experts.gate_up_proj": "mlp.experts.gate_up_proj^T^I",
        "mlp.experts.gate_up_proj_bias": "mlp.experts.gate_up_proj_bias^I",
        "mlp.experts.down_proj": "mlp.experts.down_proj^T",
    },
    theta=150_000.0,
)
