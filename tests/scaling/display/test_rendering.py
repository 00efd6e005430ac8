import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.display.console import print_fields, print_json, print_result
from shapelaw.scaling.display.documents import json_ready, printed_document
from shapelaw.scaling.display.tables import Result, View, cell_text, counted
from shapelaw.scaling.display.text import view_text


@dataclass(frozen=True, kw_only=True)
class Part:
    size: np.int64
    noise: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Example(Result):
    name: str
    parts: tuple[Part, ...]
    rows: pd.DataFrame

    def view(self) -> View:
        title = f"{self.name} has {counted(len(self.parts), 'part')}"
        notes = ["a < b & c"]
        return View(title=title, tables={"rows": self.rows, "none": self.rows[:0]}, notes=notes)


def example(name: str = "first") -> Example:
    rows = pd.DataFrame({"law": ["[bold]x", "<i>y"], "loss": [2.8231467891234567, np.nan]})
    return Example(name=name, parts=(Part(size=np.int64(3), noise=math.inf),), rows=rows)


def test_json_of_a_result_has_its_fields_and_null_for_infinite_and_missing_numbers() -> None:
    assert example().as_json() == {
        "name": "first",
        "parts": [{"size": 3, "noise": None}],
        "rows": [{"law": "[bold]x", "loss": 2.8231467891234567}, {"law": "<i>y", "loss": None}],
    }


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32("nan"), None),
        (-math.inf, None),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (pd.Series([1, 2]), [1, 2]),
        ({1: (Path("a/b"), "nan")}, {"1": ["a/b", "nan"]}),
        (float("1.5"), 1.5),
    ],
    ids=str,
)
def test_json_value_is_plain(value: object, plain: object) -> None:
    assert json_ready(value) == plain
    json.dumps(json_ready(value), allow_nan=False)


@pytest.mark.parametrize("value", [[1, 2], 3.5, "text", None], ids=str)
def test_printed_document_that_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="`--json` must print an object"):
        printed_document(value)


def test_printed_json_has_a_schema_version_and_every_digit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json(example())
    document = json.loads(capsys.readouterr().out)
    assert document.pop("schema_version") == 1
    assert document == example().as_json()


def test_text_has_title_tables_and_notes_and_rounds_losses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_result(example())
    printed = capsys.readouterr().out
    lines = [line.rstrip() for line in printed.splitlines()]
    assert lines[0] == "first has 1 part"
    assert lines[-1] == "- a < b & c"
    assert any(line.split() == ["[bold]x", "2.8231"] for line in lines)
    assert "–" in printed
    assert "none" not in lines, "a table without rows is left out"
    assert repr(example()) == "\n".join(lines)


def test_html_is_escaped_and_has_title_tables_and_notes_of_the_text() -> None:
    html = example("<b>")._repr_html_()
    assert "&lt;b&gt; has 1 part" in html
    assert "<b>&lt;b&gt;" in html
    assert "&lt;i&gt;y" in html
    assert "a &lt; b &amp; c" in html
    assert "<i>" not in html
    assert html.count("<table") == 1
    assert "2.8231" in html
    assert "2.82314678" not in html


def text_of(frame: pd.DataFrame, width: int | None = None) -> str:
    """Return the text of a view's only table, without its title."""
    return view_text(View(title="one table", tables={"": frame}), width).partition("\n")[2]


@given(
    columns=st.integers(2, 12),
    rows=st.integers(2, 5),
    length=st.integers(1, 25),
    width=st.integers(60, 200),
)
def test_table_of_any_size_fits_the_width_and_keeps_every_cell(
    columns: int, rows: int, length: int, width: int
) -> None:
    names = [f"column_{number}" for number in range(columns)]
    cells = [[f"{row}-{name}".ljust(length, "x") for name in names] for row in range(rows)]
    text = text_of(pd.DataFrame(cells, columns=names), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(cell in text for row in cells for cell in row)
    assert all(name in text for name in names)


def test_long_sentences_in_cells_are_wrapped_between_words() -> None:
    why = "removes most of the squared error that is left and repeats an earlier run of the table"
    text = text_of(pd.DataFrame({"kind": ["new"], "why": [why]}), 60)
    assert max(map(len, text.splitlines())) <= 60
    assert all(word in text.split() for word in why.split())


def test_rows_of_split_table_are_numbered_where_first_column_repeats() -> None:
    costs = {f"cost_{n}": ["x" * 20] * 2 for n in range(4)}
    frame = pd.DataFrame({"kind": ["new", "new"], **costs})
    lines = [line.split() for line in text_of(frame, 60).splitlines() if line]
    headings = [cells for cells in lines if "cost_0" in cells or "cost_3" in cells]
    assert [cells[0] for cells in headings] == ["row", "row"]
    assert [cells[0] for cells in lines if cells[0] in "12"] == ["1", "2"] * 2
    distinct = text_of(frame.assign(kind=["new", "replicate"]), 60)
    assert "row" not in distinct.split()


@pytest.mark.parametrize(
    ("value", "column", "text"),
    [
        (0.98, "loss", "0.9800"),
        (0.5, "predicted_loss", "0.5000"),
        (0.012, "loss_high", "0.0120"),
        (0.00031234, "loss_se", "0.0003123"),
        (0.5, "share", "0.5"),
    ],
)
def test_loss_below_one_has_four_decimals_as_above(value: float, column: str, text: str) -> None:
    assert cell_text(value, column) == text


def test_single_row_too_wide_becomes_a_list_of_names_and_values() -> None:
    row = pd.DataFrame([{f"quantity_{n}": n / 7 for n in range(12)}])
    lines = text_of(row, 60).splitlines()
    assert [line.split() for line in lines if line][3] == ["quantity_3", "0.4286"]
    assert len([line for line in lines if line.strip()]) == 12


@pytest.mark.parametrize(("columns", "width"), [("120", 120), (None, 80)])
def test_text_width_is_that_of_columns_else_80(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    table = pd.DataFrame([["x" * 18] * 9] * 2, columns=[f"c{n}" for n in range(9)])
    view = View(title="wide", tables={"table": table})
    widest = max(map(len, view_text(view).splitlines()))
    assert width - 20 < widest <= width


def test_column_without_a_text_is_left_out() -> None:
    text = text_of(pd.DataFrame({"name": ["a", "b"], "why": ["", ""], "why not": ["", "c"]}))
    assert text.splitlines()[0].split() == ["name", "why", "not"]


def test_fields_are_aligned_and_rounded(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"loss": 3.14159265358979, "packages": {"numpy": "2.4"}, "missing": ["a", "b"]})
    assert capsys.readouterr().out.splitlines() == [
        "loss      3.1416",
        "packages  numpy 2.4",
        "missing   a, b",
    ]


def test_text_is_returned_and_not_displayed_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: displayed.append(text))
    text = text_of(pd.DataFrame({"size": [1, 2]}))
    assert "size" in text
    assert displayed == []
