"""Options for what a command writes: a place that cannot be written is refused before any work."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from shapelaw.scaling.errors import InputError
from shapelaw.search.cli import app
from support.commands import all_commands

WRITTEN = ("--out", "--storage", "--ledger")
FIRST_LINE = {"FILE": "table.csv", "FOLDER": "folder", "URL": "ledger.sqlite"}
COMMANDS = all_commands(typer.main.get_command(app))
OPTIONS = [
    (path, parameter.opts[0], parameter.metavar)
    for path, command in COMMANDS.items()
    for parameter in command.params
    if set(WRITTEN) & set(parameter.opts)
]


def refusal(*arguments: object) -> str:
    """Run a command that must refuse its input, and return the message."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(done.exception, InputError), (done.exception, done.output)
    return str(done.exception)


def test_every_written_option_is_found() -> None:
    assert {option for _, option, _ in OPTIONS} == set(WRITTEN)
    assert len(OPTIONS) >= 16


@pytest.mark.parametrize(("path", "option", "kind"), OPTIONS, ids=lambda value: str(value))
def test_option_for_written_files_refuses_place_of_the_other_kind(
    tmp_path: Path, path: tuple[str, ...], option: str, kind: str
) -> None:
    folder, file = tmp_path / "runs.csv", tmp_path / "file"
    folder.mkdir()
    file.touch()
    if kind == "FOLDER":
        assert refusal(*path, option, file) == (
            f"`{option}` must be a folder, but {file} is a file; choose another name"
        )
    else:
        assert refusal(*path, option, folder) == (
            f"`{option}` must be a file, but {folder} is a folder; add a file name"
        )


@pytest.mark.parametrize(("path", "option", "kind"), OPTIONS, ids=lambda value: str(value))
def test_option_for_written_files_below_a_file_is_refused(
    tmp_path: Path, path: tuple[str, ...], option: str, kind: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    below = file / "further" / FIRST_LINE[kind]
    assert f"`{option}` must lie in a folder, but {file} is a file" in refusal(*path, option, below)


@pytest.mark.parametrize("ledger", ["foo", "ledger.csv", "mysql://host/db"])
def test_ledger_of_unknown_kind_is_refused_with_the_kinds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ledger: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal("sweep", "run", "plan.csv", "--ledger", ledger)
    assert "`--ledger` must be a .sqlite file or postgresql://" in message
    assert list(tmp_path.iterdir()) == []


EXCLUSIVE: dict[str, list[Any]] = {
    "laws": ["laws", "--json", "--markdown"],
    "report": ["report", ".", "--check"],
    "check": ["report", "--check", "--renew"],
    "status": ["sweep", "status", ".", "--watch", "--json"],
}


@pytest.mark.parametrize("arguments", EXCLUSIVE.values(), ids=EXCLUSIVE)
def test_options_that_exclude_each_other_are_refused_together(arguments: list[str]) -> None:
    assert "can be given, but got" in refusal(*arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sampler", "best"], "`sampler` must be one of calibrated"),
        (["--validation", "dolma"], "`--validation dolma` must come with --link"),
        (["--validation", "dolma", "--link", "olmo-ladder"], "but got 'dolma'"),
        (["--storage", "oracle9://host/db"], "`--storage` must be a path or postgresql://"),
    ],
    ids=str,
)
def test_propose_refuses_unknown_names_before_it_fits_a_law(
    monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    def fitted(*arguments: object, **settings: object) -> None:
        raise AssertionError("the law is fitted before the options are checked")

    monkeypatch.setattr("shapelaw.search.proposals.basis.fit", fitted)
    asked = ["propose", "--params", "1M", "--tokens", "5M", "--engine", "roofline:h100"]
    assert said in refusal(*asked, *options)
