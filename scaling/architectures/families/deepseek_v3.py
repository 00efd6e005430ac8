"""DeepSeek V3, Kimi K2, Moonlight: latent attention, dense first layers, then experts.

Parameters of a layer with experts: attention + d·E + 3·d·f_m·(E + n_shared) + 2·d.
"""

from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock, Router
from shapelaw.scaling.architectures.blocks.positions import RotaryPositions
from shapelaw.scaling.architectures.columns import breaking
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    rotation_scale,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.families.llama import (
    dense_decoder,
    feed_forward_block,
    norm_block,
)
from shapelaw.scaling.architectures.weight_names import EXPERT_NAMES
from shapelaw.scaling.errors import InputError


def build_deepseek_v3(fields: ConfigFields) -> Architecture:
    """Make the architecture of a DeepSeek V3 config, without multi-token prediction."""
    hidden = fields["hidden_size"]
    require_groups(fields, "n_routed_experts")
    rotary = fields.rotary()
    mlp = feed_forward_block(fields)
    dense = DecoderLayer(
        attention=LatentAttentionBlock(
            hidden_size=hidden,
            num_attention_heads=fields["num_attention_heads"],
            query_rank=fields["q_lora_rank"],
            latent_rank=fields["kv_lora_rank"],
            plain_head_dim=fields["qk_nope_head_dim"],
            rotary_head_dim=fields["qk_rope_head_dim"],
            value_head_dim=fields["v_head_dim"],
            bias=fields["attention_bias"],
            rotary=replace(rotary, interleaved=bool(fields["rope_interleave"])),
            scale=_score_scale(fields, rotary),
        ),
        feed_forward=mlp,
        norm=norm_block(fields),
    )
    mixture = mixture_block(fields, mlp, experts="n_routed_experts", shared="n_shared_experts")
    number = fields["num_hidden_layers"]
    first = min(fields["first_k_dense_replace"], number)
    layers = [dense] * first + [replace(dense, feed_forward=mixture)] * (number - first)
    return dense_decoder(fields, layers)


def require_groups(fields: ConfigFields, experts: str) -> None:
    """Refuse groups of experts of unequal sizes, and a choice of more groups than there are."""
    number, groups, chosen = fields[experts], fields["n_group"], fields["topk_group"]
    if broken := breaking(number % groups != 0, number, groups):
        number, groups = broken
        raise InputError(
            f"`{experts} % n_group == 0` must hold, but got {number} and {groups}; "
            f"use {number - number % groups or groups} experts"
        )
    if broken := breaking(chosen > groups, chosen, groups):
        chosen, groups = broken
        raise InputError(
            f"`topk_group <= n_group` must hold, but got {chosen} and {groups}; "
            f"use at most {groups}"
        )


def mixture_block(
    fields: ConfigFields, mlp: FeedForwardBlock, *, experts: str, shared: str
) -> ExpertsBlock:
    """Make experts behind a router of sigmoids in groups.

    Parameters
    ----------
    fields
        Fields of the config.
    mlp
        MLP of a dense layer, whose activation experts have too.
    experts, shared
        Names of the fields with the numbers of routed and of shared experts.
    """
    width, number = fields["moe_intermediate_size"], fields[shared]
    return ExpertsBlock(
        expert=replace(mlp, intermediate_size=width),
        experts=fields[experts],
        active=fields.active_experts("num_experts_per_tok", experts),
        shared=replace(mlp, intermediate_size=width * number) if number else None,
        router=Router(
            score="sigmoid",
            normalised=bool(fields["norm_topk_prob"]),
            scale=fields["routed_scaling_factor"],
            groups=fields["n_group"],
            chosen_groups=fields["topk_group"],
            balance_bias=True,
        ),
    )


def _score_scale(fields: ConfigFields, rotary: RotaryPositions) -> float:
    """Compute (n + r)^-½·m², where yarn's m is 0.1·mscale_all_dim·ln(factor) + 1."""
    scale: float = (fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]) ** -0.5
    given = fields.values.get("rope_scaling") or fields.values.get("rope_parameters") or {}
    share = given.get("mscale_all_dim")
    if rotary.scaling is None or not share:
        return scale
    return scale * rotation_scale(rotary.scaling.factor, share) ** 2


# Moonlight 16B-A3B, the smallest published model of the family.
MOONLIGHT = {
    "vocab_size": 163_840,
    "hidden_size": 2048,
    "intermediate_size": 11_264,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.446,
}
DEEPSEEK_V3 = ConfigFamily(
    "deepseek_v3",
    {
        **dense_fields((129_280, 7168, 18_432, 61, 128)),
        "num_key_value_heads": ConfigField(128, nullable=True),
        "attention_bias": switch(False),
        "moe_intermediate_size": ConfigField(2048),
        "n_shared_experts": ConfigField(1, "whole"),
        "n_routed_experts": ConfigField(256),
        "num_experts_per_tok": ConfigField(8),
        "first_k_dense_replace": ConfigField(3, "whole"),
        "norm_topk_prob": ConfigField(True, "switch", nullable=True),
        "routed_scaling_factor": ConfigField(2.5, "number"),
        "rope_interleave": ConfigField(True, "switch", nullable=True),
        "n_group": ConfigField(8),
        "topk_group": ConfigField(4),
        "q_lora_rank": ConfigField(1536, nullable=True),
        "kv_lora_rank": ConfigField(512),
        "qk_nope_head_dim": ConfigField(128),
        "qk_rope_head_dim": ConfigField(64),
        "v_head_dim": ConfigField(128),
    },
    build_deepseek_v3,
    class_name="DeepseekV3ForCausalLM",
    names={
        **EXPERT_NAMES,
        "mlp.router.balance_bias": "mlp.gate.e_score_correction_bias",
        "mlp.shared_expert.gate_up_proj": (
            "mlp.shared_experts.gate_proj|mlp.shared_experts.up_proj"
        ),
        "mlp.shared_expert.down_proj": "mlp.shared_experts.down_proj",
    },
    constants={"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    axes=Axes(
        groups=None,
        head_dim=None,
        width="moe_intermediate_size",
        sizes={
            "n_routed_experts": (64, 128, 256),
            "num_experts_per_tok": (4, 6, 8),
            "kv_lora_rank": (512,),
            "qk_nope_head_dim": (128,),
            "qk_rope_head_dim": (64,),
            "v_head_dim": (128,),
            "n_group": (1,),
            "topk_group": (1,),
        },
        structure={
            "n_shared_experts": (1, 2),
            "q_lora_rank": (None, 1536),
            "first_k_dense_replace": (1,),
        },
        follows={
            "num_key_value_heads": "num_attention_heads",
            "intermediate_size": "moe_intermediate_size * (num_experts_per_tok + n_shared_experts)",
        },
        reference=MOONLIGHT,
        rules=(
            "num_experts_per_tok <= n_routed_experts",
            "n_routed_experts % n_group == 0",
            "topk_group <= n_group",
            "num_experts_per_tok <= topk_group * n_routed_experts / n_group",
            "qk_rope_head_dim % 2 == 0",
            "first_k_dense_replace < num_hidden_layers",
        ),
        attention_width="num_attention_heads * v_head_dim",
        attention_range=(0.5, 2.5),
        active_width="intermediate_size",
        deployable=("n_routed_experts % 8 == 0", "8 * moe_intermediate_size >= hidden_size"),
    ),
)
KIMI_K2 = replace(
    DEEPSEEK_V3, model_type="kimi_k2", in_transformers=False, written_as="deepseek_v3"
)
