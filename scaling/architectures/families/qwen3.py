"""Qwen3: head dimension 128 where the field is absent, QK-norm per head; and its experts.

Parameters per layer: attention + 3·d·f + 2·d + 2·h; Qwen3-MoE has d·E + E·3·d·f_m for the MLP.
"""

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
from shapelaw.scaling.architectures.families.qwen2 import QWEN_WINDOWS, qwen_windows
from shapelaw.scaling.architectures.weight_names import EXPERT_NAMES


def qwen3_layer(fields: ConfigFields) -> DecoderLayer:
    """Make a layer with QK-norm per head."""
    return DecoderLayer(
        attention=attention_block(fields, qk_norm="head"),
        feed_forward=feed_forward_block(fields),
        norm=norm_block(fields),
    )


def build_qwen3(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Qwen3 config."""
    return dense_decoder(fields, windowed_layers(qwen3_layer(fields), qwen_windows(fields)))


QWEN3_1_7B = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
QWEN3 = ConfigFamily(
    "qwen3",
    {
        **dense_fields((151_936, 4096, 22_016, 32, 32)),
        "num_key_value_heads": ConfigField(32, nullable=True),
        "head_dim": ConfigField(128),
        "attention_bias": switch(False),
        **QWEN_WINDOWS,
    },
    build_qwen3,
    class_name="Qwen3ForCausalLM",
    axes=Axes(reference=QWEN3_1_7B),
)


def build_qwen3_moe(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Qwen3-MoE config."""
    if "num_local_experts" in fields.values:  # another name of the same field
        given = fields.values["num_local_experts"]
        fields.values = {"num_experts": given, **fields.values}
    dense = qwen3_layer(fields)
    window = fields["sliding_window"] if fields["use_sliding_window"] else None
    dense = replace(dense, attention=replace(dense.attention, window=window))
    experts = ExpertsBlock(
        expert=replace(
            feed_forward_block(fields), intermediate_size=fields["moe_intermediate_size"]
        ),
        experts=fields["num_experts"],
        active=fields.active_experts("num_experts_per_tok", "num_experts"),
        router=Router(normalised=fields["norm_topk_prob"]),
    )
    sparse = replace(dense, feed_forward=experts)
    only, step = fields["mlp_only_layers"] or [], fields["decoder_sparse_step"]
    layers = [
        dense if index in only or (index + 1) % step else sparse
        for index in range(fields["num_hidden_layers"])
    ]
    return dense_decoder(fields, layers)


QWEN3_30B_A3B = {"num_hidden_layers": 48, "head_dim": 128}
QWEN3_MOE = ConfigFamily(
    "qwen3_moe",
    {
        **dense_fields((151_936, 2048, 6144, 24, 32)),
        "num_key_value_heads": ConfigField(4),
        "attention_bias": switch(False),
        "use_sliding_window": switch(False),
        "sliding_window": ConfigField(4096, nullable=True),
        "decoder_sparse_step": ConfigField(1),
        "moe_intermediate_size": ConfigField(768),
        "num_experts_per_tok": ConfigField(8),
        "num_experts": ConfigField(128),
        "norm_topk_prob": switch(False),
        "mlp_only_layers": ConfigField(
            None, "list", nullable=True, rule="decoder_sparse_step alone"
        ),
    },
    build_qwen3_moe,
    class_name="Qwen3MoeForCausalLM",
    axes=Axes(
        width="moe_intermediate_size",
        sizes={"num_experts": (32, 64, 128), "num_experts_per_tok": (2, 4, 8)},
        follows={"intermediate_size": "moe_intermediate_size * num_experts_per_tok"},
        constants={"norm_topk_prob": True},
        reference=QWEN3_30B_A3B,
        rules=("num_experts_per_tok <= num_experts",),
        active_width="intermediate_size",
        deployable=("num_experts % 8 == 0", "8 * moe_intermediate_size >= hidden_size"),
    ),
    names=EXPERT_NAMES,
    also_read=("num_local_experts", "max_window_layers"),
)
