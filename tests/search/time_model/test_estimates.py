import numpy as np
import pytest

from shapelaw.scaling.space.space import Space
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines._roofline import RooflineEngine, roofline
from shapelaw.search.engines.accelerators import device_of
from shapelaw.search.time_model.cross_validation import cross_validate
from shapelaw.search.time_model.estimates import estimate
from shapelaw.search.workload import parse_workload
from support.fake_engine import FakeEngine

SPACE = Space(
    parameters=60_000_000, layers=(8, 12), head_dims=(64,), vocab_size=32_000, hidden_step=128,
    mlp_step=128, max_heads=16,
)  # fmt: skip
TABLE = SPACE.enumerate()
WORK = parse_workload("512/128@16:bfloat16")


def measurements_of(engine: Engine, rows: list[int]) -> dict[int, Measurement | str]:
    return {row: engine.measure(TABLE[row], WORK) for row in rows}


@pytest.mark.parametrize("workload", ["512/128@16:bfloat16", "64/512@1:float32", "rag@64:bfloat16"])
def test_roofline_of_a_table_equals_that_of_the_engine(workload: str) -> None:
    engine, work = RooflineEngine("h200"), parse_workload(workload)
    device = device_of(engine)
    assert device is not None
    ttft, tpot = roofline(TABLE, work, device)
    for row in range(0, len(TABLE), max(1, len(TABLE) // 7)):
        answer = engine.measure(TABLE[row], work)
        assert (ttft[row], tpot[row]) == pytest.approx((answer.ttft, answer.tpot))


def test_estimate_of_a_shape_larger_than_the_memory_is_nan() -> None:
    engine = RooflineEngine("h200")
    crowded = parse_workload("4096/1024@200000:bfloat16")
    assert np.isnan(estimate(TABLE, {}, engine, crowded).rate).all()


def test_time_model_learns_the_predictions_of_a_roofline() -> None:
    """One term dominates each stage of this workload, so that sums and maxima agree."""
    engine, rows = RooflineEngine("h200"), list(range(0, len(TABLE), len(TABLE) // 12))
    model = estimate(TABLE, measurements_of(engine, rows), engine, WORK)
    for row in (1, len(TABLE) // 2):
        answer = engine.measure(TABLE[row], WORK)
        assert model.rate[row] == pytest.approx(answer.output_tokens_per_second, rel=0.05)
    answered = [engine.measure(TABLE[row], WORK) for row in rows]
    checked = cross_validate(
        TABLE.take(np.array(rows)), answered, WORK, folds=len(rows), device=device_of(engine)
    )
    assert checked.mape < 0.05
    assert checked.spearman > 0.9


def test_estimated_measurement_is_marked_and_consistent() -> None:
    engine = FakeEngine()
    model = estimate(TABLE, measurements_of(engine, [0, 3, 9]), engine, WORK)
    answer = model.measurement(4)
    assert answer.kind == "time model"
    assert answer.engine == "time model of fake"
    assert 0 < answer.low < answer.output_tokens_per_second < answer.high
    seconds = answer.ttft + answer.tpot * (WORK.output_tokens - 1)
    generated = WORK.concurrency * WORK.output_tokens
    assert generated / seconds == pytest.approx(answer.output_tokens_per_second, rel=0.02)


def test_estimates_move_to_the_measurements() -> None:
    engine = FakeEngine()
    rows = list(range(0, len(TABLE), len(TABLE) // 20))
    found = measurements_of(engine, rows)
    answer = np.array([found[row].output_tokens_per_second for row in rows])  # type: ignore[union-attr]
    before = estimate(TABLE, {}, engine, WORK).rate[rows]
    after = estimate(TABLE, found, engine, WORK).rate[rows]
    assert np.abs(np.log(after / answer)).mean() < 0.1 * np.abs(np.log(before / answer)).mean()


def test_refused_shapes_do_not_change_the_estimates() -> None:
    engine = RooflineEngine("h200")
    found = measurements_of(engine, [0, 5, 9]) | {7: "no room"}
    both = [
        estimate(TABLE, f, engine, WORK).rate for f in (found, measurements_of(engine, [0, 5, 9]))
    ]
    assert np.array_equal(*both)


@pytest.mark.parametrize("label", ["h200", "a100"])
def test_the_hardware_of_an_engine_is_found_by_its_label(label: str) -> None:
    found = device_of(RooflineEngine(label))
    assert found is not None
    assert found.key == label
    assert device_of(FakeEngine()) is None
