import errno
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import WorkError
from shapelaw.scaling.space.grid import FREE_FIELDS
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines._roofline import RooflineEngine
from shapelaw.search.study.encoding import SpaceEncoding
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.study.storage import opened_storage
from shapelaw.search.study.study import Effort, Report, explore, study_name
from support.fake_engine import FakeEngine
from support.made_up import TABLE, WORKLOAD

# Any function of the shape serves as loss.
LOSSES = 2 + np.abs(np.log(TABLE.hidden_size / 48)) / 10 + TABLE.num_key_value_heads / 100


def found_by(
    engine: Engine,
    path: Path,
    *,
    problem: SearchProblem | None = None,
    report: Report = lambda done: None,
    **options: object,
) -> dict[int, Measurement | str]:
    usual: dict[str, object] = {"measurements": 9, "first": [5, 0]}
    problem = problem or SearchProblem(table=TABLE, losses=LOSSES, workload=WORKLOAD)
    effort = Effort(**(usual | options))  # type: ignore[arg-type]
    return explore(problem, engine, effort, storage=path / "study.log", report=report).results


def test_made_up_space_has_several_values_of_every_field() -> None:
    fields = SpaceEncoding.of(TABLE).fields
    assert 100 < len(TABLE) < 3000
    assert all(len(np.unique(column)) > 1 for column in fields.T)


@settings(max_examples=200)
@given(st.integers(0, len(TABLE) - 1))
def test_values_of_a_row_are_its_fields_and_lead_back_to_it(row: int) -> None:
    space = SpaceEncoding.of(TABLE)
    values = space.values(row)
    assert space.row(values.__getitem__) == row
    assert values == {name: getattr(TABLE[row], name) for name in FREE_FIELDS}


def test_values_lead_back_to_every_row_of_a_small_space() -> None:
    space = SpaceEncoding.of(TABLE.take(np.arange(0, len(TABLE), 3)))
    for row in range(len(space.fields)):
        assert space.row(space.values(row).__getitem__) == row


@settings(max_examples=100)
@given(st.lists(st.floats(1e-3, 1e9), min_size=6, max_size=6))
def test_any_positive_values_lead_to_a_row_and_the_first_to_its_nearest(
    numbers: list[float],
) -> None:
    values = dict(zip(FREE_FIELDS, numbers, strict=True))
    row = SpaceEncoding.of(TABLE).row(values.__getitem__)
    nearest = min((2, 3), key=lambda layers: abs(np.log(layers / values["num_hidden_layers"])))
    assert TABLE[row].num_hidden_layers == nearest


def test_random_rows_have_every_depth_equally_often() -> None:
    space, draw = SpaceEncoding.of(TABLE), np.random.default_rng(0)
    depths = TABLE.num_hidden_layers[[space.random_row(draw) for _ in range(600)]]
    values, counts = np.unique(depths, return_counts=True)
    assert len(values) == len(np.unique(TABLE.num_hidden_layers))
    assert counts / 600 == pytest.approx(1 / len(values), abs=0.08)  # four standard errors


def test_field_with_one_value_is_no_parameter() -> None:
    some = TABLE.take((TABLE.num_hidden_layers == 2) & (TABLE.head_dim == 8))
    values = SpaceEncoding.of(some).values(0)
    assert values
    assert not {"num_hidden_layers", "head_dim"} & set(values)


def test_the_nearest_allowed_row_is_nearest_in_ratio() -> None:
    grid = SpaceEncoding.of(TABLE)
    assert grid.nearest(7, np.arange(len(TABLE))) == 7
    allowed = np.arange(0, len(TABLE), 17)
    apart = np.log(grid.fields[allowed] / grid.fields[7])
    assert grid.nearest(7, allowed) == allowed[np.argmin(np.square(apart).sum(axis=1))]


def test_study_measures_the_wanted_number_of_distinct_shapes(tmp_path: Path) -> None:
    engine, reported = FakeEngine(), []
    found = found_by(engine, tmp_path, report=reported.append)
    assert len(found) == len(engine.calls) == 9
    assert all(0 <= row < len(TABLE) for row in found)
    assert engine.calls[:2] == [TABLE[5], TABLE[0]], "the rows of `first` are measured first"
    assert set(engine.calls) == {TABLE[row] for row in found}
    for row, result in found.items():
        assert result == FakeEngine().measure(TABLE[row], WORKLOAD)
    assert reported[0] == 0
    assert reported[-1] == 9
    assert reported == sorted(reported)


