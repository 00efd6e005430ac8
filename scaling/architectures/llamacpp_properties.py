"""Properties that llama.cpp's code fixes, and those of a model that differ from them.

A function returns a value of the model that llama.cpp computes differently, or None. They are
conditions of llama.cpp in :mod:`shapelaw.scaling.architectures.engine_conditions`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock

T = TypeVar("T")
# Architectures of llama.cpp that compute a family, by their names there.
LLAMACPP_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "arcee": "arcee",
    "qwen3_moe": "qwen3moe",
    "deepseek_v3": "deepseek2",
    "kimi_k2": "deepseek2",
    "llama4_text": "llama4",
    "gpt_oss": "gpt-oss",
    "lfm2": "lfm2",
}
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")
SILU = ("silu", "swish")
ALL_BIASES = ("qkv", "output", "mlp")
CHUNK = 8192  # tokens of a chunk of Llama 4, and of a step of its temperature
LOCAL_BASE = 10_000.0  # of the rotary positions of layers with a window in Gemma 3
UNNORMED_EXPERTS = 128  # Llama 4 has no norm of heads with so many experts (Maverick)
SIZE_OF_27B = 62  # layers by which Gemma 3 27B is recognised, whose scale is (d/H)^-0.5
LITE_LAYERS = (26, 27)  # layers by which models without a latent of queries are recognised
# θ, factor, length and h of gpt-oss: rounding the ramp of its scaling changes little.
ROUNDED_RAMP = (150_000.0, 32.0, 4096.0, 64)


@dataclass(frozen=True, kw_only=True)
class LlamaCppArchitecture:
    """Properties of one architecture that llama.cpp's code fixes.

    Parameters
    ----------
    activations
        Activations of the MLP, by their names in transformers.
    biases
        Parts that may have biases: some of ``qkv``, ``output`` and ``mlp``.
    window_step
        Every such layer sees all tokens and the others have a window; 0: none has one.
    plain_step
        Every such layer is without rotary positions; 0: none is.
    divided_frequencies
        The frequencies of Llama 3's scaling are read.
    dense_layers
        Layers without experts: the ``"first"`` ones, those ``"between"`` regular ones with
        experts, or ``""`` for none (or all).
    """

    activations: tuple[str, ...] = SILU
    biases: tuple[str, ...] = ()
    window_step: int = 0
    plain_step: int = 0
    divided_frequencies: bool = False
    dense_layers: str = ""


FIXED_PROPERTIES = {
    "llama": LlamaCppArchitecture(biases=ALL_BIASES, divided_frequencies=True),
    "qwen2": LlamaCppArchitecture(biases=("qkv",)),
    "qwen3": LlamaCppArchitecture(),
    "smollm3": LlamaCppArchitecture(plain_step=4),
    "olmo2": LlamaCppArchitecture(),
    "gemma3": LlamaCppArchitecture(activations=TANH_GELU, window_step=6),
    "gpt2": LlamaCppArchitecture(activations=TANH_GELU, biases=ALL_BIASES),
    "arcee": LlamaCppArchitecture(activations=("relu2",), divided_frequencies=True),
    "qwen3moe": LlamaCppArchitecture(),
    "deepseek2": LlamaCppArchitecture(dense_layers="first"),
    "llama4": LlamaCppArchitecture(
        window_step=4, plain_step=4, divided_frequencies=True, dense_layers="between"
    ),
    "gpt-oss": LlamaCppArchitecture(biases=ALL_BIASES, window_step=2),
    "lfm2": LlamaCppArchitecture(),
}


def fixed_properties(architecture: Architecture) -> LlamaCppArchitecture:
    """Return what llama.cpp fixes in the architecture that computes a family."""
    return FIXED_PROPERTIES[LLAMACPP_ARCHITECTURES[architecture.model_type]]


def attention_blocks(architecture: Architecture) -> Iterator[AttentionBlock]:
    """Return the attention of each run of equal layers that has keys and values."""
    blocks = (layer.attention for layer, _ in architecture.layers)
    return (block for block in blocks if isinstance(block, AttentionBlock))


def latent_blocks(architecture: Architecture) -> Iterator[LatentAttentionBlock]:
    """Return the latent attention of each run of equal layers that has one."""
    blocks = (layer.attention for layer, _ in architecture.layers)
    return (block for block in blocks if isinstance(block, LatentAttentionBlock))


def expert_blocks(architecture: Architecture) -> Iterator[ExpertsBlock]:
    """Return the experts of each run of equal layers that has some."""
    blocks = (layer.feed_forward for layer, _ in architecture.layers)
    return (block for block in blocks if isinstance(block, ExpertsBlock))


def first_of(values: Iterator[T]) -> T | None:
    """Return the first value, None if there is none."""
    return next(values, None)


def unknown_activation(architecture: Architecture) -> str | None:
    """Return an activation of an MLP that is computed as another one."""
    known = fixed_properties(architecture).activations
    blocks = (layer.feed_forward for layer, _ in architecture.layers)
    mlps: Iterator[Any] = (getattr(block, "expert", block) for block in blocks)
    return first_of(str(mlp.activation) for mlp in mlps if mlp.activation not in known)


def unknown_bias(architecture: Architecture) -> str | None:
    """Return a part with biases that are not read."""
    known = fixed_properties(architecture).biases
    for layer, _ in architecture.layers:
        block = layer.attention
        mlp: Any = getattr(layer.feed_forward, "expert", layer.feed_forward)
        whole = getattr(block, "bias", False)  # of latent attention and convolutions
        parts = {
            "qkv": getattr(block, "qkv_bias", whole),
            "output": getattr(block, "output_bias", whole),
            "mlp": mlp.bias,
        }
        unknown = [part for part, has in parts.items() if has and part not in known]
        if unknown:
            return f"biases of {unknown[0]}"
    return None


def misplaced_window(architecture: Architecture) -> str | None:
    """Return a layer that should have a window and has none, or the reverse."""
    step = fixed_properties(architecture).window_step
    for number, layer in enumerate(architecture.each_layer(), 1):
        local = layer.attention.window is not None
        if local != bool(step and number % step):
            return f"{'a' if local else 'no'} window in layer {number}"
    return None


def misplaced_positions(architecture: Architecture) -> str | None:
    """Return a layer that should have rotary positions and has none, or the reverse."""
    step = fixed_properties(architecture).plain_step
    for number, layer in enumerate(architecture.each_layer(), 1):
        rotated = layer.attention.rotary is not None
        skipped = isinstance(layer.attention, ShortConvolutionBlock)
        if skipped or architecture.embedding.positions:
            continue
        if rotated == bool(step and number % step == 0):
            return f"{'' if rotated else 'no '}positions in layer {number}"
    return None


def other_chunk(architecture: Architecture) -> Any:
    """Return a chunk, or a temperature of layers without positions, of another length."""
    blocks = list(attention_blocks(architecture))
    chunks = [block.window for block in blocks if block.chunked]
    plain = [block.temperature for block in blocks if block.rotary is None and chunks]
    wrong = [f"a chunk of {chunk}" for chunk in chunks if chunk != CHUNK]
    wrong += [f"temperature tuning {each}" for each in plain if each != (0.1, CHUNK)]
    return first_of(iter(wrong))


def other_norm_of_heads(architecture: Architecture) -> str | None:
    """Return the norm of heads of chunked layers that differs from that of their size."""
    experts = max((block.experts for block in expert_blocks(architecture)), default=0)
    usual = "none" if experts == UNNORMED_EXPERTS else "head"
    blocks = (block for block in attention_blocks(architecture) if block.chunked)
    return first_of(
        f"{block.qk_norm} with {experts} experts" for block in blocks if block.qk_norm != usual
    )


def other_scale(architecture: Architecture) -> str | None:
    """Return what the scores are divided by the root of, if not the head dimension."""
    for block in attention_blocks(architecture):
        largest = architecture.num_hidden_layers == SIZE_OF_27B
        width = block.hidden_size / block.num_attention_heads if largest else block.head_dim
        if block.scale is not None and abs(block.scale**-2 / width - 1) > 1e-9:
            return f"{block.scale**-2:g} with heads of {block.head_dim}"
    return None


def other_local_positions(architecture: Architecture) -> str | None:
    """Return rotary positions of Gemma 3 of another base or scaling than its own."""
    blocks = list(attention_blocks(architecture))
    if LLAMACPP_ARCHITECTURES[architecture.model_type] != "gemma3":
        return None
    local = [block.rotary for block in blocks if block.rotary and block.window is not None]
    full = [block.rotary for block in blocks if block.rotary and block.window is None]
    wrong = [f"a local base of {each.theta:g}" for each in local if each.theta != LOCAL_BASE]
    wrong += [f"{each.scaling.kind} scaling of local layers" for each in local if each.scaling]
    wrong += [
        f"{each.scaling.kind} scaling"
        for each in full
        if each.scaling and each.scaling.kind != "linear"
    ]
    return first_of(iter(wrong))


def unread_scaling(architecture: Architecture) -> str | None:
    """Return a scaling of rotary positions that is not read."""
    known = fixed_properties(architecture).divided_frequencies
    rotaries = (layer.attention.rotary for layer, _ in architecture.layers)
    kinds = (rotary.scaling.kind for rotary in rotaries if rotary and rotary.scaling)
    return first_of(kind for kind in kinds if kind == "llama3" and not known)


def exact_ramp(architecture: Architecture) -> bool | None:
    """Return False for a ramp of yarn's scaling that rounding its ends would change."""
    for layer, _ in architecture.layers:
        rotary, width = layer.attention.rotary, layer.attention.rotated_dimensions
        scaling = rotary.scaling if rotary else None
        if rotary is None or scaling is None or scaling.truncate:
            continue
        if (rotary.theta, scaling.factor, scaling.original_length, width) != ROUNDED_RAMP:
            return False
    return None


