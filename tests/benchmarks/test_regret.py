"""The benchmark of regret, on a part of its space and a synthetic truth."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import regret
import regret_table

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.search.engines._timed import Server, TimedEngine, Timing
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.workload import Workload, parse_workload

SHAPES = regret_table.SPACE.enumerate()
TABLE = SHAPES.take(np.arange(0, len(SHAPES), len(SHAPES) // 150))
LOSSES = 1.3 - np.log(TABLE.n_non_embedding / 450_000) / 10 + (TABLE.hidden_size / 150 - 1) ** 2 / 9
ASKED = SearchProblem(table=TABLE, losses=LOSSES, workload=parse_workload(regret_table.WORKLOAD))


class Instant(TimedEngine):
    """Serves in a second of CPU time while another process takes half of the core."""

    name, version, device = "instant", "1", "none"

    def __init__(self, stop_after: int | None = None) -> None:
        self.served, self.stop_after = 0, stop_after

    def start(self, shape: Shape, workload: Workload) -> Server:
        engine = self

        class Second(Server):
            def serve(self, outputs: int) -> Timing:
                if engine.served == engine.stop_after:
                    raise KeyboardInterrupt
                engine.served += outputs == workload.output_tokens
                return Timing(0.5, 1.5, 1.0)

        return Second()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("regret") / "synthetic.csv"
    regret_table.synthetic(TABLE, path, repeats=4, seed=0)
    return path


def test_every_shape_is_measured_as_often_as_asked_in_one_random_order(tmp_path: Path) -> None:
    path, few = tmp_path / "table.csv", TABLE.take(np.arange(0, 120, 10))
    assert regret_table.measure(Instant(), few, path, repeats=3, seed=0) == 36
    frame = pd.read_csv(path)
    assert list(frame.columns) == list(regret_table.COLUMNS)
    counts = frame.groupby(list(regret_table.SHAPE_COLUMNS)).size()
    assert counts.tolist() == [3] * 12
    assert not frame["repeat"].is_monotonic_increasing
    widths = frame["num_attention_heads"].tolist()
    assert widths != sorted(widths)


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    path, few = tmp_path / "table.csv", TABLE.take(np.arange(5))
    with pytest.raises(KeyboardInterrupt):
        regret_table.measure(Instant(stop_after=4), few, path, repeats=2, seed=0)
    with path.open("a") as file:
        file.write("96,128,2")  # it was killed while it wrote
    assert regret_table.measure(Instant(), few, path, repeats=2, seed=0) == 6
    assert regret_table.measure(Instant(), few, path, repeats=2, seed=0) == 0
    assert len(pd.read_csv(path)) == 10


def test_seconds_are_those_of_the_cpu(tmp_path: Path) -> None:
    path, one = tmp_path / "table.csv", ShapeTable.of([TABLE[0]])
    regret_table.measure(Instant(), one, path, repeats=4, seed=0)
    truth = regret_table.halves(path, one)
    work = ASKED.workload
    assert truth.rates == pytest.approx([work.concurrency * work.output_tokens / 1.0])
    assert truth.driving[0].ttft == pytest.approx(0.25)
    assert truth.driving[0].tpot * (work.output_tokens - 1) == pytest.approx(0.75)
    assert truth.driving[0].repeats == 2


def test_the_halves_are_different_repeats(synthetic: Path) -> None:
    truth = regret_table.halves(synthetic, TABLE)
    apart = np.log(truth.rates / truth.scoring)
    assert 0.005 < apart.std() < 0.05


def test_regret_is_nothing_for_who_measured_everything(synthetic: Path) -> None:
    score = regret.Score(LOSSES, regret_table.halves(synthetic, TABLE))
    assert score.regret(list(range(len(TABLE)))) == 0
    few = [score.regret(list(range(0, len(TABLE), step))) for step in (2, 10, 50)]
    assert few == sorted(few)
    assert few[-1] > 0.05


def test_luck_in_the_half_that_drives_earns_nothing(synthetic: Path) -> None:
    """A front chosen by lucky repeats is worth what the other repeats say."""
    truth = regret_table.halves(synthetic, TABLE)
    lucky = regret_table.Truth(truth.driving[::-1], truth.scoring)
    honest, fooled = (regret.Score(LOSSES, each) for each in (truth, lucky))
    everything = np.arange(len(TABLE))
    assert fooled.value(everything) < honest.value(everything)


@pytest.mark.slow
def test_our_sampler_regrets_less_than_random_on_a_synthetic_truth(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regret, "COUNTS", (10, 20, 30))
    truth = regret_table.halves(synthetic, TABLE)
    ours, random = (
        regret.replayed(regret.METHODS[name], ASKED, truth, seed=0, together=4)
        for name in (regret.OURS, "random")
    )
    assert len(ours) == 3
    assert ours[-1] < random[-1] / 2


def test_a_replay_keeps_what_it_did_and_draws_it(
    synthetic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regret, "COUNTS", (4, 6, 8))
    monkeypatch.setattr(regret, "question", lambda: ASKED)
    told: list[dict[str, object]] = []
    monkeypatch.setattr(regret, "finish", lambda name, figures: told.append(figures))
    out = tmp_path / "replay.json"
    for methods in (["random"], ["random", regret.OURS]):
        regret.replay(synthetic, methods, seeds=2, together=4, out=out)
    assert (tmp_path / "replay.png").stat().st_size > 1000
    assert told[0]["regret"]["random"] == told[1]["regret"]["random"]  # type: ignore[index]


def test_the_summary_says_whether_the_promise_holds() -> None:
    def results(ours: float, other: float) -> dict[str, dict[str, list[float]]]:
        return {regret.OURS: {"0": [0.3, ours, 0.0]}, "tpe": {"0": [0.5, 0.4, other]}}

    key = "ours at 40 below every other at 80"
    assert regret.summary(results(0.01, 0.02))[key] is True
    assert regret.summary(results(0.02, 0.01))[key] is False
    assert regret.summary({regret.OURS: {"0": [0.3, 0.2, 0.1]}})[key] is None
