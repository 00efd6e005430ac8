"""The shipped link of the OLMo ladder, and that the published tables give it again."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.accuracy.files import document
from shapelaw.scaling.accuracy.fit import known_tasks, load_link
from shapelaw.scaling.accuracy.link import Links
from shapelaw.scaling.runs.catalog import MIRROR
from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
C4 = {"validation": "c4_en"}


@pytest.fixture(scope="module")
def shipped() -> Links:
    return load_link("olmo-ladder")


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location("olmo_link", BENCHMARKS / "olmo_link.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_shipped_link_says_where_it_comes_from(shipped: Links) -> None:
    provenance = shipped.measured.provenance
    assert provenance["licence"] == "Apache-2.0"
    assert "allenai/OLMo-ladder" in provenance["source"]
    assert len(shipped.measured.run_ids) == 16
    assert not any("3B" in name or "13" in name for name in shipped.measured.run_ids)
    assert len(shipped.measured.data_sha256) == 64


def test_the_shipped_tasks_have_the_known_chance_levels(shipped: Links) -> None:
    for link in shipped.links:
        assert link.task == known_tasks()[link.task.name]
    assert shipped.chance == pytest.approx(np.mean([link.chance for link in shipped.links]))


def test_the_shipped_hold_out_errors_are_those_of_the_shipped_coefficients(
    shipped: Links,
) -> None:
    errors = pd.DataFrame(shipped.hold_out)
    assert set(errors["run_id"]).isdisjoint(shipped.measured.run_ids)
    for row in shipped.hold_out:
        answers = {one.task: one for one in shipped.predict(row["loss"], **C4)}
        assert answers[row["task"]].value == pytest.approx(row["predicted"], abs=1e-12)
        assert row["predicted"] - row["measured"] == pytest.approx(row["error"], abs=1e-12)


def test_the_shipped_link_predicts_3b_within_what_the_log_says(shipped: Links) -> None:
    errors = pd.DataFrame(shipped.hold_out)
    largest = errors[errors["run_id"].str.startswith("3B")]
    single, mean = largest[largest["task"] != "mean"], largest[largest["task"] == "mean"]
    assert len(single) == 4 * len(shipped.links)
    assert single["error"].abs().mean() < 0.012
    assert mean["error"].abs().mean() < 0.005
    assert single["inside"].mean() >= 0.9


def test_accuracy_falls_with_the_loss(shipped: Links) -> None:
    losses = np.linspace(2.4, 3.7, 27)
    values = np.array([[one.value for one in shipped.predict(loss, **C4)] for loss in losses])
    assert np.all(np.diff(values, axis=0) <= 1e-12)


def test_no_accuracy_for_losses_on_another_set(shipped: Links) -> None:
    assert shipped.predict(3.0, validation="pile").mean.value is None


@pytest.mark.skipif(
    not (Path(os.environ.get(MIRROR, "-")) / "olmo_ladder").is_dir(),
    reason=f"{MIRROR} names no folder with the OLMo ladder",
)
def test_the_published_tables_give_the_shipped_link_again(
    shipped: Links, benchmark_script: ModuleType
) -> None:
    table = benchmark_script.read_ladder(Path(os.environ[MIRROR]))
    form, _ = benchmark_script.chosen_form(table)
    again = benchmark_script.shipped_links(table, form)
    assert again.measured == shipped.measured
    _same(document(again), document(shipped))


def _same(one: object, two: object) -> None:
    """Equal documents, numbers to 1e-6: solvers differ in the last digits between machines."""
    if isinstance(one, dict) and isinstance(two, dict):
        assert one.keys() == two.keys()
        for name in one:
            _same(one[name], two[name])
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            _same(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)
    else:
        assert one == two
