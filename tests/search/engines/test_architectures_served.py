"""Models of every family on the embedded engine, through the command that a user types."""

import json
from pathlib import Path

import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.search.commands.measure import measure_config
from support.tiny_configs import DIFFUSION_CONFIGS, TINY_CONFIGS


def written(name: str, folder: Path) -> Path:
    """Write a config as a file."""
    config = {"model_type": name.partition("-")[0], **TINY_CONFIGS[name]}
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(TINY_CONFIGS))
def test_embedded_engine_measures_a_model_of_any_family(
    name: str, dtype: str, tmp_path: Path
) -> None:
    row = measure_config(written(name, tmp_path), "torch", f"12/5@2:{dtype}", keep=False)
    assert row["kind"] == "measured"
    assert 0 < row["low"] <= row["output_tokens_per_second"] <= row["high"]
    assert row["ttft"] > 0
    assert row["tpot"] > 0


@pytest.mark.parametrize("name", DIFFUSION_CONFIGS)
def test_embedded_engine_measures_a_diffusion_model(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": name, **DIFFUSION_CONFIGS[name]}), encoding="utf-8")
    assert measure_config(path, "torch", "12/8@2:float32")["output_tokens_per_second"] > 0


@pytest.mark.parametrize("name", ["gemma3n_text", "deepseek_v3", "lfm2"])
def test_engine_of_shapes_refuses_another_family(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to be read as a shape"):
        measure_config(written(name, tmp_path), "transformers", "12/5@2", keep=False)


@pytest.mark.parametrize("engine", ["transformers", "roofline:zen4-core"])
@pytest.mark.parametrize("name", DIFFUSION_CONFIGS)
def test_engine_without_masked_decoding_refuses_a_diffusion_model(
    name: str, engine: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": name, **DIFFUSION_CONFIGS[name]}), encoding="utf-8")
    with pytest.raises(InputError, match=f"`--engine {engine}` cannot serve a diffusion model"):
        measure_config(path, engine, "12/5@2", keep=False)
