"""LLaDA 2 (arXiv 2512.15745): a mixture of experts that decodes blocks of 32 tokens.

QK-norm per head, rotary positions on half of a head, dense first layers, then a router of sigmoids
in groups and shared experts. Parameters of a layer with experts: Qwen3's attention +
d·E + 3·d·f_m·(E + n_shared) + 2·d; the balance bias is a buffer.
"""

from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.columns import breaking
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    switch,
)
from shapelaw.scaling.architectures.families.deepseek_v3 import mixture_block, require_groups
from shapelaw.scaling.architectures.families.llama import dense_decoder, feed_forward_block
from shapelaw.scaling.architectures.families.qwen3 import qwen3_layer
from shapelaw.scaling.architectures.weight_names import EXPERT_NAMES
from shapelaw.scaling.errors import InputError


def build_llada2(fields: ConfigFields) -> Architecture:
    """Make the architecture of a LLaDA 2 config."""
    require_groups(fields, "num_experts")
    share, dense = fields["partial_rotary_factor"], qwen3_layer(fields)
    assert isinstance(dense.attention, AttentionBlock)
    head_dim = dense.attention.head_dim
    width = head_dim * share // 1
    if broken := breaking((share > 1) | (width < 2) | (width % 2 != 0), head_dim):
        (head_dim,) = broken
        raise InputError(
            "`head_dim * partial_rotary_factor` must be an even number of dimensions of a head, "
            f"but got {head_dim} and {share}; use a factor of 0.5 or 1.0"
        )
    rotary = replace(fields.rotary(), share=float(share))
    dense = replace(dense, attention=replace(dense.attention, rotary=rotary))
    mixture = mixture_block(
        fields, feed_forward_block(fields), experts="num_experts", shared="num_shared_experts"
    )
    number = fields["num_hidden_layers"]
    first = min(fields["first_k_dense_replace"], number)
    layers = [dense] * first + [replace(dense, feed_forward=mixture)] * (number - first)
    return replace(dense_decoder(fields, layers), block_length=fields["block_length"])


LLADA2_MINI = {
    "vocab_size": 157_184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
}
LLADA2 = ConfigFamily(
    "llada2_moe",
    {
        **dense_fields((30_592, 1024, 4096, 24, 16), epsilon=1e-5),
        "head_dim": ConfigField(None, nullable=True),
        "partial_rotary_factor": ConfigField(0.5, "number"),
        "first_k_dense_replace": ConfigField(0, "whole"),
        "num_experts": ConfigField(16),
        "num_experts_per_tok": ConfigField(2),
        "num_shared_experts": ConfigField(0, "whole"),
        "moe_intermediate_size": ConfigField(512),
        "n_group": ConfigField(8),
        "topk_group": ConfigField(4),
        "norm_topk_prob": switch(True),
        "routed_scaling_factor": ConfigField(2.5, "number"),
        "mask_token_id": ConfigField(156_895, "whole"),
        "block_length": ConfigField(32, nullable=True),
    },
    build_llada2,
    class_name="LLaDA2MoeModelLM",
    axes=Axes(
        width="moe_intermediate_size",
        sizes={
            "num_experts": (64, 128, 256),
            "num_experts_per_tok": (4, 8),
            "n_group": (1,),
            "topk_group": (1,),
        },
        structure={"num_shared_experts": (1,), "first_k_dense_replace": (1,)},
        follows={
            "intermediate_size": (
                "moe_intermediate_size * (num_experts_per_tok + num_shared_experts)"
            )
        },
        reference=LLADA2_MINI,
        rules=(
            "num_experts_per_tok <= num_experts",
            "num_experts % n_group == 0",
            "topk_group <= n_group",
            "num_experts_per_tok <= topk_group * num_experts / n_group",
        ),
        active_width="intermediate_size",
        deployable=("num_experts % 8 == 0", "8 * moe_intermediate_size >= hidden_size"),
    ),
    in_transformers=False,
    names={
        **EXPERT_NAMES,
        "embed_tokens": "model.word_embeddings",
        "self_attn.qkv_proj": "attention.query_key_value",
        "self_attn.q_norm": "attention.query_layernorm",
        "self_attn.k_norm": "attention.key_layernorm",
        "self_attn.o_proj": "attention.dense",
        "mlp.router.balance_bias": "mlp.gate.expert_bias",
        "mlp.shared_expert.gate_up_proj": (
            "mlp.shared_experts.gate_proj|mlp.shared_experts.up_proj"
        ),
        "mlp.shared_expert.down_proj": "mlp.shared_experts.down_proj",
    },
    constants={
        "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "use_bias": False,
        "use_qkv_bias": False,
        "use_qk_norm": True,
        "use_sliding_window": False,
    },
)
