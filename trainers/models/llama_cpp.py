"""Names, layouts and metadata of an architecture in a GGUF file, as llama.cpp reads them.

llama.cpp has one architecture per family, whose tensors have short names. It differs from
Hugging Face's checkpoints in three layouts: rotated pairs are adjacent rows in some architectures,
norms of 1 + w hold the sum, and latent attention has matrices per head.
"""

import math
from typing import Any

import torch
from torch import Tensor

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import AttentionBlock
from shapelaw.scaling.architectures.blocks.feed_forward import FeedForwardBlock
from shapelaw.scaling.architectures.blocks.latent_attention import LatentAttentionBlock
from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.blocks.positions import RotaryPositions
from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.scaling.architectures.llamacpp_properties import (
    LLAMACPP_ARCHITECTURES,
    attention_blocks,
)
from shapelaw.trainers.models.hugging_face import weight_pieces
from shapelaw.trainers.models.transformer import Transformer

GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "layers": "blk",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_q|attn_k|attn_v",
    "self_attn.q_proj": "attn_q",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.sinks": "attn_sinks.weight",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.o_proj": "attn_output",
    "self_attn.in_proj": "shortconv.in_proj",
    "self_attn.conv": "shortconv.conv",
    "self_attn.out_proj": "shortconv.out_proj",
    "attention_output_norm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_gate|ffn_up",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.router.balance_bias": "exp_probs_b.bias",
    "mlp.experts.gate_up_proj": "ffn_gate_exps.weight|ffn_up_exps.weight",
    "mlp.experts.gate_up_proj_bias": "ffn_gate_exps.bias|ffn_up_exps.bias",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
    "mlp.shared_expert.gate_up_proj": "ffn_gate_shexp|ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp_output_norm": "post_ffw_norm",
}
# Names of single architectures.
OTHER_NAMES = {
    "gpt2": {"self_attn.qkv_proj": "attn_qkv"},
    "gpt-oss": {"post_attention_layernorm": "post_attention_norm"},
    "lfm2": {"norm": "token_embd_norm"},
}
# Architectures that rotate adjacent rows. The others rotate the two halves of a head.
ADJACENT_PAIRS = ("llama", "smollm3", "arcee", "llama4", "deepseek2")
WITH_HEAD = ("olmo2", "gpt-oss")  # they read a head of their own, also where it is tied
GATING = {"softmax": 1, "sigmoid": 2, "softmax_of_chosen": 3}


def gguf_tensors(model: Transformer) -> dict[str, Tensor]:
    """Return the weights of a model under llama.cpp's names and in its layouts.

    Parameters
    ----------
    model
        The model; one on the device ``meta`` gives sizes only.
    """
    architecture = model.architecture
    kind = LLAMACPP_ARCHITECTURES[architecture.model_type]
    names = GGUF_NAMES | OTHER_NAMES.get(kind, {})
    layers = list(architecture.each_layer())
    tensors: dict[str, Tensor] = {}
    for piece in weight_pieces(model, names):
        layer = layers[int(piece.name.split(".")[1])] if piece.name.startswith("blk.") else None
        tensors |= _laid_out(piece.name, piece.view, layer, kind)
    if kind in WITH_HEAD:
        tensors.setdefault("output.weight", tensors["token_embd.weight"])
    factors = _rotary_factors(architecture)
    return tensors if factors is None else {**tensors, "rope_freqs.weight": factors}


def _laid_out(
    name: str, weight: Tensor, layer: DecoderLayer | None, kind: str
) -> dict[str, Tensor]:
    """Return one weight in the layout of llama.cpp, or the two that it is split into."""
    end = name.rpartition(".")[0].rpartition(".")[2]
    block = None if layer is None else layer.attention
    if isinstance(block, LatentAttentionBlock) and end == "attn_kv_b":
        per_head = weight.unflatten(0, (block.num_attention_heads, -1))
        keys, values = per_head.split((block.plain_head_dim, block.value_head_dim), dim=1)
        return {
            name.replace("attn_kv_b", "attn_k_b"): keys.transpose(1, 2),
            name.replace("attn_kv_b", "attn_v_b"): values,
        }
    if isinstance(block, AttentionBlock) and end in ("attn_q", "attn_k"):
        halves = block.rotary is not None and not block.rotary.interleaved
        if halves and kind in ADJACENT_PAIRS:
            weight = _with_adjacent_pairs(weight, block.head_dim)
    if end == "conv":
        weight = weight.squeeze(1)
    if end.endswith("norm") and kind == "gemma3":
        weight = weight + 1
    return {name: weight}


def _with_adjacent_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows so that the two of each rotated pair, half a head apart, are adjacent."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).reshape(weight.shape)


def _rotary_factors(architecture: Architecture) -> Tensor | None:
    """Return by what Llama 3's scaling divides each frequency, (h / 2,); None for other kinds."""
    for block in attention_blocks(architecture):
        scaling = block.rotary.scaling if block.rotary else None
        if block.rotary is not None and scaling is not None and scaling.kind == "llama3":
            steps = torch.arange(0, block.head_dim, 2, dtype=torch.float64) / block.head_dim
            turns = scaling.original_length * block.rotary.theta**-steps / (2 * math.pi)
            share = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
            return (1 / ((1 - share) / scaling.factor + share)).float()
    return None


