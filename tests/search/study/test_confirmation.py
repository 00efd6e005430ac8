from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.study.confirmation import (
    draw_speeds,
    fastest_probability,
    front_probability,
    leaders,
    measure_again,
)
from shapelaw.search.study.problem import Goal
from shapelaw.search.study.study import Effort, explore
from support.made_up import (
    LOSSES,
    TABLE,
    WORKLOAD,
    MadeUpEngine,
    made_up_problem,
    measured,
    measurement,
)


def timed(seconds: float, spread: float = 0.0, repeats: int = 5) -> Measurement:
    return measurement(WORKLOAD, seconds / 2, seconds / 2, spread=spread, repeats=repeats)


def test_front_probability_without_spread_is_the_front() -> None:
    found = measured(TABLE.take(np.arange(60)), misfit=0.2)
    rates = [each.output_tokens_per_second for each in found]
    probabilities = front_probability(LOSSES[:60], found, draws=10)
    assert probabilities.tolist() == front(LOSSES[:60], rates).astype(float).tolist()


def test_two_equal_shapes_are_each_on_the_front_in_half_of_the_draws() -> None:
    """Of two shapes with equal loss and speed, each is faster in half of the draws."""
    probabilities = front_probability([2.0, 2.0], [timed(1.0, 0.1), timed(1.0, 0.1)], draws=4000)
    assert probabilities == pytest.approx([0.5, 0.5], abs=0.03)
    assert probabilities.sum() == pytest.approx(1.0)


def test_the_lowest_loss_is_always_on_the_front() -> None:
    probabilities = front_probability([1.9, 2.0], [timed(1.0, 0.2), timed(1.01, 0.2)])
    assert probabilities[0] == 1.0
    assert 0.3 < probabilities[1] < 0.5


def test_front_probability_of_a_slower_shape_grows_with_the_interval() -> None:
    losses = [1.9, 2.0]
    probabilities = [
        front_probability(losses, [timed(1.0, spread), timed(1.03, spread)])[1]
        for spread in (0.001, 0.02, 0.2)
    ]
    assert probabilities[0] < 0.01
    assert probabilities == sorted(probabilities)


@pytest.mark.parametrize("repeats", [2, 5, 60])
def test_share_of_draws_inside_the_interval_is_its_level(repeats: int) -> None:
    found = timed(1.0, 0.04, repeats)
    speeds = draw_speeds([found], draws=20_000)[:, 0]
    inside = (speeds >= found.low) & (speeds <= found.high)
    assert inside.mean() == pytest.approx(0.95, abs=0.01)


def test_the_fastest_probability_sums_to_one() -> None:
    probabilities = fastest_probability([timed(1.0, 0.05), timed(1.01, 0.05), timed(2.0, 0.05)])
    assert probabilities.sum() == pytest.approx(1.0)
    assert probabilities[0] > probabilities[1] > probabilities[2] == 0.0


def test_leaders_are_the_most_probable_rows_within_all_limits() -> None:
    found = dict(enumerate(measured(TABLE, misfit=0.2)))
    rates = [each.output_tokens_per_second for each in found.values()]
    best = set(np.flatnonzero(front(LOSSES, rates)).tolist())
    assert set(leaders(made_up_problem(), found, most=100)) == best
    assert len(leaders(made_up_problem(), found, most=3)) == 3
    middle = float(np.median(LOSSES))
    limited = made_up_problem(goal=Goal(max_loss=middle, fastest=True))
    (fastest,) = leaders(limited, found)
    assert fastest == max(np.flatnonzero(middle >= LOSSES), key=lambda row: rates[row])
    strict = made_up_problem(workload=replace(WORKLOAD, max_ttft=1e-9))
    assert leaders(strict, found) == []


class Slower(MadeUpEngine):
    """An engine that measures one shape slower than the engine of the search did."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.slow = TABLE[row]

    def measure(self, shape: object, workload: object) -> Measurement:
        found = super().measure(shape, workload)  # type: ignore[arg-type]
        if shape != self.slow:
            return found
        rate = found.output_tokens_per_second / 3
        return replace(found, output_tokens_per_second=rate, low=rate, high=rate)


def test_probability_of_a_leader_follows_its_second_measurement() -> None:
    storage = optuna.storages.InMemoryStorage()
    found = explore(made_up_problem(), MadeUpEngine(), Effort(measurements=20), storage=storage)
    chosen = leaders(found.problem, found.measured)
    lucky = max(chosen, key=lambda row: LOSSES[row])
    engine = Slower(lucky)
    confirmed = measure_again(found, engine, always=[next(iter(found.measured))])
    assert engine.batches == [len(confirmed.again)], "one interleaved batch"
    assert set(chosen) <= set(confirmed.again)
    assert next(iter(found.measured)) in confirmed.again
    assert confirmed.probability[lucky] == 0.0
    assert confirmed.before == {row: found.measured[row] for row in confirmed.again}
    assert max(confirmed.probability.values()) == 1.0


def test_leaders_of_a_short_search_are_measured_at_full_length() -> None:
    storage = optuna.storages.InMemoryStorage()
    short = made_up_problem(workload=WORKLOAD.shortened(2))
    found = explore(short, MadeUpEngine(), Effort(measurements=8), storage=storage)
    confirmed = measure_again(found, MadeUpEngine(), workload=WORKLOAD, most=2)
    workloads = {each.workload for each in confirmed.again.values() if not isinstance(each, str)}
    assert workloads == {str(WORKLOAD)}
    assert 1 <= len(confirmed.again) <= 2


def test_leader_that_the_engine_refuses_later_has_probability_zero() -> None:
    storage = optuna.storages.InMemoryStorage()
    found = explore(made_up_problem(), MadeUpEngine(), Effort(measurements=12), storage=storage)
    row = leaders(found.problem, found.measured)[0]
    refuse = TABLE[row].num_key_value_heads
    confirmed = measure_again(found, MadeUpEngine(refuse=refuse))
    assert isinstance(confirmed.again[row], str)
    assert confirmed.probability[row] == 0.0


def test_cached_engine_measures_leaders_again(tmp_path: Path) -> None:
    engine = MadeUpEngine(together=3)
    engine.version, engine.device = "1", "none"  # type: ignore[attr-defined]
    kept = CachedEngine(engine, MeasurementStore(tmp_path / "kept.jsonl"))
    storage = optuna.storages.InMemoryStorage()
    found = explore(made_up_problem(), kept, Effort(measurements=6), storage=storage)
    assert engine.batches == [3, 3], "batches have the size that the wrapped engine loads at once"
    confirmed = measure_again(found, kept, most=2)
    assert engine.batches[-1] == len(confirmed.again)
    assert len(engine.calls) == 6 + len(confirmed.again)
