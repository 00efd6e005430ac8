"""Models of every family on the engines that serve them, through the command that a user types."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.short_convolution import ShortConvolutionBlock
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.engine_conditions import (
    SERVING_ENGINES,
    require_computed_alike,
    serving_engines,
)
from shapelaw.scaling.errors import InputError
from shapelaw.search.commands.measure import measure_config
from shapelaw.search.engines._transformers import TransformersEngine, TransformersServer
from shapelaw.search.workload import parse_workload
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer
from support.random_models import config_of, model_of
from support.tiny_configs import DIFFUSION_CONFIGS, TINY_CONFIGS

torch.set_num_threads(1)
TOLERANCE = 1e-5  # of log-probabilities in float32


def written(config: Mapping[str, Any], folder: Path) -> Path:
    """Write a config as a file."""
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def require_measured(config: Mapping[str, Any], engine: str, workload: str, folder: Path) -> None:
    """Measure a config by the command's function and check that the speeds are positive."""
    row = measure_config(written(config, folder), engine, workload, keep=False)
    assert row["kind"] == "measured"
    assert 0 < row["low"] <= row["output_tokens_per_second"] <= row["high"]
    assert row["ttft"] > 0
    assert row["tpot"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(TINY_CONFIGS))
def test_embedded_engine_measures_a_model_of_any_family(
    name: str, dtype: str, tmp_path: Path
) -> None:
    require_measured(config_of(name), "torch", f"12/5@2:{dtype}", tmp_path)


@pytest.mark.parametrize("name", DIFFUSION_CONFIGS)
def test_embedded_engine_measures_a_diffusion_model(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": name, **DIFFUSION_CONFIGS[name]}), encoding="utf-8")
    assert measure_config(path, "torch", "12/8@2:float32")["output_tokens_per_second"] > 0


@pytest.mark.parametrize("engine", ["transformers", "roofline:zen4-core"])
@pytest.mark.parametrize("name", DIFFUSION_CONFIGS)
def test_engine_without_masked_decoding_refuses_a_diffusion_model(
    name: str, engine: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": name, **DIFFUSION_CONFIGS[name]}), encoding="utf-8")
    with pytest.raises(InputError, match=f"`--engine {engine}` cannot serve a diffusion model"):
        measure_config(path, engine, "12/5@2", keep=False)


@pytest.mark.parametrize("name", list(TINY_CONFIGS))
def test_transformers_engine_measures_a_model_of_any_family(name: str, tmp_path: Path) -> None:
    require_measured(config_of(name), "transformers", "12/5@2", tmp_path)


def exported(model: Transformer, folder: Path) -> torch.nn.Module:
    """Export a model and load it by its class in transformers."""
    export(folder, model, max_position_embeddings=256)
    loaded: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    return loaded


@torch.inference_mode()
@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("name", list(TINY_CONFIGS))
def test_transformers_engine_computes_the_log_probabilities_of_the_model(
    name: str, cache: str, tmp_path: Path
) -> None:
    model, workload = model_of(name), parse_workload("24/13@2")
    with TransformersEngine(cache).start_alike(model.architecture, workload) as server:
        assert isinstance(server, TransformersServer)
        server.model.load_state_dict(exported(model, tmp_path).state_dict())
        tokens, seen = [server.prompt], []

        def recorded(new: torch.Tensor, cache: Any) -> torch.Tensor:
            logits = server.model(new, cache=cache, use_cache=True).logits
            seen.append(logits.log_softmax(dim=-1))
            tokens.append(logits[:, -1:].argmax(dim=-1))
            return tokens[-1]

        server.serve(3)  # a second pass must find an empty cache
        server._decode_step = recorded
        server.serve(13)
        all_tokens = torch.cat(tokens, dim=1)[:, :-1]
        expected = model.logits(model(all_tokens)).log_softmax(dim=-1)
    torch.testing.assert_close(torch.cat(seen, dim=1), expected, rtol=TOLERANCE, atol=TOLERANCE)


def kept_values(architecture: Architecture) -> int:
    """Count what convolutions keep in transformers beyond the formula: the newest input too."""
    blocks = [layer.attention for layer in architecture.each_layer()]
    return sum(b.hidden_size for b in blocks if isinstance(b, ShortConvolutionBlock))


@pytest.mark.parametrize("name", list(TINY_CONFIGS))
def test_cache_of_the_transformers_engine_has_the_counted_bytes(name: str) -> None:
    architecture = read_architecture(config_of(name))
    workload = parse_workload("24/13@2:bfloat16")
    with TransformersEngine().start_alike(architecture, workload) as server:
        assert isinstance(server, TransformersServer)
        server.serve(13)
        counted = architecture.cache_bytes(37, 2) + 2 * kept_values(architecture)
        assert server.cache_bytes() == 2 * counted


@pytest.mark.parametrize("engine", SERVING_ENGINES[1:])
def test_canon_layers_are_served_by_the_embedded_engine_only(engine: str, tmp_path: Path) -> None:
    config = {**config_of("llama"), "canon_set": "AC"}
    architecture = read_architecture(config)
    assert serving_engines(architecture) == ["torch"]
    rule = rf"`canon_set == null` must hold in the {engine} engine, but got 'AC': .* --engine torch"
    with pytest.raises(InputError, match=rule):
        require_computed_alike(architecture, engine)


@pytest.mark.parametrize("engine", SERVING_ENGINES[1:])
@pytest.mark.parametrize("name", DIFFUSION_CONFIGS)
def test_diffusion_models_are_served_by_the_embedded_engine_only(name: str, engine: str) -> None:
    architecture = read_architecture({"model_type": name, **DIFFUSION_CONFIGS[name]})
    assert serving_engines(architecture) == ["torch"]
    with pytest.raises(InputError, match=f"`mask_token_id == null` must hold in the {engine} eng"):
        require_computed_alike(architecture, engine)


def test_refused_architecture_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    path = written({**config_of("gpt2"), "canon_set": "A"}, tmp_path)
    with pytest.raises(InputError, match="no other engine has Canon layers"):
        measure_config(path, "transformers", "12/5@2", keep=False)


def test_kimi_k2_is_served_by_the_class_of_deepseek_v3(tmp_path: Path) -> None:
    config = {**config_of("deepseek_v3-kimi"), "model_type": "kimi_k2"}
    require_measured(config, "transformers", "12/5@2", tmp_path)


def test_sequences_beyond_the_learned_positions_are_refused(tmp_path: Path) -> None:
    path = written(config_of("gpt2"), tmp_path)
    with pytest.raises(InputError, match=r"`input \+ output tokens <= 256` .* but got 305"):
        measure_config(path, "transformers", "300/5@2", keep=False)


def test_measurement_of_an_architecture_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr("shapelaw.search.engines._timed.MAX_WALL_TO_CPU", 1e9)
    path = written(config_of("gpt2"), tmp_path)
    rows = [measure_config(path, "transformers", "12/5@2") for _ in range(2)]
    assert [row.pop("kept") for row in rows] == [False, True]
    assert rows[0] == rows[1]
