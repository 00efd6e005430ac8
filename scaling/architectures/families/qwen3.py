"""Qwen3: head dimension 128 where the field is absent, QK-norm per head; and its experts.

Parameters per layer: attention + 3·d·f + 2·d + 2·h; Qwen3-MoE has d·E + E·3·d·f_m for the MLP.
"""

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
from shapelaw.scaling.architectures.families.qwen2 import QWEN_WINDOWS, qwen_windows


def qwen3_layer(fields: ConfigFields) -> DecoderLayer:
    """Make a layer with QK-norm per head."""
    return DecoderLayer(
        attention=attention_block(fields, qk_norm="head"),
        feed_forward=feed_forward_block(fields),
        vectors=2 * fields["hidden_size"],
    )


def build_qwen3(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Qwen3 config."""
    return dense_decoder(fields, qwen3_layer(fields), qwen_windows(fields))


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
)
