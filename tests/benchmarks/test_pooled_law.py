"""The benchmark of the pooled law, on a synthetic source whose shape effects are known."""

import sys

import numpy as np
import pandas as pd
import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import pooled_law

from shapelaw.scaling.fitting.pooled import PooledFit
from shapelaw.scaling.fitting.priors import shape_names
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable

CURVATURE, OPTIMUM = 0.1, 0.1
DRAWS = 40


@pytest.fixture(scope="module")
def runs() -> RunTable:
    """Runs with two sizes, two token counts, and five widths whose best is 0.1 sqrt(N)."""
    grid = [(n, d, x) for n in (1e7, 1e8) for d in (1e9, 1e10) for x in (0.03, 0.05, 0.1, 0.2, 0.3)]
    frame = pd.DataFrame(grid, columns=[N, D, "hidden_over_sqrt_n"])
    frame = frame.assign(mlp_to_attention=2.0, gqa=1.0)
    x = frame["hidden_over_sqrt_n"] / OPTIMUM
    base = 1.7 + 60 / frame[N] ** 0.34 + 300 / frame[D] ** 0.37
    return RunTable.of(frame.assign(loss=base * (1 + CURVATURE * (np.log(x) + 1 / x - 1))))


def pool(optimum: float) -> PooledFit:
    """Make a pool that knows the shape terms exactly, with an optimum without drift."""
    names = shape_names(law_named("conditional"))
    values = dict.fromkeys(names, 0.0) | {
        "hidden_over_sqrt_n_curvature": np.log(CURVATURE),
        "hidden_over_sqrt_n_optimum": np.log(optimum),
        "mlp_to_attention_curvature": -10.0,
    }
    shared = np.tile([values[name] for name in names], (DRAWS, 1))
    return PooledFit(
        law_name="conditional", names=names, reference_size=1e8, shared=shared,
        between=np.full_like(shared, 1e-6), sources={}, notes=[], fits={},
    )  # fmt: skip


@pytest.mark.parametrize("levels", pooled_law.GROUPS.values(), ids=list(pooled_law.GROUPS))
def test_effects_of_a_source_are_predicted_by_the_true_shape_terms_and_not_by_wrong_ones(
    runs: RunTable, levels: list[str]
) -> None:
    right = pooled_law.left_out(pool(OPTIMUM), runs, levels, seed=0)
    assert right["effects"] == 10
    assert right["rank_correlation"] > 0.95
    assert right["mean_squared_error"] < 0.02 * right["mean_squared_error_without_shape"]
    assert right["coverage"] == 1.0
    wrong = pooled_law.left_out(pool(10 * OPTIMUM), runs, levels, seed=0)
    assert wrong["mean_squared_error"] > wrong["mean_squared_error_without_shape"]
    assert wrong["coverage"] < 1.0


def test_groups_of_one_shape_have_no_effect(runs: RunTable) -> None:
    part = runs.take(np.flatnonzero((runs.sizes > 5e7) | (runs["hidden_over_sqrt_n"] == 0.1)))
    effects = pooled_law.shape_effects(part, ["size", "tokens_level"])
    assert effects[N].unique() == pytest.approx([1e8])


@pytest.mark.parametrize(
    ("stated", "expected"),
    [((0.7, 0.45), "default"), ((0.7, 0.1), "prior only"), ((0.25, 0.6), "prior only")],
)
def test_pool_is_a_default_only_if_no_pair_is_surely_ranked_wrong(
    stated: tuple[float, float], expected: str
) -> None:
    rows = [{"p_second_better": p, "measured_percent": -0.5} for p in stated]
    assert pooled_law.role(rows) == expected
    mirrored = [{"p_second_better": 1 - p, "measured_percent": 0.5} for p in stated]
    assert pooled_law.role(mirrored) == expected
