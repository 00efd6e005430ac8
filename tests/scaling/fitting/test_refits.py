import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import with_best_loss

RUNS = pd.DataFrame(
    {
        N: [1.00e6, 1.02e6, 1.04e6, 1.00e6, 5.0e6],
        "n_total": [2.0e6, 3.0e6, 2.1e6, 2.0e6, 9.0e6],
        D: [2.0e7, 2.0e7, 2.0e7, 8.0e7, 2.0e7],
        "loss": [3.1, 3.0, 3.2, 2.8, 2.5],
    }
)


def test_the_best_loss_is_the_lowest_of_equal_size_and_tokens():
    assert with_best_loss(RUNS)["best_loss"].tolist() == [3.0, 3.0, 3.0, 2.8, 2.5]
    assert "best_loss" not in RUNS


def test_sizes_are_equal_by_the_count_that_is_asked_for():
    assert with_best_loss(RUNS, size="total")["best_loss"].tolist() == [3.1, 3.0, 3.1, 2.8, 2.5]
    without = RUNS.drop(columns=N)
    assert with_best_loss(without)["best_loss"].tolist() == [3.1, 3.0, 3.1, 2.8, 2.5]


def test_a_tolerance_of_one_per_cent_tells_sizes_apart():
    found = with_best_loss(RUNS, tolerance=0.01)["best_loss"]
    assert found.tolist() == RUNS["loss"].tolist()


@pytest.mark.parametrize("index", [[7, 3, 9, 1, 5], [1, 1, 1, 1, 1]])
def test_the_index_of_the_table_stays_and_does_not_matter(index):
    found = with_best_loss(RUNS.set_axis(index))
    assert found.frame.index.tolist() == index
    assert found["best_loss"].tolist() == [3.0, 3.0, 3.0, 2.8, 2.5]


@given(st.lists(st.floats(1.5, 6.0), min_size=1, max_size=30), st.integers(0, 99))
def test_no_run_is_better_than_the_best_and_every_cell_has_one_that_is(losses, seed):
    generator = np.random.default_rng(seed)
    rows = len(losses)
    cells = {N: generator.choice([1e6, 1e7], rows), D: generator.choice([1e8, 1e9], rows)}
    found = with_best_loss(pd.DataFrame({**cells, "loss": losses}))
    assert (found["best_loss"] <= found["loss"]).all()
    reached = (found["best_loss"] == found["loss"]).groupby([found[N], found[D]]).any()
    assert reached.all()


def test_a_convention_that_there_is_not_and_a_missing_column_are_named():
    with pytest.raises(InputError, match="`size` must be auto, non-embedding, total, active, but"):
        with_best_loss(RUNS, size="body")
    with pytest.raises(InputError, match="lacks the column `n_active`"):
        with_best_loss(RUNS, size="active")
    with pytest.raises(InputError, match="lacks the column `tokens`"):
        with_best_loss(RUNS.drop(columns=D))
