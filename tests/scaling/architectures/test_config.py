from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.config import read_architecture
from shapelaw.scaling.architectures.config_fields import ACTIVATIONS
from shapelaw.scaling.architectures.registry import FAMILIES
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.architectures.shape_config import SHAPE_FAMILIES, read_shape, read_trainable
from shapelaw.scaling.errors import InputError
from support.shapes import SMALL, golden_shape, read_golden, shapes


@given(shape=shapes(), positions=st.integers(1, 10**6))
def test_a_config_reads_back_as_the_same_shape(shape, positions):
    config = shape.to_config(max_position_embeddings=positions)
    assert config["max_position_embeddings"] == positions
    assert Shape.from_config(config) == shape


@given(shape=shapes())
def test_a_row_of_a_run_table_reads_back_as_the_same_shape(shape):
    assert Shape.from_config(asdict(shape)) == shape
    as_text = {name: str(value) for name, value in asdict(shape).items()}
    assert Shape.from_config(as_text) == shape


@pytest.mark.parametrize("qk_norm", [False, True])
def test_transformers_accepts_the_config_with_equal_fields(qk_norm):
    transformers = pytest.importorskip("transformers")
    kind = transformers.Qwen3Config if qk_norm else transformers.LlamaConfig
    shape = replace(SMALL, qk_norm=qk_norm, tie_word_embeddings=False, rope_theta=5e5)
    config = kind.from_dict(shape.to_config(max_position_embeddings=128))
    for name in (*INTEGER_FIELDS, "tie_word_embeddings"):
        assert getattr(config, name) == getattr(shape, name), name
    assert config.max_position_embeddings == 128
    assert config.architectures == [f"{'Qwen3' if qk_norm else 'Llama'}ForCausalLM"]
    assert config.rms_norm_eps == 1e-5
    assert config.hidden_act == "silu"
    assert Shape.from_config(config.to_dict()) == shape


@pytest.mark.parametrize("qk_norm", [False, True])
def test_transformers_accepts_a_shape_whose_heads_do_not_divide_the_hidden_size(qk_norm):
    transformers = pytest.importorskip("transformers")
    panda = replace(
        golden_shape(read_golden("conditional_law_models.csv")[1]),
        vocab_size=128_256,
        qk_norm=qk_norm,
    )
    assert panda.hidden_size % panda.num_attention_heads
    config = transformers.AutoConfig.for_model(**panda.to_config())
    assert getattr(config, "sliding_window", None) is None
    assert Shape.from_config(config.to_dict()) == panda


@pytest.mark.parametrize("value", [64.5, "many", float("nan"), float("inf"), [64], -2, 0])
def test_a_config_with_a_count_that_is_no_positive_integer_is_refused(value):
    config = SMALL.to_config() | {"intermediate_size": value}
    with pytest.raises(InputError, match="`intermediate_size` must be a positive integer, but got"):
        Shape.from_config(config)


def test_a_config_without_head_dim_and_with_a_broken_head_count_is_refused_by_name():
    config = SMALL.to_config() | {"num_attention_heads": "many"}
    del config["head_dim"]
    with pytest.raises(InputError, match="`num_attention_heads` must be a positive integer"):
        Shape.from_config(config)


@pytest.mark.parametrize("kind", ["falcon", "phi3", None, ["llama"], 3])
def test_an_unknown_model_type_is_refused_with_the_list_of_types(kind):
    families = ", ".join(FAMILIES)
    with pytest.raises(InputError, match=f"`model_type` must be one of {families}, but got"):
        Shape.from_config(SMALL.to_config() | {"model_type": kind})


def test_a_family_that_no_shape_describes_is_refused_with_the_command_that_counts_it():
    families = ", ".join(SHAPE_FAMILIES)
    with pytest.raises(
        InputError, match=f"one of {families} to be read as a shape, but got 'gpt2'.*shapelaw count"
    ):
        Shape.from_config({"model_type": "gpt2"})


