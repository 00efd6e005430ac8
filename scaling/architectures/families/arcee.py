"""Arcee (AFM): Llama with an MLP of two matrices and squared ReLU."""

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    dense_fields,
    switch,
)
from shapelaw.scaling.architectures.families.llama import dense_decoder, plain_layer


def build_arcee(fields: ConfigFields) -> Architecture:
    """Make the architecture of an Arcee config."""
    fields.require_divisible_heads()
    return dense_decoder(fields, plain_layer(fields, gated=False))


ARCEE = ConfigFamily(
    "arcee",
    {
        **dense_fields((32_000, 2560, 18_432, 32, 32), activation="relu2", epsilon=1e-5),
        "head_dim": ConfigField(None, nullable=True),
        "attention_bias": switch(False),
        "mlp_bias": switch(False),
    },
    build_arcee,
    class_name="ArceeForCausalLM",
    axes=Axes(heads_divide_hidden=True),
)