def add_metadata(writer: Any, architecture: Architecture, context_length: int) -> None:
    """Write the sizes and properties of an architecture that llama.cpp reads.

    Parameters
    ----------
    writer
        A ``gguf.GGUFWriter``.
    context_length
        Longest sequence in tokens.
    """
    layers = list(architecture.each_layer())
    writer.add_context_length(architecture.embedding.positions or context_length)
    writer.add_embedding_length(architecture.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_vocab_size(architecture.vocab_size)
    epsilon = architecture.norm.epsilon
    if architecture.norm.kind == "layer":
        writer.add_layer_norm_eps(epsilon)
    else:
        writer.add_layer_norm_rms_eps(epsilon)
    if architecture.embedding.logit_cap is not None:
        writer.add_final_logit_softcapping(architecture.embedding.logit_cap)
    _add_attention(writer, layers)
    rotaries = [layer.attention.rotary for layer in layers if layer.attention.window is None]
    rotaries += [layer.attention.rotary for layer in layers]
    rotary = next((each for each in rotaries if each is not None), None)
    if rotary is not None:
        _add_rotary(writer, rotary, layers)
    _add_feed_forward(writer, layers)


def _add_attention(writer: Any, layers: list[DecoderLayer]) -> None:
    blocks = [layer.attention for layer in layers]
    heads = [
        1 if isinstance(block, LatentAttentionBlock) else getattr(block, "num_key_value_heads", 0)
        for block in blocks
    ]
    writer.add_head_count_kv(heads[0] if len(set(heads)) == 1 else heads)
    kernels = {block.kernel for block in blocks if isinstance(block, ShortConvolutionBlock)}
    for kernel in kernels:  # one at most
        writer.add_shortconv_l_cache(kernel)
    window = next((block.window for block in blocks if block.window is not None), None)
    if window is not None:
        writer.add_sliding_window(window)
    block = next(block for block in blocks if not isinstance(block, ShortConvolutionBlock))
    writer.add_head_count(block.num_attention_heads)
    if isinstance(block, AttentionBlock):
        writer.add_key_length(block.head_dim)
        writer.add_value_length(block.head_dim)
        return
    writer.add_key_length(block.latent_rank + block.rotary_head_dim)
    writer.add_value_length(block.latent_rank)
    writer.add_key_length_mla(block.plain_head_dim + block.rotary_head_dim)
    writer.add_value_length_mla(block.value_head_dim)
    writer.add_kv_lora_rank(block.latent_rank)
    if block.query_rank is not None:
        writer.add_q_lora_rank(block.query_rank)


def _add_rotary(writer: Any, rotary: RotaryPositions, layers: list[DecoderLayer]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(rotary.theta)
    writer.add_rope_dimension_count(
        max(int(layer.attention.rotated_dimensions) for layer in layers)
    )
    scaling = rotary.scaling
    if scaling is None or scaling.kind == "llama3":
        return
    writer.add_rope_scaling_type(RopeScalingType(scaling.kind))
    writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind != "yarn":
        return
    writer.add_rope_scaling_orig_ctx_len(int(scaling.original_length))
    writer.add_rope_scaling_yarn_beta_slow(scaling.low)
    writer.add_rope_scaling_yarn_beta_fast(scaling.high)
    usual = 0.1 * math.log(scaling.factor) + 1  # llama.cpp multiplies by it
    block = layers[0].attention
    if isinstance(block, LatentAttentionBlock):
        width = block.plain_head_dim + block.rotary_head_dim
        share = math.sqrt((block.scale or width**-0.5) * math.sqrt(width))
        writer.add_rope_scaling_yarn_log_mul((share - 1) / math.log(scaling.factor))
    else:
        writer.add_rope_scaling_attn_factors(scaling.rotation_scale / usual)


def _add_feed_forward(writer: Any, layers: list[DecoderLayer]) -> None:
    dense = [b for b in (layer.feed_forward for layer in layers) if isinstance(b, FeedForwardBlock)]
    sparse = [b for b in (layer.feed_forward for layer in layers) if isinstance(b, ExpertsBlock)]
    width = dense[0] if dense else sparse[0].expert
    writer.add_feed_forward_length(width.intermediate_size)
    if not sparse:
        return
    block = sparse[0]
    writer.add_expert_count(block.experts)
    writer.add_expert_used_count(block.active)
    writer.add_expert_feed_forward_length(block.expert.intermediate_size)
    first = next(
        i for i, layer in enumerate(layers) if isinstance(layer.feed_forward, ExpertsBlock)
    )
    writer.add_leading_dense_block_count(first)
    writer.add_interleave_moe_layer_step(first + 1)
    writer.add_expert_weights_scale(block.router.scale)
    writer.add_expert_weights_norm(block.router.normalised)
    writer.add_uint32(f"{writer.arch}.expert_gating_func", GATING[block.router.score])
    if block.shared is not None:
        writer.add_expert_shared_count(
            block.shared.intermediate_size // block.expert.intermediate_size
        )
