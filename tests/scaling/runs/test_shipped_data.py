import re

import pandas as pd
import pytest

from shapelaw.scaling.files import data_folder, sha256
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import COLUMNS


def _sums() -> list[tuple[str, str]]:
    """Read the file names and digests of SHA256SUMS."""
    lines = (data_folder() / "SHA256SUMS").read_text().splitlines()
    return [(line.split()[1], line.split()[0]) for line in lines]


@pytest.mark.parametrize(("name", "digest"), _sums())
def test_every_shipped_file_has_its_checksum(name: str, digest: str) -> None:
    assert sha256(data_folder() / name) == digest


def test_every_shipped_file_is_listed() -> None:
    folder = data_folder()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files - {"SHA256SUMS"} == {name for name, _ in _sums()}


def test_quickstart_runs_have_every_column() -> None:
    assert set(COLUMNS) <= set(load_runs("quickstart").columns)
    by_path = load_runs(data_folder() / "quickstart" / "runs.csv")
    assert load_runs("quickstart").frame.equals(by_path.frame)


def test_the_ladder_has_every_run_of_its_plan_with_its_branches() -> None:
    plan, runs = pd.read_csv(data_folder() / "proxies" / "plan.csv"), load_runs("proxies")
    assert set(plan["run_id"]) == set(runs["run_group"])
    branches = plan["branches"].fillna("").str.count(r"\d+")
    assert len(runs) == len(plan) + branches.sum()


@pytest.mark.parametrize("ending", ["README.md", "*.toml", "shapes.csv"])
def test_text_of_shipped_data_writes_decimals_with_leading_zero(ending: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in data_folder().rglob(ending)]
    assert texts
    bare = re.compile(r"(?<![\w./)\]])\.\d")
    assert [line for text in texts for line in text.splitlines() if bare.search(line)] == []
