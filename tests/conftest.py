"""Fixtures of several test folders: the command, public tables, one small run of the loop."""

import os

# pytest runs one process per core, so each computes on one thread. Read when numpy is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from shapelaw.scaling.runs.catalog import MIRROR
from shapelaw.trainers.corpus.documents import STDLIB, read_documents
from support.command import SMALL, shapelaw
from support.paths import SHARED
from support.postgres import Server, start_server

settings.register_profile("no_deadline", deadline=None)  # a busy machine fails no test
settings.load_profile("no_deadline")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail where a test module cannot be imported.

    ``--doctest-ignore-import-errors`` is meant for modules whose extra is absent. It skips a test
    module too, and none of its tests would run.
    """
    report = yield
    test_module = collector.nodeid.rpartition("/")[2].startswith("test_")
    if report.skipped and test_module and "unable to import module" in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"{collector.nodeid}: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)  # before pytest picks tests by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what rests on a whole quickstart as slow."""
    for item in items:
        if "loop_folder" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the measurements that a user keeps."""
    os.environ["SHAPELAW_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the published tables."""
    folder = Path(os.environ.get(MIRROR, SHARED / "datasets"))
    if not folder.is_dir():
        pytest.skip(f"the public tables are not here: set {MIRROR} to a folder that holds them")
    monkeypatch.setenv(MIRROR, str(folder))
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 400 kB of real text, one file per document: a slice of the standard library."""
    folder = tmp_path_factory.mktemp("text")
    size = 0
    for number, document in enumerate(read_documents(STDLIB)):
        if len(document.text) < 20_000:
            (folder / f"{number:04d}.txt").write_bytes(document.text)
            size += len(document.text)
        if size > 400_000:
            break
    return folder


@pytest.fixture(scope="session")
def loop_folder(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quickstart; every xdist worker that needs one makes its own."""
    folder = tmp_path_factory.mktemp("loop") / "quickstart"
    done = shapelaw("quickstart", "--corpus", text_folder, "--out", folder, *SMALL)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; its tests are of one xdist group, so that there is one server."""
    server = start_server()
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def _no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
