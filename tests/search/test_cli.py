import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import WorkError
from shapelaw.scaling.runs.columns import COLUMNS
from shapelaw.scaling.runs.table import write_runs
from shapelaw.search.cli import app, main
from shapelaw.search.engines._base import Measurement
from shapelaw.search.engines.registry import ENGINES
from shapelaw.trainers.sweep.folder import existing_ledger
from support.command import shapelaw
from support.search_runs import synthetic_runs
from support.small_runs import SHAPE, small_corpus

COMMANDS = ["fit", "predict", "next-runs", "train", "sweep", "quickstart", "report", "measure",
            "propose", "doctor", "space", "compare-families", "convert"]  # fmt: skip
HEAVY = ("torch", "optuna", "pandas", "scipy", "matplotlib")
FAST_FIT = ("--starts", "8", "--resamples", "20")
ASK = (
    "propose", "--params", "200K", "--tokens", "2M", "--vocab", "256", "--layers", "4",
    "--head-dim", "16", "--workload", "128/64@8", "--engine", "roofline:h100",
    "--measurements", "5", "--estimated", "0",
)  # fmt: skip


def document(*arguments: object) -> Any:
    """Run a command in this process; it prints one JSON document and nothing else."""
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found.pop("schema_version") >= 1
    return found


def words(*arguments: object) -> str:
    """Run a command in this process as a person does."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


Failing = Callable[..., str]


@pytest.fixture
def failing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Failing:
    """Run a command that must fail with a code, in one line, and leave the folder as it was."""
    monkeypatch.chdir(tmp_path)

    def run(code: int, *arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["shapelaw", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert stopped.value.code == code, printed.err
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1, "one line"
        assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
        return printed.err

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    # A third, because with 256 tokens no trained model has a loss above ln 256.
    write_runs(path, synthetic_runs().assign(loss=lambda runs: runs["loss"] / 3))
    return path


@pytest.fixture(scope="module")
def law(runs: Path) -> Path:
    path = runs.parent / "fit.json"
    document("fit", runs, "--out", path, *FAST_FIT)
    return path


def edited(runs: Path, folder: Path, **columns: object) -> Path:
    """A copy of the table whose second row has other values."""
    frame = pd.read_csv(runs).astype(dict.fromkeys(columns, object))
    for name, value in columns.items():
        frame.loc[1, name] = value
    frame.to_csv(folder / "edited.csv", index=False)
    return folder / "edited.csv"


def config_file(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(SHAPE.to_config() | changes))
    return path


# Help and imports


def test_help_names_every_command() -> None:
    text = words("--help")
    for command in COMMANDS:
        assert f"\n  {command} " in text


@pytest.mark.parametrize(
    "command", [*([name] for name in COMMANDS), *(["sweep", name] for name in ("run", "status"))]
)
def test_every_command_has_help(command: list[str]) -> None:
    text = words(*command, "--help")
    assert "Usage:" in text
    assert "--json" in text or command == ["sweep"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["fit", "--help"]], ids=str)
def test_the_command_starts_without_what_is_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nsys.argv = ['shapelaw', *sys.argv[1:]]\nfrom shapelaw.search.cli import main\n"
        "try:\n    main() if sys.argv[1:] else None\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


# fit


def test_fit_prints_the_promised_document(runs: Path) -> None:
    found = document("fit", runs, *FAST_FIT)
    assert set(found) == {
        "law", "n_runs", "parameters", "optima", "objective", "status", "starts", "seconds",
        "warnings",
    }  # fmt: skip
    assert found["law"] == "conditional"
    assert found["n_runs"] == len(pd.read_csv(runs))
    assert found["starts"] == 8
    assert isinstance(found["objective"], float)
    assert found["seconds"] > 0
    assert isinstance(found["status"], str)
    assert {"E", "A", "alpha", "B", "beta"} <= set(found["parameters"])
    for parameter in found["parameters"].values():
        assert set(parameter) == {"value", "low", "high"}
        assert parameter["low"] <= parameter["high"]
    assert set(found["optima"]) == {"hidden_over_sqrt_n", "mlp_to_attention"}


def test_fit_finds_the_optimum_of_the_synthetic_law(runs: Path) -> None:
    best = document("fit", runs, "--resamples", "50")["optima"]["hidden_over_sqrt_n"]
    assert best["value"] == pytest.approx(0.2, rel=0.15)


def test_the_file_of_a_fit_and_its_document_are_independent(runs: Path, tmp_path: Path) -> None:
    asked = ("fit", runs, "--law", "chinchilla", *FAST_FIT)
    text = words(*asked, "--out", tmp_path / "words.json")
    assert "chinchilla on" in text
    assert not text.startswith("{")
    printed = document(*asked, "--out", tmp_path / "both.json")
    document(*asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.json", "words.json"]
    for name in ("words.json", "both.json"):
        kept = json.loads((tmp_path / name).read_text())
        clock = {"seconds"}
        assert {key: kept[key] for key in printed.keys() - clock} == {
            key: printed[key] for key in printed.keys() - clock
        }


def test_rows_are_chosen_by_name_and_by_condition(runs: Path) -> None:
    where = ("--where", "gqa == 1 or hidden_size > 24", "--exclude", "synthetic-05")
    found = document("fit", runs, "--law", "chinchilla", *where, *FAST_FIT)
    frame = pd.read_csv(runs)
    kept = frame[(frame["gqa"] == 1) | (frame["hidden_size"] > 24)]
    assert found["n_runs"] == len(kept) - (kept["run_id"] == "synthetic-05").sum() < len(frame)


def test_several_conditions_must_all_hold(runs: Path) -> None:
    asked = ("fit", runs, "--law", "chinchilla", *FAST_FIT)
    several = document(*asked, "--where", "gqa in (1, 2)", "--where", "hidden_size > 24")
    one = document(*asked, "--where", "gqa in (1, 2) and hidden_size > 24")
    assert several["parameters"] == one["parameters"]
    assert several["n_runs"] == one["n_runs"] < len(pd.read_csv(runs))


def test_one_seed_gives_one_fit(runs: Path) -> None:
    first, second, other = (
        document("fit", runs, "--law", "chinchilla", "--seed", seed, *FAST_FIT)["parameters"]
        for seed in (1, 1, 2)
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"loss": float("nan")}, r"1 of \d+ rows have not .*line 3\).*--drop-failed"),
        ({"loss": -1.0}, r"line 3: `loss > 0` and finite must hold, but got -1.0"),
        ({"loss": "inf"}, r"1 of \d+ rows have not .*line 3\).*--drop-failed"),
        ({"tokens": "many"}, r"line 3: `tokens > 0` and finite must hold, but got many"),
        ({"num_key_value_heads": 5}, r"line 3: `num_attention_heads % num_key_value_heads == 0`"),
        ({"run_id": "synthetic-00"}, r"line 3: `run_id` must be unique"),
        ({"corpus": "other"}, r"`corpus` must be the same for all rows"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_row_is_named(
    runs: Path, tmp_path: Path, failing: Failing, columns: dict[str, object], said: str
) -> None:
    if "corpus" in columns:
        frame = pd.read_csv(runs).assign(corpus="text")
        frame.to_csv(tmp_path / "with-corpus.csv", index=False)
        runs = tmp_path / "with-corpus.csv"
    path = edited(runs, tmp_path, **columns)
    error = failing(2, "fit", path, "--out", tmp_path / "new" / "fit.json")
    assert pd.Series(error).str.contains(said).all(), error


def test_a_missing_column_is_named(runs: Path, tmp_path: Path, failing: Failing) -> None:
    pd.read_csv(runs).drop(columns="loss").to_csv(tmp_path / "bare.csv", index=False)
    error = failing(2, "fit", tmp_path / "bare.csv", "--out", tmp_path / "fit.json")
    assert "lacks the column `loss`" in error


BAD_FIT = {
    "missing file": (["missing.csv"], "missing.csv cannot be read: No such file"),
    "unknown law": (["--law", "kaplam"], "`--law` must be one of chinchilla, varying-exponent"),
    "open filter": (["--where", "tokens >="], "a filter must be a condition on columns"),
    "filter that runs": (["--where", "__import__('os')"], "`__import__('os')` is none of these"),
    "filter on nothing": (["--where", "width > 3"], "names the column 'width', which the table"),
    "no rows left": (["--where", "tokens < 0"], "has no finished run left to use"),
    "unknown run": (["--exclude", "nobody"], "has no run 'nobody' to exclude"),
    "delta": (
        ["--delta", "-1"],
        "`--delta` must be auto or a positive number of at least 1e-12",
    ),
    "too few": (["--where", "tokens < 6e5 and gqa == 1"], "needs at least"),
}


@pytest.mark.parametrize(("options", "said"), BAD_FIT.values(), ids=BAD_FIT)
def test_fit_refuses_what_it_cannot_use(
    runs: Path, tmp_path: Path, failing: Failing, options: list[str], said: str
) -> None:
    table = tmp_path / options.pop() if options == ["missing.csv"] else runs
    assert said in failing(2, "fit", table, "--out", tmp_path / "fit.json", *options)


@pytest.mark.parametrize("options", [["--starts", "0"], ["--seed", "-1"], ["--wrong"]], ids=str)
def test_a_wrong_option_exits_with_2(runs: Path, options: list[str]) -> None:
    done = CliRunner().invoke(app, ["fit", str(runs), *options])
    assert done.exit_code == 2
    assert done.stdout == ""


def test_result_that_cannot_be_written_exits_with_1(
    runs: Path, tmp_path: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**where: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shapelaw.scaling.files.tempfile.mkstemp", full)
    error = failing(1, "fit", runs, "--out", tmp_path / "fit.json", *FAST_FIT)
    assert "could not be written (No space left on device)" in error


# predict


def test_predict_answers_in_the_order_of_the_rows(runs: Path, law: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(runs).sample(frac=1.0, random_state=3)
    frame.drop(columns=["loss", "run_id"]).to_csv(tmp_path / "shapes.csv", index=False)
    found = document("predict", law, tmp_path / "shapes.csv")["predictions"]
    assert [set(row) for row in found] == [{"predicted_loss", "loss_low", "loss_high"}] * len(frame)
    for row, loss in zip(found, frame["loss"], strict=True):
        assert row["loss_low"] < row["predicted_loss"] < row["loss_high"]
        assert row["predicted_loss"] == pytest.approx(loss, rel=0.02)


def test_tokens_may_stand_in_the_option(runs: Path, law: Path, tmp_path: Path) -> None:
    fields_only = pd.read_csv(runs)[[*SHAPE.row()]]
    fields_only.to_csv(tmp_path / "shapes.csv", index=False)
    few, many = (
        document("predict", law, tmp_path / "shapes.csv", "--tokens", tokens)["predictions"]
        for tokens in ("1M", "2e6")
    )
    for worse, better in zip(few, many, strict=True):
        assert worse["predicted_loss"] > better["predicted_loss"]


def test_predictions_are_written_beside_the_shapes(runs: Path, law: Path, tmp_path: Path) -> None:
    text = words("predict", law, runs, "--out", tmp_path / "predicted.csv")
    assert "predicted_loss" in text
    frame = pd.read_csv(tmp_path / "predicted.csv")
    printed = document("predict", law, runs)["predictions"]
    assert frame["predicted_loss"].tolist() == [row["predicted_loss"] for row in printed]
    assert frame["run_id"].tolist() == pd.read_csv(runs)["run_id"].tolist()


def test_decide_prints_one_row_for_each_shape(runs: Path, law: Path, tmp_path: Path) -> None:
    pd.read_csv(runs).head(3).drop(columns="loss").to_csv(tmp_path / "shapes.csv", index=False)
    printed = document("decide", law, tmp_path / "shapes.csv")
    rows = printed["rows"]
    assert [row["p_best"] >= 0 for row in rows] == [True] * 3
    assert sum(row["p_best"] for row in rows) == pytest.approx(1)
    assert rows[0]["difference_nats"] == 0
    assert set(rows[0]) >= {
        *("p_best_run", "difference_nats_low", "difference_nats_high"),
        *("equivalent_compute", "equivalent_compute_low", "equivalent_compute_high"),
    }


def test_predict_needs_tokens(runs: Path, law: Path, tmp_path: Path, failing: Failing) -> None:
    pd.read_csv(runs).drop(columns="tokens").to_csv(tmp_path / "shapes.csv", index=False)
    error = failing(2, "predict", law, tmp_path / "shapes.csv", "--out", tmp_path / "p.csv")
    assert "--tokens" in error
    assert "`tokens`" in error


@pytest.mark.parametrize("tokens", ["many", "0", "-5", "2M3", ""])
def test_predict_refuses_a_bad_count(runs: Path, law: Path, failing: Failing, tokens: str) -> None:
    assert "a count must be" in failing(2, "predict", law, runs, f"--tokens={tokens}")


def test_predict_names_a_missing_column(
    runs: Path, law: Path, tmp_path: Path, failing: Failing
) -> None:
    frame = pd.read_csv(runs)[["n_non_embedding", "tokens", "gqa", "mlp_to_attention"]]
    frame.to_csv(tmp_path / "shapes.csv", index=False)
    error = failing(2, "predict", law, tmp_path / "shapes.csv")
    assert "lacks the column `hidden_over_sqrt_n`" in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "must be a fit of schema version 2, but has None"),
        ('{"schema_version": 2, "state": {}}', "is damaged"),
    ],
)
def test_predict_refuses_what_is_no_fit(
    runs: Path, tmp_path: Path, failing: Failing, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "fit.json").write_text(text)
    assert said in failing(2, "predict", tmp_path / "fit.json", runs)


# measure


@pytest.mark.parametrize("engine", ["torch", "roofline:h100"])
def test_measure_prints_a_measurement(tmp_path: Path, engine: str) -> None:
    asked = ("measure", config_file(tmp_path), "--engine", engine, "--workload", "16/4@2")
    found = document(*asked)
    assert set(found) == {field.name for field in fields(Measurement)} | {"kept"}
    assert found["engine"] == engine
    assert found["kind"] == ("measured" if engine == "torch" else "predicted")
    assert found["output_tokens_per_second"] > 0
    assert "output_tokens_per_second" in words(*asked)


BAD_MEASURE = {
    "engine": (["--engine", "abacus"], {}, "`--engine` must be one of torch, transformers"),
    "hardware": (["--engine", "roofline:abacus"], {}, "`hardware` must be one of a100, h100"),
    "workload": (["--workload", "poetry"], {}, "`--workload` must be one of chat"),
    "heads": ([], {"num_key_value_heads": 3}, "`num_attention_heads % num_key_value_heads == 0`"),
    "family": ([], {"model_type": "mixtral"}, "`model_type` must be one of llama"),
    "too large": ([], {"vocab_size": 10**9}, "the limit is 8; choose a smaller workload"),
}


@pytest.mark.parametrize(("options", "changes", "said"), BAD_MEASURE.values(), ids=BAD_MEASURE)
def test_measure_refuses_what_it_cannot_run(
    tmp_path: Path, failing: Failing, options: list[str], changes: dict[str, object], said: str
) -> None:
    assert said in failing(2, "measure", config_file(tmp_path, **changes), *options)


# propose and report


@pytest.fixture(scope="module")
def proposed(law: Path) -> tuple[Path, list[dict[str, Any]]]:
    folder = law.parent / "proposed"
    return folder, document(*ASK, "--law", law, "--out", folder)["proposals"]


def test_propose_prints_the_promised_rows(proposed: tuple[Path, list[dict[str, Any]]]) -> None:
    _, rows = proposed
    wanted = {
        *SHAPE.row(), "role", "predicted_loss", "loss_low", "loss_high", "throughput",
        "throughput_low", "throughput_high", "throughput_kind", "engine", "on_front", "warnings",
    }  # fmt: skip
    assert len(rows) == 4, "of shapes that differ in MLP width alone, one is a candidate"
    assert rows[0]["role"] == "baseline"
    assert sum(row["role"] == "baseline" for row in rows) == 1
    for row in rows:
        assert wanted <= set(row)
        assert row["loss_low"] < row["predicted_loss"] < row["loss_high"]
        assert row["throughput_low"] <= row["throughput"] <= row["throughput_high"]
        assert row["throughput_kind"] in {"measured", "predicted"}
        assert row["engine"] == "roofline:h100"
        assert isinstance(row["on_front"], bool)
        assert isinstance(row["warnings"], list)
    assert any(row["on_front"] for row in rows)


def test_propose_writes_what_it_prints(proposed: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = proposed
    written = json.loads((folder / "proposals.json").read_text())
    assert written["proposals"] == rows
    for row in rows:
        config = json.loads((folder / "proposals" / row["name"] / "config.json").read_text())
        assert Shape.from_config(config).row() == {name: row[name] for name in SHAPE.row()}


def test_proposals_are_printed_with_and_without_a_folder(
    law: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = words(*ASK, "--law", law)
    assert "baseline" in text
    assert "loss − baseline" in text
    assert list(tmp_path.iterdir()) == []


BAD_ASK = {
    "no such shape": (["--params", "10"], "no valid shape has 10 parameters"),
    "count": (["--params", "big"], "a count must be a number"),
    "tokens": (["--tokens", "0"], "a count must be at least 1"),
    "engine": (["--engine", "abacus"], "`--engine` must be one of torch"),
    "limit": (["--max-ttft", "0"], "`max_ttft > 0` (seconds) must hold"),
    "impossible": (["--max-ttft", "1e-12"], "no shape of the budget meets `max_ttft <= 1e-12`"),
    "where": (["--where", "hidden_size >"], "hidden_size >"),
    "where nothing": (["--where", "hidden_size < 1"], "hidden_size < 1"),
    "hardware": (["--engine", "roofline:abacus"], "`hardware` must be one of a100, h100"),
    "workload": (["--workload", "poetry"], "`--workload` must be one of chat"),
    "baseline": (["--baseline", "gpt-5"], "`--baseline` must be one of llama-3.2-1b"),
    "convention": (["--params-convention", "all"], "`--params-convention` must be one of"),
    "tolerance": (["--tolerance", "0.9"], "tolerance < 0.5` must hold, but got 0.9"),
    "layers": (["--layers", "four"], "`--layers` must be whole numbers like 12,16,24"),
    "no layers": (["--layers", "0"], "`--layers` must be whole numbers"),
    "head dims": (["--head-dim", "16,"], "`--head-dim` must be whole numbers"),
    "odd head": (["--head-dim", "15"], "`head_dim % 2 == 0` must hold"),
    "vocabulary": (["--vocab", "-5"], "vocab"),
    "law": (["--law", "missing.json"], "missing.json cannot be read"),
}


@pytest.mark.parametrize(("options", "said"), BAD_ASK.values(), ids=BAD_ASK)
def test_propose_refuses_what_it_cannot_answer(
    law: Path, tmp_path: Path, failing: Failing, options: list[str], said: str
) -> None:
    asked = [*ASK, "--law", law, "--out", tmp_path / "out", *options]
    assert said in failing(2, *asked)


def test_a_report_without_confirmation_says_so(
    proposed: tuple[Path, list[dict[str, Any]]], runs: Path, law: Path, tmp_path: Path
) -> None:
    shutil.copy(proposed[0] / "proposals.json", tmp_path)
    shutil.copy(runs, tmp_path)
    shutil.copy(law, tmp_path)
    found = document("report", tmp_path)
    assert set(found) == {"report", "verdict", "confirmation", "conclusion"}
    assert Path(found["report"]).read_text().startswith("<!doctype html>")
    assert "the predictions are untested" in found["verdict"][0]
    assert found["confirmation"] == []


def test_a_report_on_nothing_is_refused(tmp_path: Path, failing: Failing) -> None:
    assert "is not a folder" in failing(2, "report", tmp_path / "nothing")
    error = failing(2, "report", tmp_path)
    assert "must be a folder that `shapelaw quickstart` or `shapelaw propose --out` wrote" in error
    assert "but lacks proposals.json, fit.json, runs.csv; give another folder" in error


def test_a_report_needs_a_folder_or_a_check(failing: Failing) -> None:
    assert "`report` needs a FOLDER, or --check" in failing(2, "report")


def test_a_folder_of_proposals_has_a_page_of_its_own(
    proposed: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, rows = proposed
    (folder / "report.html").unlink()
    assert document("report", folder) == {"report": str(folder / "report.html")}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(row["name"] in page for row in rows)


def test_a_check_lists_what_differs_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shapelaw.search.commands.output.docs_folder", lambda: tmp_path)
    made = {"x.csv": lambda path: path.write_text("a\n1\n")}
    monkeypatch.setattr("shapelaw.search.reports.docs_check.COMMITTED", made)
    done = CliRunner().invoke(app, ["report", "--check"])
    assert done.stdout == "- x.csv is missing\n"
    assert isinstance(done.exception, WorkError)
    assert "differences were found: 1; where they are meant" in str(done.exception)
    (tmp_path / "x.csv").write_text("a\n1\n")
    assert CliRunner().invoke(app, ["report", "--check"]).exit_code == 0


# train and sweep


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    small_corpus(folder)
    return folder / "small.txt"


def train_command(text: Path, folder: Path, **changes: object) -> list[object]:
    return [
        "train", config_file(folder, **changes), "--tokens", "3K", "--corpus", text,
        "--context-length", "16", "--out", folder / "out",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, document(*train_command(text, folder))


def test_train_prints_its_row_and_does_not_train_again(
    trained: tuple[Path, dict[str, Any]], text: Path
) -> None:
    folder, row = trained
    assert set(COLUMNS) <= set(row)
    assert row["status"] == "done"
    assert 2 < row["loss"] < 6
    assert {name: row[name] for name in SHAPE.row()} == SHAPE.row()
    assert (folder / "out" / "runs" / row["run_id"] / "model.safetensors").exists()
    assert document(*train_command(text, folder)) == row
    lines = words(*train_command(text, folder)).splitlines()
    assert ["loss", f"{row['loss']:.4f}"] in [line.split() for line in lines]


def test_status_tells_the_state_of_every_run(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, row = trained
    steps = row["tokens"] // row["batch_tokens"]
    status = document("sweep", "status", folder / "out")
    (run,) = status["runs"]
    found = {name: run[name] for name in ("run_id", "state", "step", "steps", "message")}
    assert found == {
        "run_id": row["run_id"], "state": "done", "step": steps, "steps": steps, "message": "",
    }  # fmt: skip
    assert run["tokens_per_second"] == row["tokens_per_second"]
    assert (status["counts"]["done"], status["seconds_left"], status["share"]) == (1, 0.0, 1.0)
    assert row["run_id"] in words("sweep", "status", folder / "out")


def test_export_prints_and_writes_the_run_table(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, row = trained
    (printed,) = document("sweep", "export", folder / "out")["runs"]
    assert printed == row, "every digit is kept"
    assert words("sweep", "export", folder / "out", "--out", tmp_path / "runs.csv") == ""
    parquet = tmp_path / "runs.parquet"
    (both,) = document("sweep", "export", folder / "out", "--out", parquet)["runs"]
    assert both == printed
    for name in ("runs.csv", "runs.parquet"):
        read = pd.read_csv if name.endswith("csv") else pd.read_parquet
        (kept,) = read(tmp_path / name).to_dict("records")
        assert kept["loss"] == row["loss"]
    assert row["run_id"] in words("sweep", "export", folder / "out")


PLAN = ",".join(name for name in SHAPE.row() if name != "vocab_size") + ",tokens,context_length\n"
SHAPE_ROW = ",".join(str(value) for name, value in SHAPE.row().items() if name != "vocab_size")


@pytest.mark.slow
def test_a_sweep_prints_the_run_table_with_nothing_for_a_diverged_run(
    trained: tuple[Path, dict[str, Any]], text: Path, tmp_path: Path
) -> None:
    folder, row = trained
    shutil.copytree(folder / "out", tmp_path / "out")
    plan = tmp_path / "plan.csv"
    plan.write_text(f"{PLAN}{SHAPE_ROW},3000,16\n")
    command = ["sweep", "run", plan, "--corpus", text, "--out", tmp_path / "out"]
    (known,) = document(*command)["runs"]
    assert known["run_id"] == row["run_id"], "the run of `train` is in the same ledger"
    assert known == row
    lost = {key: value for key, value in row.items() if "loss" not in key}
    changed = json.dumps(lost | {"status": "diverged"})
    with closing(sqlite3.connect(tmp_path / "out" / "ledger.sqlite")) as database, database:
        database.execute("UPDATE shapelaw_runs SET result = ?", (changed,))
    (found,) = document(*command)["runs"]
    assert found["status"] == "diverged"
    assert found.get("loss") is None


def test_a_config_of_another_vocabulary_is_refused(
    text: Path, tmp_path: Path, failing: Failing
) -> None:
    command = train_command(text, tmp_path, vocab_size=300)
    assert "must be 256 as in the corpus, but is 300; change the config" in failing(2, *command)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--corpus", "missing.txt"], "missing.txt does not exist; give a file or a folder"),
        (["--tokens", "lots"], "a count must be a number"),
        (["--optimizer", "lion"], "`optimizer` must be one of muon, adamw, but got 'lion'"),
        (["--context-length", "4"], "`8 <= context_length"),
        (["--sequences", "0"], "`1 <= sequences"),
        (["--vocab", "3"], "`257 <= --vocab <= 65536` must hold, but got 3"),
        (["--context-length", "20000"], "must hold at least 40000 tokens for a context of 20000"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_train_refuses_what_it_cannot_train(
    text: Path, tmp_path: Path, failing: Failing, options: list[str], said: str
) -> None:
    assert said in failing(2, *train_command(text, tmp_path), *options)


def test_a_binary_corpus_is_refused(tmp_path: Path, failing: Failing) -> None:
    (tmp_path / "binary.txt").write_bytes(b"words\n" + os.urandom(50_000).replace(b"\n", b"\xff"))
    error = failing(2, *train_command(tmp_path / "binary.txt", tmp_path))
    assert "binary.txt line 2 cannot be read" in error


def test_a_run_that_diverges_is_failed_work(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shapelaw.trainers.sweep import sweep

    def diverges(_: object, job: Any, *__: object) -> list[str]:
        ledger = existing_ledger(job.folder)
        run = ledger.claim()
        assert run is not None
        ledger.diverge(run.run_id, "loss is nan", {"run_id": run.run_id, "status": "diverged"})
        return []

    monkeypatch.setattr(sweep, "supervise", diverges)
    monkeypatch.setattr(sys, "argv", ["shapelaw", *map(str, train_command(text, tmp_path))])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "diverged: its loss is not finite; lower the learning rate" in error


def test_a_full_disk_is_failed_work(
    trained: tuple[Path, dict[str, Any]], text: Path, failing: Failing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    error = failing(1, *train_command(text, trained[0]))
    assert "but 1 MiB are free; free space or choose another --out folder" in error


BAD_PLAN = {
    "column": ("hidden_size,tokens\n16,1e5\n", "lacks the column `intermediate_size`"),
    "heads": (
        PLAN + SHAPE_ROW.replace("16,32,2,2,1", "16,32,2,4,3") + ",3000,16\n",
        "line 2: `num_attention_heads % num_key_value_heads == 0`",
    ),
    "tokens": (f"{PLAN}{SHAPE_ROW},none,16\n", "line 2: `tokens > 0`"),
    "empty": ("", "is not a CSV, JSON, JSON lines or Parquet table"),
}


@pytest.mark.parametrize(("plan", "said"), BAD_PLAN.values(), ids=BAD_PLAN)
def test_a_bad_plan_is_refused_before_anything_is_written(
    text: Path, tmp_path: Path, failing: Failing, plan: str, said: str
) -> None:
    (tmp_path / "plan.csv").write_text(plan)
    command = ["sweep", "run", tmp_path / "plan.csv", "--corpus", text, "--out", tmp_path / "out"]
    assert said in failing(2, *command)


FAILING = "no space left"


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A sweep with a run of every kind that has ended."""
    from shapelaw.trainers.ledger.ledger import Ledger
    from shapelaw.trainers.optimizers.recipe import Recipe
    from shapelaw.trainers.training.spec import RunSpec

    ledger = Ledger(tmp_path / "sweep" / "ledger.sqlite")
    specs = [RunSpec(run_id=name, shape=SHAPE, tokens=4096, recipe=Recipe()) for name in "abc"]
    ledger.plan(specs, "abc")
    for name in "abc":
        assert ledger.claim() is not None
        row = {"run_id": name, "status": "diverged" if name == "b" else "done"}
        {
            "a": lambda row: ledger.finish("a", row | {"loss": 1.5}),
            "b": lambda row: ledger.diverge("b", "loss is nan at step 3", row),
            "c": lambda _: ledger.fail("c", FAILING),
        }[name](row)
    return tmp_path / "sweep"


