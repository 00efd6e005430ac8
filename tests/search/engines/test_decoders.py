"""Decoders of diffusion models as an option of the embedded engine, ``measure`` and ``propose``."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.cli import app
from shapelaw.search.commands.measure import measure_config, without_unasked
from shapelaw.search.engines._diffusion import with_mask_token
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.workload import parse_workload
from shapelaw.trainers.generation.decoding_settings import parse_decoder
from shapelaw.trainers.generation.diffusion import decode
from shapelaw.trainers.models.hugging_face import export
from shapelaw.trainers.models.transformer import Transformer
from support.command import shapelaw

CONFIG = {
    "model_type": "llama",
    "vocab_size": 33,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "mask_token_id": 32,
}


def written(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, **fields}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("decoder", "per_forward"),
    [
        ("ar", 1),
        ("ar:temperature=1", 1),
        ("llada:block=8", 1),
        ("llada:block=8,steps=2", 4),
        ("threshold:block=8,confidence=1", 1),
        ("block:block=8,steps=4", 2),
        ("block:block=16", 1),
        ("d2f:block=8,confidence=0", 8),
    ],
)
def test_measure_gives_tokens_per_forward_and_seconds_per_answer(
    decoder: str, per_forward: float, tmp_path: Path
) -> None:
    row = measure_config(written(tmp_path), "torch", "6/16@2", decoder=decoder, keep=False)
    assert row["decoder"] == decoder
    assert row["tokens_per_forward"] == per_forward
    seconds = row["ttft"] + 15 * row["tpot"]
    assert row["seconds_per_answer"] == pytest.approx(seconds, rel=1e-9)


def test_row_without_a_decoder_says_nothing_of_one(tmp_path: Path) -> None:
    row = measure_config(written(tmp_path), "torch", "6/16@2", keep=False)
    names = {"decoder", "tokens_per_forward", "seconds_per_answer"}
    assert {row[name] for name in names} == {None}
    assert set(row) - set(without_unasked(row)) == names
    asked = row | dict.fromkeys(names, "d2f")
    assert without_unasked(asked) == asked


def test_measure_decodes_with_the_weights_beside_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Transformer(read_architecture(CONFIG), context_length=64).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3, generator=generator)
    export(tmp_path, model, max_position_embeddings=64)
    settings = parse_decoder("block:block=8,confidence=0.15")
    row = measure_config(tmp_path / "config.json", "torch", "6/16@1", decoder=str(settings))
    assert "the weights beside it" in capsys.readouterr().err
    prompt = torch.randint(33, (1, 6), generator=torch.Generator().manual_seed(0))
    prompt[prompt == 32] = 0
    expected = decode(model, prompt, settings, length=16)
    assert row["tokens_per_forward"] == expected.tokens_per_forward
    assert expected.tokens_per_forward > 1


@pytest.mark.parametrize(
    ("fields", "engine", "workload", "decoder", "rule"),
    [
        ({"mask_token_id": None}, "torch", "6/16@1", "block", "needs a model with a mask token"),
        ({"model_type": "Dream"}, "torch", "6/16@1", "block:block=8", "Dream predicts the next"),
        ({}, "torch", "6/20@1", "d2f:block=8", "`length % block == 0` must hold for --decoder d2f"),
        ({}, "torch", "6/16@1", "d2f:add=2", "`add` of --decoder must be from 0 to 1, but got 2"),
        ({}, "torch", "6/16@1", "fast", "`--decoder` must be one of ar, llada"),
        ({}, "transformers", "6/16@1", "ar", "cannot serve a diffusion model such as llama"),
        (
            {"mask_token_id": None},
            "roofline:h100",
            "6/16@1",
            "d2f",
            "must be left out with the engine roofline:h100",
        ),
        (
            {"mask_token_id": None},
            "transformers",
            "6/16@1",
            "block",
            "must be left out with the engine transformers",
        ),
    ],
)
def test_decoder_that_does_not_fit_is_one_error(
    fields: dict[str, object],
    engine: str,
    workload: str,
    decoder: str,
    rule: str,
    tmp_path: Path,
) -> None:
    path = written(tmp_path, **fields)
    with pytest.raises(InputError) as caught:
        measure_config(path, engine, workload, decoder=decoder, keep=False)
    assert rule in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_error_of_a_decoder_ends_the_command_with_two(tmp_path: Path) -> None:
    done = shapelaw("measure", written(tmp_path), "--decoder", "d2f:confidence=7", "--json")
    assert done.returncode == 2
    assert "`confidence` of --decoder must be from 0 to 1, but got 7; use 0.9" in done.stderr


def test_shape_gets_a_mask_token_and_its_row() -> None:
    shape = Shape.from_config({**CONFIG, "mask_token_id": None, "head_dim": 16})
    model = with_mask_token(shape)
    assert model.embedding.mask_token == 33
    assert model.n_total == shape.n_total + (2 - shape.tie_word_embeddings) * 32


def test_stored_speeds_are_those_of_one_decoder(tmp_path: Path) -> None:
    shape = Shape.from_config({**CONFIG, "mask_token_id": None, "head_dim": 16})
    work = parse_workload("6/16@1")
    engine = engine_named("torch")
    store = MeasurementStore(tmp_path / "measurements.jsonl")
    texts = ("ar", "block:block=8", "block:block=16", "d2f:block=8")
    keys = [
        CachedEngine(engine.with_decoder(parse_decoder(text)), store).key(shape, work)
        for text in texts
    ]
    assert len({key[0] for key in keys if key}) == 4
    plain = CachedEngine(engine, store).key(shape, work)
    assert plain == keys[0]


def test_propose_ranks_shapes_by_the_speed_of_a_decoder() -> None:
    done = CliRunner().invoke(
        app,
        ["propose", "--params", "200K", "--tokens", "2M", "--vocab", "256", "--layers", "4",
         "--head-dim", "16", "--workload", "8/16@1", "--measurements", "2", "--estimated", "0",
         "--decoder", "block:block=8,steps=2", "--law", "paper-2510.18245", "--extrapolate",
         "--no-cache", "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0
    rows = [row for row in json.loads(done.stdout)["proposals"] if row["throughput"]]
    assert rows
    for row in rows:
        assert row["decoder"] == "block:block=8,steps=2"
        assert row["tokens_per_forward"] == 4
        assert row["seconds_per_answer"] == pytest.approx(row["ttft"] + 15 * row["tpot"])
