"""Proposals among the models of a family, at equal active N."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.space.family_space import given_axes
from shapelaw.search.cli import app
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines._torch import TorchEngine
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.proposals.basis import LossBasis
from shapelaw.search.proposals.family_candidates import (
    columns_for_laws,
    differing_fields,
    family_candidates,
)
from shapelaw.search.proposals.family_request import FamilyRequest
from shapelaw.search.proposals.request import Budget, Serving, SpaceOptions
from shapelaw.search.workload import parse_workload

CAUSAL = [name for name, family in FAMILIES.items() if "mask_token_id" not in family.fields]
LAW = "paper-2510.18245"
ASK = ("propose", "--params", "1B", "--tokens", "100B", "--law", LAW, "--workload", "chat",
       "--engine", "roofline:h100")  # fmt: skip


def request(family: str, workload: str = "chat:bf16", **options: Any) -> FamilyRequest:
    space = {key: options.pop(key) for key in ("baseline", "where", "any_shape") if key in options}
    return FamilyRequest(
        family=family,
        budget=Budget(parameters=options.pop("parameters", 1_000_000_000), tokens=10**11),
        space=SpaceOptions(**space),
        serving=Serving(
            workload=parse_workload(workload),
            engine=options.pop("engine", engine_named("roofline:h100")),
        ),
        **options,
    )


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("parameters", [300_000, 1_000_000_000])
def test_candidates_of_a_family_have_the_active_size_of_its_baseline(
    family: str, parameters: int
) -> None:
    found = family_candidates(
        request(family, parameters=parameters, any_shape=parameters < 10**6),
        LossBasis(fit=printed_fit(LAW), published=LAW),
    )
    base = found.request.baseline
    models = [found.table[row] for row in range(len(found.table))]
    assert models[found.baseline] == base
    assert len(models) > 1
    tolerance = found.request.budget.largest_difference
    for model in models:
        assert isinstance(model, Architecture)
        assert model.model_type == family
        ratio = model.n_active_non_embedding / base.n_active_non_embedding
        assert abs(ratio - 1) <= tolerance
    equal = found.frame["n_non_embedding"]
    assert (equal == base.n_active_non_embedding).all()
    differing = np.sum([*found.not_in_law.values()], axis=0)
    assert differing.max() == 1  # each change without a term is seen alone
    assert (found.kinds > 0).tolist() == (differing > 0).tolist()


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma3n_text", "gpt_oss"])
def test_speeds_of_a_table_are_those_of_its_models(family: str) -> None:
    asked = request(family, "512/256@16:bf16,tp=1/2")
    table = asked.shape_space.enumerate()
    table = table.take(np.arange(0, len(table), len(table) // 9))
    engine = asked.serving.engine
    rates, ttft, tpot = engine.speeds(table, asked.serving.workload)  # type: ignore[arg-type]
    for row in range(len(table)):
        alone = engine.measure(table[row], asked.serving.workload)  # type: ignore[arg-type]
        assert isinstance(alone, Measurement)
        assert rates[row] == pytest.approx(alone.output_tokens_per_second, rel=1e-12)
        assert (ttft[row], tpot[row]) == pytest.approx((alone.ttft, alone.tpot), rel=1e-12)


def test_published_model_of_the_size_is_the_baseline_itself(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128, "vocab_size": 99}
    path.write_text(json.dumps(config))
    model = read_architecture(config)
    asked = request("qwen3_moe", parameters=model.n_active_non_embedding, baseline=str(path))
    assert not asked.rescaled
    assert asked.baseline == model
    assert {dict(asked.shape_space.constants)["vocab_size"]} == {99}


def test_rescaled_baseline_keeps_the_proportions_of_the_reference() -> None:
    asked = request("qwen3_moe", parameters=350_000_000)
    base, published = asked.baseline, asked.model
    scale = (350e6 / published.n_active_non_embedding) ** (1 / 3)
    assert base.num_hidden_layers == round(48 * scale)
    assert base.hidden_size == pytest.approx(2048 * scale, rel=0.3)
    fields = dict(base.fields)
    assert (fields["num_experts"], fields["num_experts_per_tok"]) == (128, 8)
    assert abs(base.n_active_non_embedding / 350e6 - 1) <= 0.05


def test_law_with_terms_of_experts_prices_their_numbers() -> None:
    asked = request("qwen3_moe")
    table, row = asked.shape_space.enumerate().with_model(asked.baseline)
    dense = differing_fields(asked, law_named("conditional"), table, row)
    sparse = differing_fields(asked, law_named("sparse"), table, row)
    assert {"num_experts", "num_experts_per_tok"} <= set(dense)
    assert not {"num_experts", "num_experts_per_tok"} & set(sparse)
    columns = columns_for_laws(table)
    assert columns["active_experts"].iloc[row] == 8
    assert columns["expert_sparsity"].iloc[row] == 16
    model = table[row]
    assert columns["sparsity"].iloc[row] == model.n_non_embedding / model.n_active_non_embedding


def test_model_with_fewer_parameters_at_equal_active_ones_is_no_equal_of_the_baseline() -> None:
    asked = request("deepseek_v3")
    table, row = asked.shape_space.enumerate().with_model(asked.baseline)
    differs = differing_fields(asked, law_named("conditional"), table, row)
    base = table[row]
    experts = ("n_routed_experts", "num_experts_per_tok", "n_shared_experts")
    for place in range(0, len(table), len(table) // 60):
        model = table[place]
        ratio = model.sparsity / base.sparsity
        same = all(dict(model.fields)[name] == dict(base.fields)[name] for name in experts)
        assert differs["sparsity"][place] == (same and not 1 / 1.05 <= ratio <= 1.05)
    assert differs["sparsity"].any()
    assert "sparsity" not in differing_fields(asked, law_named("sparse"), table, row)


def test_condition_on_a_field_accepts_its_change() -> None:
    basis = LossBasis(fit=printed_fit(LAW), published=LAW)
    free = family_candidates(request("gpt_oss"), basis)
    named = family_candidates(request("gpt_oss", where=("num_local_experts <= 128",)), basis)
    changed = named.not_in_law["num_local_experts"]
    assert (free.kinds[free.not_in_law["num_local_experts"]] > 0).all()
    assert (named.kinds[changed] == 0).any()


def test_command_proposes_models_with_experts_and_writes_their_configs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--family", "qwen3_moe", "--axis", "num_experts=64,128", "--out", str(out))
    done = CliRunner().invoke(app, [*ASK, *options, "--extrapolate"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "e8of128" in done.stdout
    assert "num_experts" in done.stdout
    document = json.loads((out / "proposals.json").read_text())
    assert document["family"] == "qwen3_moe"
    assert document["baseline"] == "the reference of qwen3_moe"
    rows = document["proposals"]
    for row in rows:
        config = json.loads((out / "proposals" / row["name"] / "config.json").read_text())
        model = read_architecture(config)
        assert config["model_type"] == row["model_type"] == "qwen3_moe"
        assert (row["n_total"], row["n_active"]) == (model.n_total, model.n_active)
        assert row["weight_bytes"] == 2 * model.n_total
        assert row["cache_bytes"] == model.cache_bytes(512 + 256)
        assert row["tpot"] > 0
    apart = [row["not_in_law"] for row in rows if row["apart"]]
    assert ["num_experts"] in apart
    assert all(len(fields) == 1 for fields in apart)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "mamba"}, "`--family` must be one of llama"),
        ({"family": "llada"}, "`--family` must be one that generates token by token"),
        (
            {"engine": TorchEngine()},
            "`--family` needs an engine that computes speeds, but got torch",
        ),
        ({"baseline": "qwen3-8b"}, "`--baseline` must be a config.json of qwen3_moe"),
        ({"axes": {"num_experts": (3,)}}, "num_experts % 8 == 0`; use num_experts 8"),
    ],
)
def test_request_that_no_search_can_answer_is_refused(changes: dict[str, Any], said: str) -> None:
    def search() -> None:
        asked = request(**{"family": "qwen3_moe", **changes})
        family_candidates(asked, LossBasis(fit=printed_fit(LAW), published=LAW))

    with pytest.raises(InputError, match=said):
        search()


def test_baseline_of_another_family_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt_oss"}))
    with pytest.raises(InputError, match=r"must be a config of qwen3_moe, but .* is of gpt_oss"):
        request("qwen3_moe", baseline=str(path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--axis", "num_experts=8"), "`--axis` belongs to --family"),
        (("--family", "gpt_oss", "--axis", "kv_lora_rank=8"), "`--axis` must be FIELD=VALUES"),
        (("--family", "deepseek_v3", "--head-dim", "64"), "`--head-dim` must be left out"),
    ],
)
def test_wrong_options_of_a_family_search_are_refused(options: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, [*ASK, *options])
    assert done.exit_code == 1
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)


def test_given_axes_are_searched() -> None:
    axes = given_axes("deepseek_v3", ["kv_lora_rank=256,512", "n_routed_experts=64"])
    asked = request("deepseek_v3", axes=axes)
    table = asked.shape_space.enumerate()
    assert set(table.numbers["kv_lora_rank"]) == {256, 512}
    assert set(table.numbers["n_routed_experts"]) == {64}


# A list over the layers of a baseline that differs from the family's rule, of 16 layers.
LISTS = {
    "smollm3": {"no_rope_layers": [0, 1] * 8},
    "qwen3_moe": {"mlp_only_layers": [0, 5, 6]},
    "llama4_text": {"moe_layers": [1, 4, 9, 15], "no_rope_layers": [1, 1, 0, 1] * 4},
    "gemma3n_text": {"activation_sparsity_pattern": [0.5] * 4 + [0.0] * 12},
}
DEPTH = 16


def listed_request(family: str, path: Path, lists: dict[str, Any]) -> FamilyRequest:
    """Ask for models of the size of a baseline with lists over its layers."""
    axes = FAMILIES[family].axes
    config = {"model_type": family, **axes.reference, "num_hidden_layers": DEPTH, **lists}
    if family == "gemma3n_text":
        config |= {"num_kv_shared_layers": 0, "hidden_size": 1024, "intermediate_size": 4096}
    if family == "llama4_text":
        config |= {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2,
                   "intermediate_size": 2048, "intermediate_size_mlp": 4096}  # fmt: skip
    path.write_text(json.dumps(config))
    size = read_architecture(config).n_active_non_embedding
    return request(family, parameters=size, baseline=str(path), any_shape=True)


@pytest.mark.parametrize("family", LISTS)
def test_lists_over_the_layers_are_kept_at_the_depth_and_pattern_of_the_baseline(
    family: str, tmp_path: Path
) -> None:
    lists = LISTS[family]
    asked = listed_request(family, tmp_path / "config.json", lists)
    found = family_candidates(asked, LossBasis(fit=printed_fit(LAW), published=LAW))
    assert found.table[found.baseline] == asked.model
    space = asked.shape_space
    kept, ruled = [], []
    for structure in space.structures:
        same = all(structure[name] == value for name, value in space.listed_at.items())
        (kept if same else ruled).append({name: structure[name] for name in lists})
    assert kept == [lists] * len(kept)
    assert ruled == [dict.fromkeys(lists)] * len(ruled)
    assert min(len(kept), len(ruled)) > 0
    notes = asked.layer_notes()
    for name in lists:
        [told] = [note for note in notes if f"`{name}`" in note]
        assert f"models of its {DEPTH} layers and pattern; others have the rule" in told
        assert FAMILIES[family].fields[name].rule in told


def test_attention_layers_given_by_number_are_a_pattern(tmp_path: Path) -> None:
    lists = {"full_attn_idxs": [1, 3, 5, 7, 9, 11, 13, 15]}
    asked = listed_request("lfm2", tmp_path / "config.json", lists)
    assert ("conv", "full_attention") in asked.shape_space.values["layer_types"]
    found = family_candidates(asked, LossBasis(fit=printed_fit(LAW), published=LAW))
    kinds = dict(found.table[found.baseline].fields)["layer_types"]
    assert kinds == ["conv", "full_attention"] * 8
    assert asked.layer_notes() == []
    config = json.loads((tmp_path / "config.json").read_text())
    assert asked.model.n_total == read_architecture(config).n_total
    assert asked.model.intermediate_size == 256 * -(-int(2 * 8192 / 3) // 256)  # as the class


def test_layers_without_a_period_are_said_to_be_repeated_or_cut(tmp_path: Path) -> None:
    kinds = ["conv"] * 9 + ["full_attention"] * 7
    asked = listed_request("lfm2", tmp_path / "config.json", {"layer_types": kinds})
    [told] = asked.layer_notes()
    assert "no period: models of other depths than 16" in told


def test_command_says_which_list_has_been_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    asked = listed_request("smollm3", path, LISTS["smollm3"])
    out = tmp_path / "out"
    size = str(asked.model.n_active_non_embedding)
    done = CliRunner().invoke(
        app,
        [*ASK, "--params", size, "--family", "smollm3", "--baseline", str(path), "--any",
         "--extrapolate", "--out", str(out)],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0
    notes = json.loads((out / "proposals.json").read_text())["notes"]
    assert any("`no_rope_layers` of the baseline holds for models of its 16" in n for n in notes)
    rows = json.loads((out / "proposals.json").read_text())["proposals"]
    [base] = [row for row in rows if row["role"] == "baseline"]
    config = json.loads((out / "proposals" / base["name"] / "config.json").read_text())
    assert config["no_rope_layers"] == LISTS["smollm3"]["no_rope_layers"]