def test_status_shows_what_went_wrong(ended: Path) -> None:
    shown = words("sweep", "status", ended, "--watch")
    assert shown.splitlines()[0].startswith("3 runs: 1 done, 1 failed, 1 diverged; 100 %")
    assert "loss is nan at step 3" in shown
    assert FAILING in shown


def test_retry_plans_again_what_failed_and_what_diverged_on_demand(
    ended: Path, failing: Failing
) -> None:
    assert "give --diverged too" in failing(2, "sweep", "retry", ended, "b")
    assert "`RUN_ID` must be a run of the sweep, but got 'z'" in failing(
        2, "sweep", "retry", ended, "z"
    )
    assert document("sweep", "retry", ended) == {"planned": ["c"]}
    again = words("sweep", "retry", ended, "--diverged", "b")
    assert again == "planned again: 1; `shapelaw sweep run` trains them\nb\n"
    assert document("sweep", "status", ended)["counts"]["planned"] == 2


def test_a_diverged_run_is_exported_without_a_loss_and_left_out_of_fits(
    ended: Path, tmp_path: Path
) -> None:
    rows = document("sweep", "export", ended, "--out", tmp_path / "runs.csv")["runs"]
    assert [(row["run_id"], row["status"], row["loss"]) for row in rows] == [
        ("a", "done", 1.5), ("b", "diverged", None),
    ]  # fmt: skip
    kept = pd.read_csv(tmp_path / "runs.csv")
    assert kept["loss"].isna().tolist() == [False, True]
    command = ["sweep", "export", str(ended), "--out", str(tmp_path / "runs.csv")]
    note = "2 runs written to .*; 1 of them diverged: `shapelaw fit` leaves them out"
    assert re.search(note, CliRunner().invoke(app, command).stderr)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--launcher", "kubernetes"], "`--launcher` must be one of local, ray, slurm, but got"),
        (["--option", "partition"], "`--option NAME=VALUE` must hold, but got 'partition'"),
        (["--option", "partition=gpu"], "`--option` of local must be left out, as it has none"),
        (["--launcher", "ray", "--option", "num_cpus=few"], "`num_cpus >= 0` must hold"),
        (["--ledger", "mysql://host/db"], "postgresql://"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_sweep_refuses_launchers_and_ledgers_that_it_cannot_use(
    text: Path, tmp_path: Path, failing: Failing, options: list[str], said: str
) -> None:
    (tmp_path / "plan.csv").write_text(f"{PLAN}{SHAPE_ROW},3000,16\n")
    command = ["sweep", "run", tmp_path / "plan.csv", "--corpus", text, "--out", tmp_path / "out"]
    assert said in failing(2, *command, *options)


@pytest.mark.parametrize("command", ["status", "export", "retry", "work"])
def test_a_folder_without_a_sweep_is_refused(
    tmp_path: Path, failing: Failing, command: str
) -> None:
    assert "has no ledger.sqlite" in failing(2, "sweep", command, tmp_path)


# doctor and the process itself


def test_doctor_tells_what_is_there() -> None:
    found = document("doctor")
    assert set(found) == {
        "python", "platform", "packages", "cores", "memory_gib", "disk_free_gib", "gpu",
        "engines", "extras",
    }  # fmt: skip
    assert found["engines"].keys() == ENGINES.keys()
    assert found["engines"]["torch"] == found["engines"]["roofline"] == "ready"
    assert found["cores"] >= 1
    assert found["packages"]["torch"] != "missing"
    assert "python" in words("doctor")


@pytest.mark.slow
def test_codes_and_streams_of_a_real_process(runs: Path, tmp_path: Path) -> None:
    good = shapelaw("fit", runs, "--law", "chinchilla", "--json", *FAST_FIT)
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["law"] == "chinchilla"
    bad = shapelaw("fit", tmp_path / "missing.csv", "--json")
    error = json.loads(bad.stdout)["error"]
    assert bad.returncode == error["exit_code"] == 2
    assert bad.stderr == f"error: {error['message']}\n"
    failed = shapelaw("fit", runs, "--out", runs / "fit.json", *FAST_FIT)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "missing.csv"], "missing.csv"),
        (["fit", "--starts", "0", "runs.csv"], "--starts"),
        (["space"], "--params"),
    ],
    ids=["bad input", "value out of range", "missing option"],
)
def test_an_error_under_json_is_one_object_on_standard_output(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for flags in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["shapelaw", *arguments, *flags])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert stopped.value.code == 2
        assert said in printed.err
        if not flags:
            assert printed.out == ""
            continue
        document = json.loads(printed.out)
        assert set(document) == {"schema_version", "error"}
        assert said in document["error"]["message"]
        assert document["error"]["exit_code"] == 2


