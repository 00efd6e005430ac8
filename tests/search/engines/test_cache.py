import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines._roofline import RooflineEngine
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore, cache_folder
from shapelaw.search.workload import Workload, parse_workload

SHAPE = Shape(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, vocab_size=50,
)  # fmt: skip
OTHER = replace(SHAPE, hidden_size=24)
WORKLOAD = parse_workload("20/6@3")
FOUND = Measurement(
    engine="counting", kind="measured", workload=str(WORKLOAD), device="here", version="1",
    repeats=3, output_tokens_per_second=7.5, low=7.0, high=8.0, ttft=0.1, tpot=0.01,
    prefill_tokens_per_second=600.0, decode_tokens_per_second=300.0, wall_seconds=1.0,
    cpu_seconds=0.9, load=None, disturbed=False,
)  # fmt: skip


class Counting(Engine):
    """An engine that records its calls, whose first ``disturbed`` measurements are disturbed."""

    name, kind, together = "counting", "measured", 2

    def __init__(self, *, version: object = "1", device: str = "here", disturbed: int = 0) -> None:
        self.version, self.device, self.disturbed = version, device, disturbed
        self.asked: list[Shape] = []

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        self.asked.append(shape)
        if shape.hidden_size == 32:
            raise InputError("32 is too wide")
        return replace(FOUND, workload=str(workload), disturbed=len(self.asked) <= self.disturbed)


@pytest.fixture
def store(tmp_path: Path) -> MeasurementStore:
    return MeasurementStore(tmp_path / "deep" / "measurements.jsonl")


def test_second_engine_reads_the_stored_measurement(store: MeasurementStore) -> None:
    first, second = Counting(), Counting()
    found = CachedEngine(first, store).measure(SHAPE, WORKLOAD)
    again = MeasurementStore(store.path)
    assert CachedEngine(second, again).measure(SHAPE, WORKLOAD) == found == FOUND
    assert (len(first.asked), len(second.asked)) == (1, 0)


def test_each_missing_shape_of_a_batch_is_measured_once(
    store: MeasurementStore,
) -> None:
    engine = Counting()
    cached = CachedEngine(engine, store)
    cached.measure(SHAPE, WORKLOAD)
    wide = replace(SHAPE, hidden_size=32)
    found = cached.measure_all([OTHER, SHAPE, wide, OTHER], WORKLOAD)
    assert found == [FOUND, FOUND, "32 is too wide", FOUND]
    assert engine.asked == [SHAPE, OTHER, wide]
    assert cached.measured == 3


@pytest.mark.parametrize(
    ("engine", "shape", "workload"),
    [
        (Counting(version="2"), SHAPE, WORKLOAD),
        (Counting(device="there"), SHAPE, WORKLOAD),
        (Counting(), OTHER, WORKLOAD),
        (Counting(), replace(SHAPE, qk_norm=True), WORKLOAD),
        (Counting(), SHAPE, replace(WORKLOAD, output_tokens=7)),
        (Counting(), SHAPE, replace(WORKLOAD, concurrency=4)),
        (Counting(), SHAPE, replace(WORKLOAD, dtype="bfloat16")),
        (Counting(), SHAPE, replace(WORKLOAD, kv_dtype="fp8")),
    ],
)
def test_anything_that_changes_the_speed_is_measured_anew(
    store: MeasurementStore, engine: Counting, shape: Shape, workload: Workload
) -> None:
    engine.asked.clear()
    CachedEngine(Counting(), store).measure(SHAPE, WORKLOAD)
    CachedEngine(engine, store).measure(shape, workload)
    assert engine.asked == [shape]


def test_workload_with_another_name_and_limit_is_looked_up(store: MeasurementStore) -> None:
    engine = Counting()
    CachedEngine(engine, store).measure(SHAPE, WORKLOAD)
    named = replace(WORKLOAD, name="mine", max_tpot=0.5)
    found = CachedEngine(engine, store).measure(SHAPE, named)
    assert len(engine.asked) == 1
    assert found.workload == str(named), "the measurement names the requested workload"


def test_disturbed_measurement_is_returned_but_not_stored(store: MeasurementStore) -> None:
    engine = Counting(disturbed=1)
    cached = CachedEngine(engine, store)
    assert cached.measure(SHAPE, WORKLOAD).disturbed
    assert not cached.measure(SHAPE, WORKLOAD).disturbed
    assert not cached.measure(SHAPE, WORKLOAD).disturbed
    assert len(engine.asked) == 2


