"""nanochat: norms without weights, QK-norm, and an MLP of two matrices with squared ReLU."""

from shapelaw.scaling.architectures.architecture import Architecture, DecoderLayer
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigFields,
    dense_fields,
    switch,
)
from shapelaw.scaling.architectures.families.llama import (
    attention_block,
    dense_decoder,
    feed_forward_block,
)


def build_nanochat(fields: ConfigFields) -> Architecture:
    """Make the architecture of a nanochat config."""
    layer = DecoderLayer(
        attention=attention_block(fields),
        feed_forward=feed_forward_block(fields, gated=False),
        vectors=0,
    )
    return dense_decoder(fields, layer, final_norm=False)


NANOCHAT = ConfigFamily(
    "nanochat",
    {
        **dense_fields((50_304, 768, 8192, 12, 6), activation="relu2"),
        "attention_bias": switch(False),
    },
    build_nanochat,
    also_read=("final_logit_softcapping",),
)