def test_a_failed_check_under_json_prints_its_document_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shapelaw.search.commands.output.docs_folder", lambda: tmp_path)
    made = {"x.csv": lambda path: path.write_text("a\n1\n")}
    monkeypatch.setattr("shapelaw.search.reports.docs_check.COMMITTED", made)
    monkeypatch.setattr(sys, "argv", ["shapelaw", "report", "--check", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 1
    assert json.loads(printed.out)["differences"] == ["x.csv is missing"]
    assert printed.err.startswith("error: docs/ and the data must agree")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here"),
        (MemoryError(), 1, "not enough memory"),
        (OSError(28, "No space left on device", "runs.csv"), 1, "runs.csv: No space left"),
        (ZeroDivisionError("a defect"), 1, "unexpected ZeroDivisionError: a defect"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_other_failure_is_one_line_too(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def breaks(**_: object) -> None:
        raise error

    monkeypatch.setattr("shapelaw.search.cli.app", breaks)
    assert said in failing(code)


def test_ctrl_c_inside_a_command_says_that_it_goes_on(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shapelaw.search.commands.doctor.examine", stopped)
    assert "stopped; the same command goes on from here" in failing(130, "doctor")


def test_a_defect_can_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("shapelaw.search.cli.app", breaks)
    monkeypatch.setenv("SHAPELAW_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main()
