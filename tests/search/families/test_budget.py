"""Models of every family at one number of active parameters."""

import pytest

from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.errors import InputError
from shapelaw.search.families.budget import (
    TEMPLATES,
    all_variants,
    common_size,
    models_of_budget,
    parse_variants,
    variant_named,
)

BUDGETS = (50_000, 100_000, 300_000, 1_000_000, 10_000_000, 100_000_000)


@pytest.mark.parametrize("parameters", BUDGETS)
def test_models_of_a_budget_have_its_active_parameters_within_one_percent(parameters: int) -> None:
    models = models_of_budget(all_variants(), parameters, context=256, vocabulary=256)
    assert len(models) == len(TEMPLATES) + 4 == 21
    for variant, model in models.items():
        assert abs(model.n_active_non_embedding / parameters - 1) <= 0.01, variant.name


def test_models_of_a_budget_share_depth_width_and_vocabulary() -> None:
    models = models_of_budget(all_variants(), 300_000, context=256, vocabulary=300)
    sizes = {(m.hidden_size, m.num_hidden_layers, m.vocab_size) for m in models.values()}
    assert sizes == {(80, 6, 300)}
    assert all(model.embedding.tied for model in models.values())


def test_every_family_that_predicts_the_next_token_has_a_template() -> None:
    masked = {name for name in FAMILIES if name.lower().startswith(("llada", "dream", "dhara"))}
    assert set(TEMPLATES) == set(FAMILIES) - masked


def test_active_parameters_of_llama_equal_its_closed_form() -> None:
    (model,) = models_of_budget(
        [variant_named("llama")], 100_000, context=256, vocabulary=256
    ).values()
    d, heads, groups, h, layers, width = 48, 2, 1, 32, 6, 51
    attention = d * (heads + 2 * groups) * h + heads * h * d
    assert (
        model.n_active_non_embedding == layers * (attention + 3 * d * width + 2 * d) + d == 99_984
    )


def test_active_parameters_of_experts_leave_out_those_that_are_not_chosen() -> None:
    (model,) = models_of_budget(
        [variant_named("qwen3_moe")], 100_000, context=256, vocabulary=256
    ).values()
    expert = 3 * 48 * 24
    assert model.n_non_embedding - model.n_active_non_embedding == 6 * (8 - 2) * expert


def test_canon_variant_adds_its_convolutions_within_the_budget() -> None:
    names = ("llama", "llama+canon-ABCD")
    plain, canon = models_of_budget(
        [variant_named(name) for name in names], 300_000, context=256, vocabulary=256
    ).values()
    assert canon.intermediate_size < plain.intermediate_size
    places = canon.first_layer.canon_widths
    width = canon.intermediate_size
    assert places == {"A": 80, "B": 4 * 32, "C": 80, "D": 2 * width}


def test_windows_and_chunks_are_shares_of_the_context() -> None:
    names = ("mistral", "gemma3_text", "llama4_text", "gpt_oss")
    models = models_of_budget(
        [variant_named(name) for name in names], 300_000, context=256, vocabulary=256
    )
    assert [model.local_window for model in models.values()] == [128, 32, 64, 32]


def test_common_size_has_heads_that_divide_the_hidden_size() -> None:
    for parameters in range(20_000, 60_000_000, 777_777):
        size = common_size(parameters, context=256, vocabulary=256)
        assert size.hidden % size.heads == 0
        assert size.heads == 2 * size.groups


def test_budget_that_is_too_small_names_one_that_all_families_meet() -> None:
    variants = [variant_named("gemma3n_text"), variant_named("llama")]
    with pytest.raises(InputError, match=r"8K has no model of .*; use ([\d,]+)") as raised:
        models_of_budget(variants, 8_000, context=256, vocabulary=256)
    nearest = int(str(raised.value).rpartition("use ")[2].replace(",", ""))
    assert 8_000 < nearest < 60_000
    assert len(models_of_budget(variants, nearest, context=256, vocabulary=256)) == 2


@pytest.mark.parametrize("parameters", [0, 999, 10**12])
def test_budgets_out_of_range_are_refused(parameters: int) -> None:
    with pytest.raises(InputError, match="`--params` must be from 1K to 100B"):
        models_of_budget([variant_named("llama")], parameters, context=256, vocabulary=256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("llama,bert", r"must be of llama, .*but got 'bert'"),
        ("llama,qwen3+canon-AX", r"different letters of ABCD, but got .*; write qwen3\+canon-AC"),
        ("llama+canon-A+canon-B", "one .canon-PLACES and one objective"),
        ("llama+masked", "`objective` must be next_token, masked_diffusion or block:SIZE"),
        ("qwen3,qwen3", "qwen3 stands twice"),
        ("llama", "a family beside the baseline llama"),
        ("", "a family beside the baseline llama"),
    ],
)
def test_names_of_families_that_cannot_be_compared_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_variants(text, "llama")


def test_baseline_comes_first_and_need_not_be_named() -> None:
    assert [each.name for each in parse_variants("qwen3,gpt2", "olmo2")] == [
        "olmo2",
        "qwen3",
        "gpt2",
    ]
    assert parse_variants("gpt2,llama", "llama") == parse_variants("gpt2", "llama")
    assert parse_variants(None, "gpt2")[0].name == "gpt2"


def test_names_of_variants_are_read_as_they_are_written() -> None:
    for name in ("gpt2", "qwen3+canon-ACD", "llama+block:16", "llama+canon-A+masked_diffusion"):
        assert variant_named(name).name == name
