"""Automatic concurrency of engines that measure: the numbers measured, and the one returned."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines._torch import TorchEngine
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.engines.concurrency import MOST_AT_ONCE
from shapelaw.search.workload import Workload, parse_workload

SHAPE = Shape(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, vocab_size=50,
)  # fmt: skip
OTHER = replace(SHAPE, num_hidden_layers=4)


class BatchEngine(Engine):
    """Engine of one static batch: a layer takes ``fixed + each`` · sequences seconds per token.

    The first token of a batch takes ten times as long. More than ``most`` sequences are refused,
    and call ``stop_at`` is interrupted.
    """

    name, kind, version, device = "batches", "measured", "1", "here"
    supported, searches_concurrency = frozenset({"automatic"}), True
    together = 4

    def __init__(
        self, fixed: float = 0.005, each: float = 0.00025, *, most: int = 10**9, stop_at: int = 0
    ) -> None:
        self.fixed, self.each, self.most, self.stop_at = fixed, each, most, stop_at
        self.asked: list[tuple[int, int]] = []

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        at_once = workload.concurrency
        assert not workload.automatic
        assert not workload.steady
        self.asked.append((shape.num_hidden_layers, at_once))
        if len(self.asked) == self.stop_at:
            raise KeyboardInterrupt
        if at_once > self.most:
            raise InputError(f"{at_once} sequences need too much memory")
        tpot = (self.fixed + self.each * at_once) * shape.num_hidden_layers
        made = Measurement.predicted(
            workload, engine=self.name, device="here", version="1", ttft=10 * tpot, tpot=tpot,
            kind="measured",
        )  # fmt: skip
        return replace(made, repeats=3)


def searched(engine: Engine, limits: str, shape: Shape = SHAPE, *, path: Path) -> Measurement:
    cached = CachedEngine(engine, MeasurementStore(path / "measurements.jsonl"))
    return cached.measure(shape, parse_workload(f"100/50,concurrency=auto{limits}"))


def test_doubling_then_bisection_finds_the_most_sequences_within_the_limit(tmp_path: Path) -> None:
    engine = BatchEngine()
    best = searched(engine, ",tpot=30ms", path=tmp_path)
    # 2 · (5 ms + n · 0.25 ms) <= 30 ms for n <= 40
    assert best.concurrency == 40
    assert best.tpot == pytest.approx(0.03)
    assert [at_once for _, at_once in engine.asked] == [8, 16, 32, 64, 48, 40, 44]
    assert "40 at once" in best.workload


@pytest.mark.parametrize(("text", "most"), [(",tpot=12ms", 4), (",ttft=0.105", 1)])
def test_limit_below_the_first_number_is_met_by_fewer_sequences(
    text: str, most: int, tmp_path: Path
) -> None:
    engine = BatchEngine()
    best = searched(engine, text, path=tmp_path)
    # TTFT is 20 · (5 ms + n · 0.25 ms): 105 ms for n = 1.
    assert best.concurrency == most
    assert engine.asked[0] == (2, 8)


def test_limit_that_one_sequence_breaks_returns_its_measurement(tmp_path: Path) -> None:
    workload = parse_workload("100/50,concurrency=auto,tpot=1ms")
    best = searched(BatchEngine(), ",tpot=1ms", path=tmp_path)
    assert best.concurrency == 1
    assert not best.meets(workload)


def test_search_ends_where_more_sequences_are_no_faster(tmp_path: Path) -> None:
    engine = BatchEngine(fixed=0.001, each=0.001)
    best = searched(engine, "", path=tmp_path)
    # n / (1 + n) rises by 1.5 % from 32 to 64, less than the 2 % of noise
    assert [at_once for _, at_once in engine.asked] == [8, 16, 32, 64]
    assert best.concurrency == 64


def test_memory_that_is_too_small_bounds_the_concurrency(tmp_path: Path) -> None:
    engine = BatchEngine(most=20)
    assert searched(engine, "", path=tmp_path).concurrency == 20
    with pytest.raises(InputError, match="1 sequences need too much memory"):
        searched(BatchEngine(most=0), ",tpot=9", OTHER, path=tmp_path)


@given(
    st.floats(1e-4, 1e-2), st.floats(1e-6, 1e-3), st.floats(1e-4, 1), st.integers(1, MOST_AT_ONCE)
)
def test_found_number_is_within_an_eighth_of_the_largest_in_few_measurements(
    fixed: float, each: float, limit: float, start: int
) -> None:
    engine = BatchEngine(fixed, each)
    timed = TimedBatches(engine)
    workload = parse_workload(f"100/50@{start},concurrency=auto")
    best = timed.measure(SHAPE, replace(workload, max_tpot=limit))
    largest = math.floor((limit / 2 - fixed) / each * (1 + 1e-12))  # that keeps the limit
    usual = min(max(largest, 1), MOST_AT_ONCE)
    assert best.concurrency is not None
    assert best.concurrency <= usual
    # With r = fixed / each, n / (r + n) rises by less than 2 % over a sixteenth of n, the smallest
    # step, for n > 2 r only: above it the search may end for want of a gain.
    ends = min(usual, 2 * fixed / each)
    assert best.concurrency * 9 / 8 + 1 >= ends
    assert len(engine.asked) <= 17
    assert len(set(engine.asked)) == len(engine.asked)


class TimedBatches(CachedEngine):
    """Cached engine without a file: every measurement is made."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, MeasurementStore(Path("nowhere")))

    def key(self, shape: Shape, workload: Workload) -> None:
        """Keep nothing."""


