"""Conditions under which a serving engine computes an architecture as the trainer does.

One table of block properties. An engine that no condition names computes every family, as the
embedded one does. The conditions come from comparisons of log-probabilities on random weights,
which the tests of the engines repeat, and from the code of the engines.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shapelaw.scaling.architectures import llamacpp_properties as llamacpp
from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.architectures.llamacpp_properties import (
    LLAMACPP_ARCHITECTURES,
    attention_blocks,
    expert_blocks,
    first_of,
    latent_blocks,
)
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError

TRANSFORMERS, VLLM, LLAMACPP = "transformers", "vllm", "llamacpp"
SERVING_ENGINES = ("torch", TRANSFORMERS, VLLM, LLAMACPP)
NOT_IN_VLLM = ("nanochat",)  # its Transformers backend included
ANY_ACTIVATION_IN_VLLM = ("gpt2", "gemma3_text", "arcee", "olmo2", "smollm3", "gpt_oss")
OUTPUT_BIAS_IN_VLLM = ("llama", "gpt2", "gpt_oss", "gemma3_text", "arcee", "olmo2", "smollm3")
# Whether the output head is tied, of classes that read no other.
HEADS_IN_VLLM = {"lfm2": True, "deepseek_v3": False, "kimi_k2": False, "gpt_oss": False}
NOT_MIXED_IN_VLLM = ("qwen2", "qwen3")
KV_BLOCK = 128  # tokens of a block of vLLM's cache on a CPU
MOST_EPSILON = 1e-5  # below which 1e-6 makes no difference of 1e-4 in log-probabilities
CLAMP = (7.0, 1.702)  # limit and slope of the experts of gpt-oss


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Property that an architecture must have to be computed alike.

    Parameters
    ----------
    engines
        Engines with this condition.
    rule
        The rule, as an error says it in backticks.
    broken
        Returns what breaks the rule; None where it holds.
    reason
        What the engine does instead.
    """

    engines: tuple[str, ...]
    rule: str
    broken: Callable[[Architecture], Any]
    reason: str


def _canon_places(architecture: Architecture) -> str | None:
    canon = architecture.first_layer.canon
    return canon.places if canon else None


def _remote_class(architecture: Architecture) -> str | None:
    family = FAMILIES[architecture.model_type]
    served = family.in_transformers or family.written_as
    return None if served else architecture.model_type


def _streams(architecture: Architecture) -> int | None:
    return architecture.streams.streams if architecture.streams else None


def _latent_epsilon(architecture: Architecture) -> float | None:
    for layer, _ in architecture.layers:
        block = layer.attention
        largest = max(layer.norm.epsilon, MOST_EPSILON)
        if isinstance(block, LatentAttentionBlock) and largest != MOST_EPSILON:
            return layer.norm.epsilon
    return None


def _rotation_of_halves(architecture: Architecture) -> bool | None:
    rotaries = (block.rotary for block in latent_blocks(architecture))
    return first_of(False for rotary in rotaries if not rotary.interleaved)


def _latent_bias(architecture: Architecture) -> bool | None:
    return first_of(True for block in latent_blocks(architecture) if block.bias)


def _several_weighed_inputs(architecture: Architecture) -> int | None:
    blocks = (block for block in expert_blocks(architecture) if block.router.weighs_input)
    return first_of(int(block.active) for block in blocks if block.active > 1)


def _output_bias(architecture: Architecture) -> bool | None:
    known = architecture.model_type in OUTPUT_BIAS_IN_VLLM
    blocks = (block for block in attention_blocks(architecture) if block.output_bias)
    return first_of(True for _ in blocks if not known)


def _other_head(architecture: Architecture) -> bool | None:
    tied = bool(architecture.embedding.tied)
    return None if HEADS_IN_VLLM.get(architecture.model_type, tied) is tied else tied


