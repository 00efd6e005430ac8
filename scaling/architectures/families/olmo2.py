"""OLMo 2: norms after attention and MLP, QK-norm over the full width."""

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigFields,
    dense_fields,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.families.llama import (
    attention_block,
    dense_decoder,
    feed_forward_block,
    norm_block,
)


def build_olmo2(fields: ConfigFields) -> Architecture:
    """Make the architecture of an OLMo 2 config."""
    layer = DecoderLayer(
        attention=attention_block(fields, qk_norm="full"),
        feed_forward=feed_forward_block(fields),
        norm=norm_block(fields),
        norms="after",
    )
    return dense_decoder(fields, layer)


OLMO2 = ConfigFamily(
    "olmo2",
    {**dense_fields((50_304, 4096, 11_008, 32, 32), epsilon=1e-5), "attention_bias": switch(False)},
    build_olmo2,
    class_name="Olmo2ForCausalLM",
    axes=Axes(head_dim=None),
    names={
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
)
