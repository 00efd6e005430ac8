"""One class name means one thing in the whole project."""

import ast
from collections import defaultdict

from support.paths import ROOT


def public_classes(folders: tuple[str, ...]) -> dict[str, set[str]]:
    """Files that define each public class, by its name."""
    found = defaultdict(set)
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].add(str(path.relative_to(ROOT)))
    return found


def test_no_public_class_name_has_two_meanings() -> None:
    classes = public_classes(("scaling", "search", "trainers"))
    assert "Shape" in classes
    assert len(classes) > 150
    assert {name: files for name, files in classes.items() if len(files) > 1} == {}