def _activation_in_vllm(architecture: Architecture) -> str | None:
    blocks = (layer.feed_forward for layer, _ in architecture.layers)
    mlps: Iterator[Any] = (getattr(block, "expert", block) for block in blocks)
    names = (str(mlp.activation) for mlp in mlps)
    known = architecture.model_type in ANY_ACTIVATION_IN_VLLM
    return first_of(name for name in names if name not in llamacpp.SILU and not known)


def _clamp(architecture: Architecture) -> Any:
    clamps = (block.clamp for block in expert_blocks(architecture) if block.clamp)
    return first_of(clamp for clamp in clamps if clamp != CLAMP)


def _mixed_windows(architecture: Architecture) -> str | None:
    local = sum(n for layer, n in architecture.layers if layer.attention.window is not None)
    whole = architecture.num_hidden_layers
    mixed = architecture.model_type in NOT_MIXED_IN_VLLM and 0 < local < whole
    return f"a window on {local} of {whole} layers" if mixed else None


def _chunk_beside_blocks(architecture: Architecture) -> int | None:
    chunks = (block.window for block in attention_blocks(architecture) if block.chunked)
    return first_of(chunk for chunk in chunks if chunk and chunk % KV_BLOCK)


CONDITIONS = (
    Condition(
        engines=(TRANSFORMERS, VLLM, LLAMACPP),
        rule="canon_set == null",
        broken=_canon_places,
        reason="no other engine has Canon layers",
    ),
    Condition(
        engines=(TRANSFORMERS, VLLM, LLAMACPP),
        rule="mask_token_id == null",
        broken=lambda architecture: architecture.embedding.mask_token,
        reason="it decodes one token after the other, and fills in no masked ones",
    ),
    Condition(
        engines=(TRANSFORMERS, VLLM),
        rule="model_type known to transformers",
        broken=_remote_class,
        reason="transformers has no class of this type",
    ),
    Condition(
        engines=(VLLM,),
        rule="altup_num_inputs == 1",
        broken=_streams,
        reason="its class drops the per-layer embeddings of Gemma 3n in silence",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="altup_num_inputs == 1",
        broken=_streams,
        reason="it fixes all sizes of Gemma 3n to those of the published models",
    ),
    Condition(
        engines=(VLLM,),
        rule="model_type known to vLLM",
        broken=lambda a: a.model_type if a.model_type in NOT_IN_VLLM else None,
        reason="it has no class of this type",
    ),
    Condition(
        engines=(VLLM,),
        rule=f"attention_chunk_size % {KV_BLOCK} == 0",
        broken=_chunk_beside_blocks,
        reason="chunks must be whole blocks of its cache",
    ),
    Condition(
        engines=(VLLM,),
        rule="num_experts_per_tok == 1",
        broken=_several_weighed_inputs,
        reason="it weighs the input of one expert of Llama 4, not of several",
    ),
    Condition(
        engines=(VLLM,),
        rule="attention_bias == false",
        broken=_output_bias,
        reason="its class leaves the bias of the output projection out",
    ),
    Condition(
        engines=(VLLM,),
        rule="tie_word_embeddings as published",
        broken=_other_head,
        reason="its class always ties the head of LFM2, and never those of DeepSeek V3 and gpt-oss",
    ),
    Condition(
        engines=(VLLM,),
        rule="hidden_act == silu",
        broken=_activation_in_vllm,
        reason="its class has this activation only",
    ),
    Condition(
        engines=(VLLM,),
        rule="max_window_layers in (0, num_hidden_layers)",
        broken=_mixed_windows,
        reason="its classes of Qwen2 and Qwen3 have windows on all layers or none",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="model_type known to llama.cpp",
        broken=lambda a: None if a.model_type in LLAMACPP_ARCHITECTURES else a.model_type,
        reason="it has no architecture of this type",
    ),
    Condition(
        engines=(VLLM, LLAMACPP),
        rule=f"rms_norm_eps <= {MOST_EPSILON:g}",
        broken=_latent_epsilon,
        reason="it has one epsilon, and the norms of latents have 1e-06 in transformers",
    ),
    Condition(
        engines=(VLLM, LLAMACPP),
        rule="rope_interleave == true",
        broken=_rotation_of_halves,
        reason="it rotates adjacent dimensions of latent attention",
    ),
    Condition(
        engines=(VLLM, LLAMACPP),
        rule="attention_bias == false",
        broken=_latent_bias,
        reason="it reads no biases of latent attention",
    ),
    Condition(
        engines=(VLLM, LLAMACPP),
        rule=f"[swiglu_limit, swiglu_alpha] == {list(CLAMP)}",
        broken=_clamp,
        reason="it fixes them",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="hidden_act as published",
        broken=llamacpp.unknown_activation,
        reason="it fixes the activation of each family",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="biases as published",
        broken=llamacpp.unknown_bias,
        reason="it reads biases of a family's published models only",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="layer_types as published",
        broken=llamacpp.misplaced_window,
        reason="it has windows on all layers but every 6th of Gemma 3, every 2nd of gpt-oss and "
        "every 4th of Llama 4, and on none of other families",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="no_rope_layers as published",
        broken=llamacpp.misplaced_positions,
        reason="it leaves the positions of every 4th layer of SmolLM3 and Llama 4 out",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="attention_chunk_size and temperature as published",
        broken=llamacpp.other_chunk,
        reason=f"it fixes chunks of {llamacpp.CHUNK} tokens and the temperature",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule=f"use_qk_norm == (num_local_experts != {llamacpp.UNNORMED_EXPERTS})",
        broken=llamacpp.other_norm_of_heads,
        reason="it tells by the number of experts whether heads have a norm",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="query_pre_attn_scalar == head_dim",
        broken=llamacpp.other_scale,
        reason="it divides scores by the root of the head dimension",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="rope_parameters as published",
        broken=llamacpp.other_local_positions,
        reason="it fixes the base of local layers at 10000, and scales only full ones, linearly",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="rope_type as published",
        broken=llamacpp.unread_scaling,
        reason="it reads Llama 3's scaling in Llama, Llama 4 and Arcee only",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="truncate == true",
        broken=llamacpp.exact_ramp,
        reason="it rounds the ends of yarn's ramp",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="latent attention as published",
        broken=llamacpp.latent_property,
        reason="it has a latent of queries unless a model has 26 or 27 layers, and one mscale",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="n_group == 1",
        broken=llamacpp.expert_groups,
        reason="it chooses experts over all groups otherwise than transformers",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="norm_topk_prob == true",
        broken=llamacpp.plain_weights,
        reason="it always normalises the weights of chosen experts",
    ),
    Condition(
        engines=(LLAMACPP,),
        rule="layers with experts as published",
        broken=llamacpp.misplaced_experts,
        reason="it has experts in all layers, after dense ones (DeepSeek) or at one step (Llama 4)",
    ),
)


def broken_condition(architecture: Architecture, engine: str) -> tuple[Condition, Any] | None:
    """Return the first condition that an architecture breaks in an engine, and what breaks it."""
    for condition in CONDITIONS:
        value = condition.broken(architecture) if engine in condition.engines else None
        if value is not None:
            return condition, value
    return None


def serving_engines(architecture: Architecture) -> list[str]:
    """Return the engines that compute an architecture as the trainer does."""
    return [name for name in SERVING_ENGINES if broken_condition(architecture, name) is None]


def require_computed_alike(architecture: Architecture, engine: str) -> None:
    """Refuse an architecture that an engine computes differently or not at all.

    Parameters
    ----------
    engine
        Name of an engine.

    Raises
    ------
    InputError
        The architecture breaks a condition of the engine.
    """
    broken = broken_condition(architecture, engine)
    if broken is not None:
        condition, value = broken
        others = " or ".join(serving_engines(architecture))
        raise InputError(
            f"`{condition.rule}` must hold in the {engine} engine, but got {shown(value)}: "
            f"{condition.reason}; use --engine {others}"
        )
