from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scaling.errors import InputError
from scaling.shape import Shape, ShapeTable
from scaling.space import (
    CONVENTIONS,
    Space,
    nearest_proportions,
    usual_steps,
    within,
)


def small_space(**changes: object) -> Space:
    settings = {
        "parameters": 60_000,
        "layers": (2, 3),
        "head_dims": (8, 16),
        "vocab_size": 64,
        "hidden_step": 16,
        "mlp_step": 8,
        "max_heads": 6,
    }
    return Space(**(settings | changes))


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


@settings(deadline=None, max_examples=40)
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
        shape = table[index]  # the constructor refuses what is not valid
        assert shape.tie_word_embeddings is space.tie_word_embeddings
        assert shape.qk_norm is space.qk_norm


def by_brute_force(space: Space) -> set[Shape]:
    """All shapes of a space by trying every combination."""
    found = set()
    widest = int(space.aspect[1] * max(space.layers))
    steps = range(space.hidden_step, min(widest, 500) + 1, space.hidden_step)
    pairs = [
        (heads, groups)
        for heads in range(1, space.max_heads + 1)
        for groups in range(1, heads + 1)
        if heads % groups == 0
    ]
    for layers, hidden, head_dim, (heads, groups) in product(
        space.layers, steps, space.head_dims, pairs
    ):
        if heads * head_dim > 4 * hidden or not space.aspect[0] <= hidden / layers:
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
                found.add(shape)
    return found


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_tiny_space_holds_exactly_what_brute_force_finds(convention, qk_norm):
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
    assert set(shapes) == by_brute_force(space)
    assert len(shapes) > 20


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


def test_a_wider_tolerance_keeps_all_and_adds_some():
    narrow, wide = (set(rows(small_space(tolerance=t).enumerate())) for t in (0.01, 0.03))
    assert narrow < wide


def test_an_empty_space_says_which_limits_leave_nothing():
    text = (
        r"no valid shape has 1000 parameters ± 3 % \(non-embedding\) with layers \[2, 3\], "
        r"head dimensions \[8, 16\], hidden size a multiple of 16 and MLP width of 8; change"
    )
    with pytest.raises(InputError, match=text):
        small_space(parameters=1_000).enumerate()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"convention": "all"}, "`--params-convention` must be one of non-embedding, total, act"),
        ({"tolerance": 0.0}, r"`0 < tolerance < 0.5` must hold, but got 0.0"),
        ({"tolerance": 0.5}, r"`0 < tolerance < 0.5` must hold, but got 0.5"),
        ({"layers": ()}, "at least one number of layers and one head dimension"),
        ({"head_dims": ()}, "at least one number of layers and one head dimension"),
        ({"head_dims": (8, 15)}, r"`head_dim % 2 == 0` must hold .* got 15; use 16"),
    ],
)
def test_a_space_that_cannot_be_is_refused(changes, text):
    with pytest.raises(InputError, match=text):
        small_space(**changes)


LIKE = Shape(
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=64,
)


def test_the_nearest_proportions_are_those_of_an_exact_copy():
    space = small_space(parameters=LIKE.n_non_embedding, layers=(3,), head_dims=(16,))
    table = space.enumerate()
    assert LIKE in rows(table)
    assert table[nearest_proportions(table, LIKE, LIKE.n_non_embedding)] == LIKE


def test_an_exact_copy_is_nearer_than_the_same_proportions_with_another_head_dimension():
    space = small_space(
        parameters=LIKE.n_non_embedding, layers=(3,), head_dims=(8, 16), max_heads=8
    )
    table = space.enumerate()
    assert LIKE in rows(table)
    assert table[nearest_proportions(table, LIKE, LIKE.n_non_embedding)] == LIKE


@settings(deadline=None, max_examples=20)
@given(factor=st.integers(2, 5))
def test_the_nearest_proportions_do_not_depend_on_the_size(factor):
    """A model widened by a factor is near to itself: f/d, H·h/d and H/K are the same."""
    wide = Shape(
        hidden_size=factor * 64,
        intermediate_size=factor * 160,
        num_hidden_layers=3,
        num_attention_heads=factor * 4,
        num_key_value_heads=factor * 2,
        head_dim=16,
        vocab_size=64,
    )
    others = [
        Shape(
            hidden_size=64 * factor,
            intermediate_size=width,
            num_hidden_layers=3,
            num_attention_heads=4 * factor,
            num_key_value_heads=groups * factor,
            head_dim=16,
            vocab_size=64,
        )
        for width, groups in ((120 * factor, 2), (200 * factor, 2), (160 * factor, 1))
    ]
    table = ShapeTable.of([*others, wide])
    assert nearest_proportions(table, LIKE, wide.n_non_embedding) == 3


def test_within_keeps_the_shapes_whose_ratios_are_in_all_ranges():
    table = small_space().enumerate()
    frame = table.frame()
    ranges = {"gqa": (1.0, 2.0), "mlp_to_attention": (1.0, 3.0), "tokens": (1.0, 2.0)}
    expected = frame["gqa"].between(1, 2) & frame["mlp_to_attention"].between(1, 3)
    mask = within(table, ranges)
    assert mask.tolist() == expected.tolist()
    assert 0 < mask.sum() < len(mask)


def test_slack_widens_every_range_by_its_factor():
    table = small_space().enumerate()
    ratios = table.mlp_to_attention
    mask = within(table, {"mlp_to_attention": (1.0, 3.0)}, 1.5)
    assert mask.tolist() == ((ratios >= 1 / 1.5) & (ratios <= 4.5)).tolist()
    assert mask.sum() > within(table, {"mlp_to_attention": (1.0, 3.0)}).sum()


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


def test_published_shapes_stand_on_the_usual_steps():
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
