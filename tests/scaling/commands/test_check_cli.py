import json

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from shapelaw.scaling.commands.check_cli import mount
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import write_runs
from support.synthetic import synthetic_runs

FAST = ("--starts", "4", "--delta", "0.01")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    write_runs(path, synthetic_runs(shapes=5, sizes=(1e5, 4e5, 1.6e6, 6.4e6)))
    return path


def run(*arguments) -> str:
    app = typer.Typer()
    mount(app)
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_check_prints_one_document_with_json_else_tables(table):
    document = json.loads(run("check", table, "--resamples", 5, *FAST, "--json"))
    assert document["fit"]["law"] == "conditional"
    assert document["fit"]["n_runs"] == 60
    assert set(document["leave_largest_out"]) == {"size", "compute"}
    approaches = document["chinchilla_approaches"]["approaches"]
    assert [approach["approach"][0] for approach in approaches] == ["1", "2", "3"]
    text = run("check", table, "--law", "chinchilla", "--resamples", 0, *FAST)
    assert text.startswith("chinchilla on 60 runs: ")
    assert "drift of the parameters" in text
    assert "exponent a of N* ∝ C^a by Chinchilla's approaches 1: " in text


def test_check_applies_filters_exclusions_and_compute_budget(table):
    kept = ("--where", "gqa > 1.5", "--exclude", "synthetic-0", "--compute", "1e13")
    document = json.loads(run("check", table, "--resamples", 0, *kept, *FAST, "--json"))
    assert document["fit"]["n_runs"] < 60
    assert document["valley"]["compute"] == 1e13
    assert (
        "synthetic-0 (excluded by name)"
        in (document["checklist"]["sections"]["Data collection"]["rows left out"])
    )


@pytest.mark.parametrize(
    ("command", "laws"),
    [("check", ["chinchilla"]), ("compare", ["chinchilla", "mutis"])],
)
def test_check_and_compare_pass_the_prior_to_their_fits(table, command, laws):
    chosen = [text for law in laws for text in ("--law", law)]
    small = ("--where", "gqa < 1.2", "--starts", 4)
    with pytest.raises(InputError, match="`prior` must be weak, pooled, none or the file of a fit"):
        run(command, table, *chosen, *small, "--prior", "nowhere.json")
    with pytest.raises(InputError, match="must be left out with a prior"):
        run(command, table, *chosen, *FAST, "--prior", "weak")
    run(command, table, *chosen, *FAST, "--prior", "none")


def test_compare_ranks_laws_by_held_out_error(table):
    laws = ("--law", "chinchilla", "--law", "conditional")
    document = json.loads(run("compare", table, *laws, *FAST, "--cutoff", 1.6e6, "--json"))
    assert document["best"] == "conditional"
    assert [part["cutoff"] for part in document["hold_out"]["chinchilla"]["cutoffs"]] == [1.6e6]
    text = run("compare", table, *laws, "--by", "compute", *FAST)
    assert text.startswith("conditional extrapolates best by compute")


def test_check_and_compare_of_bits_per_byte_name_that_unit_and_no_nats(table, tmp_path):
    bits = pd.read_csv(table).drop(columns="loss_unit", errors="ignore")
    bits["loss"] /= 4 * np.log(2)
    bits.to_csv(tmp_path / "bits.csv", index=False)
    unit = ("--loss-unit", "bits per byte")
    laws = ("--law", "chinchilla", "--law", "conditional")
    compared = ("compare", tmp_path / "bits.csv", *laws, "--cutoff", 1.6e6, *unit, *FAST)
    checked = (
        "check",
        tmp_path / "bits.csv",
        "--law",
        "chinchilla",
        "--resamples",
        0,
        *unit,
        *FAST,
    )
    for command in (compared, checked):
        for text in (run(*command), run(*command, "--json")):
            assert "mean_error_bits_per_byte" in text
            assert "nats" not in text


def test_size_option_chooses_the_count_of_n(table, tmp_path):
    counts = pd.read_csv(table).assign(n_total=lambda runs: runs[N] + 1e5)
    write_runs(tmp_path / "runs.csv", counts)
    chosen = ("--law", "chinchilla", "--size", "total", *FAST, "--json")
    document = json.loads(run("check", tmp_path / "runs.csv", "--resamples", 0, *chosen))
    assert document["checklist"]["sections"]["Scaling law"]["N counts"] == "total parameters"
    document = json.loads(run("compare", tmp_path / "runs.csv", "--law", "width", *chosen))
    assert [row["size"] for row in document["sizes"]] == ["total", "non-embedding"]
    with pytest.raises(InputError, match="lacks the column `n_active`"):
        run("compare", table, "--law", "chinchilla", "--law", "width", "--size", "active")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare", "--law", "chinchilla"), "`compare` needs at least 2 different laws"),
        (("check", "--law", "nonsense"), "`--law` must be one of"),
        (("check", "--delta", "-1"), "`--delta` must be auto or a positive number"),
        (("check", "--compute", "-1", *FAST, "--resamples", "0"), "`compute > 0` and finite"),
    ],
)
def test_bad_input_raises_one_clear_error(table, arguments, message):
    with pytest.raises(InputError, match=message):
        run(arguments[0], table, *arguments[1:])


def test_check_with_decisions_prints_probabilities_their_reliability_and_outcomes(table):
    options = ("check", table, "--decisions", "--law", "conditional-steady", "--resamples", 20)
    document = json.loads(run(*options, *FAST, "--json"))
    assert document["schema_version"] == 1
    assert document["scores"]["decisions"] == len(document["decisions"]) > 5
    row = document["decisions"][0]
    assert 0 <= row["p_best_run"] <= 1
    assert row["first_lower"] in (0, 0.5, 1)
    assert run(*options, *FAST).startswith("conditional-steady: ")


def test_check_counts_parameters_by_the_given_convention(tmp_path):
    frame = synthetic_runs(shapes=5, sizes=(1e5, 4e5, 1.6e6, 6.4e6))
    path = tmp_path / "runs.csv"
    write_runs(path, frame.assign(n_total=2 * frame["n_non_embedding"]))
    options = ("check", path, "--decisions", "--law", "chinchilla", "--resamples", 5, *FAST)
    smallest = [
        min(row["n"] for row in json.loads(run(*options, "--size", size, "--json"))["decisions"])
        for size in ("non-embedding", "total")
    ]
    assert smallest[1] == 2 * smallest[0]
