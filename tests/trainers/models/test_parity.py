"""Logits, cache and gradients of every family against the class of transformers.

All parameters and buffers are random: at their first values, many mistakes change nothing.
"""

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shapelaw.scaling.architectures.blocks.mixture_of_experts import ExpertsBlock
from shapelaw.scaling.architectures.decoder_layer import DecoderLayer
from shapelaw.trainers.models.hugging_face import export, hugging_face_weights, load_export
from shapelaw.trainers.models.transformer import Transformer
from support.random_models import model_of
from support.tiny_configs import LLAMA3, TINY_CONFIGS, YARN

transformers = pytest.importorskip("transformers")

POSITIONS = 37


def exported(model: Transformer, folder: Path) -> torch.nn.Module:
    """Export a model and load it by transformers."""
    export(folder, model, max_position_embeddings=256)
    reference, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        output_loading_info=True,
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    )
    assert not any(loading.values()), loading
    return reference.eval()


@pytest.fixture(params=list(TINY_CONFIGS))
def pair(request, tmp_path: Path):
    """A random model, and what transformers loads from its export."""
    model = model_of(request.param)
    return model, exported(model, tmp_path), tmp_path


def tokens_of(positions: int = POSITIONS) -> torch.Tensor:
    return torch.randint(97, (2, positions), generator=torch.Generator().manual_seed(1))


def gradients_of(model: Transformer) -> Transformer:
    """Return a copy of a model that holds the gradients in place of the weights."""
    copy = Transformer(model.architecture, context_length=model.context_length)
    with torch.no_grad():
        for weight, other in zip(copy.parameters(), model.parameters(), strict=True):
            weight.copy_(torch.zeros_like(weight) if other.grad is None else other.grad)
    return copy


def logits_of(model: Transformer, tokens: torch.Tensor, **kwargs: object) -> torch.Tensor:
    return model.logits(model(tokens, **kwargs))


def test_logits_loss_and_gradients_equal_those_of_transformers(pair) -> None:
    model, reference, _ = pair
    tokens = tokens_of()
    ours, theirs = logits_of(model, tokens), reference(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    loss = F.cross_entropy(ours[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    other = reference(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, other, rtol=0, atol=1e-5)
    loss.backward()
    other.backward()
    ours, theirs = model.embed_tokens.weight.grad, reference.get_input_embeddings().weight.grad
    largest = float(theirs.abs().max())
    # Gemma 3n's parallel streams amplify rounding errors in every layer.
    amplifies = model.architecture.model_type == "gemma3n_text"
    atol = 1e-5 * largest if amplifies else 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)
    built = dict(reference.named_parameters())
    for name, gradient in hugging_face_weights(gradients_of(model)).items():
        if name in built:  # the class stacks experts, the checkpoint does not
            theirs = built[name].grad
            theirs = torch.zeros_like(gradient) if theirs is None else theirs
            torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-5 * largest)
    rate, atol = (0.02, 1e-4) if amplifies else (0.1, 2e-5)
    for each in (model, reference):  # a step along all gradients
        torch.optim.SGD(each.parameters(), lr=rate).step()
    ours, theirs = logits_of(model, tokens), reference(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_explicit_attention_equals_the_fused_kernel(pair) -> None:
    model, _, _ = pair
    explicit = Transformer(model.architecture, context_length=256, attention="matmul")
    explicit.load_state_dict(model.state_dict())
    tokens = tokens_of()
    torch.testing.assert_close(
        logits_of(explicit, tokens), logits_of(model, tokens), rtol=0, atol=1e-5
    )


@torch.no_grad()
@pytest.mark.parametrize("prefill", [1, 5, 21])
def test_prefill_and_single_steps_equal_a_full_forward(pair, prefill: int) -> None:
    model, _, _ = pair
    tokens = tokens_of()
    cache = model.empty_cache(2, POSITIONS, dtype=torch.float32)
    steps = [logits_of(model, tokens[:, :prefill], cache=cache)]
    steps += [
        logits_of(model, tokens[:, start : start + 1], cache=cache, start=start)
        for start in range(prefill, POSITIONS)
    ]
    torch.testing.assert_close(torch.cat(steps, dim=1), logits_of(model, tokens), rtol=0, atol=1e-5)


def test_cache_has_the_counted_bytes(pair) -> None:
    model, _, _ = pair
    cache = model.empty_cache(1, 200, dtype=torch.bfloat16)
    measured = sum(part.numel() * part.element_size() for layer in cache for part in layer)
    assert measured == model.architecture.cache_bytes(200)


def test_parameters_are_the_counted_ones(pair) -> None:
    model, reference, _ = pair
    counted = model.architecture.n_total
    assert sum(weight.numel() for weight in model.parameters()) == counted
    assert reference.num_parameters() == counted


@torch.no_grad()
def test_export_loads_as_the_same_model_with_the_same_config(pair) -> None:
    model, reference, folder = pair
    loaded, tokens = load_export(folder), tokens_of()
    assert torch.equal(logits_of(loaded, tokens), logits_of(model, tokens))
    written = json.loads((folder / "config.json").read_text())
    defaults = {"rope_theta", "rope_scaling", "torch_dtype", "architectures", "rope_parameters"}
    if not written.get("use_sliding_window", True):
        defaults |= {"sliding_window"}  # the class sets an unused window to null
    for name in written.keys() - defaults:
        assert written[name] == getattr(reference.config, name), name


@pytest.fixture(scope="module")
def reference_logits(tmp_path_factory):
    """Logits that transformers computes for a config, once per config."""

    @functools.cache
    @torch.no_grad()
    def compute(name: str) -> torch.Tensor:
        return exported(model_of(name), tmp_path_factory.mktemp(name))(tokens_of()).logits

    return compute


YARN_WITHOUT = {**YARN, "mscale": 0.7}
FIELDS_OF_MISTAKES = [
    ("gpt2", {"activation_function": "gelu"}),  # for GELU with tanh
    ("gpt2", {"layer_norm_epsilon": 1e-3}),
    ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 32.0}}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),  # no YaRN
    ("qwen2-window", {"sliding_window": 9}),
    ("lfm2", {"rope_theta": 1e4}),
    ("gemma3_text-cap", {"final_logit_softcapping": None}),
    ("gemma3_text", {"query_pre_attn_scalar": 16}),
    ("smollm3", {"no_rope_layer_interval": 3}),
    ("smollm3", {"no_rope_layers": [0, 0, 0, 1, 0, 0]}),  # inverted flags
    ("mistral-window", {"sliding_window": 7}),
    ("mistral-window", {"sliding_window": 9}),
    ("llama4_text", {"attn_temperature_tuning": False}),
    ("llama4_text", {"floor_scale": 9}),
    ("llama4_text", {"attention_chunk_size": 9}),
    ("llama4_text", {"use_qk_norm": False}),
    ("llama4_text-maverick", {"interleave_moe_layer_step": 2, "num_experts_per_tok": 1}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
    ("deepseek_v3", {"routed_scaling_factor": 1.0}),
    ("deepseek_v3", {"norm_topk_prob": False}),
    ("deepseek_v3", {"rope_parameters": YARN_WITHOUT}),  # no mscale_all_dim
    ("deepseek_v3", {"rope_interleave": False}),
    ("gpt_oss", {"swiglu_limit": 7.0}),
    ("gpt_oss", {"sliding_window": 9}),
    ("gemma3n_text", {"sliding_window": 9}),
    ("gemma3n_text", {"activation_sparsity_pattern": [0.9, 0.6, 0.0, 0.0, 0.3, 0.0]}),
    ("gemma3n_text", {"altup_active_idx": 1}),
    ("gemma3n_text", {"altup_correct_scale": False}),
    ("gemma3n_text", {"final_logit_softcapping": 30.0}),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "fields"), FIELDS_OF_MISTAKES)
