"""Tests that pictures and tables under docs/ equal those of the data, and that differences show."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.architectures.named_shapes import shape_named
from shapelaw.scaling.errors import InputError
from shapelaw.search.reports import docs_check
from shapelaw.search.reports.docs_check import (
    COMMITTED,
    MAX_GQA,
    PaperSpace,
    compare_docs,
    docs_folder,
    renew_docs,
)

DOCS = docs_folder()
FAST_FILES = {name: COMMITTED[name] for name in ("pareto.png", "proposals/quickstart.csv")}


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the committed files that are fast to make, and restrict the comparison to them."""
    monkeypatch.setattr(docs_check, "COMMITTED", FAST_FILES)
    (tmp_path / "proposals").mkdir()
    for name in FAST_FILES:
        shutil.copy(DOCS / name, tmp_path / name)
    return tmp_path


def test_committed_docs_equal_those_made_from_the_data() -> None:
    assert compare_docs(DOCS) == []


def test_folder_of_proposals_holds_only_files_that_are_compared() -> None:
    files = {f"proposals/{path.name}" for path in (DOCS / "proposals").iterdir()}
    assert files <= set(COMMITTED)


def test_untouched_copy_has_no_differences(docs: Path) -> None:
    assert compare_docs(docs) == []


def test_number_that_differs_in_the_sixth_digit_is_named(docs: Path) -> None:
    path = docs / "proposals" / "quickstart.csv"
    table = pd.read_csv(path)
    table.loc[2, "predicted_loss"] *= 1 + 5e-6
    table.to_csv(path, index=False)
    (difference,) = compare_docs(docs)
    assert difference.startswith("proposals/quickstart.csv: line 4, predicted_loss: ")


def test_number_that_differs_by_rounding_is_accepted(docs: Path) -> None:
    path = docs / "proposals" / "quickstart.csv"
    table = pd.read_csv(path)
    table["predicted_loss"] *= 1 + 1e-8
    table.to_csv(path, index=False)
    assert compare_docs(docs) == []


def test_table_with_another_row_column_or_text_differs(docs: Path) -> None:
    path = docs / "proposals" / "quickstart.csv"
    table = pd.read_csv(path)
    for changed in (
        table.iloc[:-1],
        table.rename(columns={"role": "kind"}),
        table.assign(role="candidate"),
        table.assign(tokens_per_second=np.nan),
    ):
        changed.to_csv(path, index=False)
        assert compare_docs(docs)


def test_missing_or_different_picture_is_named(docs: Path) -> None:
    (docs / "pareto.png").unlink()
    assert compare_docs(docs) == ["pareto.png is missing"]
    shutil.copy(DOCS / "law.png", docs / "pareto.png")
    (difference,) = compare_docs(docs)
    assert "pixels" in difference


def test_renewed_docs_have_no_differences(docs: Path) -> None:
    (docs / "pareto.png").unlink()
    (docs / "proposals" / "quickstart.csv").write_text("role\n")
    assert renew_docs(docs) == [docs / name for name in FAST_FILES]
    assert compare_docs(docs) == []


def test_picture_of_other_losses_differs(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, about, trained = docs_check._quickstart()
    names = ("predicted_loss", "loss_low", "loss_high")
    rows = [row | {name: row[name] * 1.01 for name in names} for row in rows]
    monkeypatch.setattr(docs_check, "_quickstart", lambda: (rows, about, trained))
    monkeypatch.setattr(docs_check, "COMMITTED", {"pareto.png": COMMITTED["pareto.png"]})
    (difference,) = compare_docs(docs)
    assert "root mean square" in difference


def test_comparison_in_an_installed_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs_check, "data_folder", lambda: tmp_path / "_data")
    with pytest.raises(InputError, match="this is an installed package"):
        docs_folder()


@pytest.mark.parametrize("size", MAX_GQA)
def test_optima_of_the_paper_stay_within_the_bounds_of_their_search(size: str) -> None:
    space = PaperSpace(size)
    baseline = shape_named(f"llama-3.2-{size}")
    least, fast = space.table[space.least_loss()], space.table[space.fastest()]
    assert least.gqa == baseline.gqa
    assert fast.gqa <= MAX_GQA[size]
    base = space.published(f"llama-3.2-{size}")
    assert space.loss[space.fastest()] <= space.loss[base]
    assert space.rate[space.fastest()] > space.rate[base]
    for shape in (least, fast):
        assert shape.n_non_embedding == pytest.approx(baseline.n_non_embedding, rel=0.01)
        assert shape.num_hidden_layers == baseline.num_hidden_layers
