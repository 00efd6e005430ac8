from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.space.proportions import nearest_proportions, within
from support.shapes import SMALL, small_space


def table_around_small(**changes: object) -> ShapeTable:
    """Make the table of all shapes of one space that contains the small shape."""
    table = small_space(
        parameters=SMALL.n_non_embedding, layers=(3,), vocab_size=SMALL.vocab_size, **changes
    ).enumerate()
    assert SMALL in [table[i] for i in range(len(table))]
    return table


def test_nearest_proportions_of_a_shape_in_the_table_are_its_own_row():
    table = table_around_small(head_dims=(48,))
    assert len(table) > 1
    assert table[nearest_proportions(table, SMALL, SMALL.n_non_embedding)] == SMALL


def test_an_exact_copy_is_nearer_than_the_same_proportions_with_another_head_dimension():
    table = table_around_small(head_dims=(24, 48), max_heads=8)
    assert table[nearest_proportions(table, SMALL, SMALL.n_non_embedding)] == SMALL


def widened(factor: int, width: int, groups: int) -> Shape:
    """Widen the small shape by a factor, with another MLP width and other key-value heads."""
    return replace(
        SMALL,
        hidden_size=factor * SMALL.hidden_size,
        intermediate_size=factor * width,
        num_attention_heads=factor * SMALL.num_attention_heads,
        num_key_value_heads=factor * groups,
    )


@settings(max_examples=20)
@given(factor=st.integers(2, 5))
def test_the_nearest_proportions_do_not_depend_on_the_size(factor):
    """Scale a model by a factor in width: f/d, H·h/d and H/K stay the same."""
    proportions = [(72, 2), (120, 2), (96, 1), (SMALL.intermediate_size, SMALL.num_key_value_heads)]
    shapes = [widened(factor, width, groups) for width, groups in proportions]
    table = ShapeTable.of(shapes)
    assert nearest_proportions(table, SMALL, shapes[-1].n_non_embedding) == 3


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
