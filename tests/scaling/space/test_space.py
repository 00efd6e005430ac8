from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.constraints import Columns
from shapelaw.scaling.space.grid import SHAPES
from shapelaw.scaling.space.space import CONVENTIONS, Space, usual_steps
from support.shapes import small_space


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    return small_space(
        parameters=draw(st.integers(5_000, 300_000)),
        layers=tuple(draw(st.sets(st.integers(1, 6), min_size=1, max_size=2))),
        head_dims=tuple(draw(st.sets(st.sampled_from([2, 8, 16]), min_size=1, max_size=2))),
        vocab_size=draw(st.integers(1, 400)),
        hidden_step=draw(st.sampled_from([8, 16, 24])),
        mlp_step=draw(st.sampled_from([1, 8, 20])),
        tolerance=draw(st.floats(0.002, 0.05)),
        convention=draw(st.sampled_from(sorted(CONVENTIONS))),
        tie_word_embeddings=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


def rows(table: ShapeTable) -> list[Shape]:
    return [table[i] for i in range(len(table))]


@settings(max_examples=40)
@given(space=spaces())
def test_every_shape_is_valid_on_the_grid_and_within_the_tolerance(space):
    try:
        table = space.enumerate()
    except InputError:
        assume(False)
    counts = getattr(table, CONVENTIONS[space.convention])
    assert np.abs(counts / space.parameters - 1).max() <= space.tolerance * (1 + 1e-9)
    assert (table.intermediate_size > 0).all()
    assert (table.intermediate_size % space.mlp_step == 0).all()
    assert (table.hidden_size % space.hidden_step == 0).all()
    assert (table.num_attention_heads % table.num_key_value_heads == 0).all()
    assert table.num_attention_heads.max() <= space.max_heads
    assert set(table.num_hidden_layers) <= set(space.layers)
    assert set(table.head_dim) <= set(space.head_dims)
    assert set(table.vocab_size) == {space.vocab_size}
    aspect = table.hidden_size / table.num_hidden_layers
    assert space.aspect[0] <= aspect.min()
    assert aspect.max() <= space.aspect[1]
    for index in {0, len(table) // 2, len(table) - 1}:
        shape = table[index]  # the constructor rejects an invalid shape
        assert shape.tie_word_embeddings is space.tie_word_embeddings
        assert shape.qk_norm is space.qk_norm


def by_brute_force(space: Space) -> list[Shape]:
    """List all shapes of a space by brute force, without its constraints."""
    shapes = []
    widest = int(space.aspect[1] * max(space.layers))
    steps = range(space.hidden_step, min(widest, 500) + 1, space.hidden_step)
    pairs = [
        (heads, groups)
        for heads in range(1, space.max_heads + 1)
        for groups in range(1, heads + 1)
        if heads % groups == 0 and (space.gqa is None or heads // groups in space.gqa)
    ]
    for layers, hidden, head_dim, (heads, groups) in product(
        sorted(space.layers), steps, sorted(space.head_dims), pairs
    ):
        if heads * head_dim > 4 * hidden or not space.aspect[0] <= hidden / layers:
            continue
        if hidden / layers > space.aspect[1]:
            continue
        for width in range(space.mlp_step, 3000, space.mlp_step):
            shape = Shape(
                hidden_size=hidden,
                intermediate_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=groups,
                head_dim=head_dim,
                vocab_size=space.vocab_size,
                tie_word_embeddings=space.tie_word_embeddings,
                qk_norm=space.qk_norm,
                rope_theta=space.rope_theta,
            )
            count = getattr(shape, CONVENTIONS[space.convention])
            if count > space.parameters * (1 + space.tolerance):
                break
            if count >= space.parameters * (1 - space.tolerance):
                shapes.append(shape)
    return shapes


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_tiny_space_has_exactly_the_shapes_of_brute_force(convention, qk_norm):
    space = small_space(
        parameters=20_000,
        layers=(2,),
        max_heads=4,
        mlp_step=16,
        convention=convention,
        qk_norm=qk_norm,
    )
    shapes = rows(space.enumerate())
    assert len(set(shapes)) == len(shapes)
    assert shapes == by_brute_force(space)
    assert len(shapes) > 20


# A constraint and its value for one shape.
LIMITS = {
    "num_hidden_layers % 2 == 0": lambda shape: shape.num_hidden_layers % 2 == 0,
    "head_dim * num_attention_heads <= hidden_size": lambda shape: (
        shape.head_dim * shape.num_attention_heads <= shape.hidden_size
    ),
    "1 <= mlp_to_attention < 3.5": lambda shape: 1 <= shape.mlp_to_attention < 3.5,
    "gqa == 2 or not num_key_value_heads == 1": lambda shape: (
        shape.gqa == 2 or shape.num_key_value_heads != 1
    ),
    "kv_bytes <= 96": lambda shape: shape.kv_bytes(1) <= 96,
    "weight_bytes <= 4 * 9200": lambda shape: shape.weight_bytes(4) <= 4 * 9_200,
    "intermediate_size % 32 == 0": lambda shape: shape.intermediate_size % 32 == 0,
    "hidden_over_sqrt_n > .2": lambda shape: shape.hidden_over_sqrt_n > 0.2,
}


@settings(max_examples=12)
@given(
    chosen=st.sets(st.sampled_from(sorted(LIMITS)), max_size=3),
    gqa=st.none() | st.sets(st.integers(1, 4), min_size=1, max_size=2),
    convention=st.sampled_from(sorted(CONVENTIONS)),
    tolerance=st.floats(0.002, 0.04),
    steps=st.sampled_from([(16, 16), (24, 8), (8, 40)]),
    chunk=st.sampled_from([3, 7, 400]),
)
def test_a_limited_space_has_in_chunks_the_brute_force_shapes_that_satisfy_its_limits(
    chosen, gqa, convention, tolerance, steps, chunk
):
    space = small_space(
        parameters=9_000,
        layers=(2, 5),
        head_dims=(8,),
        max_heads=4,
        hidden_step=steps[0],
        mlp_step=steps[1],
        gqa=None if gqa is None else tuple(gqa),
        convention=convention,
        tolerance=tolerance,
        constraints=tuple(chosen),
        bytes_per_value=4,
        kv_bytes_per_value=1,
    )
    expected = [
        shape for shape in by_brute_force(space) if all(LIMITS[text](shape) for text in chosen)
    ]
    if not expected:
        with pytest.raises(InputError, match="no valid shape has"):
            space.enumerate()
        assert 0 in space.counts().values()
        return
    parts = list(space.chunks(chunk))
    assert min(len(part) for part in parts) > 0
    assert max(len(part) for part in parts) <= chunk
    assert [shape for part in parts for shape in rows(part)] == expected
    assert rows(space.enumerate()) == expected
    assert [*space.counts().values()][-1] == len(expected)


def test_counts_list_the_shapes_that_each_limit_leaves_in_order():
    """Limits without the MLP width come first, and each limit has a count."""
    limits = ("n_total < 61000", "gqa == 2", "intermediate_size % 16 == 0")
    space = small_space(constraints=limits)
    counts = space.counts()
    assert [*counts][-4:] == [SHAPES, "gqa == 2", "n_total < 61000", "intermediate_size % 16 == 0"]
    table = small_space().enumerate()
    left = [table]
    for text in [*counts][-3:]:
        left.append(left[-1].take(Columns(left[-1], 2, 2).where(text)))
    assert [counts[name] for name in [*counts][-4:]] == [len(part) for part in left]
    assert rows(space.enumerate()) == rows(left[-1])


def test_a_constraint_that_is_given_twice_counts_once():
    once, twice = small_space(constraints=("gqa == 2",)), small_space(constraints=("gqa == 2",) * 2)
    assert once.counts() == twice.counts()


def test_upper_limits_are_constraints_on_columns():
    space = small_space(kv_bytes_per_value=1).limited(kv_bytes=96, n_total=61_000)
    assert space.constraints == ("kv_bytes <= 96", "n_total <= 61000")
    table = space.enumerate()
    assert table.kv_bytes(1).max() <= 96
    assert table.n_total.max() <= 61_000


@settings(max_examples=20)
@given(space=spaces())
def test_the_size_of_a_small_space_is_exact_without_enumeration(space):
    try:
        table = space.enumerate()
    except InputError:
        assert space.size() == 0
        return
    assert space.size() == len(table)


def test_the_size_of_a_large_space_is_estimated_from_a_sample():
    space = small_space(
        parameters=10**8, layers=tuple(range(4, 29)), hidden_step=16, mlp_step=128, max_heads=32,
        head_dims=(16, 32, 64),
    )  # fmt: skip
    counted = sum(len(chunk) for chunk in space.chunks())
    assert counted > 10**6
    assert space.size() != counted
    assert space.size() == pytest.approx(counted, rel=0.05)


def test_a_space_of_a_billion_shapes_is_refused_at_once_with_its_size_and_a_way_out():
    space = small_space(
        parameters=10**9, layers=tuple(range(2, 80)), hidden_step=16, mlp_step=8, max_heads=128,
        head_dims=(32, 64, 128),
    )  # fmt: skip
    text = (
        r"holds about 1\..e\+09 shapes, more than the 1e\+08 .* take `mlp_step` 128 in place of 8"
    )
    for ask in (space.enumerate, space.counts, lambda: next(space.chunks())):
        with pytest.raises(InputError, match=text):
            ask()
    coarser = replace(space, mlp_step=128)
    assert next(coarser.chunks()).num_hidden_layers[0] == 2


def test_too_many_combinations_are_refused_even_with_few_shapes():
    space = small_space(
        parameters=10**9, layers=tuple(range(2, 200)), hidden_step=1, mlp_step=4096,
        head_dims=(8, 16, 32, 64, 128), max_heads=512, tolerance=1e-7,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"combinations of layers, hidden size and heads \(about"):
        space.enumerate()


def test_a_table_that_would_be_too_large_is_refused(monkeypatch):
    monkeypatch.setattr("shapelaw.scaling.space.space.MOST_AT_ONCE", 100)
    with pytest.raises(InputError, match=r"one table holds at most 1e\+02 shapes .*`Space.chunks`"):
        small_space().enumerate()
    assert sum(len(chunk) for chunk in small_space().chunks()) > 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_total", "a filter must be true or false for each row"),
        ("n_total <", "a filter must be a condition on columns"),
        ("loss < 3", "names the column 'loss', which the table lacks; it has hidden_size, .* gqa"),
        ("__import__('os').system('true') == 0", "may hold columns, numbers, strings"),
        ("n_total.max() > 1", "may hold columns, numbers, strings"),
        ("kv_bytes[0] > 1", "may hold columns, numbers, strings"),
        ("(lambda: True)()", "may hold columns, numbers, strings"),
        ("hidden_size in n_total", "`in` must be followed by numbers or strings in parentheses"),
        ("hidden_size is 2", "may compare with < <= > >= == != in only"),
        ("hidden_size ** 9 > 1", "may hold columns"),
        ("hidden_size < 'wide'", "cannot be applied"),
    ],
)
def test_a_constraint_outside_the_grammar_is_refused_before_anything_is_enumerated(text, message):
    with pytest.raises(InputError, match=message):
        small_space(constraints=("gqa == 2", text))


@settings(max_examples=60)
@given(text=st.text(alphabet="gqan_total 12.<>=()[]*+-/%'\"\\:,@&|!{}", max_size=24))
def test_any_text_is_a_constraint_or_an_input_error(text):
    try:
        space = small_space(constraints=(text,))
    except InputError:
        return
    assert set(space.counts()) >= {SHAPES}


def test_the_order_is_by_layers_hidden_size_head_dimension_heads_and_width():
    table = small_space().enumerate()
    keys = list(
        zip(
            table.num_hidden_layers,
            table.hidden_size,
            table.head_dim,
            table.num_attention_heads,
            table.num_key_value_heads,
            table.intermediate_size,
            strict=True,
        )
    )
    assert keys == sorted(keys)
    assert rows(small_space().enumerate()) == rows(table)


@pytest.mark.parametrize("changes", [{"layers": (3, 2)}, {"head_dims": (16, 8)}])
def test_the_order_in_which_values_are_given_does_not_matter(changes):
    assert rows(small_space(**changes).enumerate()) == rows(small_space().enumerate())


@pytest.mark.parametrize("changes", [{"layers": (2, 3, 2)}, {"head_dims": (8, 8, 16)}])
def test_a_value_that_is_given_twice_counts_once(changes):
    assert rows(small_space(**changes).enumerate()) == rows(small_space().enumerate())


def test_a_wider_tolerance_keeps_all_shapes_and_adds_some():
    narrow, wide = (set(rows(small_space(tolerance=t).enumerate())) for t in (0.01, 0.03))
    assert narrow < wide


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"parameters": 1_000},
            r"no valid shape has 1000 parameters ± 3 % \(non-embedding\) with layers \[2, 3\], "
            r"head dimensions \[8, 16\], hidden size a multiple of 16 and MLP width of 8: there "
            r"are 160 pairs of layers and hidden size, 0 pairs that fit .*; take fewer layers, a ",
        ),
        (
            {"aspect": (1.0, 2.0)},
            r"there are 0 pairs of layers and hidden size; widen `aspect`",
        ),
        (
            {"gqa": (7,)},
            r"pairs that fit .*, 0 combinations of these with .* allow other `gqa`",
        ),
        (
            {
                "gqa": (6,),
                "head_dims": (32,),
                "layers": (3,),
                "parameters": 30_000,
                "aspect": (16.0, 40.0),
            },
            r"2 combinations of these .*, 0 combinations that fit the budget with the narrowest",
        ),
        (
            {"mlp_step": 480, "tolerance": 0.001, "parameters": 100_001},
            r"combinations that .*, 0 shapes within the tolerance "
            r"\(the nearest count is [\d,]+\); widen the tolerance",
        ),
        (
            {"constraints": ("gqa == 2", "n_total > 1e9", "head_dim == 8")},
            r"[\d,]+ shapes within .*[\d,]+ gqa == 2, [\d,]+ head_dim == 8, "
            r"0 shapes with `n_total > 1e9`; relax",
        ),
        (
            {"constraints": ("num_hidden_layers % 5 == 0", "n_total > 1e9")},
            r"shapes within the tolerance, 0 shapes with `num_hidden_layers % 5 == 0`; relax",
        ),
    ],
)
def test_an_empty_space_raises_with_the_limit_that_left_nothing(changes, text):
    with pytest.raises(InputError, match=text):
        small_space(**changes).enumerate()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"convention": "all"}, "`--params-convention` must be one of non-embedding, total, act"),
        ({"tolerance": 0.0}, r"`0 < tolerance < 0.5` must hold, but got 0.0; 0.03 is usual"),
        ({"tolerance": 0.5}, r"`0 < tolerance < 0.5` must hold, but got 0.5"),
        ({"layers": ()}, r"at least one number of layers .* but got layers \[\], head"),
        ({"head_dims": ()}, r"one head dimension, but got .* head dimensions \[\]; add"),
        ({"parameters": 0}, r"`1 <= parameters <= 1\d+` must hold, but got 0"),
        ({"parameters": 10**14}, r"`1 <= parameters <= 10000000000000` must hold"),
        ({"hidden_step": 0}, "`1 <= hidden_step <= 1000000` must hold, but got 0"),
        ({"mlp_step": -8}, "`1 <= mlp_step <= 1000000` must hold, but got -8"),
        ({"vocab_size": 0}, "`1 <= vocab_size <="),
        ({"max_heads": 10**6}, "`1 <= max_heads <= 4096` must hold, but got 1000000"),
        ({"layers": (3, 0)}, "`1 <= layers <= 10000` must hold, but got 0"),
        ({"gqa": (2, 0)}, "`1 <= gqa <= 10000` must hold, but got 0"),
        ({"aspect": (2.0, 1.0)}, r"`0 < aspect\[0\] <= aspect\[1\]` must hold"),
        ({"aspect": (1.0, float("nan"))}, r"`0 < aspect\[0\] <= aspect\[1\]` must hold"),
        ({"head_dims": (8, 15)}, r"`head_dim % 2 == 0` must hold .* got 15; use 16"),
    ],
)
def test_a_space_with_an_invalid_setting_raises(changes, text):
    with pytest.raises(InputError, match=text):
        small_space(**changes)


