import io
import json
from pathlib import Path
from typing import Any

import optuna
import pytest

import shapelaw.search.study.storage
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.space.grid import FREE_FIELDS
from shapelaw.search.proposals.request import SearchEffort
from shapelaw.search.study.storage import (
    check_storage_address,
    hide_password,
    open_storage,
    opened_storage,
    retry_while_unreachable,
    unreachable_error,
)
from shapelaw.search.study.study import Effort, explore, study_name
from support.made_up import MadeUpEngine, made_up_problem
from support.postgres import Server

PROBLEM = made_up_problem()
EFFORT = Effort(measurements=3, first=[5])
NOBODY = "postgresql://me:secret@127.0.0.1:9/search"  # the discard port: nothing listens


def test_an_unreachable_database_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(WorkError) as caught:
        explore(PROBLEM, MadeUpEngine(), EFFORT, storage=NOBODY)
    text = str(caught.value)
    assert text.startswith("the study at postgresql://me:***@127.0.0.1:9/search cannot be reached")
    assert text.endswith("start the database, or check host, port, user and password")
    assert "secret" not in text
    assert "\n" not in text


@pytest.mark.parametrize("url", ["nosuchthing://host/name", "postgresql://host:port/name"])
def test_invalid_url_is_an_input_error(url: str) -> None:
    with pytest.raises(InputError, match="`--storage` must be a path or postgresql://"):
        open_storage(url)


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: object, **options: object) -> None:
        raise ImportError("psycopg")

    monkeypatch.setattr(optuna.storages, "RDBStorage", without)
    with pytest.raises(InputError, match=r'pip install "shapelaw\[postgres\]"'):
        open_storage("postgresql://localhost/search")


def test_storage_at_a_folder_or_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"`--storage` must lie in a folder, but .*/file is a"):
        open_storage(tmp_path / "file" / "study.log")
    with pytest.raises(InputError, match=r"`--storage` must be a file, but .* is a folder"):
        SearchEffort(storage=tmp_path)


def test_request_for_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(InputError, match=r"`sampler` must be one of .*, but got 'best'"):
        SearchEffort(sampler="best")


@pytest.mark.parametrize("content", [b"\x00\x01\x02\xff\n", b"text\n", b"[]\n", b"{}\n"])
def test_a_file_that_is_no_journal_is_an_input_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.log"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"must be a file that shapelaw wrote, but .*study\.log"):
        open_storage(path)
    assert path.read_bytes() == content


def test_password_is_removed_from_a_url() -> None:
    assert hide_password("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"
    assert hide_password("postgresql://me@host/name") == "postgresql://me@host/name"
    assert hide_password(Path("a/b.log")) == "a/b.log"


def test_a_storage_that_is_open_stays_open() -> None:
    storage = optuna.storages.InMemoryStorage()
    with opened_storage(storage) as opened:
        assert opened is storage


def test_a_study_in_sqlite_is_continued(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    first = explore(PROBLEM, MadeUpEngine(), EFFORT, storage=url)
    engine = MadeUpEngine()
    assert explore(PROBLEM, engine, EFFORT, storage=url).results == first.results
    assert engine.calls == []


def failing(times: int, error: Exception) -> Any:
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "answered"

    return call


def test_call_is_repeated_while_the_database_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shapelaw.search.study.storage, "PAUSE", 0.001)
    lost = optuna.exceptions.StorageInternalError("server closed the connection")
    assert retry_while_unreachable(NOBODY, failing(3, lost)) == "answered"
    with pytest.raises(WorkError, match="server closed the connection"):
        retry_while_unreachable(NOBODY, failing(3, lost), patience=0)


def test_call_with_another_error_is_not_repeated() -> None:
    with pytest.raises(KeyError):
        retry_while_unreachable(NOBODY, failing(1, KeyError("a defect")))
    with pytest.raises(WorkError, match="free space, or choose another file"):
        retry_while_unreachable("study.log", failing(1, OSError(28, "No space left on device")))


def test_error_without_text_is_shown_by_its_type() -> None:
    assert "(TimeoutError)" in str(unreachable_error("study.log", TimeoutError()))


@pytest.mark.xdist_group("postgres")
def test_a_study_on_postgresql_survives_a_restart_of_the_server(postgres: Server) -> None:
    with postgres.connection() as connection:
        connection.execute("DROP DATABASE IF EXISTS search_restart")
        connection.execute("CREATE DATABASE search_restart")
    url = f"postgresql://ladder@127.0.0.1:{postgres.port}/search_restart"

    class Restarting(MadeUpEngine):
        def measure_all(self, shapes: Any, workload: Any) -> Any:
            if len(self.calls) == 2:
                postgres.stop("immediate")
                postgres.start()
            return super().measure_all(shapes, workload)

    found = explore(PROBLEM, Restarting(), Effort(measurements=5, first=[5]), storage=url)
    assert len(found.measured) == 5


@pytest.mark.slow
def test_the_dashboard_opens_the_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason='pip install "shapelaw[dashboard]"')
    path, engine = tmp_path / "study.log", MadeUpEngine()
    explore(PROBLEM, engine, EFFORT, storage=path)
    with opened_storage(path) as storage:
        app = dashboard.wsgi(storage)

        def answer(path: str) -> dict[str, Any]:
            status: list[str] = []
            request = {
                "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "here",
                "SERVER_PORT": "80", "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
                "wsgi.url_scheme": "http",
            }  # fmt: skip
            body = b"".join(app(request, lambda *words: status.append(words[0])))
            assert status == ["200 OK"]
            return dict(json.loads(body))

        (summary,) = answer("/api/studies")["study_summaries"]
        detail = answer(f"/api/studies/{summary['study_id']}")
    assert summary["study_name"] == study_name(PROBLEM, engine)
    assert summary["directions"] == ["minimize", "maximize"]
    assert {each["key"]: each["value"] for each in detail["user_attrs"]} == {
        "workload": str(PROBLEM.workload), "engine": engine.label
    }  # fmt: skip
    first = detail["trials"][0]
    shown = {each["name"]: int(each["param_external_value"]) for each in first["params"]}
    assert shown == {name: getattr(PROBLEM.table[5], name) for name in FREE_FIELDS}
    attributes = {each["key"]: each["value"] for each in first["user_attrs"]}
    assert attributes["shape"] == PROBLEM.table[5].name


@pytest.mark.parametrize("place", ["[bad/x", "host:99999999/x", "bad]:5432/x"])
def test_url_with_an_impossible_host_or_port_is_refused_before_it_is_opened(place: str) -> None:
    with pytest.raises(InputError, match="`--storage` must be a path or postgresql") as refused:
        check_storage_address(f"postgresql://me:secret@{place}")
    assert "secret" not in str(refused.value)
    check_storage_address("postgresql://me:secret@[::1]:5432/x")
    check_storage_address("postgresql:///x")
