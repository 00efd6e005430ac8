from pathlib import Path

import pytest

from scaling.catalog import data_folder, load_table
from scaling.files import sha256
from scaling.runs import COLUMNS, load_runs


def _sums() -> list[tuple[str, str]]:
    lines = (data_folder() / "SHA256SUMS").read_text().splitlines()
    return [(line.split()[1], line.split()[0]) for line in lines]


@pytest.mark.parametrize(("name", "digest"), _sums())
def test_every_shipped_file_has_its_checksum(name: str, digest: str) -> None:
    assert sha256(data_folder() / name) == digest


def test_every_shipped_file_is_listed() -> None:
    folder = data_folder()
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there - {"SHA256SUMS"} == {name for name, _ in _sums()}


def test_every_shipped_run_table_is_valid_and_complete() -> None:
    tables = sorted(data_folder().glob("*/runs.csv"))
    assert tables
    for path in tables:
        assert set(COLUMNS) <= set(load_runs(path).columns), path


def test_the_shipped_table_loads_by_name() -> None:
    assert len(load_table("quickstart")) == len(
        load_runs(Path(data_folder()) / "quickstart/runs.csv")
    )
