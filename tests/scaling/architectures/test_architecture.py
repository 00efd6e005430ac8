"""Counts of published configs, and what the counts of an architecture hang together by."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.blocks.attention import mean_visible_tokens
from shapelaw.scaling.architectures.config import architecture_config, read_architecture
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.errors import InputError
from support.shapes import GOLDEN

MODELS = [
    model
    for model in json.loads((GOLDEN / "architectures.json").read_text(encoding="utf-8"))
    if model["model_type"] in FAMILIES
]
BIDIRECTIONAL = {"LLaDA-8B", "Dream-v0-7B"}  # their FLOPs are those of attention to all tokens


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_counts_of_a_published_config_equal_the_known_integers(model):
    architecture = read_architecture({"model_type": model["model_type"], **model["hf_config"]})
    for name in ("n_total", "n_active", "n_non_embedding", "n_active_non_embedding"):
        assert getattr(architecture, name) == model[name], name
    assert architecture.active_matmul_parameters == model["matmul_params_active"]
    assert architecture.kv_bytes() == model["kv_bytes_per_token_bf16"]
    assert architecture.kv_bytes_local() == model["kv_bytes_per_token_bf16_local"]
    assert architecture.local_window == model["local_window"]
    if model["name"] not in BIDIRECTIONAL:
        length = model["flops_context"]
        assert architecture.mean_forward_flops(length) == model["flops_forward_per_token"]


def test_every_family_has_a_published_config_or_is_checked_against_transformers_only():
    published = {model["model_type"] for model in MODELS}
    diffusion = {"llada", "Dream", "dhara"}  # in the table of data under their own types
    assert set(FAMILIES) - published - diffusion <= {"arcee", "nanochat", "kimi_k2", "lfm2"}


@pytest.mark.parametrize(
    ("hidden", "heads", "width", "total"),
    [(2048, 32, 12_288, 1_170_340_608), (1024, 16, 6656, 354_483_968)],
    ids=["LFM2-1.2B", "LFM2-350M"],
)
def test_lfm2_counts_as_its_published_files(hidden, heads, width, total):
    architecture = read_architecture(
        {
            "model_type": "lfm2",
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "block_ff_dim": width,
            "num_hidden_layers": 16,
            "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        }
    )
    assert architecture.n_total == total
    assert architecture.kv_bytes() == 6 * 4 * 8 * 64
    assert architecture.cache_bytes(1000) == 1000 * architecture.kv_bytes() + 10 * 2 * 2 * hidden
    convolutions = 10 * 2 * 3 * hidden
    matrices = architecture.active_matmul_parameters + 65_536 * hidden
    attention = 6 * 4 * heads * 64 * 500
    assert architecture.forward_flops(500) == 2 * matrices + attention + convolutions


def test_kimi_k2_counts_as_a_deepseek_v3_of_its_sizes():
    kimi = next(model for model in MODELS if model["name"] == "Kimi-K2")
    architecture = read_architecture({"model_type": "kimi_k2", **kimi["hf_config"]})
    assert (architecture.n_total, architecture.n_active) == (kimi["n_total"], kimi["n_active"])


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 4}, "`num_experts_per_tok <= num_experts`"),
        ({"model_type": "deepseek_v3", "n_group": 7}, "use 252 experts"),
        ({"model_type": "gpt_oss", "num_experts_per_tok": 0}, "must be a positive integer"),
        ({"model_type": "deepseek_v3", "topk_group": 9}, "use at most 8"),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, "`scoring_func` must be 'sigmo"),
        (
            {"model_type": "deepseek_v3", "topk_method": "greedy"},
            "`topk_method` must be 'noaux_tc'",
        ),
    ],
)
def test_experts_that_do_not_fit_are_refused(fields, rule):
    with pytest.raises(InputError, match=rule):
        read_architecture(fields)


def test_config_of_deepseek_names_its_router_for_other_engines():
    architecture = read_architecture({"model_type": "deepseek_v3", "scoring_func": "sigmoid"})
    written = architecture_config(architecture, max_position_embeddings=64)
    assert (written["topk_method"], written["scoring_func"]) == ("noaux_tc", "sigmoid")


@given(length=st.integers(1, 60), window=st.integers(1, 80), chunked=st.booleans())
def test_mean_visible_tokens_equal_the_mean_over_a_mask(length, window, chunked):
    visible = [
        sum(q // window == k // window if chunked else q - k < window for k in range(q + 1))
        for q in range(length)
    ]
    mean = mean_visible_tokens(length, window, chunked=chunked)
    assert mean == pytest.approx(sum(visible) / length, rel=1e-12)
    assert mean_visible_tokens(length) == (length + 1) / 2


def test_a_window_saturates_the_cache_and_not_the_layers_without_one():
    gemma = read_architecture({"model_type": "gemma3_text", "sliding_window": 512})
    full, local = gemma.kv_bytes(), gemma.kv_bytes_local()
    assert gemma.cache_bytes(100) == 100 * (full + local)
    assert gemma.cache_bytes(5000) == 5000 * full + 512 * local
    assert gemma.forward_flops(10**6) - gemma.forward_flops(10**5) == 9 * 10**5 * 4 * 4 * 8 * 256


def sparse_config(row: dict[str, int]) -> dict[str, object]:
    """Write the config of one row of the columns below."""
    width = row["moe_intermediate_size"]
    fixed = {"model_type": "deepseek_v3", "n_group": 1, "topk_group": 1, "vocab_size": 50_000}
    return {**fixed, **row, "intermediate_size": 4 * width}


def sparse_columns(columns: dict[str, np.ndarray]) -> Architecture:
    """Describe many DeepSeek shapes at once: blocks with columns for sizes."""
    first = read_architecture(sparse_config({name: int(c[0]) for name, c in columns.items()}))
    dense, sparse = (layer for layer, _ in first.layers)
    hidden, width = columns["hidden_size"], columns["moe_intermediate_size"]
    attention = replace(
        dense.attention,
        hidden_size=hidden,
        num_attention_heads=columns["num_attention_heads"],
        query_rank=columns["q_lora_rank"],
        latent_rank=columns["kv_lora_rank"],
    )
    mlp = replace(dense.feed_forward, hidden_size=hidden, intermediate_size=4 * width)
    experts = replace(
        sparse.feed_forward,
        expert=replace(mlp, intermediate_size=width),
        experts=columns["n_routed_experts"],
        active=columns["num_experts_per_tok"],
        shared=replace(mlp, intermediate_size=width * columns["n_shared_experts"]),
    )
    layers, begin = columns["num_hidden_layers"], columns["first_k_dense_replace"]
    return replace(
        first,
        embedding=replace(first.embedding, hidden_size=hidden),
        layers=(
            (replace(dense, attention=attention, feed_forward=mlp), begin),
            (replace(sparse, attention=attention, feed_forward=experts), layers - begin),
        ),
    )


def test_columns_of_sparse_shapes_equal_the_counts_of_each():
    draw = np.random.default_rng(0).integers
    limits = {
        "hidden_size": (8, 8000),
        "moe_intermediate_size": (8, 4000),
        "num_attention_heads": (1, 128),
        "q_lora_rank": (8, 1536),
        "kv_lora_rank": (8, 512),
        "n_routed_experts": (64, 512),
        "num_experts_per_tok": (1, 64),
        "n_shared_experts": (1, 4),
        "num_hidden_layers": (10, 100),
        "first_k_dense_replace": (1, 9),
    }
    columns = {name: draw(*limit, size=1000) for name, limit in limits.items()}
    many = sparse_columns(columns)
    for index in range(1000):
        row = {name: int(column[index]) for name, column in columns.items()}
        each = read_architecture(sparse_config(row))
        for count in (
            *("n_total", "n_active", "n_non_embedding", "n_active_non_embedding"),
            "active_matmul_parameters",
        ):
            assert getattr(many, count)[index] == getattr(each, count), (count, row)
        assert many.kv_bytes()[index] == each.kv_bytes()
        assert many.cache_bytes(777)[index] == each.cache_bytes(777)
        assert many.mean_forward_flops(4096)[index] == each.mean_forward_flops(4096)
