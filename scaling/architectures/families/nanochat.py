"""nanochat: norms without weights, QK-norm, and an MLP of two matrices with squared ReLU."""

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
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.families.llama import (
    attention_block,
    dense_decoder,
    embedding_block,
    feed_forward_block,
    norm_block,
)


def build_nanochat(fields: ConfigFields) -> Architecture:
    """Make the architecture of a nanochat config."""
    norm = norm_block(fields, weight=False)
    attention = attention_block(fields, qk_norm="head")
    rotary = replace(fields.rotary(), reversed=True)
    layer = DecoderLayer(
        attention=replace(attention, norm=norm, norm_after_rotation=True, rotary=rotary),
        feed_forward=feed_forward_block(fields, gated=False),
        norm=norm,
    )
    embedding = embedding_block(fields, norm=norm, logit_cap=fields["final_logit_softcapping"])
    return dense_decoder(fields, layer, norm=norm, embedding=embedding)


NANOCHAT = ConfigFamily(
    "nanochat",
    {
        **dense_fields((50_304, 768, 8192, 12, 6), activation="relu2"),
        "attention_bias": switch(False),
        "final_logit_softcapping": ConfigField(15.0, "number", nullable=True),
    },
    build_nanochat,
    class_name="NanoChatForCausalLM",
    axes=Axes(head_dim=None),
    names={"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"},
)
