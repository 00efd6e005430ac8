"""Engines that run in a process of their own: the session process, and each engine on it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.engines import _aiconfigurator, _llamacpp, _vllm
from shapelaw.search.engines._aiconfigurator import AiconfiguratorEngine
from shapelaw.search.engines._base import Measurement, bytes_served
from shapelaw.search.engines._llamacpp import LlamaCppEngine, write_random_gguf
from shapelaw.search.engines._vllm import VllmEngine
from shapelaw.search.engines.accelerators import device_of, hardware
from shapelaw.search.engines.registry import ENGINES, engine_named, engine_states
from shapelaw.search.engines.sessions import client
from shapelaw.search.engines.sessions.client import MissingError, SessionProcess
from shapelaw.search.workload import parse_workload

SHAPE = Shape(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=32, vocab_size=50, qk_norm=True,
)  # fmt: skip
WORKLOAD = parse_workload("20/6@3")
STAND_IN = """
import json, os, sys, time
from pathlib import Path
class Session:
    def __init__(self):
        self.calls = 0
    def describe(self):
        return {"version": "9", "device": DEVICE}
    def count(self):
        self.calls += 1
        print("noise on stdout")
        return self.calls
    def fail(self):
        raise ValueError("head size 7")
    def abort(self):
        sys.stderr.write("ASSERT: no kernel\\n"); sys.stderr.flush()
        os.abort()
    def sleep(self):
        time.sleep(60)
    def load(self, *, folder=None, path=None, workload, **options):
        self.options, self.sequences = options, workload["concurrency"]
        if folder and json.loads((Path(folder) / "config.json").read_text())["head_dim"] == 2:
            raise ValueError("head size 2 is not supported")
    def serve(self, *, outputs):
        return {"prefill": 1.0, "decode": 2.0, "cpu": 0.5, "produced": [outputs + MORE] * 3}
    def predict(self, *, folder, workload, **options):
        config = json.loads((Path(folder) / "config.json").read_text())
        if config["num_key_value_heads"] == 1:
            raise KeyError("n_kv_lookup: 1")
        self.calls += 1
        return {"prefill": 0.5, "step": 0.25, "gibibytes": 1.0, "tables": f"call {self.calls} "
                f"{config['model_type']} {options['system']} {options['kv_type']}"}
