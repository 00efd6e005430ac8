import csv
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import DENSE_FAMILIES, INTEGER_FIELDS, RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from support.paths import ROOT

GOLDEN = ROOT / "tests" / "golden"
SMALL = Shape(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=48,
    vocab_size=300,
)
# Every number that follows from a shape: those without and those with an argument.
PROPERTIES = (
    *("attention_parameters", "mlp_parameters", "n_non_embedding", "n_total", "n_active"),
    *RATIOS,
)
COSTS = (
    lambda shape: shape.forward_flops(1000),
    lambda shape: shape.training_flops(257),
    lambda shape: shape.kv_bytes(),
    lambda shape: shape.kv_bytes(1),
    lambda shape: shape.weight_bytes(),
    lambda shape: shape.weight_bytes(4),
)


def read_golden(name: str) -> list[dict[str, str]]:
    with (GOLDEN / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def golden_shape(row: dict[str, str]) -> Shape:
    return Shape(
        **{name: int(row.get(name, 1)) for name in INTEGER_FIELDS},
        tie_word_embeddings=row.get("tie_word_embeddings") == "True",
        qk_norm=row.get("qk_norm") == "True",
    )


@st.composite
def shapes(draw: st.DrawFn, *, most: int = 200, widest: int = 20_000) -> Shape:
    groups = draw(st.integers(1, 8))
    return Shape(
        hidden_size=draw(st.integers(1, widest)),
        intermediate_size=draw(st.integers(1, widest)),
        num_hidden_layers=draw(st.integers(1, most)),
        num_attention_heads=groups * draw(st.integers(1, 16)),
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 128)),
        vocab_size=draw(st.integers(1, 300_000)),
        tie_word_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        rope_theta=draw(st.floats(1.0, 1e9)),
    )


@pytest.mark.parametrize("row", read_golden("parameter_counts.csv"), ids=lambda row: row["name"])
def test_counts_of_published_models_are_exact(row):
    shape = golden_shape(row)
    assert shape.n_total == int(row["n_total"])
    assert shape.n_active == shape.n_total
    assert shape.n_non_embedding == int(row["n_non_embedding"])
    assert shape.kv_bytes() == int(row["kv_bytes"])


@pytest.mark.parametrize(
    "row", read_golden("conditional_law_models.csv"), ids=lambda row: row["name"]
)
def test_ratios_of_the_conditional_laws_models_are_those_printed(row):
    shape = golden_shape(row)
    assert shape.mlp_to_attention == pytest.approx(float(row["mlp_to_attention"]), abs=5e-4)
    assert shape.hidden_over_sqrt_n == pytest.approx(float(row["hidden_over_sqrt_n"]), abs=1e-4)
    assert shape.gqa == float(row["gqa"])
    layer = shape.attention_parameters + shape.mlp_parameters
    without_norms = shape.num_hidden_layers * layer
    assert without_norms == pytest.approx(float(row["n_non_embedding"]), rel=1e-4)


def test_llama_1b_has_the_published_count_without_norms():
    shape = golden_shape(read_golden("conditional_law_models.csv")[0])
    layer = shape.attention_parameters + shape.mlp_parameters
    assert shape.num_hidden_layers * layer == 973_078_528


def test_training_flops_of_the_benchmark_model_count_head_and_attention():
    shape = golden_shape(read_golden("parameter_counts.csv")[-1])
    flops = shape.training_flops(256)
    assert flops == 47_212_032
    assert 6 * shape.vocab_size * shape.hidden_size / flops == pytest.approx(0.133, abs=5e-4)
    attention = flops - shape.training_flops(0)
    assert attention / flops == pytest.approx(0.067, abs=5e-4)
    assert 6 * shape.n_non_embedding / flops == pytest.approx(0.80, abs=5e-3)


@given(shape=shapes(), context=st.integers(0, 100_000))
def test_flops_are_linear_in_context_and_training_costs_three_forward_passes(shape, context):
    none, one, far = (shape.forward_flops(c) for c in (0, 1, context))
    assert none == 2 * (shape.n_non_embedding + shape.vocab_size * shape.hidden_size)
    assert far - none == context * (one - none)
    assert shape.training_flops(2 * context) == 3 * far


@given(shape=shapes())
def test_tying_saves_one_table_and_qk_norm_costs_two_vectors_a_layer(shape):
    tied, untied = (replace(shape, tie_word_embeddings=tie) for tie in (True, False))
    assert untied.n_total - tied.n_total == shape.vocab_size * shape.hidden_size
    assert untied.n_non_embedding == tied.n_non_embedding
    plain, normed = (replace(shape, qk_norm=norm) for norm in (False, True))
    extra = 2 * shape.head_dim * shape.num_hidden_layers
    assert normed.n_non_embedding - plain.n_non_embedding == extra


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(shapes(), min_size=1, max_size=8))
def test_a_table_of_shapes_answers_what_each_shape_answers(rows):
    table = ShapeTable.of(rows)
    assert len(table) == len(rows)
    assert [table[i] for i in range(len(rows))] == rows
    for name in PROPERTIES:
        expected = [getattr(shape, name) for shape in rows]
        np.testing.assert_allclose(getattr(table, name), expected, rtol=1e-15)
    for cost in COSTS:
        np.testing.assert_array_equal(cost(table), [cost(shape) for shape in rows])


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(shapes(), min_size=2, max_size=6), data=st.data())
def test_a_table_takes_rows_by_position_and_by_mask(rows, data):
    table = ShapeTable.of(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))
    taken = table.take(np.array(chosen))
    assert [taken[i] for i in range(len(taken))] == [rows[i] for i in chosen]
    mask = np.array([i in chosen for i in range(len(rows))])
    masked = table.take(mask)
    kept = [shape for shape, keep in zip(rows, mask, strict=True) if keep]
    assert [masked[i] for i in range(len(masked))] == kept


