from dataclasses import replace

import numpy as np
import optuna
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.problem import Goal
from shapelaw.search.study.sampler import SAMPLERS, next_row, opening_rows, sampler_named
from shapelaw.search.study.study import Effort, SearchResult, explore
from support.made_up import LOSSES, TABLE, WORKLOAD, MadeUpEngine, made_up_problem, measured

PROBLEM = made_up_problem()
TRUTH = measured(TABLE, misfit=0.2)
RATES = np.array([each.output_tokens_per_second for each in TRUTH])
FRONT = set(np.flatnonzero(front(LOSSES, RATES)).tolist())
MIDDLE = float(np.median(LOSSES))

# The Gaussian process is slow: it is fitted again at every trial.
EACH = [pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name for name in SAMPLERS]


def results_of(rows: list[int]) -> dict[int, Measurement | str]:
    return {row: TRUTH[row] for row in rows}


def found(sampler: str = "calibrated", count: int = 30, **options: object) -> SearchResult:
    problem = made_up_problem(**options)
    effort = Effort(measurements=count, first=opening_rows(problem, 4), sampler=sampler)
    return explore(problem, MadeUpEngine(), effort, storage=optuna.storages.InMemoryStorage())


def test_made_up_space_has_a_front_of_a_tenth_of_its_shapes() -> None:
    assert 5 < len(FRONT) < 60
    assert len(TABLE) > 10 * len(FRONT)


def test_calibrated_sampler_finds_twice_the_front_of_random() -> None:
    ours, random = (len(FRONT & set(found(name).measured)) for name in ("calibrated", "random"))
    assert ours > 2 * random
    assert ours > len(FRONT) / 2


@pytest.mark.parametrize("name", EACH)
def test_every_sampler_measures_the_wanted_number_of_shapes(name: str) -> None:
    result = found(name, count=14)
    assert len(result.results) == 14
    measured_rates = [each.output_tokens_per_second for each in result.measured.values()]
    assert measured_rates == pytest.approx(RATES[list(result.measured)])


@pytest.mark.parametrize("name", EACH)
def test_every_sampler_keeps_the_loss_limit(name: str) -> None:
    slow = float(np.quantile([each.ttft for each in TRUTH], 0.3))
    workload = replace(WORKLOAD, max_ttft=slow)
    result = found(name, count=12, workload=workload, goal=Goal(max_loss=MIDDLE))
    assert len(result.measured) == 12
    assert (LOSSES[list(result.measured)] <= MIDDLE).all()


def test_next_row_is_neither_measured_nor_pending() -> None:
    rows: list[int] = [3, 4]
    for _ in range(6):
        pending = [next_row(PROBLEM, results_of(rows))]
        following = next_row(PROBLEM, results_of(rows), pending)
        assert following not in {*rows, *pending}
        rows += [*pending, following]
    assert len(set(rows)) == len(rows)


def test_next_row_differs_in_shape_and_loss_from_pending_rows() -> None:
    """Parallel workers propose different shapes."""
    rows = [int(row) for row in np.random.default_rng(0).permutation(len(TABLE))[:10]]
    pending: list[int] = []
    for _ in range(4):
        pending.append(next_row(PROBLEM, results_of(rows), pending))
    fields = PROBLEM.encoding.fields[pending]
    apart = np.abs(np.log(fields[:, None] / fields[None])).sum(axis=2)
    assert (apart[~np.eye(4, dtype=bool)] > 0).all()
    assert np.ptp(LOSSES[pending]) > 0


def test_next_row_after_a_refusal_is_another_row() -> None:
    rows = results_of([3, 4, 50, 90])
    best = next_row(PROBLEM, rows)
    refused = next_row(PROBLEM, rows | {best: "too wide"})
    assert refused != best
    fast = next_row(PROBLEM, rows, [best])
    assert {refused, fast} <= set(range(len(TABLE)))


def test_next_row_without_a_free_row_is_an_allowed_one() -> None:
    assert next_row(PROBLEM, results_of(list(range(len(TABLE))))) == 0


