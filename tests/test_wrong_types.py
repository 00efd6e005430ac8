"""Public functions with a value of another type: loaded where that makes sense, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import shapelaw
from shapelaw.scaling.design.goals import Optimum
from shapelaw.scaling.errors import InputError
from support.synthetic import synthetic_runs

QUICK: dict[str, Any] = {"starts": 4, "resamples": 4}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    synthetic_runs().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def fitted(table: Path) -> shapelaw.Fit:
    return shapelaw.fit("conditional-steady", str(table), **QUICK)


@pytest.fixture(scope="module")
def fit_file(fitted: shapelaw.Fit, table: Path) -> Path:
    path = table.parent / "fit.json"
    fitted.save(path)
    return path


def test_path_is_accepted_where_a_run_table_is_wanted(table: Path, fitted: shapelaw.Fit) -> None:
    loaded = shapelaw.load_runs(table)
    same = shapelaw.fit("conditional-steady", loaded, **QUICK)
    np.testing.assert_array_equal(fitted.theta, same.theta)
    compared = shapelaw.compare(["chinchilla", "kaplan"], table, **QUICK)
    assert set(compared.table["law"]) == {"chinchilla", "kaplan"}
    assert shapelaw.check(fitted, table, **QUICK).fit is fitted
    quantity = shapelaw.difference(fitted, loaded.frame.head(1), loaded.frame.tail(1))
    assert len(shapelaw.intervals(fitted, table, quantity, way="sandwich")) == 1
    checked = shapelaw.load_runs(pd.read_csv(table), where="tokens > 2e6")
    assert 0 < len(checked) < len(loaded)


def test_path_is_accepted_where_a_fit_or_rows_are_wanted(
    table: Path, fitted: shapelaw.Fit, fit_file: Path
) -> None:
    rows = synthetic_runs().head(2)
    shapes = table.parent / "shapes.csv"
    rows.to_csv(shapes, index=False)
    expected = shapelaw.decide(fitted, pd.read_csv(shapes))
    pd.testing.assert_frame_equal(shapelaw.decide(fit_file, shapes), expected)
    pd.testing.assert_frame_equal(fitted.predict(shapes), fitted.predict(rows))
    pd.testing.assert_frame_equal(fitted.predict(rows.to_dict("list")), fitted.predict(rows))
    assert [q.name for q in shapelaw.optimal(str(fit_file), 1e16)]
    basis = shapelaw.loss_basis(fitted)
    assert basis.fit is fitted
    assert "conditional-steady law on" in basis.description


REFUSED: dict[str, tuple[Callable[[shapelaw.Fit, pd.DataFrame], object], str]] = {
    "runs of a fit": (lambda fit, runs: shapelaw.fit("chinchilla", 5), "got int"),
    "law of a fit": (lambda fit, runs: shapelaw.fit(runs, runs), "but got DataFrame"),
    "one law to compare": (lambda fit, runs: shapelaw.compare("chinchilla", runs), "at least 2"),
    "missing table": (lambda fit, runs: shapelaw.check("chinchilla", "x"), "must be one of"),
    "runs of a check": (lambda fit, runs: shapelaw.check("chinchilla", [1]), "got list"),
    "fit of a difference": (lambda fit, runs: shapelaw.difference(7, runs, runs), "got int"),
    "rows of a difference": (lambda fit, runs: shapelaw.difference(fit, 7, runs), "got int"),
    "fit of an optimum": (lambda fit, runs: shapelaw.optimal(None, 1e16), "got NoneType"),
    "fit of intervals": (lambda fit, runs: shapelaw.intervals([], runs, []), "got list"),
    "fit of a design": (
        lambda fit, runs: shapelaw.next_runs(1, None, 1e9, goal=None, runs=runs), "got int",
    ),
    "runs of a design": (
        lambda fit, runs: shapelaw.next_runs(
            fit, None, 1e9, goal=Optimum(of="gqa"), runs=1
        ),
        "got int",
    ),
    "fit of a decision": (lambda fit, runs: shapelaw.decide("missing.json", runs), "cannot be"),
    "shapes of a decision": (lambda fit, runs: shapelaw.decide(fit, 3), "got int"),
    "rows to predict": (lambda fit, runs: fit.predict([1, 2]), "got list"),
    "row as numbers": (lambda fit, runs: fit.predict({"tokens": 1e6}), "lists of one length"),
    "table to load": (lambda fit, runs: shapelaw.load_runs(3), "got int"),
    "law of proposals": (lambda fit, runs: shapelaw.loss_basis(3), "got int"),
    "shape to measure": (lambda fit, runs: shapelaw.measure(3), "but got '3'"),
    "workload": (lambda fit, runs: shapelaw.measure("llama-3.2-1b", 3), "but got '3'"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "said"), REFUSED.values(), ids=REFUSED)
def test_value_of_wrong_type_is_refused_with_its_type(
    fitted: shapelaw.Fit, call: Callable[..., object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        call(fitted, synthetic_runs())