def test_missing_fields_of_a_row_are_named_together():
    config = SMALL.to_config()
    del config["vocab_size"], config["intermediate_size"], config["model_type"]
    with pytest.raises(InputError, match="a shape needs `intermediate_size`, `vocab_size`; add"):
        Shape.from_config(config)


@pytest.mark.parametrize("family", SHAPE_FAMILIES)
def test_a_shape_of_a_config_with_nothing_but_its_model_type_is_that_of_transformers(family):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(family)
    shape = Shape.from_config({"model_type": family})
    heads, hidden = config.num_attention_heads, config.hidden_size
    for name in set(INTEGER_FIELDS) - {"head_dim"} | {"tie_word_embeddings"}:
        assert getattr(shape, name) == getattr(config, name), name
    assert shape.head_dim == getattr(config, "head_dim", hidden // heads)
    assert shape.rope_theta == config.rope_parameters["rope_theta"]


def test_activations_are_those_of_transformers():
    activations = pytest.importorskip("transformers.activations")
    assert set(activations.ACT2FN) == ACTIVATIONS


@pytest.mark.parametrize(
    ("family", "norm", "biases", "gated"),
    [
        ("llama", False, False, True),
        ("mistral", False, False, True),
        ("smollm3", False, False, True),
        ("qwen2", False, True, True),
        ("qwen3", True, False, True),
        ("arcee", False, False, False),
    ],
)
def test_norm_biases_and_gate_of_a_shape_depend_on_the_model_type(family, norm, biases, gated):
    shape = Shape.from_config({"model_type": family})
    assert (shape.qk_norm, shape.qkv_bias, shape.gated) == (norm, biases, gated)
    assert not shape.output_bias
    assert not shape.mlp_bias
    if family != "mistral":  # its default has a window, which no shape has
        assert Shape.from_config(shape.to_config()) == shape
    assert shape.n_total == read_architecture({"model_type": family}).n_total


def test_attention_and_mlp_biases_of_a_shape_are_counted():
    plain = {"model_type": "llama", "num_hidden_layers": 2}
    biased = Shape.from_config(plain | {"attention_bias": True, "mlp_bias": True})
    d, f = 4096, 11_008
    per_layer = 3 * d + d + 2 * f + d  # q, k, v; output; gate and up; down
    assert biased.n_total - Shape.from_config(plain).n_total == 2 * per_layer
    assert Shape.from_config(biased.to_config()) == biased


def test_an_mlp_without_a_gate_has_two_matrices_in_parameters_and_flops():
    gated, plain = replace(SMALL, gated=True), replace(SMALL, gated=False)
    matrix = SMALL.hidden_size * SMALL.intermediate_size
    layers = SMALL.num_hidden_layers
    assert gated.n_non_embedding - plain.n_non_embedding == layers * matrix
    assert gated.forward_flops(10) - plain.forward_flops(10) == 2 * layers * matrix
    assert plain.mlp_parameters == 2 * matrix
    with pytest.raises(InputError, match="`gated` must be as in Llama to be trained"):
        plain.require_gate_without_biases("be trained")


def test_a_window_is_left_out_of_a_shape_with_a_note():
    shape, notes = read_shape({"model_type": "mistral"})
    assert shape.num_key_value_heads == 8
    assert any("window of 4096 tokens" in note for note in notes)
    assert not read_shape({"model_type": "mistral", "sliding_window": None})[1]


@pytest.mark.parametrize(
    ("field", "value", "theta", "noted"),
    [
        ("rope_theta", 5e5, 5e5, False),
        ("rope_parameters", {"rope_theta": 1e6, "rope_type": "default"}, 1e6, False),
        ("rope_scaling", {"type": "yarn", "factor": 4.0, "rope_theta": 3e5}, 3e5, True),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}, 10_000.0, True),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e6}}, 1e6, False),
        ("rope_parameters", {}, 10_000.0, False),
    ],
)
def test_the_rotary_base_is_read_at_the_top_nested_and_per_layer_type(field, value, theta, noted):
    shape, notes = read_shape({"model_type": "llama", field: value})
    assert shape.rope_theta == theta
    assert bool(notes) == noted