def test_opening_rows_run_along_the_front_from_accurate_to_fast() -> None:
    rows = opening_rows(PROBLEM, 5)
    assert 2 <= len(rows) == len(set(rows)) <= 5
    assert LOSSES[rows[0]] == LOSSES.min()
    assert (np.diff(LOSSES[rows]) > 0).all()


def test_the_fastest_within_a_loss_is_found() -> None:
    goal = Goal(max_loss=MIDDLE, fastest=True)
    result = found(goal=goal, count=25)
    allowed = np.flatnonzero(LOSSES <= MIDDLE)
    best = allowed[np.argmax(RATES[allowed])]
    assert (LOSSES[list(result.measured)] <= MIDDLE).all(), "no shape above the limit is measured"
    assert max(result.measured, key=lambda row: RATES[row]) == best


def test_study_of_the_fastest_shape_has_one_direction_in_optuna() -> None:
    storage = optuna.storages.InMemoryStorage()
    problem = made_up_problem(goal=Goal(max_loss=MIDDLE, fastest=True))
    explore(problem, MadeUpEngine(), Effort(measurements=5), storage=storage)
    study = optuna.load_study(study_name=None, storage=storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE"]
    best = study.best_trial
    assert best.user_attrs["constraints"][0] <= 0
    assert best.value == pytest.approx(
        max(np.log(RATES[t.user_attrs["row"]]) for t in study.trials)
    )


def test_first_row_outside_the_limit_is_measured() -> None:
    worst = int(np.argmax(LOSSES))
    problem = made_up_problem(goal=Goal(max_loss=MIDDLE))
    effort = Effort(measurements=4, first=[worst])
    storage = optuna.storages.InMemoryStorage()
    assert worst in explore(problem, MadeUpEngine(), effort, storage=storage).measured


def test_search_with_a_service_level_proposes_shapes_that_meet_it() -> None:
    ttft = np.array([each.ttft for each in TRUTH])
    limit = float(np.quantile(ttft, 0.25))
    result = found(workload=replace(WORKLOAD, max_ttft=limit), count=24)
    proposed = list(result.measured)[8:]
    assert np.mean(ttft[proposed] <= limit) > 0.7
    counted = [row for row in result.measured if result.problem.within_limits(row, TRUTH[row])]
    assert all(ttft[row] <= limit for row in counted)


def test_rates_of_a_result_are_measured_or_predicted_for_every_shape() -> None:
    result = found(count=20)
    rates, measured = result.rates, list(result.measured)
    assert len(measured) == 20
    assert rates[measured] == pytest.approx(RATES[measured])
    assert np.mean(np.abs(rates / RATES - 1)) < 0.1
    assert (result.forecast.low <= result.forecast.rate).all()


def test_worker_claims_as_many_shapes_at_once_as_the_engine_loads() -> None:
    engine = MadeUpEngine(together=3)
    effort = Effort(measurements=8, first=[0])
    explore(PROBLEM, engine, effort, storage=optuna.storages.InMemoryStorage())
    assert engine.batches == [3, 3, 2]
    assert len(set(engine.calls)) == 8


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="`sampler` must be one of calibrated, tpe, nsga2, gp"):
        sampler_named("grid", PROBLEM, 0)


def test_loss_limit_that_no_shape_meets_is_refused() -> None:
    with pytest.raises(InputError, match=r"`predicted loss <= 1` must hold for some shape"):
        made_up_problem(goal=Goal(max_loss=1.0))


def test_goal_of_the_fastest_shape_without_a_loss_limit_is_refused() -> None:
    with pytest.raises(InputError, match="`fastest` needs a `max_loss`"):
        Goal(fastest=True)


def test_gp_sampler_with_an_old_optuna_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna, "__version__", "4.2.1")
    with pytest.raises(InputError, match=r"sampler gp needs `optuna >= 4.5`, but got 4.2.1"):
        sampler_named("gp", PROBLEM, 0)