def test_mistake_in_a_field_changes_the_logits(reference_logits, name, fields) -> None:
    right, mistaken = (logits_of(model_of(name, **each), tokens_of()) for each in ({}, fields))
    torch.testing.assert_close(right, reference_logits(name), rtol=0, atol=1e-5)
    assert (mistaken - reference_logits(name)).abs().max() > 1e-4


def without_sinks(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, attention=replace(layer.attention, sinks=False))


def with_plain_norms(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, norm=replace(layer.norm, one_plus_weight=False))


def with_one_epsilon(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, attention=replace(layer.attention, norm=layer.norm))


def with_weighed_outputs(layer: DecoderLayer) -> DecoderLayer:
    router = replace(layer.feed_forward.router, weighs_input=False)
    return replace(layer, feed_forward=replace(layer.feed_forward, router=router))


def without_router_bias(layer: DecoderLayer) -> DecoderLayer:
    if not isinstance(layer.feed_forward, ExpertsBlock):
        return layer
    router = replace(layer.feed_forward.router, balance_bias=False)
    return replace(layer, feed_forward=replace(layer.feed_forward, router=router))


def with_usual_scale(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, attention=replace(layer.attention, scale=None))


def with_other_pairs(layer: DecoderLayer) -> DecoderLayer:
    """Rotate neighbours where the family rotates halves: weights that were not permuted."""
    rotary = replace(layer.attention.rotary, interleaved=True)
    return replace(layer, attention=replace(layer.attention, rotary=rotary))


def without_qk_norm(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, attention=replace(layer.attention, qk_norm="none"))


def with_norms_before(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, norms="before")


def with_plain_relu(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, feed_forward=replace(layer.feed_forward, activation="relu"))


def without_value_norm(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, attention=replace(layer.attention, value_norm=False))


def with_kept_channels(layer: DecoderLayer) -> DecoderLayer:
    return replace(layer, feed_forward=replace(layer.feed_forward, sparsity=0.0))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama", with_other_pairs),
        ("qwen3", without_qk_norm),
        ("olmo2", with_norms_before),
        ("nanochat", without_qk_norm),
        ("arcee", with_plain_relu),
        ("gpt_oss", without_sinks),
        ("gemma3_text", with_plain_norms),
        ("deepseek_v3", with_one_epsilon),
        ("deepseek_v3", without_router_bias),
        ("llama4_text", with_weighed_outputs),
        ("gemma3n_text", with_usual_scale),
        ("gemma3n_text", without_value_norm),
        ("gemma3n_text", with_kept_channels),
    ],
)
def test_mistake_in_a_block_changes_the_logits(reference_logits, name, change) -> None:
    right = model_of(name)
    layers = tuple((change(layer), number) for layer, number in right.architecture.layers)
    wrong = Transformer(replace(right.architecture, layers=layers), context_length=256).eval()
    wrong.load_state_dict(right.state_dict(), strict=False)
    tokens = tokens_of()
    torch.testing.assert_close(logits_of(right, tokens), reference_logits(name), rtol=0, atol=1e-5)
    assert (logits_of(wrong, tokens) - reference_logits(name)).abs().max() > 1e-4
