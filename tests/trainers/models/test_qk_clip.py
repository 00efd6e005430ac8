"""QK-clip against loops over single numbers in float64, which share no function with the model."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.errors import InputError
from shapelaw.trainers.models.qk_clip import clip_logits, watch_logits
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.models.visibility import CAUSAL, TokenView
from shapelaw.trainers.training.loop import build_model, train_run
from support.small_runs import RECIPE, Killed, killed_at, small_corpus, spec

WIDTH, POSITIONS, THETA = 12, 140, 10_000.0  # more queries than are computed at once
COMMON = {
    "vocab_size": 31, "hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 4, "rope_theta": THETA,
}  # fmt: skip
GROUPED = {**COMMON, "model_type": "llama", "num_key_value_heads": 2, "head_dim": 4,
           "attention_bias": True}  # fmt: skip
LATENT = {
    **COMMON, "model_type": "deepseek_v3", "num_key_value_heads": 4, "first_k_dense_replace": 1,
    "kv_lora_rank": 6, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2, "v_head_dim": 5,
    "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 8,
}  # fmt: skip
TAU = 1.5


def attention_of(config: dict, path: str = "matmul") -> tuple[torch.nn.Module, Transformer]:
    """Build a model of one layer with random weights that watches its logits."""
    model = Transformer(read_architecture(config), context_length=POSITIONS, attention=path)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.5, generator=generator)
    watch_logits(model)
    return model.layers[0].self_attn, model


def pass_through(attention: torch.nn.Module, model: Transformer, x: torch.Tensor) -> None:
    attention(x, model.rotary, None, TokenView(count=POSITIONS, visibility=CAUSAL))


def inputs() -> torch.Tensor:
    return torch.randn(2, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(2))


def turned(vector: np.ndarray, position: int, *, pairs: bool) -> np.ndarray:
    """Rotate one vector: neighbours are pairs (DeepSeek), or halves are (Llama)."""
    half, out = len(vector) // 2, vector.copy()
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if pairs else (i, i + half)
        angle = position * THETA ** (-2 * i / len(vector))
        out[a] = vector[a] * math.cos(angle) - vector[b] * math.sin(angle)
        out[b] = vector[b] * math.cos(angle) + vector[a] * math.sin(angle)
    return out


def normed(vector: np.ndarray, weight: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    return vector / math.sqrt(float((vector**2).mean()) + epsilon) * weight


def largest(queries: list, keys: list, scale: float) -> float:
    """Return the largest scaled product of a query with a key no later than itself."""
    return max(
        scale * float(np.dot(query, key))
        for i, query in enumerate(queries)
        for key in keys[: i + 1]
    )


def grouped_logits(weights: dict[str, np.ndarray], x: np.ndarray) -> list[float]:
    """Compute the largest logit of each of 4 query heads on 2 key heads."""
    best = [-math.inf] * 4
    for sequence in x:
        rows = [weights["qkv_proj.weight"] @ token + weights["qkv_proj.bias"] for token in sequence]
        for head in range(4):
            key = 4 + head // 2
            queries = [
                turned(r[4 * head : 4 * head + 4], t, pairs=False) for t, r in enumerate(rows)
            ]
            keys = [turned(r[4 * key : 4 * key + 4], t, pairs=False) for t, r in enumerate(rows)]
            best[head] = max(best[head], largest(queries, keys, 4**-0.5))
    return best


def latent_logits(weights: dict[str, np.ndarray], x: np.ndarray) -> list[float]:
    """Compute the largest logit of each of 4 heads: 4 numbers without positions, 2 rotary ones."""
    best = [-math.inf] * 4
    for sequence in x:
        queries, keys = [[] for _ in range(4)], [[] for _ in range(4)]
        for t, token in enumerate(sequence):
            low = normed(weights["q_a_proj.weight"] @ token, weights["q_a_layernorm.weight"])
            query = weights["q_b_proj.weight"] @ low
            both = weights["kv_a_proj_with_mqa.weight"] @ token
            shared = turned(both[6:], t, pairs=True)
            up = weights["kv_b_proj.weight"] @ normed(both[:6], weights["kv_a_layernorm.weight"])
            for head in range(4):
                own = query[6 * head : 6 * head + 6]
                queries[head].append(np.concatenate([own[:4], turned(own[4:], t, pairs=True)]))
                keys[head].append(np.concatenate([up[9 * head : 9 * head + 4], shared]))
        for head in range(4):
            best[head] = max(best[head], largest(queries[head], keys[head], 6**-0.5))
    return best


LOGITS = {
    "grouped": (GROUPED, grouped_logits),
    "latent": (LATENT | {"q_lora_rank": 8}, latent_logits),
}


def weights_of(attention: torch.nn.Module) -> dict[str, np.ndarray]:
    return {n: w.detach().double().numpy().copy() for n, w in attention.named_parameters()}


@pytest.mark.parametrize("path", ["matmul", "sdpa"])
@pytest.mark.parametrize("kind", LOGITS)
def test_watched_logits_equal_the_largest_ones_of_loops(kind: str, path: str) -> None:
    config, logits = LOGITS[kind]
    attention, model = attention_of(config, path)
    pass_through(attention, model, inputs())
    expected = logits(weights_of(attention), inputs().double().numpy())
    np.testing.assert_allclose(attention.watch.largest.numpy(), expected, rtol=1e-4)
    with torch.no_grad():
        pass_through(attention, model, 100 * inputs())  # evaluation is not watched
    np.testing.assert_allclose(attention.watch.largest.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", LOGITS)
def test_clip_bounds_the_logits_of_every_head_and_leaves_the_others(kind: str) -> None:
    config, logits = LOGITS[kind]
    attention, model = attention_of(config)
    x = inputs()
    before = logits(weights_of(attention), x.double().numpy())
    threshold = sum(sorted(before)[1:3]) / 2  # below two of four
    pass_through(attention, model, x)
    measured = clip_logits(model, threshold)
    assert measured["clipped_heads"] == 2
    assert measured["max_logit"] == pytest.approx(max(before), rel=1e-4)
    after = logits(weights_of(attention), x.double().numpy())
    np.testing.assert_allclose(after, np.minimum(before, threshold), rtol=1e-4)
    assert torch.isneginf(attention.watch.largest).all()  # the next step begins anew


def test_weights_of_latent_attention_are_scaled_as_the_paper_says() -> None:
    """√γ on the parts without positions, γ on the rotary part of the query, the rest as it was."""
    config, logits = LOGITS["latent"]
    attention, model = attention_of(config)
    old = weights_of(attention)
    pass_through(attention, model, inputs())
    clip_logits(model, TAU)
    new = weights_of(attention)
    for head, logit in enumerate(logits(old, inputs().double().numpy())):
        gamma = min(1.0, TAU / logit)
        query, up = slice(6 * head, 6 * head + 6), slice(9 * head, 9 * head + 9)
        rows = [gamma**0.5] * 4 + [gamma] * 2
        wanted = old["q_b_proj.weight"][query] * np.array(rows)[:, None]
        np.testing.assert_allclose(new["q_b_proj.weight"][query], wanted, rtol=1e-4)
        rows = [gamma**0.5] * 4 + [1.0] * 5
        wanted = old["kv_b_proj.weight"][up] * np.array(rows)[:, None]
        np.testing.assert_allclose(new["kv_b_proj.weight"][up], wanted, rtol=1e-4)
    for name in set(old) - {"q_b_proj.weight", "kv_b_proj.weight"}:
        np.testing.assert_array_equal(new[name], old[name])


def test_one_key_head_per_query_head_gets_the_square_root_on_both() -> None:
    attention, model = attention_of(GROUPED | {"num_key_value_heads": 4})
    old = weights_of(attention)
    pass_through(attention, model, inputs())
    factors = np.minimum(1.0, TAU / attention.watch.largest.numpy())
    clip_logits(model, TAU)
    rows = np.concatenate([np.repeat(factors**0.5, 4), np.repeat(factors**0.5, 4), np.ones(16)])
    for name in ("qkv_proj.weight", "qkv_proj.bias"):
        scaled = old[name] * (rows[:, None] if old[name].ndim == 2 else rows)
        np.testing.assert_allclose(weights_of(attention)[name], scaled, rtol=1e-5)


def test_window_hides_logits_from_the_watch() -> None:
    window = {**GROUPED, "model_type": "mistral", "attention_bias": None, "sliding_window": 4}
    window.pop("attention_bias")
    whole, near = (attention_of(window | {"sliding_window": size}) for size in (None, 4))
    for attention, model in (whole, near):
        pass_through(attention, model, inputs())
    assert (near[0].watch.largest < whole[0].watch.largest).any()
    assert (near[0].watch.largest <= whole[0].watch.largest).all()


def test_model_with_qk_norm_is_refused() -> None:
    with pytest.raises(InputError, match="`qk_clip` must be 0 for a model with QK-norm"):
        build_model(spec(recipe=replace(RECIPE, qk_clip=100.0)))


@pytest.mark.parametrize("value", [-1.0, 1e10])
def test_threshold_outside_of_its_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="`0 <= qk_clip <="):
        replace(RECIPE, qk_clip=value)


def test_setting_that_is_not_used_leaves_the_settings_that_decide_a_run() -> None:
    assert "qk_clip" not in RECIPE.deciding()
    assert replace(RECIPE, qk_clip=9.0).deciding() == {**RECIPE.deciding(), "qk_clip": 9.0}


@pytest.mark.parametrize("config", [GROUPED, LATENT], ids=["grouped", "latent"])
def test_clipped_run_resumes_with_the_same_bits_and_logs_its_clips(
    config: dict, tmp_path: Path
) -> None:
    corpus = small_corpus(tmp_path / "text")
    shape = read_architecture({**config, "vocab_size": corpus.vocab_size})
    run = spec(shape=shape, recipe=replace(RECIPE, qk_clip=0.02))
    wanted = train_run(run, corpus, tmp_path / "whole", checkpoint_seconds=0)[-1]
    with pytest.raises(Killed):
        train_run(run, corpus, tmp_path / "killed", watch=killed_at(5), checkpoint_seconds=0)
    got = train_run(run, corpus, tmp_path / "killed", checkpoint_seconds=0)[-1]
    free = train_run(spec(shape=shape), corpus, tmp_path / "free")[-1]
    assert got["loss"] == wanted["loss"] != free["loss"]
    with (tmp_path / "whole" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert any(float(row["clipped_heads"]) > 0 for row in rows if row["clipped_heads"])
    assert all(math.isfinite(float(row["max_logit"])) for row in rows if row["max_logit"])
