"""Spaces of families: counts of their models, limits, and refusals."""

import json
import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.family_space import FamilySpace, family_space, given_axes
from shapelaw.scaling.space.family_table import FamilyTable

COUNTS = ("n_total", "n_active", "n_non_embedding", "n_active_non_embedding")
ROWS = 6  # models of each space that are counted one by one


def enumerated(space: FamilySpace) -> tuple[FamilyTable, dict[str, np.ndarray]]:
    table = space.enumerate()
    columns = space.columns(table)
    return table, {name: columns[name] for name in columns}


def some_rows(number: int) -> list[int]:
    return [int(row) for row in np.random.default_rng(number).integers(0, number, ROWS)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parameters", [300_000, 1_000_000_000])
def test_enumerated_models_have_the_counts_of_their_configs(family: str, parameters: int) -> None:
    table, columns = enumerated(family_space(family, parameters))
    for row in some_rows(len(table)):
        alone = read_architecture(json.loads(json.dumps(table.config(row))))
        for name in COUNTS:
            assert columns[name][row] == getattr(alone, name)
        assert columns["weight_bytes"][row] == 2 * alone.n_total
        assert columns["kv_bytes"][row] == alone.counts(4096)["kv_bytes_per_token"]
        assert columns["cache_bytes"][row] == alone.cache_bytes(4096)
        assert abs(alone.n_active_non_embedding / parameters - 1) <= 0.03


@pytest.mark.parametrize(
    "family",
    [name for name, each in FAMILIES.items() if each.in_transformers and name != "kimi_k2"],
)
def test_enumerated_models_are_those_that_transformers_builds(family: str) -> None:
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    transformers.logging.set_verbosity_error()
    table = family_space(family, 100_000_000).enumerate()
    config = table[len(table) // 2].to_config()
    assert config.pop("model_type") == family
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        settings = transformers.AutoConfig.for_model(family, **config)
        model = transformers.AutoModelForCausalLM.from_config(settings)
    assert sum(p.numel() for p in model.parameters()) == table[len(table) // 2].n_total


@pytest.mark.parametrize("family", FAMILIES)
def test_width_of_a_model_is_the_nearest_to_the_budget(family: str) -> None:
    space = family_space(family, 50_000_000, deployable=False)
    table = space.enumerate()
    width = space.axes.width
    for row in some_rows(len(table)):
        config = table.config(row)

        def distance(steps: int, config: dict[str, Any] = config) -> int:
            changed = config | {width: config[width] + steps * space.width_step}
            for name, text in space.follows.items():
                changed[name] = eval(text, {}, changed)
            return abs(read_architecture(changed).n_active_non_embedding - 50_000_000)

        assert distance(0) <= distance(1)
        if config[width] > space.width_step:
            assert distance(0) <= distance(-1)


def test_sparse_space_equals_a_search_by_loops() -> None:
    given: dict[str, tuple[Any, ...]] = {
        "num_hidden_layers": (4, 6), "hidden_size": (128, 192), "num_attention_heads": (4, 6),
        "num_key_value_heads": (2, 4), "head_dim": (32,), "num_experts": (4, 8, 16),
        "num_experts_per_tok": (2, 6),
    }  # fmt: skip
    space = family_space(
        "qwen3_moe", 3_000_000, given=given, mlp_step=16, deployable=False, tolerance=0.02
    )
    table = space.enumerate()
    found = {tuple(table.config(row)[n] for n in (*given, "moe_intermediate_size"))
             for row in range(len(table))}  # fmt: skip
    wanted = set()
    for layers, d, heads, groups, h, experts, chosen in product(*given.values()):
        if heads % groups or chosen > experts:
            continue
        attention = d * (heads + 2 * groups) * h + heads * h * d
        nearest = min(
            range(16, 4096, 16),
            key=lambda f: abs(
                layers * (attention + d * experts + chosen * 3 * d * f + 2 * d + 2 * h) + d - 3e6
            ),
        )
        layer = attention + d * experts + chosen * 3 * d * nearest + 2 * d + 2 * h
        if abs((layers * layer + d) / 3e6 - 1) <= 0.02:
            wanted.add((layers, d, heads, groups, h, experts, chosen, nearest))
    assert found == wanted
    assert found


def test_latent_models_have_the_parameters_of_the_closed_form() -> None:
    table, columns = enumerated(family_space("deepseek_v3", 2_000_000_000))
    for row in some_rows(len(table)):
        c = table.config(row)
        d, heads, dims = c["hidden_size"], c["num_attention_heads"], c["qk_nope_head_dim"]
        r, v, latent = c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        queries = d * heads * (dims + r)
        if (rank := c["q_lora_rank"]) is not None:
            queries = d * rank + rank + rank * heads * (dims + r)
        attention = queries + d * (latent + r) + latent + latent * heads * (dims + v)
        attention += heads * v * d + 2 * d
        f, shared = c["moe_intermediate_size"], c["n_shared_experts"]
        dense = 3 * d * (c["num_experts_per_tok"] + shared) * f
        sparse = c["num_hidden_layers"] - c["first_k_dense_replace"]
        router, expert = d * c["n_routed_experts"], 3 * d * f
        total = c["num_hidden_layers"] * attention + c["first_k_dense_replace"] * dense
        total += sparse * (router + expert * (c["n_routed_experts"] + shared)) + d
        assert columns["n_non_embedding"][row] == total
        unused = sparse * expert * (c["n_routed_experts"] - c["num_experts_per_tok"])
        assert columns["n_active_non_embedding"][row] == total - unused
        assert columns["kv_bytes"][row] == 2 * (latent + r) * c["num_hidden_layers"]


def test_limits_on_memory_and_cache_hold() -> None:
    free = family_space("gpt_oss", 1_000_000_000)
    space = free.limited(weight_bytes=2e10, cache_bytes=5e7)
    columns, all_columns = enumerated(space)[1], enumerated(free)[1]
    kept = (all_columns["weight_bytes"] <= 2e10) & (all_columns["cache_bytes"] <= 5e7)
    assert 0 < kept.sum() < len(kept)
    assert len(columns["n_total"]) == kept.sum()
    assert columns["weight_bytes"].max() <= 2e10
    assert columns["cache_bytes"].max() <= 5e7


def test_windows_patterns_and_canon_places_are_axes() -> None:
    texts = ["sliding_window=64,256", "layer_types=sliding_attention*3/full_attention",
             "canon_set=none,AC"]  # fmt: skip
    given = given_axes("gpt_oss", texts) | {"num_hidden_layers": (8,)}
    space = family_space("gpt_oss", 300_000_000, given=given, context=1024)
    table = space.enumerate()
    pairs = set()
    for row in range(0, len(table), 7):
        model = table[row]
        kinds = dict(model.fields)["layer_types"]
        assert kinds == (["sliding_attention"] * 3 + ["full_attention"]) * 2
        pairs.add((model.local_window, model.first_layer.canon is not None))
        cached = 2 * 2 * model.num_key_value_heads * model.head_dim
        windows = cached * (2 * 1024 + 6 * min(model.local_window or 0, 1024))
        states = 2 * 8 * 2 * 3 * model.hidden_size if model.first_layer.canon else 0
        assert model.cache_bytes(1024) == windows + states
    assert pairs == {(64, False), (256, False), (64, True), (256, True)}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_usual_axis_can_be_given(family: str) -> None:
    usual = family_space(family, 1_000_000_000).values
    plain = {
        name: [value for value in values if isinstance(value, int)]
        for name, values in usual.items()
        if all(isinstance(value, int | None) for value in values)
    }
    texts = [f"{name}={values[-1]}" for name, values in plain.items() if values and values[-1] > 1]
    given = given_axes(family, texts)
    assert given == {n: (v[-1],) for n, v in plain.items() if v and v[-1] > 1}


def test_names_of_models_of_a_space_differ() -> None:
    for family in FAMILIES:
        table = family_space(family, 1_000_000_000).enumerate()
        table = table.take(np.arange(0, len(table), max(len(table) // 300, 1)))
        names = [table[row].name for row in range(len(table))]
        assert len(set(names)) == len(names), family


def test_joined_parts_of_a_table_are_the_table() -> None:
    table = family_space("mistral", 300_000_000).enumerate()
    halves = [table.take(np.arange(len(table)) % 2 == rest) for rest in (0, 1)]
    joined = FamilyTable.joined(halves)
    totals = np.concatenate([half.counted(lambda a: a.n_total) for half in halves])
    assert (joined.counted(lambda a: a.n_total) == totals).all()
    assert isinstance(joined[0], Architecture)


@pytest.mark.parametrize(
    ("family", "texts", "said"),
    [
        (
            "deepseek_v3",
            ["n_group=3"],
            r"`n_routed_experts % n_group == 0`; use n_routed_experts 63 or 66, or n_group 2 or 4$",
        ),
        ("deepseek_v3", ["qk_rope_head_dim=33"], r"% 2 == 0`; use qk_rope_head_dim 32 or 34$"),
        (
            "qwen3_moe",
            ["num_experts_per_tok=300"],
            "use num_experts 300, or num_experts_per_tok 128$",
        ),
        ("qwen3", ["num_attention_heads=15"], "use num_attention_heads 14 or 16"),
    ],
)
def test_axis_that_fits_no_model_is_refused_with_the_rule_and_valid_values(
    family: str, texts: list[str], said: str
) -> None:
    given = given_axes(family, texts)
    if family == "qwen3":
        given |= {"num_key_value_heads": (2,)}
    with pytest.raises(InputError, match=said):
        family_space(family, 1_000_000_000, given=given).enumerate()


@pytest.mark.parametrize(
    ("family", "text", "said"),
    [
        ("qwen3_moe", "n_routed_experts=8", "`--axis` must be FIELD=VALUES with a field of"),
        ("qwen3_moe", "moe_intermediate_size=8", "is solved for the budget"),
        ("qwen3_moe", "num_experts", "`--axis` must be FIELD=VALUES"),
        ("qwen3_moe", "num_experts=none", "must be whole numbers for qwen3_moe, but got none"),
        ("qwen3_moe", "num_experts=8,x", "must be whole numbers like"),
        ("gpt_oss", "layer_types=conv", "must be kinds of full_attention"),
        ("lfm2", "layer_types=conv*0", "must be kinds of full_attention, conv"),
        ("llama", "canon_set=AX", "must be none or letters of ABCD"),
        ("mistral", "sliding_window=0", "must be whole numbers like"),
    ],
)
def test_axis_of_wrong_form_is_refused(family: str, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        given_axes(family, [text])


def test_budget_that_no_width_meets_is_refused_with_a_way_out() -> None:
    given = {"num_hidden_layers": (4,), "hidden_size": (8192,)}
    with pytest.raises(InputError, match="narrowest MLP; take fewer layers or smaller"):
        family_space("qwen3_moe", 10_000_000, given=given, deployable=False).enumerate()


def test_condition_on_an_unknown_column_is_refused() -> None:
    with pytest.raises(InputError, match="names 'aspect', which the space lacks; it has num_"):
        family_space("deepseek_v3", 10**9, constraints=("aspect <= 4",))


def test_space_with_too_many_combinations_is_refused() -> None:
    given = {"hidden_size": tuple(range(64, 64_064, 64)), "num_experts": tuple(range(8, 1008))}
    with pytest.raises(InputError, match=r"combinations of its axes.*give fewer values by --axis"):
        family_space("qwen3_moe", 10**9, given=given)


def test_unknown_family_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match=r"`--family` must be one of llama, .*but got 'mamba'"):
        family_space("mamba", 10**9)
