"""Commands of a sweep, on a folder as written by `sweep run`."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.commands.sweep_cli import mount
from shapelaw.trainers.corpus.encoding import byte_encoding
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.sweep.folder import Folder
from support.exported_models import SHAPE, exported
from support.ledgers import plan


def run(*arguments: object) -> Result:
    app = typer.Typer()
    mount(app)
    done = CliRunner().invoke(app, ["sweep", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep of done runs a and b with exported models and a planned run c."""
    folder = Folder(tmp_path / "sweep")
    ledger = plan(Ledger(folder.ledger), "abc")
    for _ in "ab":
        spec = ledger.claim()
        assert spec is not None
        ledger.finish(spec.run_id, {"run_id": spec.run_id, "tokens": 1, "loss": 2.5})
        exported(folder.run(spec.run_id), SHAPE, byte_encoding())
    return folder.path


@pytest.mark.slow
def test_gguf_files_of_all_models_lie_beside_the_run_table(sweep: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    done = run("export", sweep, "--gguf", "--out", tmp_path / "new" / "runs.csv")
    files = sorted((tmp_path / "new" / "gguf").iterdir())
    assert [file.name for file in files] == ["a.gguf", "b.gguf"]
    fields = gguf.GGUFReader(files[0]).fields
    assert fields["general.architecture"].contents() == "qwen3"
    assert len(pd.read_csv(tmp_path / "new" / "runs.csv")) == 2
    assert done.stderr.startswith(f"2 GGUF files written to {tmp_path / 'new' / 'gguf'}\n")


@pytest.mark.slow
def test_gguf_file_of_a_named_run_lies_in_the_sweep_without_a_table(sweep: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf")
    done = run("export", sweep, "--gguf", "--run", "b")
    assert [file.name for file in (sweep / "gguf").iterdir()] == ["b.gguf"]
    assert done.stderr == f"1 GGUF file written to {sweep / 'gguf'}\n"


def test_gguf_export_without_the_package_names_the_extra(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'`pip install "shapelaw\[llamacpp\]"`'):
        run("export", sweep, "--gguf")
    assert not (sweep / "gguf").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gguf", "--run", "c"], "must name a finished run .* got 'c'; .* has a, b"),
        (["--run", "a"], "`--run` must come with --gguf"),
    ],
)
def test_gguf_export_of_an_impossible_run_is_refused(
    sweep: Path, options: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run("export", sweep, *options)


def test_gguf_export_of_a_sweep_without_models_is_refused(tmp_path: Path) -> None:
    plan(Ledger(Folder(tmp_path).ledger), "a")
    with pytest.raises(InputError, match=r"has a model\.safetensors; train the plan"):
        run("export", tmp_path, "--gguf")
