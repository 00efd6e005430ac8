import json
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.design.backtests import Backtest, backtest, held_out_error
from shapelaw.scaling.design.candidates import costs
from shapelaw.scaling.design.strategies import STRATEGIES, BacktestStage
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable, as_run_table

REFIT = partial(fit, "chinchilla", starts=2, resamples=0)


def backtest_runs() -> pd.DataFrame:
    """Compute losses of a known Chinchilla law with 0.3 % noise on a grid."""
    places = product(np.geomspace(2e7, 2e9, 6), np.geomspace(5e8, 5e10, 5))
    frame = pd.DataFrame(places, columns=[N, D])
    loss = 1.7 + 400 / frame[N] ** 0.34 + 1000 / frame[D] ** 0.36
    return frame.assign(loss=loss * np.exp(np.random.default_rng(0).normal(0, 0.003, 30)))


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return backtest_runs()


@pytest.fixture(scope="module")
def result(runs: pd.DataFrame) -> Backtest:
    return backtest(runs, REFIT, seeds=2, steps=3, held_out=0.2)


def course(errors: dict[str, list[list[float]]]) -> Backtest:
    """Build a back-test from errors of strategies by seed at budgets of 1, 10, 100 FLOP."""
    rows = [
        {"strategy": strategy, "seed": seed, "budget_flops": 10.0**step, "error": error}
        for strategy, seeds in errors.items()
        for seed, steps in enumerate(seeds)
        for step, error in enumerate(steps)
    ]
    frame = pd.DataFrame(rows).assign(spent_flops=0.0, runs=1)
    return Backtest(course=frame, full_error=0.01, held_out=1, pool=1, start="smallest")


def test_strategies_begin_with_the_same_runs_and_stay_within_the_budget(result):
    table = result.frame()
    assert set(table["strategy"]) == set(STRATEGIES)
    assert (table["spent_flops"] <= table["budget_flops"] * (1 + 1e-9)).all()
    first = table.groupby(["seed", "strategy"]).first().reset_index()
    for _, same in first.groupby("seed"):
        assert np.ptp(same["error"]) == 0
        assert same["runs"].unique() == [8]


def test_random_and_cheapest_end_with_the_whole_pool(result):
    last = result.frame().groupby(["seed", "strategy"]).last().reset_index()
    whole = last[last["strategy"] != "design"]
    assert (whole["runs"] == result.pool).all()
    np.testing.assert_allclose(whole["error"], result.full_error, rtol=1e-3)


def test_held_out_runs_are_the_largest_and_never_trained(runs):
    seen = []

    def watched(some: RunTable):
        seen.append(float(costs(some).max()))
        return REFIT(some)

    result = backtest(runs, watched, seeds=1, steps=2, held_out=0.2)
    assert result.held_out == 6
    assert max(seen) <= np.sort(costs(runs))[-7]


def test_on_a_known_truth_every_strategy_ends_near_the_noise(result):
    last = result.frame().groupby(["seed", "strategy"])["error"].last()
    assert (last < 0.02).all()


def test_backtest_with_the_same_seeds_gives_the_same_errors(runs, result):
    again = backtest(runs, REFIT, seeds=2, steps=3, held_out=0.2)
    pd.testing.assert_frame_equal(again.frame(), result.frame())


def test_an_error_counts_as_reached_when_it_stays_reached():
    found = course({"random": [[0.03, 0.01, 0.03], [0.03, 0.01, 0.01], [0.01, 0.01, 0.01]]})
    assert list(found.flops_to_reach(0.02)["random"]) == [np.inf, 10.0, 1.0]


def test_ratios_are_taken_seed_by_seed():
    found = course(
        {"random": [[3, 3, 1], [3, 3, 1], [1, 1, 1]], "design": [[1, 1, 1], [3, 1, 1], [1, 1, 1]]}
    ).ratios(2)["design"]
    assert found["ratio"] == pytest.approx(10 ** (-(2 + 1 + 0) / 3))
    assert found["low"] <= found["ratio"] <= found["high"]
    assert (found["fewer"], found["equal"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_a_strategy_that_never_reaches_the_error_has_a_share_instead_of_a_ratio():
    found = course({"random": [[3, 1, 1], [3, 1, 1]], "design": [[3, 3, 3], [1, 1, 1]]}).ratios(2)
    assert found["design"]["ratio"] is None
    assert found["design"]["fewer"] == 0.5
    assert found["design"]["never"] == 0.5


def test_two_strategies_that_never_reach_the_error_count_neither_as_fewer_nor_as_equal():
    found = course({"random": [[3, 3, 3]], "design": [[3, 3, 3]]}).ratios(2)["design"]
    assert found == {
        **dict.fromkeys(("ratio", "low", "high", "median")),
        "fewer": 0.0,
        "equal": 0.0,
        "never": 1.0,
    }


def test_errors_at_equal_budgets_are_compared_seed_by_seed():
    found = course({"random": [[9, 4, 2], [5, 1, 1]], "design": [[9, 1, 2], [5, 1, 1]]})
    ratio, low, high = found.error_ratios()["design"]
    assert ratio == pytest.approx(4 ** (-1 / 4))  # over two budgets of two seeds
    assert low == pytest.approx(0.5)  # only the first seed drawn
    assert high == pytest.approx(1.0)


def test_back_test_shows_its_comparison_as_text_html_and_json(result):
    document = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert document["held_out"] == 6
    assert set(document["ratios"]) == {"design", "cheapest"}
    others = [row["compared_with"] for row in document["comparison"]]
    assert others == ["random choice", "cheapest first"]
    for row in document["comparison"]:
        assert row["error_low"] <= row["error_ratio"] <= row["error_high"]
    assert result.summary().startswith("error of next-runs on 6 larger runs at equal FLOPs: ")
    assert "times the error of the fit to the whole pool" in result.summary()
    assert result._repr_html_().count("<table") == 2
    bands = result.bands()
    assert (bands["lower_quartile"] <= bands["median"]).all()
    assert (bands["median"] <= bands["upper_quartile"]).all()
    assert len(bands) == 3 * 4


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_a_strategy_chooses_each_run_once_and_stays_within_the_budget(runs, name):
    table = as_run_table(runs)
    begin, pool = table.take(np.arange(15)), table.take(np.arange(15, 25))
    stage = BacktestStage(
        fit=REFIT(begin),
        trained=begin,
        pool=pool,
        budget_flops=float(np.median(costs(pool))) * 3,
        held_out=table.take(np.arange(25, 30)),
        generator=np.random.default_rng(0),
    )
    chosen = STRATEGIES[name](stage)
    assert len(chosen) == len(set(chosen)) > 0
    assert set(chosen) <= set(range(len(pool)))
    assert costs(pool)[chosen].sum() <= stage.budget_flops * (1 + 1e-9)


def test_the_error_is_the_root_mean_square_of_ln_loss(runs):
    fitted = REFIT(runs)
    exact = runs.assign(loss=fitted.central(runs) * np.exp(0.02))
    assert held_out_error(fitted, as_run_table(exact)) == pytest.approx(0.02)


def test_unknown_starts_and_small_tables_are_refused(runs):
    with pytest.raises(InputError, match="`start` must be one of smallest, random, but got 'all'"):
        backtest(runs, REFIT, start="all")
    with pytest.raises(InputError, match=r"`len\(runs\) >= 24`, but got 10"):
        backtest(runs.iloc[:10], REFIT)
