"""Ratios of experts in a run table, from its column ``config`` or from its columns of experts."""

import json

import pandas as pd
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.columns import EXPERT_RATIOS
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.table import RunTable

QWEN3_30B = {
    "model_type": "qwen3_moe", "vocab_size": 151_936, "hidden_size": 2048,
    "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "tie_word_embeddings": False,
}  # fmt: skip
DEEPSEEK_V3 = {"model_type": "deepseek_v3"}  # every field as the class has it
LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
}  # fmt: skip


def row(config: dict | None = None, **values) -> dict:
    """Return a run of a dense shape, or of a config, which is then the whole architecture."""
    text = {} if config is None else {"config": json.dumps(config)}
    return {**LLAMA_1B, "tokens": 1e9, "loss": 3.0, **text, **values}


def test_counts_of_a_config_are_the_published_ones():
    """The columns of the shape are those of one token's path, from which nothing is counted."""
    frame = with_ratios(pd.DataFrame([row(QWEN3_30B), row(DEEPSEEK_V3)]))
    assert frame["n_total"].tolist() == [30_532_122_624, 671_026_404_352]
    assert frame["n_non_embedding"].tolist() == [29_909_792_768, 669_173_046_272]
    assert frame["n_active_non_embedding"].tolist() == [2_730_702_848, 35_698_924_544]


def test_config_alone_gives_the_counts_and_ratios():
    frame = with_ratios(pd.DataFrame([{"config": json.dumps(QWEN3_30B), "tokens": 1e9}]))
    assert frame["n_non_embedding"].tolist() == [29_909_792_768]
    assert frame["expert_sparsity"].tolist() == [16.0]


def test_ratios_of_a_config_follow_from_its_fields():
    frame = with_ratios(pd.DataFrame([row(QWEN3_30B), row(DEEPSEEK_V3), row()]))
    # DeepSeek V3: 256 routed experts and a shared one of the same width, 8 of them chosen.
    assert frame["expert_sparsity"].tolist() == pytest.approx([128 / 8, 257 / 9, 1])
    assert frame["active_experts"].tolist() == [8, 9, 1]
    fine = [2 * 2048 / 768, 2 * 7168 / 2048, 2 * 2048 / 8192]
    assert frame["granularity"].tolist() == pytest.approx(fine)
    sparsity = [29_909_792_768 / 2_730_702_848, 669_173_046_272 / 35_698_924_544, 1]
    assert frame["sparsity"].tolist() == pytest.approx(sparsity)


def test_ratios_from_columns_of_experts_equal_those_of_the_config():
    columns = {
        "hidden_size": 7168, "num_experts": 256, "num_experts_per_tok": 8,
        "num_shared_experts": 1, "moe_intermediate_size": 2048,
        "n_total": 671_026_404_352, "n_active": 37_552_282_624, "n_non_embedding": 669_173_046_272,
    }  # fmt: skip
    stated = with_ratios(pd.DataFrame([columns]))
    read = with_ratios(pd.DataFrame([row(DEEPSEEK_V3)]))
    for name in (*EXPERT_RATIOS, "n_active_non_embedding"):
        assert stated[name][0] == pytest.approx(read[name][0])


def test_table_of_dense_models_gets_no_ratios_of_experts():
    frame = with_ratios(pd.DataFrame([row(), row(n_total=1e9, n_active=1e9)]))
    assert not {*EXPERT_RATIOS, "n_active_non_embedding"} & set(frame)


def test_dense_models_get_ratios_where_a_law_needs_them():
    frame = with_ratios(pd.DataFrame([row()]), needed=["n_active_non_embedding", "granularity"])
    assert frame["expert_sparsity"].tolist() == [1]
    assert frame["n_active_non_embedding"].tolist() == frame["n_non_embedding"].tolist()
    assert frame["granularity"].tolist() == [0.5]


def test_counts_alone_give_the_sparsity_but_nothing_about_experts():
    counts = {"n_total": 31e9, "n_active": 4e9, "n_non_embedding": 30e9}
    frame = with_ratios(pd.DataFrame([row(**counts)]))
    assert frame["sparsity"].tolist() == [30 / 3]
    assert not {"expert_sparsity", "active_experts", "granularity"} & set(frame)


def test_columns_of_the_table_are_kept():
    frame = with_ratios(pd.DataFrame([row(QWEN3_30B, granularity=3.0)]))
    assert frame["granularity"].tolist() == [3.0]
    assert frame["expert_sparsity"].tolist() == [16.0]


def test_models_that_differ_in_their_experts_are_not_replicates():
    """128 and 64 experts leave every column of one token's path as it is."""
    configs = [QWEN3_30B, QWEN3_30B, QWEN3_30B | {"num_experts": 64}]
    rows = [row(config, loss=3.0 + 0.01 * seed, seed=seed) for seed, config in enumerate(configs)]
    runs = RunTable.of(pd.DataFrame(rows))
    assert runs.replicates[0] == runs.replicates[1] != runs.replicates[2]
    assert runs.shapes[0] == runs.shapes[1] != runs.shapes[2]


def test_law_can_count_total_and_active_parameters():
    runs = RunTable.of(pd.DataFrame([row(QWEN3_30B), row(DEEPSEEK_V3, loss=2.0)]))
    counted = {size: runs.counting(size).sizes.tolist() for size in ("total", "active")}
    assert counted["total"] == [30_532_122_624, 671_026_404_352]
    assert counted["active"] == [3_353_032_704, 37_552_282_624]
    assert runs.size == "non-embedding"
    without_head = runs.counting("active-non-embedding").sizes.tolist()
    assert without_head == [2_730_702_848, 35_698_924_544]


def test_count_of_active_parameters_is_refused_without_its_column():
    with pytest.raises(InputError, match="lacks the column `n_active_non_embedding`"):
        fit("chinchilla", pd.DataFrame([row()]), size="active-non-embedding")
