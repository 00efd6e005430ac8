"""``import shapelaw`` offers the public names, costs nothing and shadows nobody."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import shapelaw
from support.paths import ROOT


def stub_names() -> dict[str, str]:
    """Public names and the modules that the stub says they come from."""
    tree = ast.parse((ROOT / "shapelaw" / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.name: str(node.module)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_stub_and_package_offer_the_same_names_from_the_same_modules() -> None:
    assert stub_names() == shapelaw._PUBLIC


@pytest.mark.parametrize("name", stub_names())
def test_a_public_name_is_what_its_module_defines(name: str) -> None:
    assert getattr(shapelaw, name).__module__ == f"shapelaw.{stub_names()[name]}"
    assert name in dir(shapelaw)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shapelaw.nothing  # noqa: B018


def test_importing_shapelaw_imports_no_other_package() -> None:
    script = "import sys, shapelaw; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600
    )
    assert {"numpy", "pandas", "scipy", "torch", "typer"}.isdisjoint(done.stdout.split())


def test_folders_of_the_same_names_elsewhere_shadow_nothing(tmp_path: Path) -> None:
    for name in ("scaling", "search", "trainers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('another package')")
    script = "import shapelaw; print(shapelaw.Shape.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, cwd=tmp_path, timeout=600, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "shapelaw.scaling.architectures.shape", done.stderr
