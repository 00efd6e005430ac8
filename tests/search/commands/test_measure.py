import json
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import shapelaw
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_json
from shapelaw.search.cli import app
from shapelaw.search.commands import measure as measuring
from shapelaw.search.engines._roofline import (
    RooflineEngine,
    calibrated_hardware_path,
    hardware_named,
)
from shapelaw.search.engines._transformers import TransformersEngine
from shapelaw.search.engines.accelerators import hardware
from shapelaw.search.engines.machine import calibrate, write_hardware
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.workload import parse_workload

torch.set_num_threads(1)
SHAPE = Shape(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, vocab_size=50,
)  # fmt: skip
LONG = parse_workload("100/1000@2")


@pytest.mark.parametrize(
    ("limits", "holds"),
    [
        ({}, True),
        ({"max_ttft": 0.1}, True),
        ({"max_ttft": 0.0625, "max_tpot": 0.016}, True),
        ({"max_ttft": 0.0624}, False),
        ({"max_tpot": 0.0159}, False),
        ({"max_ttft": 0.1, "max_tpot": 0.001}, False),
    ],
)
def test_a_service_level_holds_up_to_its_limits(limits: dict[str, float], holds: bool) -> None:
    found = replace(RooflineEngine("h100").measure(SHAPE, LONG), ttft=1 / 16, tpot=0.016)
    assert found.meets(replace(LONG, **limits)) is holds  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_cache_of_another_number_format_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="`kv_dtype == dtype` must hold in the " + name):
        engine_named(name).measure(SHAPE, parse_workload("20/6@3:bfloat16,kv=fp8"))


def test_a_narrower_cache_is_never_slower_on_the_roofline() -> None:
    wide, narrow = (
        RooflineEngine("h100").measure(SHAPE, parse_workload(f"9000/6@64:bfloat16{kv}"))
        for kv in ("", ",kv=fp8")
    )
    assert narrow.tpot < wide.tpot


def test_dynamic_cache_of_transformers_has_its_own_label() -> None:
    static, dynamic = TransformersEngine(repeats=1), TransformersEngine("dynamic", repeats=1)
    assert (static.label, dynamic.label) == ("transformers", "transformers:dynamic")
    assert dynamic.measure(SHAPE, parse_workload("8/4@2")).output_tokens_per_second > 0


def test_missing_transformers_is_an_error_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("shapelaw.search.engines._transformers.import_module", missing)
    with pytest.raises(InputError, match=r'pip install "shapelaw\[hf\]"'):
        TransformersEngine()


class TestRooflineHardware:
    def test_number_format_without_a_peak_is_refused(self) -> None:
        with pytest.raises(InputError, match="gives no bfloat16 arithmetic, only float32"):
            RooflineEngine("graviton4-core").measure(SHAPE, parse_workload("8/4:bfloat16"))
        found = RooflineEngine("graviton4-core").measure(SHAPE, parse_workload("8/4"))
        assert found.tpot > RooflineEngine("zen4-core").measure(SHAPE, parse_workload("8/4")).tpot

    def test_written_hardware_entry_is_read_back(self, tmp_path: Path) -> None:
        device = replace(hardware("a100"), key="mine", name='a "quoted" \\ name')
        path = write_hardware(device, tmp_path / "mine.toml")
        assert hardware_named(str(path)) == device
        found = RooflineEngine(str(path))
        assert (found.label, found.device) == ("roofline:mine", device.name)

    def test_roofline_of_this_machine_without_a_calibration_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path))
        with pytest.raises(InputError, match="run shapelaw measure --calibrate"):
            RooflineEngine("this")
        write_hardware(replace(hardware("a100"), key="this"))
        assert calibrated_hardware_path().parent == tmp_path
        assert RooflineEngine("this").label == "roofline:this"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "name = 1",
            "[a]\nname = 'a'",
            "[a]\nname='a'\nmemory=1\nbandwidth=0\npeak_flops={float32=1}\nsource='s'",
            "[a]\nname='a'\nmemory=1\nbandwidth=1\npeak_flops={}\nsource='s'",
            "[a]\nname='a'\nmemory=1\nbandwidth='x'\npeak_flops={float32=1}\nsource='s'",
            "[a]\nname='a'\nmemory=1\nbandwidth=1\npeak_flops=3\nsource='s'",
            "[a]\n[b]\n",
        ],
    )
    def test_an_incomplete_entry_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(InputError, match="must hold one table with `name`"):
            hardware_named(str(tmp_path / "mine.toml"))

    def test_a_file_that_is_not_toml_or_not_there_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        with pytest.raises(InputError, match=r"mine\.toml cannot be read"):
            hardware_named(str(path))
        for wrong in (b"= 1", b"\xff"):
            path.write_bytes(wrong)
            with pytest.raises(InputError, match="is not a TOML file"):
                hardware_named(str(path))


