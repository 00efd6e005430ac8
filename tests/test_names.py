"""One public name means one thing in the whole project."""

import ast
from collections import defaultdict

from support.paths import ROOT

PACKAGES = ("scaling", "search", "trainers")
COMMANDS = ("commands", "cli.py")  # a command bears the name of the function that it calls
SAME_MEANING = {"main", "mount"}


def public_names(kind: type[ast.ClassDef] | type[ast.FunctionDef]) -> dict[str, set[str]]:
    """Collect the files that define each public class or function."""
    files = defaultdict(set)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, kind) and not node.name.startswith("_"):
                    files[node.name].add(str(path.relative_to(ROOT)))
    return files


def test_no_public_class_name_has_two_meanings() -> None:
    classes = public_names(ast.ClassDef)
    assert "Shape" in classes
    assert len(classes) > 150
    assert {name: files for name, files in classes.items() if len(files) > 1} == {}


def test_no_public_function_name_has_two_meanings() -> None:
    functions = {
        name: {file for file in files if not any(part in file for part in COMMANDS)}
        for name, files in public_names(ast.FunctionDef).items()
        if name not in SAME_MEANING
    }
    assert "load_runs" in functions
    assert len(functions) > 300
    assert {name: files for name, files in functions.items() if len(files) > 1} == {}
