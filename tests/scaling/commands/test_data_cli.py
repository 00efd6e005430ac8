"""Command group ``shapelaw data`` on the command line."""

import json

import pytest
from typer.testing import CliRunner

from shapelaw.scaling.runs.catalog import MIRROR, load_runs, named_tables
from shapelaw.search.cli import app, main


@pytest.fixture
def run(monkeypatch):
    """Return a runner of a command that has neither a mirror nor a network."""
    monkeypatch.setenv(MIRROR, "/nowhere")
    return lambda *arguments: CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_list_prints_every_table_with_licence_and_source(run):
    done = run("list", "--json")
    assert done.exit_code == 0
    tables = {table["name"]: table for table in json.loads(done.stdout)["tables"]}
    assert set(tables) == set(named_tables())
    for table in tables.values():
        assert table["rows"] > 0
        assert table["licence"]
        assert table["citation"]
        assert table["address"]
        assert all(low <= high for low, high in table["ranges"].values())
    assert "steplaw" in run("list").stdout


def test_show_prints_ranges_with_units_and_notes(run):
    shown = run("show", "quickstart").stdout
    assert "quickstart: 20 runs" in shown
    assert "nats per token" in shown
    assert "- replicates: ln loss varies by" in shown
    assert "- licence: Apache-2.0" in shown


def test_show_applies_filters_and_prints_json(run):
    done = run("show", "quickstart", "--where", "role == 'proxy'", "--json")
    document = json.loads(done.stdout)
    assert document["rows"] == 17
    assert len(document["left_out"]) == 3


def test_get_writes_a_run_table_that_loads_again(run, tmp_path):
    for name in ("out.csv", "out.parquet"):
        done = run("get", "paper-2510.18245", "--out", tmp_path / name)
        assert done.exit_code == 0
        assert f"7 runs, 17 columns -> {tmp_path / name}" in done.stdout
        again, runs = load_runs(tmp_path / name), load_runs("paper-2510.18245")
        assert again["loss"].tolist() == runs["loss"].tolist()
        assert again["n_non_embedding"].tolist() == runs["n_non_embedding"].tolist()
    done = run("get", "quickstart")
    assert done.stdout.startswith("20 runs, ")
    assert "Apache-2.0" in done.stderr
    document = json.loads(run("get", "quickstart", "--json").stdout)
    assert document["runs"] == 20
    assert document["source"]["licence"] == "Apache-2.0"


def test_laws_prints_one_document_with_json():
    document = json.loads(CliRunner().invoke(app, ["laws", "--json"]).stdout)
    assert {"law": "kaplan", "equation": "L = A/N^alpha"} in document["laws"]


def test_show_describes_a_file(run, tmp_path):
    (tmp_path / "runs.csv").write_text("n_total,tokens,loss\n1e6,2e7,4.5\n2e6,4e7,4.25\n")
    shown = run("show", tmp_path / "runs.csv").stdout
    assert "runs.csv: 2 runs" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["show", "nothing"], 2, "a table's name must be one of"),
        (["get", "gemstones"], 2, "which lacks gemstones/wandb_df_for_fitting_cool_end.jsonl"),
        (["get", "quickstart", "--out", "runs.json"], 2, "must end in .csv or .parquet, but got"),
        (["get", "quickstart", "--out", "/dev/null/runs.csv"], 2, "/dev/null is a file"),
        (["show", "quickstart", "--where", "nonsense >"], 2, "a filter must be a condition"),
    ],
)
def test_bad_input_prints_one_line_and_sets_the_exit_code(
    run, monkeypatch, capsys, arguments, code, text
):
    monkeypatch.setattr("sys.argv", ["shapelaw", "data", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
