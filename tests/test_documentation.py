"""The documentation: links lead somewhere, examples are true, the build is strict."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shapelaw.scaling.architectures.registry import FAMILIES
from support.paths import ROOT

DOCS = ROOT / "docs"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = loaded("examples")
notebook_pages = loaded("notebook_pages")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_of_a_page_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        path = link.partition("#")[0]
        assert not path or (page.parent / path).exists(), link


def test_table_of_architectures_ticks_only_tests_that_exist_and_passed() -> None:
    results = json.loads((DOCS / "architectures.json").read_text(encoding="utf-8"))
    assert set(results) == {*FAMILIES, "canon"}
    for row, points in results.items():
        for point, result in points.items():
            assert not result["failed"], (row, point)
            assert bool(result["passed"]) == bool(result["tests"]), (row, point)
            for test in result["tests"]:
                file, name = test.split("::")
                assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_example_shows_a_command_of_ours_and_its_output() -> None:
    found = [
        match
        for page in examples.pages()
        for match in examples.BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]
    assert len(found) >= 4
    for match in found:
        assert match["command"].split("; ")[-1].startswith("shapelaw ")
        assert match["output"].strip()
    marked = sum(page.read_text(encoding="utf-8").count("\n```console\n") for page in PAGES)
    assert marked == len(found)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("loss 1.500", "loss 1.501", True),
        ("loss 1.5", "loss 1.6", False),
        ("loss 1.5", "cost 1.5", False),
        ("│ 120,504 │ shapes │", "│ 120,504  │  shapes │", True),
        ("│ 120,504 │", "│ 130,504 │", False),
        ("━━━━ 3 runs", "━━ 3 runs", True),
        ("1024 starts, 6.3 s", "1024 starts, 12 s", True),
        ("one line\n", "one line\nanother\n", False),
    ],
)
def test_outputs_are_alike_where_words_and_numbers_agree(
    printed: str, expected: str, same: bool
) -> None:
    assert examples.alike(printed, expected) is same


def test_a_wrong_output_is_replaced_and_a_right_one_kept() -> None:
    page = "text\n\n```console\n$ echo one \\\n    2.000\none 2.001\n```\n"
    assert examples.with_outputs(page) == page
    wrong = page.replace("one 2.001", "two 2.001")
    assert examples.with_outputs(wrong) == page.replace("2.001", "2.000")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_of_a_notebook_are_those_of_one_run_and_name_no_machine(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len(outputs) >= 5
    assert not re.search(r"(^|[\s\"'=(])/(tmp|home|root|work|Users)/", json.dumps(outputs))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pages_of_notebooks_link_to_files_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((\.\./[^)#]+)", text):
        assert (path.parent / link).exists(), link


def made_notebook(*outputs: dict[str, object], executed: bool = True) -> dict[str, object]:
    code = {"cell_type": "code", "source": ["1 + 1"], "outputs": list(outputs)}
    text = "# Title\n\n[trust](../docs/trust.md), [next](../notebooks/02_x.ipynb), [log](../LOG.md)"
    return {
        "cells": [
            {"cell_type": "markdown", "source": [text]},
            code | {"execution_count": 1 if executed else None},
        ]
    }


def test_page_of_a_notebook_has_its_texts_code_and_outputs() -> None:
    table = "<style scoped>\n  th {}\n</style>\n<p>$L = 2$</p><table><tr><td>7</td></tr></table>"
    notebook = made_notebook(
        {"output_type": "stream", "name": "stdout", "text": ["a < "]},
        {"output_type": "stream", "name": "stdout", "text": ["b\n"]},
        {"output_type": "execute_result", "data": {"text/html": [table], "text/plain": "no"}},
        {"output_type": "display_data", "data": {"image/png": "aGVsbG8=", "text/plain": "no"}},
        {"output_type": "execute_result", "data": {"text/plain": ["42"]}},
    )
    text, pictures = notebook_pages.page(notebook, "01_x", lambda formula: f"<m>{formula}</m>")
    assert "[trust](../trust.md), [next](02_x.md), log" in text
    assert "`````ipython3\n1 + 1\n`````" in text
    assert ">a &lt; b</pre>" in text
    assert "<p><m>L = 2</m></p><table>" in text
    assert ">42</pre>" in text
    assert "style" not in text
    assert ">no<" not in text
    assert pictures == {"01_x-1-2.png": b"hello"}
    assert "](01_x-1-2.png)" in text


@pytest.mark.parametrize(
    ("notebook", "said"),
    [
        (made_notebook(executed=False), "was not executed"),
        (made_notebook({"output_type": "error", "ename": "KeyError"}), "failed with KeyError"),
    ],
    ids=["not executed", "failed"],
)
def test_page_of_an_unfinished_notebook_is_refused(notebook: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        notebook_pages.page(notebook, "01_x", str)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("", ""),
        ("[a page](nowhere.md)", "nowhere.md"),
        ("[an anchor](trust.md#nowhere)", "nowhere"),
        ("![a picture](nowhere.png)", "nowhere.png"),
        ("```{eval-rst}\n:func:`shapelaw.nothing`\n```", "shapelaw.nothing"),
    ],
    ids=["as it is", "page", "anchor", "picture", "name"],
)
def test_build_fails_on_a_broken_reference_only(tmp_path: Path, added: str, said: str) -> None:
    for name in ("docs", "notebooks", "CONTRIBUTING.md"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    page = tmp_path / "docs" / "architecture.md"
    page.write_text(f"{page.read_text(encoding='utf-8')}\n{added}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "docs", "site"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is (not said), done.stderr
    assert said in done.stderr