@pytest.mark.slow
def test_calibration_gives_plausible_and_consistent_figures() -> None:
    device = calibrate(turns=2)
    assert device.bandwidth > 1e8
    assert min(device.peak_flops.values()) > 1e8
    assert set(device.peak_flops) == {"float32", "bfloat16"}
    assert "--calibrate" in device.source
    workload = parse_workload("8/4")
    # No engine is faster than the machine's roofline; the margin allows for noise.
    roof = 2 * SHAPE.n_non_embedding / device.peak_flops["float32"]
    assert engine_named("torch").measure(SHAPE, workload).tpot > roof / 4


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", SHAPE.to_config())
    return tmp_path / "config.json"


def command(*words: object) -> dict[str, object]:
    result = CliRunner().invoke(app, ["measure", *map(str, words), "--json"])
    if result.exception:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    assert found.pop("schema_version") == 1
    return found


def test_measure_command_stores_its_measurement(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(
        "shapelaw.search.engines._timed.MAX_WALL_TO_CPU", 1e9
    )  # whatever else runs here
    arguments = (config, "--workload", "8/4@1,ttft=100,tpot=0.000001")
    first, second = command(*arguments), command(*arguments)
    assert (first.pop("kept"), second.pop("kept")) == (False, True)
    assert first == second
    assert first["meets_service_level"] is False
    assert command(*arguments, "--fresh")["kept"] is False
    assert "kept" not in command(*arguments, "--no-cache")


def test_public_measure_gives_the_row_of_the_command(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path / "kept"))
    row = command(config, "--workload", "8/4@1:bf16", "--engine", "roofline:h100")
    del row["kept"]
    for workload in ("8/4@1:bf16", shapelaw.parse_workload("8/4@1:bf16")):
        assert asdict(shapelaw.measure(SHAPE, workload, engine="roofline:h100")) == row
    assert row["output_tokens_per_second"] != row["decode_tokens_per_second"]


def test_public_measure_reads_its_store_unless_fresh_or_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "shapelaw.search.engines._timed.MAX_WALL_TO_CPU", 1e9
    )  # whatever else runs here
    first = shapelaw.measure(SHAPE, "8/4@1")
    assert shapelaw.measure(SHAPE, "8/4@1") == first
    assert shapelaw.measure(SHAPE, "8/4@1", fresh=True) != first
    assert shapelaw.measure(SHAPE, "8/4@1", keep=False) != first


def test_measure_command_writes_a_calibration_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = replace(hardware("a100"), key="this")
    monkeypatch.setattr(measuring, "calibrate", lambda: device)
    path = tmp_path / "mine.toml"
    found = command("--calibrate", "--out", path)
    assert found == asdict(device) | {"written": str(path)}
    assert list(tomllib.loads(path.read_text())) == ["this"]


def test_measure_command_refuses_missing_or_conflicting_arguments(
    config: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="a shape is missing"):
        command()
    with pytest.raises(InputError, match=r"not .*config\.json; leave one of them out"):
        command(config, "--calibrate")
    with pytest.raises(InputError, match=r"must end in \.toml"):
        command("--calibrate", "--out", tmp_path / "mine.json")
    with pytest.raises(InputError, match=r"`--out .*mine\.toml` goes with --calibrate"):
        command(config, "--out", tmp_path / "mine.toml")


def config_file(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


@pytest.mark.parametrize("model_type", ["gpt2", "olmo2", "nanochat"])
def test_family_beyond_shapes_is_predicted_from_its_config(tmp_path: Path, model_type: str) -> None:
    path = config_file(tmp_path, model_type=model_type)
    row = measuring.measure_config(path, "roofline:h100", "16/4@2", keep=False)
    assert row["tpot"] > 0


@pytest.mark.parametrize(
    ("fields", "engine", "served"),
    [
        ({"model_type": "llama"}, "transformers", "Shape"),
        ({"model_type": "smollm3"}, "transformers", "smollm3"),  # a class of its own
        ({"model_type": "smollm3"}, "torch", "Shape"),
        ({"model_type": "smollm3"}, "roofline:h100", "Shape"),
        ({"model_type": "qwen2"}, "transformers", "qwen2"),
        ({"model_type": "qwen2"}, "torch", "qwen2"),  # biases
        ({"model_type": "mistral", "sliding_window": None}, "transformers", "mistral"),
    ],
)
def test_engine_with_classes_serves_the_class_of_the_config(
    fields: dict[str, Any], engine: str, served: str
) -> None:
    model, _ = measuring._model_for(engine_named(engine), fields)
    assert getattr(model, "model_type", "Shape") == served


def test_a_window_bounds_the_cache_that_the_roofline_reads(tmp_path: Path) -> None:
    times = []
    for window in (4096, None):
        path = config_file(tmp_path, model_type="mistral", sliding_window=window)
        row = measuring.measure_config(path, "roofline:h200", "32000/16@8:bf16", keep=False)
        times.append(row["tpot"])
    beyond = 8 * (32_008 - 4096) * 131_072  # bytes of 8 sequences past the window
    assert times[1] - times[0] == pytest.approx(beyond / 4.8e12, rel=1e-6)