def test_several_shapes_are_measured_together_each_at_its_own_number(tmp_path: Path) -> None:
    engine = BatchEngine()
    cached = CachedEngine(engine, MeasurementStore(tmp_path / "measurements.jsonl"))
    workload = parse_workload("100/50,concurrency=auto,tpot=30ms")
    found = cached.measure_all([SHAPE, OTHER], workload)
    # 4 · (5 ms + n · 0.25 ms) <= 30 ms for n <= 10
    assert [each.concurrency for each in found if isinstance(each, Measurement)] == [40, 10]
    assert sorted(engine.asked[:2]) == [(2, 8), (4, 8)]


def test_search_that_was_killed_measures_only_what_is_missing(tmp_path: Path) -> None:
    whole, interrupted, rest = BatchEngine(), BatchEngine(stop_at=5), BatchEngine()
    expected = searched(whole, ",tpot=30ms", path=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        searched(interrupted, ",tpot=30ms", path=tmp_path)
    assert searched(rest, ",tpot=30ms", path=tmp_path) == expected
    assert interrupted.asked[:4] + rest.asked == whole.asked
    # Other limits begin with the measurements that are there.
    other = BatchEngine()
    assert searched(other, ",tpot=14ms", path=tmp_path).concurrency == 8
    assert [at_once for _, at_once in other.asked] == [12, 10, 9]


def test_embedded_engine_finds_its_concurrency_and_keeps_each_measurement(tmp_path: Path) -> None:
    engine = TorchEngine(repeats=2)
    cached = CachedEngine(engine, MeasurementStore(tmp_path / "measurements.jsonl"))
    workload = parse_workload("8/4@2,concurrency=auto,tpot=60")
    best = cached.measure(SHAPE, workload)
    assert best.kind == "measured"
    assert best.concurrency is not None
    assert best.concurrency > 2  # two sequences of a tiny model do not fill a core
    assert f"{best.concurrency} at once" in best.workload
    fixed = parse_workload(f"8/4@{best.concurrency}")
    if not best.disturbed:  # only undisturbed measurements are kept
        assert cached.measure(SHAPE, fixed).output_tokens_per_second == (
            best.output_tokens_per_second
        )
    with pytest.raises(InputError, match="`prompts=steady` must be left out with the engine torch"):
        cached.measure(SHAPE, replace(workload, prompts="steady"))