def latent_property(architecture: Architecture) -> str | None:
    """Return a property of latent attention that llama.cpp has otherwise."""
    lite = architecture.num_hidden_layers in LITE_LAYERS
    for block in latent_blocks(architecture):
        scaling = block.rotary.scaling
        if (block.query_rank is None) != lite:
            return f"q_lora_rank {block.query_rank} in {architecture.num_hidden_layers} layers"
        if scaling and abs(scaling.rotation_scale - 1) > 1e-9:
            return f"rotations scaled by {scaling.rotation_scale:.3g} (mscale)"
    return None


def expert_groups(architecture: Architecture) -> int | None:
    """Return the number of groups of experts, if there are several."""
    return first_of(b.router.groups for b in expert_blocks(architecture) if b.router.groups > 1)


def plain_weights(architecture: Architecture) -> bool | None:
    """Return False for weights of a softmax over all experts that are not normalised."""
    routers = (block.router for block in expert_blocks(architecture))
    return first_of(False for r in routers if r.score == "softmax" and not r.normalised)


def misplaced_experts(architecture: Architecture) -> str | None:
    """Return a layer that should have experts and has none, or the reverse."""
    kind = fixed_properties(architecture).dense_layers
    sparse = [isinstance(layer.feed_forward, ExpertsBlock) for layer in architecture.each_layer()]
    if not any(sparse):
        return "none" if kind else None
    if kind == "first" and any(block.shared is None for block in expert_blocks(architecture)):
        return "no shared expert"
    begin = sparse.index(True) if kind else 0
    step = begin + 1 if kind == "between" else 1
    expected = [index >= begin and (index + 1) % step == 0 for index in range(len(sparse))]
    wrong = (i for i, pair in enumerate(zip(sparse, expected, strict=True)) if pair[0] != pair[1])
    number = first_of(wrong)
    if number is None:
        return None
    return f"{'experts' if sparse[number] else 'none'} in layer {number + 1}"
