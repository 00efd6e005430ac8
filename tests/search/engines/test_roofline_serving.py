"""Tests of the roofline with split models, narrow weights and a search of the concurrency."""

from dataclasses import replace

import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._roofline import RooflineEngine
from shapelaw.search.engines._torch import TorchEngine
from shapelaw.search.engines.accelerators import hardware
from shapelaw.search.workload import parse_workload

LLAMA = shape_named("llama-3.1-8b")  # 32 layers, d 4096, f 14336, 32 heads of 128, 8 key-value
BANDWIDTH, PEAK, NVLINK = 3.35e12, 989.4e12, 450e9  # of an H100 SXM: data sheet, 900 GB/s both ways
BODY = 32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336 + 2 * 4096) + 4096
TOTAL, HEAD = BODY + 2 * 128256 * 4096, 128256 * 4096


def flops(context: float) -> float:
    """FLOPs per token: 2 per parameter of the matrices, and 4 per head, value and key."""
    return 2 * (BODY + HEAD) + 4 * 32 * 128 * context * 32


def predicted(text: str) -> tuple[float, float, float]:
    engine = RooflineEngine("h100")
    found = engine.measure(LLAMA, parse_workload(text, dtype=engine.default_dtype))
    return found.ttft, found.tpot, found.output_tokens_per_second


def test_split_model_takes_its_parts_and_two_all_reduces_per_layer() -> None:
    gpus, sequences = 4, 16
    ttft, tpot, rate = predicted("1000/200@16,tp=4")
    reduce = 2 * 32 * 2 * (gpus - 1) / gpus * 4096 * 2 / NVLINK  # seconds per token
    assert ttft == pytest.approx(sequences * 1000 * (flops(500) / gpus / PEAK + reduce))
    cache = sequences * 1100 * 2 * 8 * 128 * 32 * 2
    assert tpot == pytest.approx((2 * TOTAL + cache) / gpus / BANDWIDTH + sequences * reduce)
    assert rate == pytest.approx(sequences * 200 / (ttft + 199 * tpot) / gpus)  # of each GPU


def test_more_gpus_than_key_value_heads_copy_the_cache() -> None:
    one_head_each, copied = (predicted(f"8/4096@64,tp={gpus}")[1] for gpus in (8, 16))
    reduce = [64 * 2 * 32 * 2 * (gpus - 1) / gpus * 4096 * 2 / NVLINK for gpus in (8, 16)]
    weights = [2 * TOTAL / gpus for gpus in (8, 16)]
    cache = 64 * (8 + 2048) * 2 * 128 * 32 * 2  # one key-value head on each
    assert one_head_each == pytest.approx((weights[0] + cache) / BANDWIDTH + reduce[0])
    assert copied == pytest.approx((weights[1] + cache) / BANDWIDTH + reduce[1])


@pytest.mark.parametrize(("weights", "size"), [("bf16", 2), ("fp8", 1), ("int8", 1), ("int4", 0.5)])
def test_decoding_reads_weights_in_their_own_format(weights: str, size: float) -> None:
    _, tpot, _ = predicted(f"100/2@1,weights={weights},kv=fp8")
    cache = (100 + 1) * 2 * 8 * 128 * 32
    assert tpot == pytest.approx((size * TOTAL + cache) / BANDWIDTH)


def test_accelerators_serve_bf16_unless_told_otherwise() -> None:
    assert RooflineEngine("h200").default_dtype == "bfloat16"
    assert (
        RooflineEngine("graviton4-core").default_dtype == TorchEngine().default_dtype == "float32"
    )


def test_requests_that_arrive_one_by_one_wait_for_one_prompt_only() -> None:
    ttft, tpot, rate = predicted("1000/200@16,prompts=steady")
    assert ttft == pytest.approx(1000 * flops(500) / PEAK)
    _, alone, batch_rate = predicted("1000/200@16")
    assert tpot == pytest.approx(alone + 15 * ttft / 199)  # 15 other prompts within 199 tokens
    assert rate == pytest.approx(batch_rate)


@pytest.mark.parametrize(
    "limits", ["tpot=20ms", "tpot=12ms,ttft=0.3", "ttft=5", "kv=fp8,tpot=15ms"]
)
def test_automatic_concurrency_is_the_fastest_within_limits_and_memory(limits: str) -> None:
    engine = RooflineEngine("h100")
    workload = parse_workload(f"rag,concurrency=auto,{limits}", dtype="bf16")
    found = engine.measure(LLAMA, workload)
    rates = {}
    for at_once in range(1, 400):
        try:
            fixed = engine.measure(LLAMA, workload.changed(
                automatic=False, concurrency=at_once, prompts="steady"))  # fmt: skip
        except InputError:
            continue
        if fixed.meets(workload):
            rates[at_once] = fixed.output_tokens_per_second
    assert rates
    assert found.output_tokens_per_second == pytest.approx(max(rates.values()))
    assert f"{max(rates, key=rates.__getitem__)} at once" in found.workload


def test_of_several_numbers_of_gpus_the_best_per_gpu_is_taken() -> None:
    text = "rag,concurrency=auto,tpot=8ms,tp="
    each = {gpus: predicted(f"{text}{gpus}")[2] for gpus in (1, 2, 4, 8)}
    assert predicted(f"{text}1/2/4/8")[2] == pytest.approx(max(each.values()))


def test_model_that_no_gpu_holds_is_refused_and_split_it_is_served() -> None:
    large = replace(
        LLAMA, hidden_size=8192, num_hidden_layers=80, num_attention_heads=64,
        intermediate_size=28672,
    )  # fmt: skip
    engine = RooflineEngine("h100")
    with pytest.raises(InputError, match=r"needs 14\d GB, .* has 80; split it over more GPUs"):
        engine.measure(large, parse_workload("chat@1", dtype="bf16"))
    assert engine.measure(large, parse_workload("chat@1,tp=4", dtype="bf16")).tpot > 0


def test_split_that_divides_no_heads_and_limits_out_of_reach_are_refused() -> None:
    engine = RooflineEngine("h100")
    with pytest.raises(InputError, match="`tp` must divide the query heads"):
        engine.measure(LLAMA, parse_workload("chat,tp=3", dtype="bf16"))
    with pytest.raises(InputError, match=r"TPOT 0\.00482 s even alone"):
        engine.measure(LLAMA, parse_workload("chat,concurrency=auto,tpot=1ms", dtype="bf16"))
    assert hardware("zen4-core").link == 0
    with pytest.raises(InputError, match="has no `link`"):
        RooflineEngine("zen4-core").measure(shape_named("llama-3.2-1b"), parse_workload("8/4,tp=2"))


@pytest.mark.parametrize("option", ["weights=fp8", "tp=2", "prompts=steady"])
def test_engine_without_an_option_refuses_it_by_name(option: str) -> None:
    with pytest.raises(InputError, match=f"`{option}.* the engine torch, which does not support"):
        TorchEngine().measure(LLAMA, parse_workload(f"chat,{option}"))
