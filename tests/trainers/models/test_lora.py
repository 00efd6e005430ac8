import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.hugging_face import hugging_face_weights
from shapelaw.trainers.models.lora import (
    LoraSettings,
    adapted_layers,
    adapter_dropout,
    adapters_off,
    add_adapters,
    merge_adapters,
    save_adapters,
)
from shapelaw.trainers.models.transformer import Transformer
from support.small_runs import SHAPE
from support.tiny_configs import TINY_CONFIGS

LORA = LoraSettings(rank=3, alpha=6.0, dropout=0.25)


def plain_model() -> Transformer:
    model = Transformer(SHAPE, context_length=16).double()
    model.initialise(1)
    return model


def adapted_model(*, trained: bool = True) -> Transformer:
    model = plain_model()
    add_adapters(model, LORA, seed=2)
    if trained:
        generator = torch.Generator().manual_seed(3)
        for layer in adapted_layers(model).values():
            torch.nn.init.normal_(layer.lora_b, std=0.3, generator=generator)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(SHAPE.vocab_size, (2, 16), generator=torch.Generator().manual_seed(4))


def logits(model: Transformer) -> torch.Tensor:
    return model.logits(model(tokens())).detach()


def test_new_adapters_change_nothing() -> None:
    torch.testing.assert_close(logits(adapted_model(trained=False)), logits(plain_model()))


def test_trained_adapters_change_logits_until_they_are_off() -> None:
    model, plain = adapted_model(), logits(plain_model())
    assert (logits(model) - plain).abs().max() > 1e-3
    with adapters_off(model):
        assert torch.equal(logits(model), plain)
    assert (logits(model) - plain).abs().max() > 1e-3


def test_projection_is_that_of_its_own_factors() -> None:
    layer = adapted_layers(adapted_model())["layers.0.self_attn.qkv_proj"]
    x = torch.randn(5, SHAPE.hidden_size, dtype=torch.float64)
    rows = (16, 8, 8)  # 2 query heads and 1 key-value head of 8
    begins = (0, 16, 24)
    wanted = x @ layer.weight.T
    for part, (begin, count) in enumerate(zip(begins, rows, strict=True)):
        a, b = layer.lora_a[3 * part : 3 * part + 3], layer.lora_b[begin : begin + count]
        wanted[:, begin : begin + count] += 2.0 * x @ (b @ a).T  # alpha / rank = 2
    torch.testing.assert_close(layer(x), wanted)


def test_merged_model_has_the_logits_of_the_adapted_one() -> None:
    model = adapted_model()
    wanted, names = logits(model), set(plain_model().tensors())
    merge_adapters(model)
    assert set(model.tensors()) == names
    assert all(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(logits(model), wanted, atol=1e-12, rtol=0)


def test_only_adapters_are_trained() -> None:
    model = adapted_model()
    model.logits(model(tokens())).square().mean().backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is not None) == ("lora_" in name)


def test_dropout_is_a_function_of_its_generator_and_has_the_right_mean() -> None:
    layer = adapted_layers(adapted_model())["layers.1.self_attn.o_proj"]
    x = torch.ones(2000, layer.in_features, dtype=torch.float64)
    draws = []
    for seed in (0, 0, 1):
        with adapter_dropout(layer, torch.Generator().manual_seed(seed)):
            draws.append(layer(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    apart = (draws[0] - layer(x)).mean(dim=0) / draws[0].std(dim=0)
    assert apart.abs().max() < 4 / 2000**0.5  # standard errors of the mean
    assert draws[0].std(dim=0).min() > 0


def test_first_factor_is_uniform_as_in_peft() -> None:
    layer = adapted_layers(adapted_model(trained=False))["layers.0.self_attn.qkv_proj"]
    bound = SHAPE.hidden_size**-0.5  # Kaiming with a = √5
    assert 0.9 * bound < layer.lora_a.abs().max() <= bound
    assert layer.lora_a.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_saved_adapters_are_those_of_the_checkpoint_names(tmp_path: Path) -> None:
    model = adapted_model()
    before = hugging_face_weights(plain_model())
    save_adapters(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert len(saved) == 2 * 4 * SHAPE.num_hidden_layers
    merge_adapters(model)
    for name, weight in hugging_face_weights(model).items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (saved.get(f"{place}.lora_{kind}.weight") for kind in "AB")
        added = 0 if a is None or b is None else config["lora_alpha"] / config["r"] * (b @ a)
        torch.testing.assert_close(weight, before[name] + added)


@pytest.mark.parametrize("family", ["deepseek_v3", "lfm2"])
def test_layers_without_the_projections_are_refused(family: str) -> None:
    architecture = read_architecture({"model_type": family, **TINY_CONFIGS[family]})
    model = Transformer(architecture, context_length=16)
    with pytest.raises(InputError, match="grouped-query attention"):
        add_adapters(model, LORA, seed=0)


@pytest.mark.parametrize("changes", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}])
def test_impossible_adapters_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        LoraSettings(**changes)  # type: ignore[arg-type]
