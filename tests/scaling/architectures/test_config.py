from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.config import DENSE_FAMILIES
from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
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


def test_an_unknown_model_type_is_refused_with_the_list_of_types():
    families = ", ".join(DENSE_FAMILIES)
    with pytest.raises(
        InputError, match=f"`model_type` must be one of {families}, but got 'gpt2'; give"
    ):
        Shape.from_config(SMALL.to_config() | {"model_type": "gpt2"})


def test_missing_fields_are_named_together():
    config = SMALL.to_config()
    del config["vocab_size"], config["intermediate_size"]
    with pytest.raises(InputError, match="a shape needs `intermediate_size`, `vocab_size`; add"):
        Shape.from_config(config)


def test_missing_head_fields_take_hugging_faces_defaults():
    config = SMALL.to_config()
    del config["head_dim"], config["num_key_value_heads"]
    shape = Shape.from_config(config)
    assert shape.head_dim == SMALL.hidden_size // SMALL.num_attention_heads
    assert shape.num_key_value_heads == SMALL.num_attention_heads


@pytest.mark.parametrize(
    ("family", "norm"), [("llama", False), ("mistral", False), ("smollm3", False), ("qwen3", True)]
)
def test_qk_norm_and_tying_depend_on_the_model_type(family, norm):
    config = SMALL.to_config() | {"model_type": family}
    del config["tie_word_embeddings"]
    shape = Shape.from_config(config)
    assert shape.qk_norm is norm
    assert shape.tie_word_embeddings is False


def test_the_rotary_base_is_read_at_the_top_and_nested():
    config = SMALL.to_config()
    del config["rope_theta"]
    assert Shape.from_config(config).rope_theta == 10_000.0
    assert Shape.from_config(config | {"rope_theta": 5e5}).rope_theta == 5e5
    nested = config | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    assert Shape.from_config(nested).rope_theta == 1e6


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("rope_theta", "wide", "`rope_theta` must be a number, but got 'wide'"),
        ("tie_word_embeddings", "maybe", "`tie_word_embeddings` must be true or false"),
        ("qk_norm", 2, "`qk_norm` must be true or false, but got 2"),
    ],
)
def test_a_switch_or_base_that_cannot_be_read_is_refused(field, value, rule):
    with pytest.raises(InputError, match=rule):
        Shape.from_config(SMALL.to_config() | {field: value})
