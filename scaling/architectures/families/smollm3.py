"""SmolLM3: Llama without positions on every fourth layer; tied, base 2,000,000."""

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
    dense_decoder,
    plain_layer,
    windowed_layers,
)
from shapelaw.scaling.errors import InputError


def build_smollm3(fields: ConfigFields) -> Architecture:
    """Make the architecture of a SmolLM3 config."""
    rotary = rotary_layers(fields)
    window = fields["sliding_window"] if fields["use_sliding_window"] else None

    def kind(index: int) -> str:
        local = window is not None and not rotary[index]
        return "sliding_attention" if local else "full_attention"

    windows = fields.windows(fields.layer_kinds(kind), window)
    plain = rotary.count(0)
    if plain:
        fields.notes.append(f"{plain} of {len(rotary)} layers have no rotary positions")
    layers = windowed_layers(plain_layer(fields), windows)
    return dense_decoder(
        fields,
        [
            layer if keeps else without_positions(layer)
            for layer, keeps in zip(layers, rotary, strict=True)
        ],
    )


def rotary_layers(fields: ConfigFields) -> list[int]:
    """Return 1 for each layer with rotary positions and 0 for each without."""
    number, given = fields["num_hidden_layers"], fields["no_rope_layers"]
    if given is None:
        step = fields["no_rope_layer_interval"]
        return [int((index + 1) % step != 0) for index in range(number)]
    if len(given) < number or any(each not in (0, 1) for each in given):
        raise InputError(
            f"`no_rope_layers` must be {number} numbers 0 or 1, but got {str(given)[:40]}; "
            "give one number per layer, or leave it out"
        )
    return [int(each) for each in given[:number]]


def without_positions(layer: DecoderLayer) -> DecoderLayer:
    """Take the rotary positions from a layer."""
    assert isinstance(layer.attention, AttentionBlock)
    return replace(layer, attention=replace(layer.attention, rotary=None))


SMOLLM3 = ConfigFamily(
    "smollm3",
    {
        **dense_fields((128_256, 2048, 11_008, 36, 16), tied=True),
        "num_key_value_heads": ConfigField(4, nullable=True),
        "attention_bias": switch(False),
        "mlp_bias": switch(False),
        "use_sliding_window": switch(False),
        "sliding_window": ConfigField(None, nullable=True),
        "no_rope_layers": ConfigField(
            None, "list", nullable=True, rule="every no_rope_layer_interval-th layer"
        ),
        "no_rope_layer_interval": ConfigField(4),
        "layer_types": ConfigField(None, "list", nullable=True),
    },
    build_smollm3,
    class_name="SmolLM3ForCausalLM",
    axes=Axes(head_dim=None, structure={"no_rope_layer_interval": (4,)}),
    theta=2_000_000.0,
)
