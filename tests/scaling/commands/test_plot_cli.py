import json

import pytest
import typer
from typer.testing import CliRunner

from shapelaw.scaling.commands.plot_cli import KINDS, mount
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.table import write_runs
from support.quick_fits import known_runs, quick_fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from shapelaw.scaling.runs.catalog import load_runs

    folder = tmp_path_factory.mktemp("plot")
    write_runs(folder / "runs.csv", known_runs())
    table = load_runs(folder / "runs.csv")
    quick_fit("chinchilla", table, resamples=8).save(folder / "fit.json")
    return folder


def run(*arguments) -> str:
    app = typer.Typer()
    mount(app)
    app.command()(lambda: None)  # with a single command typer would take its name away
    done = CliRunner().invoke(app, ["plot", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_plot_writes_a_picture_of_every_kind(kind, folder, tmp_path):
    out = tmp_path / f"{kind}.png"
    laws = ("--law", "kaplan", "--law", "width") if kind == "comparison" else ()
    text = run(kind, folder / "fit.json", folder / "runs.csv", "--out", out, *laws)
    assert text == f"{kind} of chinchilla: {out}\n"
    assert out.read_bytes().startswith(b"\x89PNG")


def test_plot_writes_svg_and_prints_one_document_with_json(folder, tmp_path):
    out = tmp_path / "new" / "law.svg"
    document = run("law", folder / "fit.json", folder / "runs.csv", "--out", out, "--json")
    assert json.loads(document) == {
        "schema_version": 1,
        "kind": "law",
        "law": "chinchilla",
        "n_runs": 60,
        "file": str(out),
    }
    assert "<svg" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["drift", "held-out", "comparison"])
def test_hold_out_picture_depends_on_column_and_cutoffs(kind, folder, tmp_path):
    paths = [tmp_path / "size.svg", tmp_path / "tokens.svg"]
    given = (folder / "fit.json", folder / "runs.csv")
    given += ("--law", "kaplan") if kind == "comparison" else ()
    run(kind, *given, "--out", paths[0], "--cutoff", 6.4e7)
    run(kind, *given, "--out", paths[1], "--by", "tokens")
    assert paths[0].read_bytes() != paths[1].read_bytes()
    with pytest.raises(InputError, match="a cut-off must lie above"):
        run(kind, *given, "--out", paths[0], "--cutoff", 1)


def test_comparison_raises_without_another_law(folder, tmp_path):
    given = (folder / "fit.json", folder / "runs.csv", "--out", tmp_path / "a.png")
    with pytest.raises(InputError, match="`compare` needs at least 2 different laws"):
        run("comparison", *given)


def test_filter_applies_to_the_runs(folder, tmp_path):
    given = (folder / "fit.json", folder / "runs.csv", "--out", tmp_path / "a.png", "--json")
    document = json.loads(run("residuals", *given, "--where", f"{N} > 2e6"))
    assert document["n_runs"] == 45


def test_runs_are_loaded_by_name(folder, tmp_path):
    document = json.loads(
        run("qq", folder / "fit.json", "quickstart", "--out", tmp_path / "a.png", "--json")
    )
    assert document["n_runs"] == 20


@pytest.mark.parametrize(
    ("kind", "out", "message"),
    [
        ("pie", "a.png", "`KIND` must be one of law, residuals, qq"),
        ("law", "a.pdf", "must end in .png or .svg"),
        ("profile", "a.png", "`fit` and `runs` must belong together"),
    ],
)
def test_bad_input_raises_one_clear_error_and_leaves_no_file(kind, out, message, folder, tmp_path):
    arguments = (kind, folder / "fit.json", folder / "runs.csv", "--out", tmp_path / out)
    with pytest.raises(InputError, match=message):
        run(*arguments, "--exclude", "synthetic-0")
    assert not list(tmp_path.iterdir())


def test_note_is_printed_when_runs_are_not_those_of_the_fit(folder, tmp_path):
    app = typer.Typer()
    mount(app)
    app.command()(lambda: None)
    given = ["plot", "qq", str(folder / "fit.json"), str(folder / "runs.csv")]
    given += ["--out", str(tmp_path / "a.png")]
    own = CliRunner().invoke(app, given, catch_exceptions=False)
    other = CliRunner().invoke(app, [*given, "--where", f"{N} > 2e6"], catch_exceptions=False)
    assert own.stderr == ""
    assert other.stderr.startswith("note: these 45 runs are not the 60 of the fit; statements")
    one = CliRunner().invoke(app, [*given, "--where", "run_id == 'synthetic-0'"])
    assert one.stderr.startswith("note: this 1 run is not the 60 of the fit; statements")
