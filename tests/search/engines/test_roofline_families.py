"""The roofline of models with experts, latents, windows and look-up tables, by hand."""

from typing import Any

import pytest

from shapelaw.scaling.architectures.blocks.attention import mean_context
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines._roofline import RooflineEngine
from shapelaw.search.workload import parse_workload
from support.tiny_configs import TINY_CONFIGS

BANDWIDTH, PEAK, NVLINK = 3.35e12, 989.4e12, 450e9  # of an H100 SXM: data sheet
QWEN3_30B: dict[str, Any] = {
    "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "head_dim": 128,
    "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "vocab_size": 151936,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768,
}  # fmt: skip
EXPERT = 3 * 2048 * 768
HEAD = 151_936 * 2048
TOTAL = 30_532_122_624  # published, with two tables of the vocabulary
ATTENTION_FLOPS = 48 * 4 * 32 * 128  # per visible token
ACTIVE = 3_353_032_704 - 2 * HEAD  # published active count without both tables
NORMS = 48 * (2 * 2048 + 2 * 128) + 2048
KV = 48 * 2 * 4 * 128 * 2  # bytes per token


def predicted(config: dict[str, Any], text: str) -> Measurement:
    engine = RooflineEngine("h100")
    return engine.measure(
        read_architecture(config), parse_workload(text, dtype=engine.default_dtype)
    )


@pytest.mark.parametrize("sequences", [1, 4, 64])
def test_decoding_reads_the_experts_that_some_sequence_chooses(sequences: int) -> None:
    chosen = 128 * (1 - (1 - 8 / 128) ** sequences)  # 8 of 128 for a single one
    assert sequences > 1 or chosen == pytest.approx(8)
    read = 2 * (TOTAL - 48 * (128 - chosen) * EXPERT)
    cache = sequences * KV * (1000 + 100 / 2)
    found = predicted(QWEN3_30B, f"1000/100@{sequences}")
    assert found.tpot == pytest.approx((read + cache) / BANDWIDTH, rel=1e-9)


def test_prompts_pay_the_experts_that_a_token_passes() -> None:
    found = predicted(QWEN3_30B, "2000/10@4")
    per_token = 2 * (ACTIVE - NORMS + HEAD) + ATTENTION_FLOPS * 2000 / 2
    assert found.ttft == pytest.approx(8000 * per_token / PEAK, rel=1e-9)


def test_model_that_memory_does_not_hold_is_refused_by_all_of_its_experts() -> None:
    with pytest.raises(InputError, match="needs 94 GB"):
        predicted(QWEN3_30B | {"num_experts": 200}, "1000/100@1")


def test_experts_are_split_over_gpus_with_two_all_reduces_per_layer() -> None:
    one, two = (predicted(QWEN3_30B, f"8/1000@8,tp={gpus}") for gpus in (1, 2))
    reduce = 8 * 2 * 48 * 2 * 0.5 * 2048 * 2 / NVLINK
    assert two.tpot == pytest.approx(one.tpot / 2 + reduce, rel=1e-9)


def test_latents_are_cached_once_and_scored_without_expansion() -> None:
    config: dict[str, Any] = {
        "model_type": "deepseek_v3", "num_hidden_layers": 4, "hidden_size": 256,
        "num_attention_heads": 128, "first_k_dense_replace": 4, "intermediate_size": 512,
        "vocab_size": 1000,
    }  # fmt: skip
    model = read_architecture(config)
    # 278,528 FLOPs per visible token and layer in decoding and 81,920 in a prompt, as in V3.
    assert model.decode_flops(99, 101) - model.decode_flops(98, 100) == 4 * 278_528
    assert model.prefill_flops(201) - model.prefill_flops(199) == 4 * 81_920
    assert model.decode_cache_bytes(9, 11) == 4 * 576 * 2 * 10
    split = predicted(config, "20000/2@64,tp=2")
    whole = predicted(config, "20000/2@64")
    cache = 64 * 4 * 576 * 2 * 20_001  # each GPU keeps the whole latent
    arithmetic = 64 * 4 * 278_528 * 20_001 / 2 / PEAK
    assert split.tpot > max(cache / BANDWIDTH, arithmetic)
    assert split.tpot > whole.tpot / 2


def test_window_limits_reads_and_arithmetic_in_the_mean_over_positions() -> None:
    config: dict[str, Any] = {
        "model_type": "mistral", "num_hidden_layers": 2, "hidden_size": 64, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        "vocab_size": 100, "sliding_window": 8,
    }  # fmt: skip
    model = read_architecture(config)
    middles = [place + 0.5 for place in range(100)]
    visible = sum(min(middle, 8) for middle in middles[4:14]) / 10
    assert model.decode_cache_bytes(4, 14) == pytest.approx(2 * 2 * 64 * visible)
    whole = read_architecture(config | {"sliding_window": None})
    fixed = whole.prefill_flops(100) - 2 * 4 * 4 * 16 * 50
    assert model.decode_flops(4, 14) == pytest.approx(fixed + 2 * 4 * 4 * 16 * visible)
    prompt = sum(min(middle, 8) for middle in middles) / 100
    assert model.prefill_flops(100) == pytest.approx(fixed + 2 * 4 * 4 * 16 * prompt)


def test_chunk_begins_anew_in_the_mean_over_positions() -> None:
    middles = [place + 0.5 for place in range(50)]
    expected = sum(middle % 8 for middle in middles[3:21]) / 18
    assert mean_context(3, 21, 8, chunked=True) == pytest.approx(expected)


def test_look_up_tables_are_not_read() -> None:
    config = {"model_type": "gemma3n_text", **TINY_CONFIGS["gemma3n_text"]}
    model = read_architecture(config)
    tables = int(config["vocab_size_per_layer_input"]) * int(config["hidden_size_per_layer_input"])
    assert model.read_parameters(1) == model.n_total - model.num_hidden_layers * tables
    gpt2 = read_architecture({"model_type": "gpt2"})
    assert gpt2.read_parameters(9) == 124_439_808 - 1024 * 768  # without its positions


def test_shared_cache_is_stored_once_and_read_in_every_layer() -> None:
    config = {"model_type": "gemma3n_text", **TINY_CONFIGS["gemma3n_text"]}
    model = read_architecture(config)
    sharing = sum(n for layer, n in model.layers if not layer.attention.cache_values)
    assert sharing
    per_layer = 2 * 2 * model.num_key_value_heads * model.head_dim
    assert model.decode_cache_bytes(0, 2) == per_layer * model.num_hidden_layers
    assert model.cache_bytes(1) == per_layer * (model.num_hidden_layers - sharing)


def test_dense_architecture_has_the_speed_of_its_shape() -> None:
    shape = shape_named("llama-3.2-1b")
    engine = RooflineEngine("h100")
    workload = parse_workload("1000/200@16", dtype=engine.default_dtype)
    config = shape.to_config()
    ours, known = (
        engine.measure(read_architecture(config), workload),
        engine.measure(shape, workload),
    )
    assert ours.tpot == pytest.approx(known.tpot, rel=1e-9)
    assert ours.ttft == pytest.approx(known.ttft, rel=1e-4)  # a shape counts norms as matrices


@pytest.mark.parametrize("name", list(TINY_CONFIGS))
def test_roofline_answers_for_every_family(name: str) -> None:
    config = {"model_type": name.partition("-")[0], **TINY_CONFIGS[name]}
    found = predicted(config, "64/32@8")
    assert 0 < found.tpot < found.ttft * 1000
    assert found.output_tokens_per_second == pytest.approx(8 * 32 / (found.ttft + 31 * found.tpot))
