"""Gemma 3n (text): parallel residual streams, per-layer embeddings, layers that share a cache.

Parameters per layer: attention + 3·d·f + 2·h + 8·d + 2·d·rank + 2·d·p + d·P + P² + P³; a layer that
shares a cache lacks 2·d·K·h + h. Beside the layers: V·d + V_p·L·p + d·L·p + p + 2·(P - 1)·d² + d.
"""

from collections.abc import Sequence
from dataclasses import replace

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.axes import Axes
from shapelaw.scaling.architectures.blocks.laurel import LaurelBlock
from shapelaw.scaling.architectures.blocks.streams import StreamsBlock
from shapelaw.scaling.architectures.columns import breaking
from shapelaw.scaling.architectures.config_fields import (
    ConfigFamily,
    ConfigField,
    ConfigFields,
    switch,
)
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.families.gemma3 import (
    GEMMA3,
    gemma_attentions,
    gemma_fields,
    gemma_kinds,
)
from shapelaw.scaling.architectures.families.llama import (
    attention_block,
    dense_decoder,
    embedding_block,
    feed_forward_block,
    norm_block,
)
from shapelaw.scaling.errors import InputError

OUTSIDE_ALTUP = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
SPARSE_LAYERS, SPARSITY = 10, 0.95  # first layers with sparse MLPs, in models of more layers


def build_gemma3n(fields: ConfigFields) -> Architecture:
    """Make the architecture of a Gemma 3n text config."""
    fields.require_divisible_heads()
    hidden, number = fields["hidden_size"], fields["num_hidden_layers"]
    norm = norm_block(fields)
    full = replace(attention_block(fields, qk_norm="head"), scale=1.0, value_norm=True)
    kinds = gemma_kinds(fields, 5)
    first_shared = first_sharing_layer(fields, kinds)
    usual = [SPARSITY if i < SPARSE_LAYERS < number else 0.0 for i in range(number)]
    sparsities = fields.per_layer("activation_sparsity_pattern", usual)
    widths = fields.per_layer("intermediate_size")
    fields.values = {**fields.values, "intermediate_size": widths}
    mlp = feed_forward_block(fields, activation="hidden_activation")
    streams = streams_block(fields)
    layer = DecoderLayer(
        attention=full,
        feed_forward=mlp,
        norm=norm,
        norms="both",
        laurel=LaurelBlock(hidden_size=hidden, rank=fields["laurel_rank"], norm=norm),
        streams=streams,
    )
    attentions = gemma_attentions(fields, full, kinds)
    layers = [
        replace(
            layer,
            attention=replace(attentions[index], shares_cache=index >= first_shared),
            feed_forward=replace(mlp, intermediate_size=widths[index], sparsity=sparsities[index]),
        )
        for index in range(number)
    ]
    embedding = embedding_block(
        fields,
        scale=hidden**0.5,
        logit_cap=fields["final_logit_softcapping"],
        other_tables=streams.table_parameters(number),
    )
    return dense_decoder(fields, layers, embedding=embedding)


def streams_block(fields: ConfigFields) -> StreamsBlock:
    """Make the parallel residual streams of a layer."""
    number, active = fields["altup_num_inputs"], fields["altup_active_idx"]
    if broken := breaking(active >= number, active, number):
        active, number = broken
        raise InputError(
            f"`altup_active_idx < altup_num_inputs` must hold, but got {active} and {number}; use 0"
        )
    return StreamsBlock(
        hidden_size=fields["hidden_size"],
        streams=number,
        active=active,
        clip=fields["altup_coef_clip"],
        scaled=fields["altup_correct_scale"],
        token_width=fields["hidden_size_per_layer_input"],
        token_vocab=fields["vocab_size_per_layer_input"],
        activation=fields["hidden_activation"],
        norm=norm_block(fields),
    )


def first_sharing_layer(fields: ConfigFields, kinds: Sequence[str]) -> int:
    """Return the first layer that reads the keys and values of an earlier layer of its kind."""
    first = len(kinds) - int(fields["num_kv_shared_layers"])
    if first == len(kinds) or (first > 0 and set(kinds[:first]) == set(kinds)):
        return first
    most = len(kinds) - max(kinds.index(kind) for kind in set(kinds)) - 1
    raise InputError(
        "`num_kv_shared_layers` must leave an earlier layer of each kind in `layer_types`, but got "
        f"{fields['num_kv_shared_layers']} of {len(kinds)} layers; use at most {most}"
    )


GEMMA3N = ConfigFamily(
    "gemma3n_text",
    {
        **gemma_fields((262_400, 2048, 16_384, 35, 8)),
        "intermediate_size": ConfigField(16_384, "counts"),
        "num_key_value_heads": ConfigField(2),
        "sliding_window": ConfigField(512),
        "final_logit_softcapping": ConfigField(30.0, "number"),
        "vocab_size_per_layer_input": ConfigField(262_144),
        "hidden_size_per_layer_input": ConfigField(256),
        "altup_active_idx": ConfigField(0, "whole"),
        "altup_coef_clip": ConfigField(120.0, "number"),
        "altup_correct_scale": switch(True),
        "altup_num_inputs": ConfigField(4),
        "num_kv_shared_layers": ConfigField(15, "whole"),
        "laurel_rank": ConfigField(64),
        "activation_sparsity_pattern": ConfigField(
            None, "shares", nullable=True, rule=f"{SPARSITY} in the first {SPARSE_LAYERS} layers"
        ),
    },
    build_gemma3n,
    class_name="Gemma3nForCausalLM",
    axes=Axes(
        heads_divide_hidden=True,
        sizes={"hidden_size_per_layer_input": (256,), "laurel_rank": (64,)},
        structure={"sliding_window": (512,), "num_kv_shared_layers": (0, 10)},
        constants={"activation_sparsity_pattern": None, "tie_word_embeddings": True},
        rules=("num_kv_shared_layers == 0 or num_kv_shared_layers + 5 <= num_hidden_layers",),
    ),
    names={
        **GEMMA3.names,
        "laurel.norm": "laurel.post_laurel_norm",
        "model_streams": "model",
        "streams": "altup",
        **{f"streams.{name}": name for name in OUTSIDE_ALTUP},
    },
    theta=1_000_000.0,
)
