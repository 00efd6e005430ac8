from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, RATIOS, Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from support.shapes import SMALL, golden_shape, read_golden, shapes

# Every number derived from a shape: properties, and methods with an argument.
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
def test_ratios_of_published_models_equal_the_printed_ones(row):
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


@settings(max_examples=50)
@given(rows=st.lists(shapes(), min_size=1, max_size=8))
def test_a_table_of_shapes_has_the_counts_and_ratios_of_each_shape(rows):
    table = ShapeTable.of(rows)
    assert len(table) == len(rows)
    assert [table[i] for i in range(len(rows))] == rows
    for name in PROPERTIES:
        expected = [getattr(shape, name) for shape in rows]
        np.testing.assert_allclose(getattr(table, name), expected, rtol=1e-15)
    for cost in COSTS:
        np.testing.assert_array_equal(cost(table), [cost(shape) for shape in rows])


@settings(max_examples=30)
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
    derived = {"n_total", "n_active", "n_non_embedding", *RATIOS, "aspect_ratio"}
    assert set(frame.columns) == {*SMALL.row(), *derived}
    assert set(ShapeTable.of([replace(SMALL, gated=False)]).frame()) == {
        *(*SMALL.row(), "gated", *derived)
    }
    assert frame["aspect_ratio"][0] == SMALL.hidden_size / SMALL.num_hidden_layers
    assert frame["n_total"].tolist() == [
        SMALL.n_total,
        replace(SMALL, num_hidden_layers=5).n_total,
    ]
    assert frame["tie_word_embeddings"].dtype == bool


def test_counts_do_not_overflow_in_a_table_of_large_models():
    shape = golden_shape(read_golden("parameter_counts.csv")[9])
    row = ShapeTable.of([replace(shape, num_hidden_layers=4000)]).frame().iloc[0]
    assert row["n_total"] == replace(shape, num_hidden_layers=4000).n_total


@settings(max_examples=25)
@given(shape=shapes(most=3, widest=64), context=st.integers(1, 16))
def test_counted_parameters_equal_those_of_the_torch_model(shape, context):
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


def test_a_shape_prints_as_width_by_depth_heads_and_mlp():
    assert str(SMALL) == "64x3 4/2x48 f96"


def test_a_shape_is_frozen():
    with pytest.raises(AttributeError):
        SMALL.hidden_size = 128


@given(rows=st.lists(st.integers(0, 3), max_size=6), masked=st.booleans())
def test_rows_of_broadcast_columns_equal_rows_of_full_columns(rows, masked):
    table = ShapeTable.of([replace(SMALL, num_hidden_layers=layers) for layers in (1, 2, 3, 4)])
    same = {
        name: np.broadcast_to(getattr(table, name)[0], (4,))
        for name in ("vocab_size", "tie_word_embeddings", "qk_norm", "rope_theta")
    }
    chosen = np.isin(np.arange(4), rows) if masked else np.array(rows, dtype=np.int64)
    expected, selected = table.take(chosen), replace(table, **same).take(chosen)
    assert len(selected) == len(expected)
    assert selected.vocab_size.strides == (0,) or not len(selected)
    for field in fields(ShapeTable):
        np.testing.assert_array_equal(getattr(selected, field.name), getattr(expected, field.name))


def test_tables_are_joined_in_order():
    shapes = [replace(SMALL, num_hidden_layers=layers) for layers in (3, 1, 2)]
    joined = ShapeTable.joined([ShapeTable.of(shapes[:1]), ShapeTable.of(shapes[1:])])
    assert [joined[row] for row in range(3)] == shapes


def test_a_table_of_shapes_without_a_gate_counts_two_matrices_and_returns_its_shapes():
    plain = replace(SMALL, gated=False, mlp_bias=True)
    table = ShapeTable.of([SMALL, plain])
    counted = [shape.n_non_embedding for shape in (SMALL, plain)]
    assert table.n_non_embedding.tolist() == counted
    assert table[1] == plain
    assert ShapeTable.joined([table, table]).take(np.array([3]))[0] == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 10**7), ("num_hidden_layers", 10**6), ("vocab_size", 10**12)],
)
def test_size_that_no_model_has_is_refused_before_anything_is_allocated(
    name: str, value: int
) -> None:
    config = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 256, name: value,
    }  # fmt: skip
    for extra in ({}, {"model_type": "llama"}):
        with pytest.raises(InputError, match=f"`{name}` must be at most "):
            Shape.from_config(config | extra)
