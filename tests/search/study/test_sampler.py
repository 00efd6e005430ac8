from dataclasses import replace

import numpy as np
import optuna
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.problem import Goal
from shapelaw.search.study.sampler import SAMPLERS, next_row, opening, sampler_named
from shapelaw.search.study.study import Effort, Found, explore
from support.made_up import LOSSES, TABLE, WORKLOAD, MadeUpEngine, measured, question

ASKED = question()
TRUTH = measured(TABLE, misfit=0.2)
RATES = np.array([each.output_tokens_per_second for each in TRUTH])
FRONT = set(np.flatnonzero(front(LOSSES, RATES)).tolist())
MIDDLE = float(np.median(LOSSES))

# A Gaussian process is refitted at every trial.
EACH = [pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name for name in SAMPLERS]


def known(rows: list[int]) -> dict[int, Measurement | str]:
    return {row: TRUTH[row] for row in rows}


def found(sampler: str = "calibrated", count: int = 30, **options: object) -> Found:
    asked = question(**options)
    effort = Effort(measurements=count, first=opening(asked, 4), sampler=sampler)
    return explore(asked, MadeUpEngine(), effort, storage=optuna.storages.InMemoryStorage())


def test_the_truth_of_these_tests_has_a_front_to_find() -> None:
    assert 5 < len(FRONT) < 60
    assert len(TABLE) > 10 * len(FRONT)


def test_our_sampler_finds_more_of_the_front_than_random_does() -> None:
    ours, random = (len(FRONT & set(found(name).measured)) for name in ("calibrated", "random"))
    assert ours > 2 * random
    assert ours > len(FRONT) / 2


@pytest.mark.parametrize("name", EACH)
def test_every_sampler_works_behind_the_same_study(name: str) -> None:
    result = found(name, count=14)
    assert len(result.known) == 14
    measured_rates = [each.output_tokens_per_second for each in result.measured.values()]
    assert measured_rates == pytest.approx(RATES[list(result.measured)])


@pytest.mark.parametrize("name", EACH)
def test_every_sampler_takes_constraints(name: str) -> None:
    slow = float(np.quantile([each.ttft for each in TRUTH], 0.3))
    workload = replace(WORKLOAD, max_ttft=slow)
    result = found(name, count=12, workload=workload, goal=Goal(max_loss=MIDDLE))
    assert len(result.measured) == 12
    assert (LOSSES[list(result.measured)] <= MIDDLE).all()


def test_the_next_row_is_never_one_that_is_known_or_pending() -> None:
    rows: list[int] = [3, 4]
    for _ in range(6):
        pending = [next_row(ASKED, known(rows))]
        following = next_row(ASKED, known(rows), pending)
        assert following not in {*rows, *pending}
        rows += [*pending, following]
    assert len(set(rows)) == len(rows)


def test_pending_shapes_send_others_elsewhere() -> None:
    """A worker does not ask for the twin of what another one measures."""
    rows = [int(row) for row in np.random.default_rng(0).permutation(len(TABLE))[:10]]
    pending: list[int] = []
    for _ in range(4):
        pending.append(next_row(ASKED, known(rows), pending))
    fields = ASKED.grid.fields[pending]
    apart = np.abs(np.log(fields[:, None] / fields[None])).sum(axis=2)
    assert (apart[~np.eye(4, dtype=bool)] > 0).all()
    assert np.ptp(LOSSES[pending]) > 0


def test_a_refused_shape_is_not_asked_for_again_nor_believed_fast() -> None:
    rows = known([3, 4, 50, 90])
    best = next_row(ASKED, rows)
    refused = next_row(ASKED, rows | {best: "too wide"})
    assert refused != best
    fast = next_row(ASKED, rows, [best])
    assert {refused, fast} <= set(range(len(TABLE)))


def test_where_everything_is_taken_any_allowed_row_is_given() -> None:
    assert next_row(ASKED, known(list(range(len(TABLE))))) == 0


