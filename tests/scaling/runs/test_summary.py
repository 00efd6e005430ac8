import json

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.levels import count_distinct
from shapelaw.scaling.runs.summary import NAMES, UNITS, describe
from shapelaw.scaling.runs.table import RunTable
from support.run_tables import run_table


@pytest.fixture
def described():
    return describe(load_runs("quickstart"))


def test_every_range_has_its_column_unit_ends_and_levels(described):
    runs, ranges = load_runs("quickstart"), described.ranges.set_index("column")
    for name in ("n_non_embedding", "tokens", "loss", "gqa", "hidden_over_sqrt_n"):
        assert ranges.loc[name, "lowest"] == runs[name].min()
        assert ranges.loc[name, "highest"] == runs[name].max()
        assert ranges.loc[name, "levels"] == count_distinct(runs[name].to_numpy())
        assert ranges.loc[name, "unit"] == {**UNITS, "loss": "nats per token"}[name]
    # Three nominal sizes with parameter counts that differ slightly.
    assert ranges.loc["n_non_embedding", "levels"] == 3 < runs["n_non_embedding"].nunique()
    ratio = runs["tokens"] / runs["n_non_embedding"]
    assert ranges.loc["tokens_per_parameter", "highest"] == ratio.max()
    assert described.rows == len(runs)


def test_missing_values_are_counted():
    frame = run_table(learning_rate=[0.1, np.nan, np.nan, 0.2], n_active=np.nan)
    ranges = describe(RunTable.of(frame, "runs")).ranges.set_index("column")
    assert ranges.loc["learning_rate", ["levels", "missing"]].tolist() == [2, 2]
    assert ranges.loc["n_active", ["levels", "missing"]].tolist() == [0, 4]
    shown = describe(RunTable.of(frame, "runs")).frame().set_index("column")
    assert shown.loc["n_active", "lowest"] == "-"


def test_counts_are_formatted_with_suffixes(described):
    shown = described.frame().set_index("column")
    assert shown.loc["tokens", "highest"] == "2M"
    assert shown.loc["loss", "lowest"] == "1.374"


def test_lines_give_names_replicates_warnings_and_licence(described):
    lines = "\n".join(described.lines())
    assert "tokenizer: bytes" in lines
    assert "replicates: ln loss varies by 0.40% between runs of one shape" in lines
    assert "counted FLOPs differ from 6ND" in lines
    assert "warning" not in lines
    assert "licence: Apache-2.0" in lines
    assert described.summary().startswith("quickstart: 20 runs\n")


def test_many_names_are_counted_and_reasons_summed():
    frame = run_table(8, corpus=list("abcdefgh"), loss=np.linspace(4, 3, 8))
    lines = describe(RunTable.of(frame, "runs", where="corpus != 'h'", exclude=["run-0"])).lines()
    assert "corpus: b, c, d, e and 2 more" in lines
    assert "left out: 1 run, excluded by name" in lines
    assert "left out: 1 run, not in `corpus != 'h'`" in lines
    assert any(line.startswith("no replicates") for line in lines)


def test_noise_is_estimated_for_each_size():
    frame = run_table(3, tokens=1e6, loss=[4.0, 4.1, 4.2], seed=[0, 1, 2])
    described = describe(RunTable.of(frame, "runs"))
    assert described.degrees == 2
    assert described.noise["degrees"].tolist() == [2]
    assert described.as_json()["noise_by_size"][0]["deviation"] == pytest.approx(
        np.log([4.0, 4.1, 4.2]).std(ddof=1)
    )


def test_the_document_has_no_nan_and_reads_back(described):
    frame = run_table(n_active=np.nan)
    for description in (described, describe(RunTable.of(frame, "runs"))):
        document = description.as_json()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert document["rows"] == description.rows


def test_html_of_a_description_escapes_the_values_of_the_file():
    frame = run_table(corpus="<b>text</b>", tokenizer="bytes")
    html = describe(RunTable.of(frame, "runs"))._repr_html_()
    assert "<table" in html
    assert "&lt;b&gt;text" in html
    assert "<b>text" not in html


def test_a_table_of_two_columns_can_be_described():
    described = describe(RunTable.of(pd.DataFrame({"tokens": [1e6, 2e6], "loss": [4, 3]}), "few"))
    assert described.ranges["column"].tolist() == ["tokens", "loss"]
    assert described.deviation is None
    assert described.name == "run table"


def test_no_column_is_both_a_range_and_a_name():
    assert not set(UNITS) & set(NAMES)


def test_other_columns_are_listed_with_their_known_meanings():
    frame = pd.DataFrame({"tokens": [1e6, 2e6], "loss": [4, 3], "epochs": [1, 2], "mine": [0, 1]})
    described = describe(RunTable.of(frame, "few"))
    assert "other columns: epochs (passes over the training text), mine" in described.lines()
    assert described.document()["other_columns"] == ["epochs", "mine"]
