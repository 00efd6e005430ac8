"""What is committed under docs/ is what the data give, and what differs is found."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.errors import InputError
from shapelaw.search.reports import docs_check as committed
from shapelaw.search.reports.docs_check import COMMITTED, MOST_GQA, PaperSpace, check, docs_folder

DOCS = docs_folder()
CHEAP = {name: COMMITTED[name] for name in ("pareto.png", "proposals/quickstart.csv")}


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is committed, of the cheap ones only."""
    monkeypatch.setattr(committed, "COMMITTED", CHEAP)
    (tmp_path / "proposals").mkdir()
    for name in CHEAP:
        shutil.copy(DOCS / name, tmp_path / name)
    return tmp_path


def test_everything_committed_is_what_the_data_give() -> None:
    assert check(DOCS) == []


def test_every_file_of_the_folder_is_checked() -> None:
    there = {f"proposals/{path.name}" for path in (DOCS / "proposals").iterdir()}
    assert there <= set(COMMITTED)


def test_an_untouched_copy_has_no_differences(docs: Path) -> None:
    assert check(docs) == []


def test_a_number_that_differs_in_the_sixth_digit_is_named(docs: Path) -> None:
    path = docs / "proposals" / "quickstart.csv"
    table = pd.read_csv(path)
    table.loc[2, "predicted_loss"] *= 1 + 5e-6
    table.to_csv(path, index=False)
    (words,) = check(docs)
    assert words.startswith("proposals/quickstart.csv: line 4, predicted_loss: ")


def test_a_number_that_differs_by_rounding_is_no_difference(docs: Path) -> None:
    path = docs / "proposals" / "quickstart.csv"
    table = pd.read_csv(path)
    table["predicted_loss"] *= 1 + 1e-8
    table.to_csv(path, index=False)
    assert check(docs) == []


def test_another_row_column_or_text_is_a_difference(docs: Path) -> None:
    path = docs / "proposals" / "quickstart.csv"
    table = pd.read_csv(path)
    for changed in (
        table.iloc[:-1],
        table.rename(columns={"role": "kind"}),
        table.assign(role="candidate"),
        table.assign(tokens_per_second=np.nan),
    ):
        changed.to_csv(path, index=False)
        assert check(docs)


def test_a_missing_or_other_picture_is_named(docs: Path) -> None:
    (docs / "pareto.png").unlink()
    assert check(docs) == ["pareto.png is missing"]
    shutil.copy(DOCS / "law.png", docs / "pareto.png")
    (words,) = check(docs)
    assert "pixels" in words


def test_a_picture_of_other_losses_differs(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, about, trained = committed._quickstart()
    names = ("predicted_loss", "loss_low", "loss_high")
    rows = [row | {name: row[name] * 1.01 for name in names} for row in rows]
    monkeypatch.setattr(committed, "_quickstart", lambda: (rows, about, trained))
    monkeypatch.setattr(committed, "COMMITTED", {"pareto.png": COMMITTED["pareto.png"]})
    (words,) = check(docs)
    assert "root mean square" in words


def test_an_installed_package_has_nothing_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committed, "data_folder", lambda: tmp_path / "_data")
    with pytest.raises(InputError, match="this is an installed package"):
        docs_folder()


@pytest.mark.parametrize("size", MOST_GQA)
def test_the_paper_s_searches_are_bounded_as_said(size: str) -> None:
    space = PaperSpace(size)
    baseline = shape_named(f"llama-3.2-{size}")
    least, fast = space.table[space.least_loss()], space.table[space.fastest()]
    assert least.gqa == baseline.gqa
    assert fast.gqa <= MOST_GQA[size]
    base = space.published(f"llama-3.2-{size}")
    assert space.loss[space.fastest()] <= space.loss[base]
    assert space.rate[space.fastest()] > space.rate[base]
    for shape in (least, fast):
        assert shape.n_non_embedding == pytest.approx(baseline.n_non_embedding, rel=0.01)
        assert shape.num_hidden_layers == baseline.num_hidden_layers
