"""Gemma 3 (text): five layers with a sliding window to one that sees all tokens, four norms."""

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
    feed_forward_block,
)
from shapelaw.scaling.errors import InputError


def build_gemma3(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Gemma 3 text config."""
    fields.require_divisible_heads()
    if fields["use_bidirectional_attention"]:
        raise InputError(
            "`use_bidirectional_attention` must be false, but got true; give the config of a model "
            "that generates text"
        )
    step = fields["sliding_window_pattern"]

    def kind(index: int) -> str:
        return "sliding_attention" if (index + 1) % step else "full_attention"

    layer = DecoderLayer(
        attention=attention_block(fields, qk_norm="head"),
        feed_forward=feed_forward_block(fields),
        vectors=4 * fields["hidden_size"],
    )
    windows = fields.windows(fields.layer_kinds(kind), fields["sliding_window"])
    return dense_decoder(fields, layer, windows, activation="hidden_activation")


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
    },
    build_gemma3,
    theta=1_000_000.0,
    also_read=("final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar"),
)