def test_fresh_engine_measures_a_stored_shape_again_once(store: MeasurementStore) -> None:
    CachedEngine(Counting(), store).measure(SHAPE, WORKLOAD)
    engine = Counting()
    cached = CachedEngine(engine, store, fresh=True)
    for _ in range(2):
        cached.measure(SHAPE, WORKLOAD)
    assert len(engine.asked) == 1
    assert len(store.path.read_text().splitlines()) == 2


def test_the_last_measurement_of_a_key_counts(store: MeasurementStore) -> None:
    cached = CachedEngine(Counting(), store)
    key = cached.key(SHAPE, WORKLOAD)
    assert key is not None
    store.put(*key, FOUND)
    store.put(*key, replace(FOUND, ttft=0.2))
    assert cached.measure(SHAPE, WORKLOAD).ttft == 0.2


def test_engine_without_a_version_measures_every_time(store: MeasurementStore) -> None:
    engine = Counting(version=None)
    for _ in range(2):
        CachedEngine(engine, store).measure(SHAPE, WORKLOAD)
    assert len(engine.asked) == 2
    assert not store.path.exists()


def test_incomplete_line_of_a_killed_writer_loses_no_other_line(store: MeasurementStore) -> None:
    engine = Counting()
    CachedEngine(engine, store).measure(SHAPE, WORKLOAD)
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole[: len(whole) // 2])
    later = MeasurementStore(store.path)
    CachedEngine(engine, later).measure(OTHER, WORKLOAD)
    assert len(engine.asked) == 2
    assert store.path.read_bytes().startswith(whole + whole[: len(whole) // 2] + b"\n{")
    last = CachedEngine(engine, MeasurementStore(store.path))
    assert last.measure_all([SHAPE, OTHER], WORKLOAD) == [FOUND, FOUND]
    assert len(engine.asked) == 2


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"key": "k", "measurement": {"a": 1}}'])
def test_invalid_lines_of_the_store_are_skipped(store: MeasurementStore, line: str) -> None:
    CachedEngine(Counting(), store).measure(SHAPE, WORKLOAD)
    store.path.write_text(line + "\n" + store.path.read_text() + line + "\n")
    engine = Counting()
    CachedEngine(engine, MeasurementStore(store.path)).measure(SHAPE, WORKLOAD)
    assert engine.asked == []


def test_shape_is_measured_again_after_the_store_was_emptied(store: MeasurementStore) -> None:
    engine = Counting()
    cached = CachedEngine(engine, store)
    for empty in (lambda: store.path.write_text(""), store.path.unlink, lambda: None):
        cached.measure(SHAPE, WORKLOAD)
        empty()
    assert len(engine.asked) == 3


def write_many(path: Path, writer: int) -> None:
    store = MeasurementStore(path)
    for number in range(40):
        store.put(f"{writer}-{number}", {"padding": "x" * 500}, replace(FOUND, ttft=1.0 + number))


def test_several_writers_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    path.write_text('{"key": "torn')
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    writers = [context.Process(target=write_many, args=(path, writer)) for writer in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
        assert process.exitcode == 0
    store = MeasurementStore(path)
    for writer in range(3):
        for number in range(40):
            found = store.get(f"{writer}-{number}")
            assert found is not None
            assert found.ttft == 1 + number
    lines = path.read_text().splitlines()
    assert len([json.loads(line) for line in lines[1:]]) == 120


def test_unreadable_store_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cached = CachedEngine(Counting(), MeasurementStore(tmp_path / "file" / "measurements.jsonl"))
    with pytest.raises(WorkError, match=r"file/measurements.jsonl cannot be read"):
        cached.measure(SHAPE, WORKLOAD)


def test_environment_variable_names_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAPELAW_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert MeasurementStore.of_user().path.parent == tmp_path
    monkeypatch.delenv("SHAPELAW_CACHE")
    assert "shapelaw" in cache_folder().name


def test_roofline_prediction_is_not_stored(store: MeasurementStore) -> None:
    cached = CachedEngine(RooflineEngine("h100"), store)
    assert cached.label == "roofline:h100"
    assert cached.measure(SHAPE, WORKLOAD) == RooflineEngine("h100").measure(SHAPE, WORKLOAD)
    assert not store.path.exists()