@pytest.mark.parametrize(
    ("parameters", "steps"),
    [
        (1e5, (8, 4, 16)),
        (1e6, (8, 4, 16)),
        (2e6, (32, 32, 64)),
        (1e9, (128, 128, 64)),
        (7e9, (256, 256, 128)),
    ],
)
def test_larger_models_use_coarser_steps(parameters, steps):
    assert tuple(usual_steps(parameters)) == steps


def test_published_shapes_are_multiples_of_the_usual_steps():
    panda = Shape(
        hidden_size=2560,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=72,
        num_key_value_heads=18,
        head_dim=64,
        vocab_size=128_256,
    )
    hidden_step, mlp_step, head_dim = usual_steps(panda.n_non_embedding)
    space = Space(
        parameters=973_000_000,
        layers=(16,),
        head_dims=(head_dim,),
        vocab_size=panda.vocab_size,
        hidden_step=hidden_step,
        mlp_step=mlp_step,
    )
    table = space.enumerate()
    same = (
        (table.hidden_size == panda.hidden_size)
        & (table.intermediate_size == panda.intermediate_size)
        & (table.num_attention_heads == panda.num_attention_heads)
        & (table.num_key_value_heads == panda.num_key_value_heads)
    )
    assert same.sum() == 1
    assert table[int(np.flatnonzero(same)[0])] == panda
