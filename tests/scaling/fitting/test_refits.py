import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.best_loss import with_best_loss
from shapelaw.scaling.runs.columns import D, N

RUNS = pd.DataFrame(
    {
        N: [1.00e6, 1.02e6, 1.04e6, 1.00e6, 5.0e6],
        "n_total": [2.0e6, 3.0e6, 2.1e6, 2.0e6, 9.0e6],
        D: [2.0e7, 2.0e7, 2.0e7, 8.0e7, 2.0e7],
        "loss": [3.1, 3.0, 3.2, 2.8, 2.5],
    }
)


def test_best_loss_is_the_lowest_of_equal_size_and_tokens():
    assert with_best_loss(RUNS)["best_loss"].tolist() == [3.0, 3.0, 3.0, 2.8, 2.5]
    assert "best_loss" not in RUNS


def test_sizes_are_compared_by_the_chosen_convention():
    assert with_best_loss(RUNS, size="total")["best_loss"].tolist() == [3.1, 3.0, 3.1, 2.8, 2.5]
    without = RUNS.drop(columns=N)
    assert with_best_loss(without)["best_loss"].tolist() == [3.1, 3.0, 3.1, 2.8, 2.5]


def test_sizes_differ_at_a_tolerance_of_one_percent():
    best_losses = with_best_loss(RUNS, tolerance=0.01)["best_loss"]
    assert best_losses.tolist() == RUNS["loss"].tolist()


@pytest.mark.parametrize("index", [[7, 3, 9, 1, 5], [1, 1, 1, 1, 1]])
def test_best_loss_keeps_and_ignores_the_index_of_the_table(index):
    best_losses = with_best_loss(RUNS.set_axis(index))
    assert best_losses.frame.index.tolist() == index
    assert best_losses["best_loss"].tolist() == [3.0, 3.0, 3.0, 2.8, 2.5]


@given(st.lists(st.floats(1.5, 6.0), min_size=1, max_size=30), st.integers(0, 99))
def test_best_loss_is_a_lower_bound_that_every_cell_reaches(losses, seed):
    generator = np.random.default_rng(seed)
    rows = len(losses)
    cells = {N: generator.choice([1e6, 1e7], rows), D: generator.choice([1e8, 1e9], rows)}
    best_losses = with_best_loss(pd.DataFrame({**cells, "loss": losses}))
    assert (best_losses["best_loss"] <= best_losses["loss"]).all()
    reached = (
        (best_losses["best_loss"] == best_losses["loss"])
        .groupby([best_losses[N], best_losses[D]])
        .any()
    )
    assert reached.all()


def test_best_loss_raises_on_unknown_convention_or_missing_column():
    with pytest.raises(
        InputError, match="`size` must be auto, non-embedding, total, active, active-non"
    ):
        with_best_loss(RUNS, size="body")
    with pytest.raises(InputError, match="lacks the column `n_active`"):
        with_best_loss(RUNS, size="active")
    with pytest.raises(InputError, match="lacks the column `tokens`"):
        with_best_loss(RUNS.drop(columns=D))
