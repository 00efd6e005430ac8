import json
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Engine, Measurement, interval
from shapelaw.search.engines._roofline import RooflineEngine
from shapelaw.search.engines._timed import Server, TimedEngine, Timing
from shapelaw.search.engines.accelerators import hardware
from shapelaw.search.engines.registry import ENGINES, engine_named
from shapelaw.search.engines.sessions.client import MissingError
from shapelaw.search.workload import Workload, parse_workload

torch.set_num_threads(1)
SHAPE = Shape(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, vocab_size=50, qk_norm=True,
)  # fmt: skip
WORKLOADS = ["20/6@3", "1/2@1", "20/6@3:bfloat16"]


# A shape for which the serving engines have kernels.
SERVED = replace(SHAPE, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
SHAPES = {
    "vllm": SERVED,
    "llamacpp": SERVED,
    "aiconfigurator": shape_named("llama-3.2-1b"),
}
# One pytest process per engine: each measurement is made once, because starting is slow.
FAST = ("torch", "transformers", "roofline")
EACH = [
    pytest.param(
        name,
        marks=[
            pytest.mark.xdist_group(f"engine {name}"),
            *([] if name in FAST else [pytest.mark.slow]),
        ],
    )
    for name in ENGINES
]


@cache
def made(name: str) -> Engine:
    try:
        return engine_named(name)
    except MissingError as error:
        pytest.skip(str(error))


@cache
def measured(name: str, text: str) -> Measurement:
    return made(name).measure(SHAPES.get(name, SHAPE), parse_workload(text))


@pytest.mark.parametrize("name", EACH)
class TestEveryEngine:
    """The contract of every entry of ENGINES."""

    @pytest.mark.parametrize("text", WORKLOADS)
    def test_a_measurement_is_complete_and_consistent(self, name: str, text: str) -> None:
        engine, workload, found = made(name), parse_workload(text), measured(name, text)
        assert isinstance(found, Measurement)
        assert engine.name == name
        assert found.engine.split(":")[0] == name
        assert found.kind == engine.kind in {"measured", "predicted"}
        assert found.workload == str(workload)
        assert found.device
        assert found.version
        rate = found.output_tokens_per_second
        assert 0 <= found.low <= rate <= found.high < float("inf")
        assert found.ttft > 0
        assert found.tpot > 0
        whole = found.ttft + found.tpot * (workload.output_tokens - 1)
        generated = workload.concurrency * workload.output_tokens
        # The mean of ratios over repeats is at least the ratio of the means.
        assert rate >= 0.999 * generated / whole
        assert found.repeats or rate == pytest.approx(generated / whole)
        prompt = workload.concurrency * workload.input_tokens
        assert found.prefill_tokens_per_second >= 0.999 * prompt / found.ttft
        assert found.decode_tokens_per_second >= 0.999 * workload.concurrency / found.tpot

    def test_a_measurement_is_json(self, name: str) -> None:
        found = measured(name, "20/6@3")
        text = json.dumps(asdict(found), allow_nan=False)
        assert Measurement(**json.loads(text)) == found

    def test_measured_engines_repeat_and_predicted_ones_do_not(self, name: str) -> None:
        found = measured(name, "20/6@3")
        if found.kind == "measured":
            assert found.repeats >= 3
            assert found.low < found.output_tokens_per_second < found.high
            assert found.wall_seconds > 0
            assert found.cpu_seconds > 0
        else:
            assert found.repeats == 0
            assert (found.wall_seconds, found.cpu_seconds) == (0, 0)

    def test_a_shape_that_does_not_fit_is_refused(self, name: str) -> None:
        large = replace(shape_named("qwen3-32b"), num_hidden_layers=640)
        with pytest.raises(InputError, match=r"needs \d+ Gi?B"):
            made(name).measure(large, parse_workload("chat"))

    def test_a_workload_that_does_not_fit_is_refused(self, name: str) -> None:
        with pytest.raises(InputError, match=r"100000 at once, float32 needs \d+ Gi?B"):
            made(name).measure(SHAPE, parse_workload("100000/100000@100000"))

    def test_unknown_hardware_is_refused(self, name: str) -> None:
        made(name)
        with pytest.raises(InputError, match="abacus"):
            engine_named(f"{name}:abacus")


@pytest.mark.parametrize("text", ["", "tgi", "Torch", ":h100"])
def test_an_unknown_engine_is_refused(text: str) -> None:
    with pytest.raises(
        InputError, match=f"`--engine` must be one of torch, transformers, .*roofline.* '{text}'"
    ):
        engine_named(text)


class Scripted(Server):
    """A server with given timings."""

    def __init__(self, name: str, timings: list[Timing], log: list[str]) -> None:
        self.name, self.timings, self.log = name, timings, log

    def serve(self, outputs: int) -> Timing:
        self.log.append(self.name)
        return self.timings.pop(0) if outputs > 4 else Timing(1.0, 1.0, 2.0)


class ScriptedEngine(TimedEngine):
    name, version, device, repeats = "scripted", "1", "none", 3

    def __init__(self, **timings: list[Timing]) -> None:
        self.timings, self.log = timings, list[str]()

    def start(self, shape: Shape, workload: Workload) -> Server:
        if str(shape.hidden_size) not in self.timings:
            raise InputError(f"no script for {shape.hidden_size}")
        return Scripted(str(shape.hidden_size), self.timings[str(shape.hidden_size)], self.log)


CALM, SHARED = Timing(1.0, 5.0, 6.0), Timing(1.0, 5.0, 3.0)


def test_repeats_of_shapes_alternate_and_a_refused_shape_stops_no_other() -> None:
    engine = ScriptedEngine(**{"16": [CALM] * 3, "32": [CALM] * 3})
    shapes = [SHAPE, replace(SHAPE, hidden_size=24), replace(SHAPE, hidden_size=32)]
    first, refused, last = engine.measure_all(shapes, parse_workload("20/6@3"))
    assert engine.log == ["16", "32"] * 4, "a warm-up, then three repeats"
    assert refused == "no script for 24"
    assert first == replace(last, wall_seconds=first.wall_seconds)  # type: ignore[type-var, union-attr]


def test_shape_that_fails_between_repeats_stops_no_other() -> None:
    class Failing(Scripted):
        def serve(self, outputs: int) -> Timing:
            if outputs > 4 and len(self.timings) == 1:
                raise InputError("the engine crashed")
            return super().serve(outputs)

    class FailingEngine(ScriptedEngine):
        def start(self, shape: Shape, workload: Workload) -> Server:
            made = super().start(shape, workload)
            assert isinstance(made, Scripted)
            fails = shape.hidden_size == 16
            return Failing(made.name, made.timings, made.log) if fails else made

    engine = FailingEngine(**{"16": [CALM] * 3, "32": [CALM] * 3})
    shapes = [SHAPE, replace(SHAPE, hidden_size=32)]
    crashed, fine = engine.measure_all(shapes, parse_workload("20/6@3"))
    assert crashed == "the engine crashed"
    assert isinstance(fine, Measurement)
    assert fine.repeats == 3
    with pytest.raises(InputError, match="the engine crashed"):
        FailingEngine(**{"16": [CALM] * 3}).measure(SHAPE, parse_workload("20/6@3"))


def test_a_disturbed_repeat_is_run_again() -> None:
    engine = ScriptedEngine(**{"16": [SHARED, CALM, SHARED, CALM, CALM]})
    found = engine.measure(SHAPE, parse_workload("20/6@3"))
    assert (found.disturbed, found.repeats) == (False, 3)
    assert found.output_tokens_per_second == found.low == found.high == 3
    assert (found.ttft, found.tpot, found.decode_tokens_per_second) == (1.0, 1.0, 3.0)
    assert found.prefill_tokens_per_second == 60
    assert found.cpu_seconds == 24


def test_measurement_whose_repeats_stay_disturbed_is_flagged() -> None:
    engine = ScriptedEngine(**{"16": [SHARED] * 9})
    found = engine.measure(SHAPE, parse_workload("20/6@3"))
    assert (found.disturbed, found.repeats) == (True, 9)


def test_interval_of_repeats_is_that_of_students_t() -> None:
    low, high = interval(np.array([9.0, 10.0, 11.0]))
    assert (low, high) == pytest.approx((10 - 4.30265 / 3**0.5, 10 + 4.30265 / 3**0.5), rel=1e-5)
    assert interval(np.array([7.0])) == (7.0, 7.0)
    assert interval(np.array([1.0, 100.0]))[0] == 0.0


GROUPS = (1, 2, 4, 8, 16)
workloads = st.builds(
    Workload,
    name=st.just("any"),
    input_tokens=st.integers(1, 8192),
    output_tokens=st.integers(2, 4096),
    concurrency=st.integers(1, 64),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)


def rates(shapes: list[Shape], workload: Workload, device: str = "h200") -> list[float]:
    engine = RooflineEngine(device)
    return [engine.measure(shape, workload).output_tokens_per_second for shape in shapes]


@given(workloads)
def test_more_key_value_heads_are_never_faster_on_the_roofline(workload: Workload) -> None:
    shapes = [replace(SHAPE, num_attention_heads=16, num_key_value_heads=k) for k in GROUPS]
    assert all(few >= many for few, many in pairwise(rates(shapes, workload)))


@given(workloads, st.sampled_from(["intermediate_size", "num_hidden_layers", "vocab_size"]))
def test_larger_shapes_are_slower_on_the_roofline(workload: Workload, field: str) -> None:
    shapes = [replace(SHAPE, **{field: 8 * scale}) for scale in (1, 2, 4)]
    assert all(small > large for small, large in pairwise(rates(shapes, workload)))


@given(workloads)
def test_a_device_with_more_bandwidth_is_never_slower(workload: Workload) -> None:
    (slower,), (faster,) = (rates([SHAPE], workload, device) for device in ("h100", "h200"))
    assert hardware("h100").peak_flops == hardware("h200").peak_flops
    assert faster >= slower


def test_decoding_one_sequence_of_a_large_model_is_bound_by_its_weights() -> None:
    shape, device = shape_named("llama-3.1-8b"), hardware("h100")
    found = RooflineEngine("h100").measure(shape, parse_workload("128/64@1:bfloat16"))
    weights = shape.weight_bytes(2) / device.bandwidth
    assert found.tpot == pytest.approx(weights, rel=0.01)
    assert found.tpot > weights
    assert found.engine == "roofline:h100"


def test_the_prefill_of_a_large_model_is_bound_by_arithmetic() -> None:
    shape, device = shape_named("llama-3.1-8b"), hardware("h100")
    found = RooflineEngine("h100").measure(shape, parse_workload("8192/16@4:bfloat16"))
    flops = 4 * 8192 * shape.forward_flops(4096)
    assert found.ttft == pytest.approx(flops / device.peak_flops["bfloat16"])