@pytest.mark.parametrize("wanted", [6, 50])
def test_a_small_space_is_measured_whole(tmp_path: Path, wanted: int) -> None:
    small, engine = TABLE.take(np.arange(6)), FakeEngine()
    problem = SearchProblem(table=small, losses=LOSSES[:6], workload=WORKLOAD)
    found = found_by(engine, tmp_path, problem=problem, measurements=wanted, first=[0])
    assert sorted(found) == list(range(6))
    assert len(engine.calls) == 6


def test_finished_study_is_not_measured_again(tmp_path: Path) -> None:
    first = found_by(FakeEngine(), tmp_path)
    engine = FakeEngine()
    assert found_by(engine, tmp_path) == first
    assert engine.calls == []


def test_study_with_more_measurements_adds_only_new_shapes(tmp_path: Path) -> None:
    first = found_by(FakeEngine(), tmp_path)
    engine = FakeEngine()
    both = found_by(engine, tmp_path, measurements=12)
    assert len(both) == 12
    assert len(engine.calls) == 3
    assert first.items() <= both.items()


@pytest.mark.parametrize("stop_at", [1, 2, 5, 9])
def test_interrupted_study_continues_from_its_journal(tmp_path: Path, stop_at: int) -> None:
    stopped = FakeEngine(stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        found_by(stopped, tmp_path)
    engine = FakeEngine()
    found = found_by(engine, tmp_path)
    assert len(found) == 9
    assert not set(engine.calls) & set(stopped.calls[:-1])
    assert len(engine.calls) == 9 - (stop_at - 1)
    assert {TABLE[row] for row in found} == {*engine.calls, *stopped.calls[:-1]}
    assert {TABLE[5], TABLE[0]} <= {*engine.calls, *stopped.calls[:-1]}


def test_a_search_is_a_function_of_its_seed(tmp_path: Path) -> None:
    same = [list(found_by(FakeEngine(), tmp_path / name)) for name in "ab"]
    assert same[0] == same[1]


def test_a_sampler_that_draws_is_a_function_of_its_seed(tmp_path: Path) -> None:
    drawn = [
        list(found_by(FakeEngine(), tmp_path / str(run), sampler="tpe", seed=seed))
        for run, seed in enumerate((0, 0, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_shapes_that_an_engine_refuses_are_reported_and_the_search_goes_on(
    tmp_path: Path,
) -> None:
    engine = FakeEngine(refuse=1)
    groups = TABLE.num_key_value_heads
    first = [int(np.flatnonzero(groups == wanted)[0]) for wanted in (1, 2, 3)]
    found = found_by(engine, tmp_path, first=first)
    assert len(found) == 9
    for row, result in found.items():
        if TABLE[row].num_key_value_heads == 1:
            assert result == f"{TABLE[row]} has 1 key-value heads"
        else:
            assert isinstance(result, Measurement)
    assert [isinstance(found[row], Measurement) for row in first] == [False, True, True]
    again = FakeEngine(refuse=1)
    assert found_by(again, tmp_path, first=first) == found
    assert again.calls == [], "a refusal is stored too"


@pytest.mark.parametrize("change", ["losses", "workload", "table"])
def test_another_problem_in_the_same_journal_is_another_study(tmp_path: Path, change: str) -> None:
    found_by(FakeEngine(), tmp_path)
    engine = FakeEngine()
    table, losses, workload = TABLE, LOSSES, WORKLOAD
    if change == "losses":
        losses = LOSSES[::-1].copy()
    elif change == "workload":
        workload = replace(WORKLOAD, concurrency=3)
    else:
        table, losses = TABLE.take(np.arange(50)), LOSSES[:50]
    problem = SearchProblem(table=table, losses=losses, workload=workload)
    found_by(engine, tmp_path, problem=problem, measurements=3, first=[0])
    assert len(engine.calls) == 3


def test_other_hardware_in_the_same_journal_is_another_study(tmp_path: Path) -> None:
    for device in ("h100", "h200"):
        found = found_by(RooflineEngine(device), tmp_path, measurements=3)
        engines = {result.engine for result in found.values() if isinstance(result, Measurement)}
        assert engines == {f"roofline:{device}"}


def stored_study(path: Path) -> optuna.Study:
    """Load the only study of a journal with Optuna alone."""
    journal = optuna.storages.journal.JournalFileBackend(str(path / "study.log"))
    return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(journal))


def test_study_is_readable_by_optuna_with_both_objectives(tmp_path: Path) -> None:
    found = found_by(FakeEngine(refuse=2), tmp_path)
    study = stored_study(tmp_path)
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    measured = [trial for trial in study.trials if "measurement" in trial.user_attrs]
    assert len(measured) == sum(isinstance(result, Measurement) for result in found.values())
    for trial in measured:
        row = trial.user_attrs["row"]
        speed = found[row].output_tokens_per_second  # type: ignore[union-attr]
        assert trial.values == pytest.approx([LOSSES[row], np.log(speed)])


@pytest.mark.parametrize("sampler", ["calibrated", "tpe", "nsga2", "random"])
def test_stored_trials_have_the_values_and_the_name_of_their_shape(
    tmp_path: Path, sampler: str
) -> None:
    found = found_by(FakeEngine(), tmp_path, sampler=sampler, measurements=15)
    trials = [trial for trial in stored_study(tmp_path).trials if "measurement" in trial.user_attrs]
    assert {trial.user_attrs["row"] for trial in trials} == set(found)
    for trial in trials:
        shape = TABLE[trial.user_attrs["row"]]
        assert trial.params == {name: getattr(shape, name) for name in FREE_FIELDS}
        d, layers, f = shape.hidden_size, shape.num_hidden_layers, shape.intermediate_size
        heads = f"h{shape.num_attention_heads}-{shape.num_key_value_heads}x{shape.head_dim}"
        assert trial.user_attrs["shape"] == f"d{d}-L{layers}-{heads}-f{f}"


def test_stored_study_names_workload_engine_and_what_the_problem_tells(tmp_path: Path) -> None:
    problem = SearchProblem(
        table=TABLE, losses=LOSSES, workload=WORKLOAD, about={"baseline": "llama-3.2-1b"}
    )
    found_by(FakeEngine(), tmp_path, problem=problem, measurements=2)
    about = {"workload": str(WORKLOAD), "engine": FakeEngine().label, "baseline": "llama-3.2-1b"}
    attributes = stored_study(tmp_path).user_attrs
    assert attributes == attributes | about
    lines = (tmp_path / "study.log").read_bytes().count(b"llama-3.2-1b")
    found_by(FakeEngine(), tmp_path, problem=problem, measurements=3)
    assert (tmp_path / "study.log").read_bytes().count(b"llama-3.2-1b") == lines


def test_results_of_a_study_whose_parameters_are_shares_are_not_measured_again(
    tmp_path: Path,
) -> None:
    problem, engine = SearchProblem(table=TABLE, losses=LOSSES, workload=WORKLOAD), FakeEngine()
    measured = engine.measure(TABLE[40], WORKLOAD)
    share = optuna.distributions.FloatDistribution(0.0, 1.0)
    with opened_storage(tmp_path / "study.log") as storage:
        earlier = optuna.create_study(
            study_name=study_name(problem, engine, form=""), storage=storage,
            directions=problem.directions,
        )  # fmt: skip
        for state, values, attributes in (
            (
                TrialState.COMPLETE,
                problem.values(40, measured),
                {"row": 40, "measurement": asdict(measured)},
            ),
            (TrialState.FAIL, None, {"row": 41, "reason": "too wide"}),
        ):
            earlier.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    values=values,
                    user_attrs=attributes,
                    params=dict.fromkeys(FREE_FIELDS, 0.5),
                    distributions=dict.fromkeys(FREE_FIELDS, share),
                )
            )
        earlier.enqueue_trial(dict.fromkeys(FREE_FIELDS, 0.3))
    again = FakeEngine()
    found = found_by(again, tmp_path, problem=problem, first=[])
    assert found[40] == measured
    assert found[41] == "too wide"
    assert len(found) == 9
    assert not {TABLE[40], TABLE[41]} & set(again.calls)
    assert len(again.calls) == 7
    with opened_storage(tmp_path / "study.log") as storage:
        study = optuna.load_study(study_name=study_name(problem, again), storage=storage)
    kept = next(trial for trial in study.trials if trial.user_attrs["row"] == 40)
    assert kept.params == {name: getattr(TABLE[40], name) for name in FREE_FIELDS}
    assert kept.user_attrs["shape"] == TABLE[40].name


def test_journal_that_cannot_be_written_raises_work_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*path: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shapelaw.search.study.journal.StudyJournal.__init__", full)
    with pytest.raises(WorkError, match=r"study\.log could not be written \(No space left"):
        found_by(FakeEngine(), tmp_path)


def test_a_table_of_one_shape_is_measured(tmp_path: Path) -> None:
    one = ShapeTable.of([TABLE[3]])
    problem = SearchProblem(table=one, losses=LOSSES[:1], workload=WORKLOAD)
    found = found_by(FakeEngine(), tmp_path, problem=problem, measurements=4, first=[0])
    assert list(found) == [0]
