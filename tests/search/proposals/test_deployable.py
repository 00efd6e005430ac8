import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.errors import InputError
from shapelaw.search.proposals.candidate_set import candidate_set
from shapelaw.search.proposals.request import ProposalRequest
from support.usual_proposals import basis_for, propose_usual, request_for

DEFAULTS = {"any_shape": False, "layers": None, "head_dims": None}


def request(params: str, baseline: str, **changes: object) -> ProposalRequest:
    return request_for(**DEFAULTS | {"params": params, "baseline": baseline, **changes})


@pytest.mark.parametrize(
    ("params", "baseline"),
    [("1B", "llama-3.2-1b"), ("3B", "llama-3.2-3b"), ("8B", "llama-3.1-8b"), ("4B", "qwen3-4b")],
)
def test_baseline_of_the_budgets_size_is_the_published_model(params: str, baseline: str) -> None:
    asked = request(params, baseline)
    assert not asked.rescaled
    assert asked.baseline == shape_named(baseline)
    assert asked.shape_space.parameters == shape_named(baseline).n_non_embedding


def test_baseline_of_another_size_has_the_models_proportions_and_keeps_the_rules() -> None:
    asked = request("2B", "llama-3.2-1b")
    model, shape = shape_named("llama-3.2-1b"), asked.baseline
    assert shape.n_non_embedding == pytest.approx(2e9, rel=0.01)
    assert shape.num_hidden_layers == round(16 * (2e9 / model.n_non_embedding) ** (1 / 3))
    assert shape.gqa == pytest.approx(model.gqa, rel=0.3)
    assert shape.num_key_value_heads in (1, 2, 4, 8)
    assert shape.intermediate_size / shape.hidden_size == pytest.approx(4, rel=0.2)


def test_baseline_of_a_config_file_is_that_model(tmp_path: Path) -> None:
    model = replace(shape_named("qwen3-0.6b"), hidden_size=1152)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model.to_config()))
    asked = request(f"{model.n_non_embedding}", str(path))
    assert asked.baseline == model
    assert propose_usual(**DEFAULTS | {"params": "520M", "baseline": str(path)})[0].shape == model


@pytest.mark.parametrize(
    ("params", "baseline", "hidden", "mlp", "tolerance"),
    [
        ("1B", "llama-3.2-1b", 128, 64, 0.01),
        ("8B", "llama-3.1-8b", 128, 64, 0.01),
        ("60M", "llama-3.2-1b", 128, 16, 0.02),
        ("2M", "llama-3.2-1b", 8, 4, 0.02),
    ],
)
def test_shapes_of_a_search_are_deployable_and_of_the_baselines_size(
    params: str, baseline: str, hidden: int, mlp: int, tolerance: float
) -> None:
    asked = request(params, baseline)
    table, base = asked.shape_space.enumerate(), asked.baseline
    assert len(table) > 100
    assert np.abs(table.n_non_embedding / base.n_non_embedding - 1).max() <= tolerance
    assert not (table.hidden_size % hidden).any()
    assert not (table.intermediate_size % mlp).any()
    assert set(table.num_key_value_heads) <= {1, 2, 4, 8}
    assert set(table.head_dim) <= ({64, 128} if base.n_non_embedding > 1e8 else {base.head_dim})
    assert table.gqa.max() <= 16
    width = table.num_attention_heads * table.head_dim / table.hidden_size
    assert width.min() >= 0.5
    assert width.max() <= 2
    ratio = table.intermediate_size / table.hidden_size
    assert ratio.min() >= 1
    assert ratio.max() <= 8
    depth = table.num_hidden_layers / base.num_hidden_layers
    assert depth.min() >= 0.5
    assert depth.max() <= 1.5
    assert len(set(table.num_hidden_layers)) >= min(base.num_hidden_layers + 1, 8)
    assert len(set(table.gqa)) > 3


def test_tensor_parallel_size_divides_the_key_value_heads() -> None:
    table = request("8B", "llama-3.1-8b", tensor_parallel=4).shape_space.enumerate()
    assert set(table.num_key_value_heads) == {4, 8}
    assert not (table.num_attention_heads % 4).any()
    wide = request("8B", "llama-3.1-8b", tensor_parallel=16).shape_space.enumerate()
    assert set(wide.num_key_value_heads) == {16}


def test_of_several_splits_one_must_divide_the_key_value_heads() -> None:
    table = request("8B", "llama-3.1-8b", tensor_parallel=(2, 4, 8)).shape_space.enumerate()
    assert set(table.num_key_value_heads) == {2, 4, 8}
    odd = request("8B", "llama-3.1-8b", tensor_parallel=(3, 4)).shape_space.enumerate()
    assert set(odd.num_key_value_heads) == {4, 8}
    with pytest.raises(InputError, match="`1 <= tensor_parallel <= 1024` must hold"):
        request("8B", "llama-3.1-8b", tensor_parallel=())


def test_rules_are_printed_and_lifted_on_request() -> None:
    kept = propose_usual(**DEFAULTS)
    assert any("deployable shapes only: head dimension 64 or 128" in note for note in kept.notes)
    assert kept.about()["rules"]
    free = request_for(any_shape=True)
    assert free.rules is None
    assert 18 in set(free.shape_space.enumerate().num_key_value_heads)


def test_losses_are_compared_at_exactly_the_baselines_size() -> None:
    candidates = candidate_set(request("1B", "llama-3.2-1b"), basis_for())
    assert (candidates.frame["n_non_embedding"] == 973_146_112).all()
    assert candidates.table.n_non_embedding.std() > 0
    own = candidates.table.frame().assign(tokens=10**11)
    ratio = candidates.basis.fit.central(own) / candidates.losses
    larger = candidates.table.n_non_embedding > 973_146_112
    assert (ratio[larger] < 1).all(), "more parameters would have given less loss"


def test_total_count_moves_the_laws_size_by_the_same_difference() -> None:
    asked = request("1.24B", "llama-3.2-1b", convention="total")
    candidates = candidate_set(asked, basis_for())
    base = shape_named("llama-3.2-1b").n_total
    assert (candidates.frame["n_total"] == base).all()
    moved = candidates.frame["n_non_embedding"] - candidates.table.n_non_embedding
    assert moved.to_numpy() == pytest.approx(base - candidates.table.n_total)


def test_confidence_below_even_odds_is_refused() -> None:
    with pytest.raises(InputError, match=r"`0.5 <= --confidence < 1` must hold, but got 0.3"):
        request_for(confidence=0.3)


def test_of_shapes_that_differ_in_mlp_width_alone_the_nearest_size_is_a_candidate() -> None:
    asked = request("8B", "llama-3.1-8b")
    every = asked.shape_space.enumerate().frame()
    base = asked.baseline
    kept = candidate_set(asked, basis_for()).table
    fixed = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim"]  # fmt: skip
    assert every.duplicated(fixed).any()
    assert not kept.frame().duplicated(fixed).any()
    gaps = (every["n_non_embedding"] - base.n_non_embedding).abs()
    least = gaps.groupby([every[name] for name in fixed]).min()
    for row in range(0, len(kept), max(1, len(kept) // 50)):
        shape = kept[row]
        gap = abs(shape.n_non_embedding - base.n_non_embedding)
        if shape != base:
            assert gap == least[tuple(getattr(shape, name) for name in fixed)]
    assert base in [kept[row] for row in range(len(kept))]
