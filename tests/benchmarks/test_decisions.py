"""The benchmark of decisions keeps finished tables, and its record is that of the documentation."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
OPTIONS = (
    *("--label", "quick", "--law", "conditional-steady", "--prior", "none"),
    *("--resamples", "10", "--starts", "4"),
)


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    specification = importlib.util.spec_from_file_location("decisions", BENCHMARKS / "decisions.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(sys.modules["record"], "RESULTS", tmp_path)
    monkeypatch.setattr(module, "PATH", tmp_path / "decisions.json")
    return module


def test_tables_run_one_after_the_other_give_the_document_of_both(
    benchmark_script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def settings(*tables: str) -> dict[str, dict]:
        monkeypatch.setattr(sys, "argv", ["decisions.py", *OPTIONS, "--tables", *tables])
        benchmark_script.main()
        document = json.loads(benchmark_script.PATH.read_text())
        return document["settings"]["quick"]

    both = settings("quickstart", "paper-2510.18245")
    assert "## pairs by total N, law in total N" in capsys.readouterr().out
    benchmark_script.PATH.unlink()
    settings("quickstart")
    assert settings("paper-2510.18245") == both
    figures = both["pairs by non-embedding N, law in non-embedding N"]
    assert figures["scores"]["decisions"] == 5
    assert [key.split(" ")[0] for key in figures["not_available"]] == ["paper-2510.18245"]


def test_tables_of_documentation_equal_the_recorded_benchmark(benchmark_script: ModuleType) -> None:
    recorded = json.loads((BENCHMARKS / "results" / "decisions.json").read_text())
    page = (ROOT / "docs" / "trust.md").read_text()
    assert len(recorded["settings"]) >= 2
    for table in benchmark_script.markdown_of(recorded["settings"]).split("\n\n"):
        assert table in page
