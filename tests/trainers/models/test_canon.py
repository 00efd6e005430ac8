"""Canon layers: logits against loops in float64, decoding, counts and export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_config import read_model
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.hugging_face import export, load_export
from shapelaw.trainers.models.transformer import Transformer
from support.loop_model import QWEN3, Loops
from support.shapes import GOLDEN
from support.tiny_configs import TINY_CONFIGS

GPT2 = {"vocab_size": 31, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 64}
FAMILIES = {
    "qwen3": QWEN3,
    "llama": {**QWEN3, "tie_word_embeddings": True},
    "gemma3_text": {**QWEN3, "sliding_window": 4, "sliding_window_pattern": 2},
    "olmo2": QWEN3,
    "smollm3": {**QWEN3, "no_rope_layer_interval": 2},
    "arcee": QWEN3,
    "nanochat": QWEN3,
    "gpt2": GPT2,
}
POSITIONS = 13


def canon_model(family: str = "qwen3", **fields: object) -> Transformer:
    """Build a model with Canon layers and random weights."""
    config = {**FAMILIES[family], "model_type": family, "canon_set": "ABCD", **fields}
    model = Transformer(read_architecture(config), context_length=64).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.4, generator=generator)
    return model


def text(positions: int = POSITIONS) -> torch.Tensor:
    return torch.randint(31, (2, positions), generator=torch.Generator().manual_seed(1))


def logits_of(model: Transformer, tokens: torch.Tensor, **kwargs: object) -> torch.Tensor:
    return model.logits(model(tokens, **kwargs))


@torch.no_grad()
@pytest.mark.parametrize(
    ("places", "kernel"), [("A", 4), ("B", 3), ("C", 2), ("D", 4), ("AC", 1), ("ABCD", 4)]
)
def test_logits_equal_those_of_loops_in_float64(places: str, kernel: int) -> None:
    model = canon_model(canon_set=places, canon_kernel=kernel)
    loops, tokens = Loops(model, places, kernel), text()
    for row, logits in zip(tokens.numpy(), logits_of(model, tokens), strict=True):
        wanted = loops.logits(row)
        assert np.abs(logits.numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()
    loops.places = ""  # the control: the layers matter
    assert (
        np.abs(logits_of(model, tokens[:1])[0].numpy() - loops.logits(tokens[0].numpy())).max() > 1
    )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_taps_give_the_logits_of_the_model_without_canon(family: str) -> None:
    model, base = canon_model(family), canon_model(family, canon_set="")
    taps = {name: weight for name, weight in model.named_parameters() if "canon" in name}
    assert len(taps) == 2 * 4
    for weight in taps.values():
        weight.zero_()
    given = {n: w for n, w in model.state_dict().items() if "canon" not in n}
    base.load_state_dict(given)
    torch.testing.assert_close(logits_of(model, text()), logits_of(base, text()))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefill", [1, 2, 7])
def test_prefill_and_single_steps_equal_a_full_forward(family: str, prefill: int) -> None:
    model, tokens = canon_model(family), text()
    cache = model.empty_cache(2, POSITIONS, dtype=torch.float32)
    for part in (part for layer in cache for part in layer):
        part.fill_(7.0)  # of an earlier sequence
    steps = [logits_of(model, tokens[:, :prefill], cache=cache)]
    steps += [
        logits_of(model, tokens[:, t : t + 1], cache=cache, start=t)
        for t in range(prefill, POSITIONS)
    ]
    wanted = logits_of(model, tokens)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted, rtol=0, atol=2e-5 * scale)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "places"),
    [("deepseek_v3", "AC"), ("qwen3_moe", "ABC"), ("lfm2", "ACD"), ("gemma3n_text", "ABCD")],
)
def test_layers_of_other_kinds_decode_and_count_with_canon(family: str, places: str) -> None:
    config = {**TINY_CONFIGS[family], "model_type": family, "canon_set": places}
    model = Transformer(read_architecture(config), context_length=64).eval()
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if weight.ndim == 1 or "canon" in name:
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    tokens, cache = text(), model.empty_cache(2, POSITIONS, dtype=torch.float32)
    steps = [logits_of(model, tokens[:, :3], cache=cache)]
    steps += [
        logits_of(model, tokens[:, t : t + 1], cache=cache, start=t) for t in range(3, POSITIONS)
    ]
    wanted = logits_of(model, tokens)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted, rtol=0, atol=2e-5 * scale)
    assert sum(weight.numel() for weight in model.parameters()) == model.architecture.n_total
    kept = model.empty_cache(1, 40, dtype=torch.bfloat16)
    measured = sum(part.numel() * part.element_size() for layer in kept for part in layer)
    assert measured == model.architecture.cache_bytes(40)


@torch.no_grad()
def test_earlier_logits_do_not_depend_on_later_tokens() -> None:
    model, tokens = canon_model(), text()
    other = tokens.clone()
    other[:, 6] = (other[:, 6] + 1) % 31
    apart = (logits_of(model, tokens) - logits_of(model, other)).abs().amax(dim=(0, 2))
    assert apart[:6].max() == 0
    assert apart[6:].min() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_cache_are_the_counted_ones(family: str) -> None:
    model, base = canon_model(family).architecture, canon_model(family, canon_set="").architecture
    heads, groups, head_dim = (2, 2, 6) if family == "gpt2" else (4, 2, 4)
    inner = {"gpt2": 48, "arcee": 10, "nanochat": 10}.get(family, 2 * 10)
    width = 12 + (heads + 2 * groups) * head_dim + 12 + inner
    assert model.n_total - base.n_total == 2 * 4 * width
    assert model.n_non_embedding - base.n_non_embedding == 2 * 4 * width
    assert model.mean_forward_flops(32) - base.mean_forward_flops(32) == 2 * 2 * 4 * width
    assert model.forward_flops(32) - base.forward_flops(32) == 2 * 2 * 4 * width
    assert model.kv_bytes() == base.kv_bytes()
    built = canon_model(family)
    assert sum(weight.numel() for weight in built.parameters()) == model.n_total
    cache = built.empty_cache(1, 40, dtype=torch.bfloat16)
    measured = sum(part.numel() * part.element_size() for layer in cache for part in layer)
    assert measured == model.cache_bytes(40) == base.cache_bytes(40) + 2 * 2 * 3 * width


@pytest.mark.parametrize(
    ("name", "family"), [("Dhara-70M (Canon A, C)", "llama"), ("LlamaCanon-1B", "qwen3")]
)
def test_counts_of_a_published_config_equal_the_known_integers(name: str, family: str) -> None:
    known = json.loads((GOLDEN / "architectures.json").read_text(encoding="utf-8"))
    model = next(each for each in known if each["name"] == name)
    architecture = read_architecture({**model["hf_config"], "model_type": family})
    assert architecture.n_total == model["n_total"]
    assert architecture.active_matmul_parameters == model["matmul_params_active"]
    assert architecture.mean_forward_flops(4096) == model["flops_forward_per_token"]
    assert architecture.kv_bytes() == model["kv_bytes_per_token_bf16"]


def test_first_taps_are_uniform_whatever_the_scale_of_matrices() -> None:
    model, same = (canon_model(canon_kernel=kernel, hidden_size=96) for kernel in (4, 4))
    model.initialise(0)
    same.initialise(0)
    taps = torch.cat([w.flatten() for n, w in model.named_parameters() if "canon" in n]).detach()
    assert float(taps.abs().max()) == pytest.approx(0.5, abs=0.01)
    assert float(taps.std()) == pytest.approx(1 / 12**0.5, rel=0.05)
    for first, second in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(first, second)
    assert not any(weight.ndim == 3 for weight in model.matrices())


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_export_loads_as_the_same_model_and_no_class_loads_it_without_canon(
    tmp_path: Path, family: str
) -> None:
    model = canon_model(family, canon_set="CAB", canon_kernel=3)
    export(tmp_path, model, max_position_embeddings=64)
    loaded = load_export(tmp_path)
    assert torch.equal(logits_of(loaded, text()), logits_of(model, text()))
    assert loaded.architecture == model.architecture
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match=f"{family}_canon"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"canon_set": "ABE"}, "`canon_set` must be letters of ABCD, but got 'ABE'"),
        ({"canon_set": ["A"]}, "`canon_set` must be letters of ABCD"),
        ({"canon_set": "A", "canon_kernel": 0}, "`canon_kernel` must be a positive integer"),
        ({"canon_set": "A", "canon_bias": True}, "`canon_bias` must be false, but got true"),
        ({"canon_set": "A", "canon_activation": True}, "`canon_activation` must be false"),
        ({"canon_set": "A", "canon_residual": False}, "`canon_residual` must be true"),
        (
            {"model_type": "deepseek_v3", "canon_set": "ABC"},
            "with B needs queries, keys and values in every layer, but got ABC; use AC",
        ),
        ({"model_type": "qwen3_moe", "canon_set": "AD"}, "with D needs one MLP in every layer"),
    ],
)
def test_canon_layers_that_do_not_fit_are_refused(fields: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        read_architecture({"model_type": "llama", **fields})


def test_a_shape_is_refused_and_a_measurement_keeps_the_canon_layers() -> None:
    config = {**QWEN3, "canon_set": "AC"}
    with pytest.raises(InputError, match="`canon_set` must be absent to be read as a shape"):
        Shape.from_config(config)
    model, _ = read_model(config, whole=True)
    assert model.n_total == read_architecture(config).n_total
    assert "convolutions" in " ".join(read_architecture(config).cache_notes())