"""


def stand_in(folder: Path, *, device: str | None = None, more: int = 0) -> str:
    path = folder / "stand_in.py"
    path.write_text(f"DEVICE, MORE = {device!r}, {more}\n{STAND_IN}", encoding="utf-8")
    return str(path)


def test_session_keeps_its_state_and_its_prints_are_no_answers(tmp_path: Path) -> None:
    process = SessionProcess(stand_in(tmp_path))
    assert [process.ask("count") for _ in range(3)] == [1, 2, 3]
    process.close()
    assert not process.alive


def test_error_of_a_session_is_reported_and_the_next_request_answered(tmp_path: Path) -> None:
    process = SessionProcess(stand_in(tmp_path))
    with pytest.raises(InputError, match=r"^ValueError: head size 7$"):
        process.ask("fail")
    assert process.ask("count") == 1
    process.close()


def test_aborted_session_is_an_error_with_the_end_of_stderr(tmp_path: Path) -> None:
    process = SessionProcess(stand_in(tmp_path))
    with pytest.raises(InputError, match=r"ended with code -6: .*ASSERT: no kernel"):
        process.ask("abort")
    with pytest.raises(InputError, match="ended with code -6"):
        process.ask("count")
    process.close()


def test_a_session_that_hangs_is_ended(tmp_path: Path) -> None:
    process = SessionProcess(stand_in(tmp_path))
    with pytest.raises(InputError, match="no answer within 0 s"):
        process.ask("sleep", seconds=0.1)
    assert process.process.wait(10) == -9
    process.close()


def test_missing_python_is_named_in_the_error() -> None:
    with pytest.raises(MissingError, match="/no/python does not start"):
        SessionProcess("vllm_session.py", python="/no/python")


def vllm(monkeypatch: pytest.MonkeyPatch, folder: Path, **stand: Any) -> VllmEngine:
    monkeypatch.setattr(_vllm, "SESSION", stand_in(folder, **stand))
    monkeypatch.setenv(_vllm.SETTING, sys.executable)
    return VllmEngine(repeats=3)


def test_vllm_without_its_variable_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_vllm.SETTING, raising=False)
    with pytest.raises(MissingError, match="set SHAPELAW_VLLM_PYTHON to its python"):
        VllmEngine()


def test_python_without_vllm_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_vllm.SETTING, sys.executable)
    with pytest.raises(MissingError, match="which has no vLLM: PackageNotFoundError"):
        VllmEngine()


def test_vllm_on_a_cpu_is_one_eager_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = vllm(monkeypatch, tmp_path)
    options = engine.options(SHAPE, WORKLOAD)
    assert options["enforce_eager"]
    assert options["kv_cache_memory_bytes"] >= 3 * 26 * SHAPE.kv_bytes(4)
    assert (engine.label, engine.version, engine.together) == ("vllm", "9", 4)
    assert "1 core" in engine.device
    with pytest.raises(InputError, match="`--engine vllm:cuda` needs vLLM for cuda"):
        VllmEngine("cuda")


def test_vllm_on_a_gpu_uses_graphs_and_one_shape_at_a_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = vllm(monkeypatch, tmp_path, device="NVIDIA X")
    narrow = parse_workload("20/6@3:bfloat16,kv=fp8")
    assert engine.options(SHAPE, narrow) == {"dtype": "bfloat16", "kv_cache_dtype": "fp8"}
    assert (engine.label, engine.device, engine.together) == ("vllm:cuda", "NVIDIA X", 1)
    found = engine.measure(SHAPE, WORKLOAD)
    assert not found.disturbed, "a GPU's work takes no CPU time"
    assert (found.ttft, found.tpot) == (1.0, 0.4)
    assert found.output_tokens_per_second == pytest.approx(3 * 6 / 3)


def test_a_shape_that_does_not_load_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = vllm(monkeypatch, tmp_path)
    refused, found = engine.measure_all([replace(SHAPE, head_dim=2), SHAPE], WORKLOAD)
    assert "64x2 2/1x2 f96 under 20/6" in str(refused)
    assert "cannot be served: ValueError: head size 2 is not supported" in str(refused)
    assert isinstance(found, Measurement)
    assert found.disturbed, "the stand-in says that it had a sixth of the core"


def test_wrong_number_of_produced_tokens_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = vllm(monkeypatch, tmp_path, more=-1)
    with pytest.raises(WorkError, match=r"produced \[1, 1, 1\] tokens, not 2 for each of 3"):
        engine.start(SHAPE, WORKLOAD)
    engine = vllm(monkeypatch, tmp_path)
    with pytest.raises(WorkError, match="not 2 for each of 4 sequences"):
        engine.start(SHAPE, replace(WORKLOAD, concurrency=4))


@pytest.mark.slow
@pytest.mark.xdist_group("engine vllm")
def test_the_real_vllm_refuses_a_head_size_without_a_kernel() -> None:
    try:
        engine = VllmEngine()
    except MissingError as error:
        pytest.skip(str(error))
    with pytest.raises(InputError, match=r"cannot be served: .*[Hh]ead"):
        engine.measure(replace(SHAPE, head_dim=6), WORKLOAD)


def predictor(monkeypatch: pytest.MonkeyPatch, folder: Path, hardware: str) -> AiconfiguratorEngine:
    path = stand_in(folder)
    python = folder / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(_aiconfigurator, "SESSION", path)
    monkeypatch.setenv(_aiconfigurator.SETTING, str(python))
    return AiconfiguratorEngine(hardware)


def test_a_predictor_keeps_its_process_between_shapes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = predictor(monkeypatch, tmp_path, "h200-sglang")
    two = replace(SHAPE, num_key_value_heads=2)
    plain = replace(two, qk_norm=False)
    workload = parse_workload("20/6@3:bfloat16,kv=fp8")
    first, refused, last = engine.measure_all([two, SHAPE, plain], workload)
    assert isinstance(first, Measurement)
    assert isinstance(last, Measurement)
    assert "is not in the tables of aiconfigurator:h200-sglang: KeyError" in str(refused)
    assert first.device.endswith("sglang call 1 qwen3 h200_sxm fp8, bfloat16")
    assert last.device.endswith("sglang call 2 llama h200_sxm fp8, bfloat16")
    assert (first.kind, first.version) == ("predicted", "9")
    assert first.output_tokens_per_second == pytest.approx(3 * 6 / (0.5 + 5 * 0.25))
    engine.close()


@pytest.mark.parametrize("text", ["mi300x", "h200-tgi", "H200", "-vllm"])
def test_hardware_without_tables_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"must be GPU\[-BACKEND\] with a100, b200, h100, h200"):
        AiconfiguratorEngine(text)


def test_device_of_an_engine_with_a_backend_is_its_hardware(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = device_of(predictor(monkeypatch, tmp_path, "h200-sglang"))
    assert found == hardware("h200")
    assert device_of(engine_named("roofline:graviton4-core")) == hardware("graviton4-core")
    assert device_of(engine_named("torch")) is None


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "installed_version", lambda name: None)
    monkeypatch.delenv(_aiconfigurator.SETTING, raising=False)
    with pytest.raises(MissingError, match=r'needs xllamacpp; `pip install "shapelaw\[llamacpp\]"'):
        LlamaCppEngine()
    with pytest.raises(MissingError, match=r'aiconfigurator; `pip install "shapelaw\[predict\]"'):
        AiconfiguratorEngine()


def test_every_engine_is_ready_or_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_vllm.SETTING, raising=False)
    found = engine_states()
    assert found.keys() == ENGINES.keys()
    assert found["roofline"] == found["torch"] == "ready"
    assert "SHAPELAW_VLLM_PYTHON" in found["vllm"]


@pytest.mark.slow
def test_installed_tables_rank_the_shapes_as_the_paper_does() -> None:
    try:
        engine = AiconfiguratorEngine("h200-sglang")
    except MissingError as error:
        pytest.skip(str(error))
    workload = parse_workload("rag@128:bfloat16")
    shapes = [shape_named(name) for name in ("llama-3.2-1b", "surefire-1b", "panda-1b")]
    llama, surefire, panda = engine.measure_all(shapes, workload)
    engine.close()
    assert isinstance(llama, Measurement)
    assert isinstance(surefire, Measurement)
    assert surefire.output_tokens_per_second > 1.2 * llama.output_tokens_per_second
    assert "n_kv_lookup: 18" in str(panda), "no kernel was measured with 18 key-value heads"


FORMS = {
    "tied, normed": {},
    "untied": {"tie_word_embeddings": False},
    "no norm of queries": {"qk_norm": False},
    "narrow attention": {"head_dim": 16, "num_key_value_heads": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_file_holds_every_parameter_once(
    tmp_path: Path, changes: dict[str, Any], dtype: str
) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    shape = replace(SHAPE, **changes)
    write_random_gguf(tmp_path / "model.gguf", shape, dtype=dtype, length=64)
    tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    assert sum(int(np.prod(tensor.shape)) for tensor in tensors) == shape.n_total
    matrices = {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) == 2}
    norms = {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) == 1}
    assert (matrices, norms) == ({{"float32": "F32", "bfloat16": "BF16"}[dtype]}, {"F32"})


@pytest.mark.slow
@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_llama_cpp_serves_every_variant_of_a_shape(changes: dict[str, Any]) -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp")
    with LlamaCppEngine().start(replace(SHAPE, **changes), WORKLOAD) as server:
        timing = server.serve(6)
    assert min(timing.prefill, timing.decode, timing.cpu) > 0


@pytest.mark.slow
def test_llama_cpp_serves_a_cache_of_eight_bits_and_refuses_fp8() -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp")
    engine = LlamaCppEngine(repeats=3)
    refused = "`kv_dtype` must be one of float32, bfloat16, int8 .* got 'fp8'"
    with pytest.raises(InputError, match=refused):
        engine.start(SHAPE, replace(WORKLOAD, kv_dtype="fp8"))
    with engine.start(SHAPE, replace(WORKLOAD, kv_dtype="int8")) as server:
        assert server.serve(6).decode > 0


@pytest.mark.slow
def test_a_file_that_llama_cpp_refuses_is_one_refused_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("xllamacpp", reason="needs xllamacpp")

    def broken(path: Path, shape: Shape, **options: Any) -> None:
        path.write_text(json.dumps({"not": "a model"}), encoding="utf-8")

    monkeypatch.setattr(_llamacpp, "write_random_gguf", broken)
    (refused,) = LlamaCppEngine().measure_all([SHAPE], WORKLOAD)
    assert "64x2 2/1x32 f96 under 20/6" in str(refused)
    assert "cannot be served" in str(refused)


def test_served_bytes_are_weights_and_cache() -> None:
    workload = parse_workload("20/6@3:bfloat16,kv=int8")
    assert bytes_served(SHAPE, workload) == 2 * SHAPE.n_total + 3 * 26 * SHAPE.kv_bytes(1)
