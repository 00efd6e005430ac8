import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.space.pareto import front_mask, running_front
from shapelaw.scaling.space.space import Space

# Few values, so that ties and equal points are common.
VALUES = st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, float("inf"), float("nan")])
POINTS = st.lists(st.tuples(VALUES, VALUES), max_size=12)


def columns(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


@given(points=POINTS)
def test_a_point_is_on_the_front_if_no_point_dominates_or_equals_it(points):
    expected = []
    for row, (loss, cost) in enumerate(points):
        better = (
            (other[0] < loss and other[1] <= cost)
            or (other[0] <= loss and other[1] < cost)
            or (other == (loss, cost) and at < row)
            for at, other in enumerate(points)
        )
        finite = np.isfinite(loss) and np.isfinite(cost)
        expected.append(bool(finite and not any(better)))
    assert front_mask(*columns(points)).tolist() == expected


def space() -> Space:
    return Space(
        parameters=60_000,
        layers=(2, 3),
        head_dims=(8, 16),
        vocab_size=64,
        hidden_step=16,
        mlp_step=8,
        max_heads=4,
    )


def score(table):
    """Score shapes by a loss with an optimum inside the space and a cost of FLOPs and cache."""
    loss = np.log(table.mlp_to_attention / 2) ** 2 + np.log(table.hidden_over_sqrt_n / 0.3) ** 2
    return loss, table.forward_flops(128) + table.kv_bytes(4) * 128


@pytest.mark.parametrize("rows", [1, 13, 100, 10**6])
def test_the_running_front_equals_the_front_of_the_whole_table(rows):
    whole = space().enumerate()
    losses, costs = score(whole)
    expected = np.flatnonzero(front_mask(losses, costs))
    expected = expected[np.argsort(losses[expected])]
    front = running_front(space().chunks(rows), score)
    assert front.rows.tolist() == expected.tolist()
    assert front.losses.tolist() == losses[expected].tolist()
    assert front.costs.tolist() == costs[expected].tolist()
    assert [front.table[i] for i in range(len(front))] == [whole[int(i)] for i in expected]
    assert front.seen == len(whole)
    assert len(front) > 5


@given(points=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=40), size=st.integers(1, 9))
def test_any_scores_in_chunks_of_any_size_give_the_same_front(points, size):
    losses, costs = columns(points)
    shape = space().enumerate()[0]
    table = type(space().enumerate()).of([shape] * len(points))
    parts = np.array_split(np.arange(len(points)), -(-len(points) // size))
    answers = iter([(losses[part], costs[part]) for part in parts])
    front = running_front((table.take(part) for part in parts), lambda _: next(answers))
    expected = np.flatnonzero(front_mask(losses, costs))
    if not len(expected):
        assert front is None
        return
    assert front.rows.tolist() == expected[np.argsort(losses[expected])].tolist()
    assert front.seen == len(points)


def test_the_front_runs_from_the_lowest_loss_to_the_lowest_cost():
    front = running_front(space().chunks(50), score)
    assert (np.diff(front.losses) > 0).all()
    assert (np.diff(front.costs) < 0).all()


def test_no_chunks_give_no_front():
    assert running_front([], score) is None