def test_the_rotary_base_of_a_family_is_its_own():
    assert Shape.from_config({"model_type": "smollm3"}).rope_theta == 2e6


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"rope_parameters": "abc"}, "`rope_parameters` must be an object"),
        ({"rope_theta": None}, "`rope_theta` must be a positive number, but got null"),
        ({"rope_theta": "wide"}, "`rope_theta` must be a positive number, but got wide"),
        ({"rope_parameters": {"full_attention": 3}}, "must hold an object per layer type"),
        ({"rope_scaling": {"type": "linear"}}, "`factor` must be a positive number, but got null"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}, "max_position_embeddings": "long"},
            "`max_position_embeddings` must be a positive number, but got long",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale_all_dim": "one"}},
            "`mscale_all_dim` must be a positive number, but got one",
        ),
        ({"hidden_size": 100, "num_attention_heads": 6}, "use a hidden size of 96 or 102"),
        ({"num_experts": 8}, "`num_experts` is no field of llama"),
        ({"hidden_act": "swoosh"}, "`hidden_act` must be an activation of transformers"),
        ({"hidden_size": 10**13}, "`hidden_size` must be at most 1,000,000,000,000"),
        ({"hidden_size": 10**400}, "`hidden_size` must be at most 1,000,000,000,000"),
        (
            {"model_type": "gemma3n_text", "intermediate_size": [64] * 34 + [10**13]},
            "`intermediate_size` must be at most 1,000,000,000,000",
        ),
        ({"num_hidden_layers": 10**7}, "`num_hidden_layers` must be at most 10,000"),
        ({"hidden_size": True}, "`hidden_size` must be a positive integer, but got True"),
        ({"head_dim": 7}, "`head_dim % 2 == 0` must hold for rotary positions, but got 7"),
        ({"text_config": {}}, "`text_config` must name its `model_type`"),
        ({"text_config": [1]}, "`text_config` must be an object"),
    ],
)
def test_a_config_that_breaks_a_rule_is_refused_in_one_line(fields, rule):
    with pytest.raises(InputError) as refusal:
        read_architecture({"model_type": "llama", **fields})
    assert rule in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_language_model_inside_is_read_and_the_rest_named():
    inner = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2}
    outer = {"model_type": "some_vl", "text_config": inner, "vision_config": {"hidden_size": 9}}
    architecture = read_architecture(outer)
    assert architecture.n_total == read_architecture(inner).n_total
    assert any("left out: vision_config" in note for note in architecture.notes)
    named = read_architecture({"model_type": "gemma3", "text_config": {"hidden_size": 64}})
    assert named.model_type == "gemma3_text"


@pytest.mark.parametrize(
    "inner",
    [{"model_type": "mistral", "sliding_window": 8}, {"model_type": "gemma3_text"}],
    ids=["window that a shape lacks", "family that is no shape"],
)
def test_language_model_inside_a_config_without_a_type_is_trained_whole(inner):
    assert read_trainable({"text_config": inner}) == read_architecture(inner)


def test_fields_that_the_family_does_not_have_are_named():
    ignored = {"sliding_window": 512, "quantization_config": {"bits": 4}}
    notes = read_architecture({"model_type": "llama", **ignored}).notes
    assert any("llama has no `sliding_window`: ignored" in note for note in notes)
    assert any("`quantization_config`" in note for note in notes)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("rope_theta", "wide", "`rope_theta` must be a number, but got 'wide'"),
        ("gated", "perhaps", "`gated` must be true or false, but got 'perhaps'"),
        ("tie_word_embeddings", "maybe", "`tie_word_embeddings` must be true or false"),
        ("qk_norm", 2, "`qk_norm` must be true or false, but got 2"),
    ],
)
def test_a_switch_or_base_that_cannot_be_read_is_refused(field, value, rule):
    with pytest.raises(InputError, match=rule):
        Shape.from_config(asdict(SMALL) | {field: value})