def test_the_frame_of_a_table_holds_fields_counts_and_ratios():
    frame = ShapeTable.of([SMALL, replace(SMALL, num_hidden_layers=5)]).frame()
    assert set(frame.columns) == {*asdict(SMALL), "n_total", "n_active", "n_non_embedding", *RATIOS}
    assert frame["n_total"].tolist() == [
        SMALL.n_total,
        replace(SMALL, num_hidden_layers=5).n_total,
    ]
    assert frame["tie_word_embeddings"].dtype == bool


def test_counts_do_not_overflow_in_a_table_of_large_models():
    shape = golden_shape(read_golden("parameter_counts.csv")[9])
    row = ShapeTable.of([replace(shape, num_hidden_layers=4000)]).frame().iloc[0]
    assert row["n_total"] == replace(shape, num_hidden_layers=4000).n_total


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


@settings(deadline=None, max_examples=25)
@given(shape=shapes(most=3, widest=64), context=st.integers(1, 16))
def test_counted_parameters_are_those_of_the_torch_model(shape, context):
    torch = pytest.importorskip("torch")
    from shapelaw.trainers.models.transformer import Transformer

    with torch.device("meta"):
        model = Transformer(shape, context_length=context)
    assert shape.n_total == sum(weight.numel() for weight in model.parameters())
    tables = {id(model.embed_tokens.weight), id(model.lm_head.weight)}
    inner = [weight for weight in model.parameters() if id(weight) not in tables]
    assert shape.n_non_embedding == sum(weight.numel() for weight in inner)


def test_key_value_heads_that_do_not_divide_are_refused_with_the_divisors():
    text = (
        r"`num_attention_heads % num_key_value_heads == 0` must hold, but got 12 and 5; "
        r"use one of 1, 2, 3, 4, 6, 12"
    )
    with pytest.raises(InputError, match=text):
        replace(SMALL, num_attention_heads=12, num_key_value_heads=5)


def test_an_odd_head_dimension_is_refused_with_the_next_even_one():
    with pytest.raises(InputError, match=r"`head_dim % 2 == 0` must hold .* got 47; use 48"):
        replace(SMALL, head_dim=47)


@pytest.mark.parametrize("field", INTEGER_FIELDS)
@pytest.mark.parametrize("value", [0, -4, 64.5, 64.0, "64", True, None])
def test_a_count_that_is_no_positive_integer_is_refused_by_name(field, value):
    with pytest.raises(InputError, match=f"`{field}` must be a positive integer, but got"):
        replace(SMALL, **{field: value})


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


def test_an_unknown_model_type_is_refused_with_the_known_ones():
    known = ", ".join(DENSE_FAMILIES)
    with pytest.raises(InputError, match=f"`model_type` must be one of {known}, but got 'gpt2'"):
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
def test_the_model_type_decides_about_qk_norm_and_tying(family, norm):
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


def test_a_shape_prints_as_width_by_depth_heads_and_mlp():
    assert str(SMALL) == "64x3 4/2x48 f96"


def test_a_shape_is_frozen():
    with pytest.raises(AttributeError):
        SMALL.hidden_size = 128


@given(rows=st.lists(st.integers(0, 3), max_size=6), masked=st.booleans())
def test_rows_are_taken_alike_from_full_columns_and_from_ones_of_a_single_value(rows, masked):
    table = ShapeTable.of([replace(SMALL, num_hidden_layers=layers) for layers in (1, 2, 3, 4)])
    same = {
        name: np.broadcast_to(getattr(table, name)[0], (4,))
        for name in ("vocab_size", "tie_word_embeddings", "qk_norm", "rope_theta")
    }
    chosen = np.isin(np.arange(4), rows) if masked else np.array(rows, dtype=np.int64)
    expected, found = table.take(chosen), replace(table, **same).take(chosen)
    assert len(found) == len(expected)
    assert found.vocab_size.strides == (0,) or not len(found)
    for field in fields(ShapeTable):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


def test_tables_are_joined_in_order():
    shapes = [replace(SMALL, num_hidden_layers=layers) for layers in (3, 1, 2)]
    joined = ShapeTable.joined([ShapeTable.of(shapes[:1]), ShapeTable.of(shapes[1:])])
    assert [joined[row] for row in range(3)] == shapes
