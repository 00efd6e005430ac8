"""Tests of the options of tables: every command that reads a table takes them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from shapelaw.scaling.commands.table_options import (
    ALL_RUNS,
    RowOptions,
    RunOptions,
    with_table_options,
)
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.search.cli import app

ROWS = ("--where", "--exclude", "--columns")
RUNS = (*ROWS, "--loss-unit", "--drop-failed")
OF_RUNS = ("fit", "check", "compare", "plot", "next-runs", "data show", "data get", "sweep plan")
MAPPING = "params=n_non_embedding,seen=tokens,ppl=loss"
OPTIONS = ("--columns", MAPPING, "--loss-unit", "perplexity", "--drop-failed")
OPTIONS += ("--where", "tokens > 1e6", "--exclude", "odd")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.parametrize("command", OF_RUNS)
def test_every_command_of_a_run_table_has_all_options_of_tables(command: str) -> None:
    text = run(*command.split(), "--help").stdout
    assert [name for name in RUNS if name not in text] == []


@pytest.mark.parametrize("command", ["predict", "decide"])
def test_every_command_of_a_table_of_shapes_has_the_options_of_rows(command: str) -> None:
    text = run(command, "--help").stdout
    assert [name for name in ROWS if name not in text] == []


@pytest.mark.parametrize("command", ["sweep run", "sweep lr-check"])
def test_plans_take_columns(command: str) -> None:
    assert "--columns" in run(*command.split(), "--help").stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write runs in the notation of another tool, and a fit of the same runs."""
    place = tmp_path_factory.mktemp("tables")
    sizes, tokens = (v.ravel() for v in np.meshgrid([1e6, 4e6, 1.6e7, 6.4e7], [1e8, 4e8, 1.6e9]))
    losses = 1.8 + 60 / sizes**0.34 + 300 / tokens**0.37
    frame = pd.DataFrame({"params": sizes, "seen": tokens, "ppl": np.exp(losses)})
    frame["run_id"] = [f"r{row}" for row in range(len(frame))]
    bad = pd.DataFrame(
        {"params": [1e6, 1e6, 1e6], "seen": [1e6, 1e8, 1e8], "ppl": [40.0, np.inf, 9.0],
         "run_id": ["short", "crashed", "odd"]}
    )  # fmt: skip
    pd.concat([frame, bad]).to_csv(place / "runs.csv", index=False)
    runs = load_runs(
        place / "runs.csv", columns=MAPPING, loss_unit="perplexity", drop_failed=True,
        where="tokens > 1e6", exclude=["odd"],
    )  # fmt: skip
    np.testing.assert_allclose(runs.losses, losses)
    fit("chinchilla", runs, starts=8, resamples=50).save(place / "fit.json")
    return place


@pytest.mark.parametrize(
    "command",
    [
        ("fit", "RUNS", "--law", "chinchilla", "--starts", 4, "--resamples", 0),
        ("check", "RUNS", "--law", "chinchilla", "--starts", 2, "--resamples", 0),
        ("compare", "RUNS", "--law", "chinchilla", "--law", "kaplan", "--starts", 2),
        ("data", "show", "RUNS"),
        ("data", "get", "RUNS", "--out", "FOLDER/got.csv"),
        ("plot", "residuals", "FIT", "RUNS", "--out", "FOLDER/plot.png"),
        ("next-runs", "FIT", "RUNS", "--goal", "predict:n=1e8,tokens=2e9",
         "--budget-flops", "1e19"),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)  # fmt: skip
def test_command_reads_the_table_of_another_tool(folder: Path, command: tuple[object, ...]) -> None:
    places = {"RUNS": folder / "runs.csv", "FIT": folder / "fit.json"}
    given = [places.get(str(word), str(word).replace("FOLDER", str(folder))) for word in command]
    refused = run(*given)
    assert "type --columns ppl=loss,params=n_non_embedding" in str(refused.exception)
    answered = run(*given, *OPTIONS)
    assert answered.exit_code == 0, answered.output
    assert "is not the" not in answered.stderr  # runs of the fit
    assert "are not the" not in answered.stderr


def test_options_become_one_value_of_the_command() -> None:
    given: list[RowOptions] = []
    made = typer.Typer()

    @made.command()
    @with_table_options
    def show(name: str, read: RunOptions = ALL_RUNS, times: int = 1) -> None:
        """Show a table."""
        given.extend([read] * times)

    words = ["runs.csv", "--where", "a > 1", "--where", "b > 1", "--drop-failed", "--times", "2"]
    assert CliRunner().invoke(made, words).exit_code == 0
    assert given == [RunOptions(where=["a > 1", "b > 1"], drop_failed=True)] * 2
    assert given[0].given == ["--where", "--drop-failed"]
    assert CliRunner().invoke(made, ["runs.csv"]).exit_code == 0
    assert given[2] == ALL_RUNS
