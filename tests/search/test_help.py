"""The help texts: every command is listed, every option is explained, nothing is of Python."""

import re

import pytest
import typer
from typer.testing import CliRunner

import shapelaw
from shapelaw.scaling.extras import installed_version
from shapelaw.search.cli import SECTIONS, app
from support.commands import all_commands

METAVAR = re.compile(
    r"[A-Z][A-Z_]*|NAME\[:HARDWARE\]|COUNT\[:SEEDS\[:LONG\]\]|[A-Z,=:]+|[A-Z]+\[:[A-Z]+\]"
)
OF_PYTHON = {"INTEGER", "TEXT", "FLOAT", "BOOLEAN", "DIRECTORY", "STR", "INT"}
COMPLETION = {"install_completion", "show_completion"}


ROOT_GROUP = typer.main.get_command(app)
ALL = all_commands(ROOT_GROUP)


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_command_stands_below_one_heading() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(ROOT_GROUP.commands)
    text = printed("--help")
    places = [text.index(f"\n  {name} ") for name in listed]
    assert places == sorted(places)
    assert all(f"\n{heading}:\n" in text for heading in SECTIONS)


@pytest.mark.parametrize("group", [[], ["sweep"], ["data"]], ids=str)
def test_lists_of_commands_need_one_line_of_80_columns_each(group: list[str]) -> None:
    text = printed(*group, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("[ARGS]...", "")


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_short_and_long_help_option_print_the_same(path: tuple[str, ...]) -> None:
    assert printed(*path, "-h") == printed(*path, "--help")


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_of_a_command_names_no_python_type(path: tuple[str, ...]) -> None:
    text = printed(*path, "--help")
    assert not re.search(r"<[a-z_\[\] ]+>|\brange\b>|x>=|None", text)
    for parameter in ALL[path].params:
        if parameter.param_type_name == "argument" or not parameter.is_flag:
            assert METAVAR.fullmatch(parameter.metavar or ""), parameter.name
            assert parameter.metavar not in OF_PYTHON, parameter.name


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_parameter_is_explained_in_one_sentence_with_its_default(
    path: tuple[str, ...],
) -> None:
    for parameter in ALL[path].params:
        text = parameter.help or ""
        assert re.fullmatch(r"[A-Za-z][^\n]{9,}\.", text), (parameter.name, text)
        optional = not parameter.required and not getattr(parameter, "multiple", False)
        if optional and parameter.default in (None, "") and not getattr(parameter, "is_flag", 0):
            shown = "default" in text or parameter.param_type_name == "argument"
            assert shown, f"{parameter.name}: {text!r} does not state the default"


def test_the_version_option_prints_the_installed_version() -> None:
    assert printed("--version") == f"shapelaw {installed_version('shapelaw')}\n"
    assert shapelaw.__version__ == installed_version("shapelaw")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_command_names(shell: str) -> None:
    words = {"bash": {"COMP_WORDS": "shapelaw pro", "COMP_CWORD": "1"}}.get(
        shell, {"_TYPER_COMPLETE_ARGS": "shapelaw pro", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    )
    asked = {"_SHAPELAW_COMPLETE": f"complete_{shell}", **words}
    done = CliRunner().invoke(app, [], prog_name="shapelaw", env=asked)
    assert "propose" in done.stdout
    assert "evaluate" not in done.stdout


def test_one_idea_has_one_spelling_in_all_commands() -> None:
    options: dict[str, set[str]] = {}
    for command in ALL.values():
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                options.setdefault(parameter.opts[0], set()).add(parameter.metavar or "")
    assert "--constraint" not in options
    several = {name: found for name, found in options.items() if len(found) > 1}
    # A file or a folder; a list of values or a range; a size or what N counts; a text or its name.
    assert several.keys() == {"--out", "--gqa", "--size", "--validation"}
