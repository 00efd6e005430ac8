"""The benchmark of quality against decoding speed, with a trained part that is replaced."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.trainers.models.transformer import Transformer
from support.paths import ROOT


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    place = ROOT / "benchmarks" / "diffusion_measurement.py"
    spec = importlib.util.spec_from_file_location("diffusion_measurement", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measurement(benchmark: ModuleType, folder: Path, **changes: Any) -> Any:
    usual = {"corpus": "text", "evals": folder, "work": folder, "tokens": "24M", "pairs": 50,
             "seed": 0, "rows": folder / "rows.jsonl"}  # fmt: skip
    return benchmark.Measurement(**(usual | changes))


def test_finished_part_is_not_computed_again_and_a_line_cut_off_is_dropped(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(_: object, paradigm: str) -> dict[str, object]:
        trained.append(paradigm)
        return {"run_id": f"run-{paradigm}", "loss": 2.0, "loss_se": 0.02, "tokens": 1024,
                "bits_per_byte": 2.0 / math.log(2), "loss_kind": "bound"}  # fmt: skip

    monkeypatch.setattr(benchmark.Measurement, "train", train)
    one = measurement(benchmark, tmp_path)
    assert one.run_of("masked") == one.run_of("masked") == "run-masked"
    assert trained == ["masked"]
    [row] = benchmark.read_rows(one.rows)
    assert row["bits_per_byte_se"] == pytest.approx(0.01 * row["bits_per_byte"])
    assert (row["tokens"], row["trained_tokens"], row["part"]) == (24_000_000, 1024, "loss")
    with one.rows.open("a") as out:
        out.write('{"tokens": 24000000, "seed": 0, "paradi')  # killed while it wrote
    assert one.run_of("masked") == "run-masked"
    assert one.run_of("block") == "run-block"
    assert trained == ["masked", "block"]
    assert [row["paradigm"] for row in benchmark.read_rows(one.rows)] == ["masked", "block"]
    measurement(benchmark, tmp_path, seed=1).run_of("masked")
    measurement(benchmark, tmp_path, tokens="1M").run_of("masked")
    assert trained == ["masked", "block", "masked", "masked"]
    assert all(json.loads(line) for line in one.rows.read_text().splitlines())


def test_decoders_cover_the_confidences(benchmark: ModuleType) -> None:
    assert benchmark.decoders_of("ar") == ["ar"]
    assert benchmark.decoders_of("d2f")[-4:] == [
        f"d2f:block=16,confidence={each}" for each in (0.3, 0.5, 0.7, 0.9)
    ]
    assert len(benchmark.decoders_of("masked")) == 6


def test_speed_of_a_batch_counts_every_sequence(benchmark: ModuleType) -> None:
    config = {
        "model_type": "llama", "vocab_size": 257, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "mask_token_id": 256,
    }  # fmt: skip
    model = Transformer(read_architecture(config), context_length=192).eval()
    model.initialise(0)
    prompts = torch.randint(256, (8, 64), generator=torch.Generator().manual_seed(0))
    for batch, answers in ((1, 2), (8, 8)):
        row = benchmark.time_decoder(model, "llada:block=16,steps=4", prompts, batch)
        assert row["tokens_per_forward"] == 4  # four passes of a block of 16
        seconds = row["seconds_per_answer"] * answers / batch
        assert row["tokens_per_second"] * seconds == pytest.approx(answers * 128)
