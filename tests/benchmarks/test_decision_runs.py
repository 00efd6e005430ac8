"""The back-test of runs that are chosen for a decision."""

import importlib.util
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location(
        "decision_runs", BENCHMARKS / "decision_runs.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_runs_are_taken_in_order_while_the_budget_pays(benchmark_script):
    price = np.array([5.0, 1.0, 3.0, 2.0])
    assert benchmark_script.in_order(price, 6.0, np.array([0, 2, 1, 3])) == [0, 1]


def test_summary_pairs_strategies_within_a_replay(benchmark_script):
    rows = [
        {"table": "a", "cut": cut, "seed": 0, "strategy": strategy, "p_lower": p, "error": 0.0}
        for cut, both in ((1.0, (0.9, 0.5)), (2.0, (0.7, 0.4)))
        for strategy, p in zip(("design", "random"), both, strict=True)
    ]
    table = benchmark_script.summary(pd.DataFrame(rows)).set_index(["table", "score", "against"])
    line = table.loc[("all", "brier", "random")]
    gaps = (0.1**2 - 0.5**2, 0.3**2 - 0.6**2)
    assert line["replays"] == 2
    assert line["difference"] == pytest.approx(sum(gaps) / 2)
    assert line["low"] == pytest.approx(min(gaps))
    assert line["high"] == pytest.approx(max(gaps))
