"""Dhara: Llama with Canon layers, converted to masked diffusion; Dhara-250M also has QK-norm.

Parameters per layer: those of Llama, 2·h with QK-norm, and k per channel of each Canon layer. The
config of Dhara-250M is not published in this form: ``qk_norm`` and ``canon_gate_only`` (D stands on
f channels instead of 2·f) are names of this project.
"""

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
from shapelaw.scaling.architectures.families.llada import WHOLE_SEQUENCE
from shapelaw.scaling.architectures.families.llama import dense_decoder, plain_layer
from shapelaw.scaling.architectures.families.qwen3 import qwen3_layer


def build_dhara(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Dhara config, without its Canon layers."""
    layer = qwen3_layer(fields) if fields["qk_norm"] else plain_layer(fields)
    return replace(dense_decoder(fields, layer), block_length=fields["block_length"])


DHARA = ConfigFamily(
    "dhara",
    {
        **dense_fields((50_304, 384, 1024, 32, 8), tied=True),
        "num_key_value_heads": ConfigField(4, nullable=True),
        "head_dim": ConfigField(None, nullable=True),
        "qk_norm": switch(False),
        "mask_token_id": ConfigField(None, "whole", nullable=True),
        "block_length": WHOLE_SEQUENCE,
    },
    build_dhara,
    class_name="DharaForMaskedDiffusion",
    axes=Axes(structure={"qk_norm": (True,)}),
    in_transformers=False,
)
