"""LLaDA (arXiv 2502.09992) and Dream: Llama and Qwen2 in both directions, with a mask token.

Parameters per layer are those of Llama and of Qwen2. LLaDA names its fields as OLMo's first code
does, such as ``d_model`` and ``n_layers``. Dream predicts token i + 1 at position i.
"""

from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.embedding import EmbeddingBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.columns import breaking
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.families.llama import norm_block
from shapelaw.scaling.architectures.families.qwen2 import QWEN2, build_qwen2
from shapelaw.scaling.errors import InputError

WHOLE_SEQUENCE = ConfigField(None, nullable=True)  # block_length of a model that has no blocks


def build_llada(fields: ConfigFields) -> Architecture:
    """Make the architecture of a LLaDA config."""
    hidden, heads = fields["d_model"], fields["n_heads"]
    groups, rows = fields["n_kv_heads"], fields["embedding_size"] or fields["vocab_size"]
    groups, width = heads if groups is None else groups, fields["mlp_hidden_size"]
    if broken := breaking(hidden % (2 * heads) != 0, hidden, heads):
        hidden, heads = broken
        _refuse("d_model % (2 * n_heads) == 0", hidden, heads, "an even d_model / n_heads")
    if broken := breaking(heads % groups != 0, heads, groups):
        heads, groups = broken
        _refuse("n_heads % n_kv_heads == 0", heads, groups, f"{heads} or 1 key-value heads")
    if rows < fields["vocab_size"]:
        _refuse("embedding_size >= vocab_size", rows, fields["vocab_size"], "a larger one, or null")
    norm = norm_block(fields)
    layer = DecoderLayer(
        attention=AttentionBlock(
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=hidden // heads,
            qkv_bias=fields["include_qkv_bias"],
            rotary=fields.rotary(),
        ),
        feed_forward=FeedForwardBlock(
            hidden_size=hidden,
            intermediate_size=fields["mlp_ratio"] * hidden if width is None else width,
        ),
        norm=norm,
    )
    return Architecture(
        model_type=fields.model_type,
        embedding=EmbeddingBlock(vocab_size=rows, hidden_size=hidden, tied=fields["weight_tying"]),
        layers=((layer, fields["n_layers"]),),
        norm=norm,
        block_length=fields["block_length"],
        fields=fields.resolved(),
    )


def _refuse(rule: str, first: int, second: int, use: str) -> None:
    raise InputError(f"`{rule}` must hold, but got {first} and {second}; use {use}")


LLADA_8B = {
    "vocab_size": 126_464,
    "embedding_size": 126_464,
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12_288,
    "mask_token_id": 126_336,
    "weight_tying": False,
}
LLADA = ConfigFamily(
    "llada",
    {
        "vocab_size": ConfigField(50_257),
        "embedding_size": ConfigField(50_304, nullable=True),
        "d_model": ConfigField(768),
        "n_layers": ConfigField(12),
        "n_heads": ConfigField(12),
        "n_kv_heads": ConfigField(None, nullable=True),
        "mlp_hidden_size": ConfigField(None, nullable=True),
        "mlp_ratio": ConfigField(4),
        "rms_norm_eps": ConfigField(1e-5, "number"),
        "weight_tying": switch(True),
        "include_qkv_bias": switch(False),
        "mask_token_id": ConfigField(50_256, "whole"),
        "block_length": WHOLE_SEQUENCE,
    },
    build_llada,
    class_name="LLaDAModelLM",
    in_transformers=False,
    names={
        "embed_tokens": "model.transformer.wte",
        "layers": "model.transformer.blocks",
        "norm": "model.transformer.ln_f",
        "lm_head": "model.transformer.ff_out",
        "input_layernorm": "attn_norm",
        "self_attn.qkv_proj": "q_proj|k_proj|v_proj",
        "self_attn.o_proj": "attn_out",
        "post_attention_layernorm": "ff_norm",
        "mlp.gate_up_proj": "ff_proj|up_proj",
        "mlp.down_proj": "ff_out",
    },
    constants={
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rope": True,
        "alibi": False,
        "attention_layer_norm": False,
        "include_bias": False,
        "input_emb_norm": False,
        "scale_logits": False,
        "multi_query_attention": None,
    },
    axes=Axes(
        layers="n_layers",
        hidden="d_model",
        heads="n_heads",
        groups="n_kv_heads",
        head_dim=None,
        width="mlp_hidden_size",
        reference=LLADA_8B,
    ),
)


def build_dream(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Dream config."""
    return replace(build_qwen2(fields), block_length=fields["block_length"])


DREAM = ConfigFamily(
    "Dream",
    {
        **QWEN2.fields,
        "mask_token_id": ConfigField(151_666, "whole"),
        "block_length": WHOLE_SEQUENCE,
    },
    build_dream,
    class_name="DreamModel",
    axes=Axes(head_dim=None),
    in_transformers=False,
)
