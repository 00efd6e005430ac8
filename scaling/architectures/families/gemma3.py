"""Gemma 3 (text): five layers with a sliding window to one that sees all tokens, four norms."""

from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture, DecoderLayer
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    switch,
)
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
    step = fields["sliding_window_pattern"]

    def kind(index: int) -> str:
        return "sliding_attention" if (index + 1) % step else "full_attention"

    norm = norm_block(fields, one_plus_weight=True)
    attention = replace(
        attention_block(fields, qk_norm="head"),
        norm=norm,
        scale=fields["query_pre_attn_scalar"] ** -0.5,
    )
    rotary = fields.rotary("sliding_attention", base="rope_local_base_freq", theta=LOCAL_THETA)
    layer = DecoderLayer(
        attention=attention,
        feed_forward=feed_forward_block(fields, activation="hidden_activation"),
        norm=norm,
        norms="both",
    )
    kinds = fields.layer_kinds(kind)
    local = [each == "sliding_attention" for each in kinds]
    windows = fields.windows(kinds, fields["sliding_window"])
    layers = [
        replace(
            layer,
            attention=replace(
                attention, window=window, rotary=rotary if is_local else attention.rotary
            ),
        )
        for window, is_local in zip(windows, local, strict=True)
    ]
    embedding = embedding_block(
        fields, scale=fields["hidden_size"] ** 0.5, logit_cap=fields["final_logit_softcapping"]
    )
    return dense_decoder(fields, layers, norm=norm, embedding=embedding)


GEMMA3 = ConfigFamily(
    "gemma3_text",
    {
        **dense_fields(
            (262_208, 2304, 9216, 26, 8),
            tied=True,
            activation="gelu_pytorch_tanh",
            activation_name="hidden_activation",
        ),
        "num_key_value_heads": ConfigField(4),
        "head_dim": ConfigField(256),
        "attention_bias": switch(False),
        "sliding_window": ConfigField(4096, nullable=True),
        "sliding_window_pattern": ConfigField(6),
        "layer_types": ConfigField(None, "list", nullable=True),
        "use_bidirectional_attention": ConfigField(False, "switch", nullable=True),
        "query_pre_attn_scalar": ConfigField(256),
        "final_logit_softcapping": ConfigField(None, "number", nullable=True),
        "attn_logit_softcapping": ConfigField(None, "number", nullable=True),
    },
    build_gemma3,
    class_name="Gemma3ForCausalLM",
    names={
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
    theta=1_000_000.0,
)
