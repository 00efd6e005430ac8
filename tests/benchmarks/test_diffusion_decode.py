"""The benchmark of diffusion decoders, on a tiny model."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.trainers.models.transformer import Transformer
from support.paths import ROOT


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    place = ROOT / "benchmarks" / "diffusion_decode.py"
    spec = importlib.util.spec_from_file_location("diffusion_decode", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_have_the_tokens_of_each_decoder_per_pass(
    benchmark: ModuleType, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(range(200)) * 5)
    prompts = benchmark.prompts_of(text, 3, 8)
    assert [prompt.shape for prompt in prompts] == [(1, 8)] * 3
    assert len({tuple(prompt[0].tolist()) for prompt in prompts}) > 1
    config = {
        "model_type": "llama", "vocab_size": 257, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "mask_token_id": 256,
    }  # fmt: skip
    model = Transformer(read_architecture(config), context_length=32).eval()
    model.initialise(0)
    pairs = benchmark.decoders_of(8, [1.0])
    texts = ["ar", "llada:block=8,steps=2", *pairs]
    rows = benchmark.measure(model, texts, prompts, 16, 1)
    per_pass = {row["decoder"]: row["tokens_per_forward"] for row in rows}
    assert per_pass["ar"] == 1
    assert per_pass["llada:block=8,steps=2"] == 4
    assert per_pass["block:block=8,confidence=1"] == 1
    assert all(row["seconds_per_answer"] > 0 for row in rows)
    assert set(pairs.values()) == {"block:block=8,confidence=1"}
    assert torch.is_tensor(prompts[0])