def test_the_opening_is_the_roofline_front_from_accurate_to_fast() -> None:
    rows = opening(ASKED, 5)
    assert 2 <= len(rows) == len(set(rows)) <= 5
    assert LOSSES[rows[0]] == LOSSES.min()
    assert (np.diff(LOSSES[rows]) > 0).all()


def test_the_fastest_within_a_loss_is_found() -> None:
    goal = Goal(max_loss=MIDDLE, fastest=True)
    result = found(goal=goal, count=25)
    allowed = np.flatnonzero(LOSSES <= MIDDLE)
    best = allowed[np.argmax(RATES[allowed])]
    assert (LOSSES[list(result.measured)] <= MIDDLE).all(), "no measurement is wasted"
    assert max(result.measured, key=lambda row: RATES[row]) == best


def test_the_single_objective_study_is_optunas_with_one_direction() -> None:
    storage = optuna.storages.InMemoryStorage()
    asked = question(goal=Goal(max_loss=MIDDLE, fastest=True))
    explore(asked, MadeUpEngine(), Effort(measurements=5), storage=storage)
    study = optuna.load_study(study_name=None, storage=storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE"]
    best = study.best_trial
    assert best.user_attrs["constraints"][0] <= 0
    assert best.value == pytest.approx(
        max(np.log(RATES[t.user_attrs["row"]]) for t in study.trials)
    )


def test_a_baseline_outside_the_limit_is_measured_when_asked_for() -> None:
    worst = int(np.argmax(LOSSES))
    asked = question(goal=Goal(max_loss=MIDDLE))
    effort = Effort(measurements=4, first=[worst])
    storage = optuna.storages.InMemoryStorage()
    assert worst in explore(asked, MadeUpEngine(), effort, storage=storage).measured


def test_a_service_level_sends_the_search_where_it_can_be_kept() -> None:
    ttft = np.array([each.ttft for each in TRUTH])
    limit = float(np.quantile(ttft, 0.25))
    result = found(workload=replace(WORKLOAD, max_ttft=limit), count=24)
    proposed = list(result.measured)[8:]
    assert np.mean(ttft[proposed] <= limit) > 0.7
    counted = [row for row in result.measured if result.question.counts(row, TRUTH[row])]
    assert all(ttft[row] <= limit for row in counted)


def test_what_was_found_speaks_for_the_whole_space() -> None:
    result = found(count=20)
    assert result.is_measured.sum() == 20
    rates = result.rates
    assert rates[result.is_measured] == pytest.approx(RATES[result.is_measured])
    assert np.mean(np.abs(rates / RATES - 1)) < 0.1
    assert (result.forecast.low <= result.forecast.rate).all()


def test_shapes_are_claimed_as_many_at_once_as_the_engine_loads() -> None:
    engine = MadeUpEngine(together=3)
    effort = Effort(measurements=8, first=[0])
    explore(ASKED, engine, effort, storage=optuna.storages.InMemoryStorage())
    assert engine.batches == [3, 3, 2]
    assert len(set(engine.calls)) == 8


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match="`sampler` must be one of calibrated, tpe, nsga2, gp"):
        sampler_named("grid", ASKED, 0)


def test_a_limit_that_no_shape_keeps_is_refused() -> None:
    with pytest.raises(InputError, match=r"`predicted loss <= 1` must hold for some shape"):
        question(goal=Goal(max_loss=1.0))


def test_the_fastest_shape_of_any_loss_is_no_question() -> None:
    with pytest.raises(InputError, match="`fastest` needs a `max_loss`"):
        Goal(fastest=True)


def test_an_old_optuna_has_no_gp_for_two_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna, "__version__", "4.2.1")
    with pytest.raises(InputError, match=r"sampler gp needs `optuna >= 4.5`, but got 4.2.1"):
        sampler_named("gp", ASKED, 0)
