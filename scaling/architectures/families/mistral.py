"""Mistral: Llama with a sliding window on every layer, 4,096 tokens where the field is absent."""

from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
)
from shapelaw.scaling.architectures.families.llama import dense_decoder, plain_layer


def build_mistral(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Mistral config."""
    layer = plain_layer(fields)
    attention = replace(layer.attention, window=fields["sliding_window"])
    return dense_decoder(fields, replace(layer, attention=attention))


MISTRAL = ConfigFamily(
    "mistral",
    {
        **dense_fields((32_000, 4096, 14_336, 32, 32)),
        "num_key_value_heads": ConfigField(8),
        "head_dim": ConfigField(None, nullable=True),
        "sliding_window": ConfigField(4096, nullable=True),
    },
    build_mistral,
    class_name="MistralForCausalLM",
    axes=Axes(structure={"sliding_window": (None, 4096)}, reference={"sliding_window": None}),
)
