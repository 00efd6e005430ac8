"""Gemma 3 (text): five layers with a sliding window to one that sees all tokens, four norms."""

from collections.abc import Sequence
from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
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
    embedding_block,
    feed_forward_block,
    norm_block,
)
from shapelaw.scaling.errors import InputError

LOCAL_THETA = 10_000.0  # base of the rotary positions of layers with a window


def build_gemma3(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Gemma 3 text config."""
    fields.require_divisible_heads()
    if fields["use_bidirectional_attention"]:
        raise InputError(
            "`use_bidirectional_attention` must be false, but got true; give the config of a model "
            "that generates text"
        )
    if fields["attn_logit_softcapping"]:
        fields.notes.append("`attn_logit_softcapping` changes no count and is not computed")
    norm = norm_block(fields, one_plus_weight=True)
    attention = replace(
        attention_block(fields, qk_norm="head"),
        norm=norm,
        scale=fields["query_pre_attn_scalar"] ** -0.5,
    )
    layer = DecoderLayer(
        attention=attention,
        feed_forward=feed_forward_block(fields, activation="hidden_activation"),
        norm=norm,
        norms="both",
    )
    kinds = gemma_kinds(fields, fields["sliding_window_pattern"])
    layers = [replace(layer, attention=each) for each in gemma_attentions(fields, attention, kinds)]
    embedding = embedding_block(
        fields, scale=fields["hidden_size"] ** 0.5, logit_cap=fields["final_logit_softcapping"]
    )
    return dense_decoder(fields, layers, norm=norm, embedding=embedding)


def gemma_kinds(fields: ConfigFields, step: int) -> list[str]:
    """Return the kind of attention of each layer: every ``step``-th one sees all tokens."""
    return fields.layer_kinds(
        lambda index: "sliding_attention" if (index + 1) % step else "full_attention"
    )


def gemma_attentions(
    fields: ConfigFields, full: AttentionBlock, kinds: Sequence[str]
) -> list[AttentionBlock]:
    """Make the attention of each layer; those with a window have rotary positions of their own."""
    rotary = fields.rotary("sliding_attention", base="rope_local_base_freq", theta=LOCAL_THETA)
    windows = fields.windows(kinds, fields["sliding_window"])
    return [
        replace(full, window=window, rotary=rotary) if kind == "sliding_attention" else full
        for kind, window in zip(kinds, windows, strict=True)
    ]


def gemma_fields(sizes: Sequence[int]) -> dict[str, ConfigField]:
    """Make the fields that all Gemma 3 models have; for sizes see :func:`dense_fields`."""
    return {
        **dense_fields(
            sizes, tied=True, activation="gelu_pytorch_tanh", activation_name="hidden_activation"
        ),
        "head_dim": ConfigField(256),
        "attention_bias": switch(False),
        "layer_types": ConfigField(None, "list", nullable=True),
    }


GEMMA3_1B = {
    "vocab_size": 262_144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "sliding_window": 512,
    "tie_word_embeddings": True,
}
GEMMA3 = ConfigFamily(
    "gemma3_text",
    {
        **gemma_fields((262_208, 2304, 9216, 26, 8)),
        "num_key_value_heads": ConfigField(4),
        "sliding_window": ConfigField(4096, nullable=True),
        "sliding_window_pattern": ConfigField(6),
        "use_bidirectional_attention": ConfigField(False, "switch", nullable=True),
        "query_pre_attn_scalar": ConfigField(256),
        "final_logit_softcapping": ConfigField(None, "number", nullable=True),
        "attn_logit_softcapping": ConfigField(None, "number", nullable=True),
    },
    build_gemma3,
    class_name="Gemma3ForCausalLM",
    axes=Axes(
        heads_divide_hidden=True,
        structure={"sliding_window": (512, 1024), "sliding_window_pattern": (6,)},
        reference=GEMMA3_1B,
    ),
    names={
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
    theta=1_000_000.0,
)
