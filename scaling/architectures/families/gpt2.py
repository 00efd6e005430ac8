"""GPT-2: LayerNorm, learned positions, biases everywhere, an MLP of two matrices.

Parameters per layer: 12·d² + 13·d with an MLP of 4·d.
"""

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.embedding import EmbeddingBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.norm import NormBlock
from shapelaw.scaling.architectures.columns import breaking
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.errors import InputError

# Names of other families that the config class takes for its own.
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def build_gpt2(fields: ConfigFields) -> Architecture:
    """Make the architecture of a GPT-2 config."""
    renamed = {GPT2_NAMES[k]: v for k, v in fields.values.items() if k in GPT2_NAMES}
    fields.values = {**fields.values, **renamed}
    hidden, heads = fields["n_embd"], fields["n_head"]
    if broken := breaking(hidden % heads != 0, hidden, heads):
        hidden, heads = broken
        raise InputError(
            f"`n_embd % n_head == 0` must hold for gpt2, but got {hidden} and {heads}; "
            f"use n_embd {hidden - hidden % heads or heads}"
        )
    if fields["add_cross_attention"]:
        raise InputError(
            "`add_cross_attention` must be false, but got true; give the config of a decoder"
        )
    norm, width = NormBlock(kind="layer", epsilon=fields["layer_norm_epsilon"]), fields["n_inner"]
    layer = DecoderLayer(
        attention=AttentionBlock(
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            qkv_bias=True,
            output_bias=True,
            rotary=None,
        ),
        feed_forward=FeedForwardBlock(
            hidden_size=hidden,
            intermediate_size=4 * hidden if width is None else width,
            gated=False,
            bias=True,
            activation=fields["activation_function"],
        ),
        norm=norm,
    )
    return Architecture(
        model_type=fields.model_type,
        embedding=EmbeddingBlock(
            vocab_size=fields["vocab_size"],
            hidden_size=hidden,
            tied=fields["tie_word_embeddings"],
            positions=fields["n_positions"],
        ),
        layers=((layer, fields["n_layer"]),),
        norm=norm,
        fields=fields.resolved(),
    )


GPT2 = ConfigFamily(
    "gpt2",
    {
        "vocab_size": ConfigField(50_257),
        "n_positions": ConfigField(1024),
        "n_embd": ConfigField(768),
        "n_layer": ConfigField(12),
        "n_head": ConfigField(12),
        "n_inner": ConfigField(None, nullable=True),
        "activation_function": ConfigField("gelu_new", "activation"),
        "layer_norm_epsilon": ConfigField(1e-5, "number"),
        "tie_word_embeddings": switch(True),
        "add_cross_attention": switch(False),
    },
    build_gpt2,
    class_name="GPT2LMHeadModel",
    axes=Axes(
        layers="n_layer",
        hidden="n_embd",
        heads="n_head",
        groups=None,
        head_dim=None,
        width="n_inner",
        heads_divide_hidden=True,
        reference={"n_inner": 3072},
    ),
    names={
        "embed_tokens": "transformer.wte",
        "embed_positions": "transformer.wpe",
        "layers": "transformer.h",
        "norm": "transformer.ln_f",
        "input_layernorm": "ln_1",
        "self_attn.qkv_proj": "attn.c_attn^T",
        "self_attn.o_proj": "attn.c_proj^T",
        "post_attention_layernorm": "ln_2",
        "mlp.up_proj": "mlp.c_fc^T",
        "mlp.down_proj": "mlp.c_proj^T",
    },
    also_read=tuple(GPT2_NAMES),
)
