"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values; windows are off by default."""

from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
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
    plain_layer,
    windowed_layers,
)

QWEN_WINDOWS = {
    "use_sliding_window": switch(False),
    "sliding_window": ConfigField(4096, nullable=True),
    "max_window_layers": ConfigField(28, "whole"),
    "layer_types": ConfigField(None, "list", nullable=True),
}


def qwen_windows(fields: ConfigFields) -> list[int | None]:
    """Return the window of each layer, set by ``use_sliding_window`` from a layer on."""
    window = fields["sliding_window"] if fields["use_sliding_window"] else None
    first = fields["max_window_layers"]

    def kind(index: int) -> str:
        local = window is not None and index >= first
        return "sliding_attention" if local else "full_attention"

    return fields.windows(fields.layer_kinds(kind), window)


def build_qwen2(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Qwen2 config."""
    attention = replace(attention_block(fields), qkv_bias=True)
    layer = replace(plain_layer(fields), attention=attention)
    return dense_decoder(fields, windowed_layers(layer, qwen_windows(fields)))


# Qwen2.5 1.5B.
QWEN_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN2 = ConfigFamily(
    "qwen2",
    {
        **dense_fields((151_936, 4096, 22_016, 32, 32)),
        "num_key_value_heads": ConfigField(32, nullable=True),
        **QWEN_WINDOWS,
    },
    build_qwen2,
    class_name="Qwen2ForCausalLM",
    axes=Axes(head_dim=None, reference=QWEN_1_5B),
)
