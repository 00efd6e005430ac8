import io
import json
from pathlib import Path
from typing import Any

import optuna
import pytest

import shapelaw.search.study.storage
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.study.storage import closing, patiently, shown, storage_at, unreachable
from shapelaw.search.study.study import Effort, explore, study_name
from support.made_up import MadeUpEngine, question
from support.postgres import Server

ASKED = question()
EFFORT = Effort(measurements=3, first=[5])
NOBODY = "postgresql://me:secret@127.0.0.1:9/search"  # the discard port: nothing listens


def test_an_unreachable_database_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(WorkError) as caught:
        explore(ASKED, MadeUpEngine(), EFFORT, storage=NOBODY)
    text = str(caught.value)
    assert text.startswith("the study at postgresql://me:***@127.0.0.1:9/search cannot be reached")
    assert text.endswith("start the database, or check host, port, user and password")
    assert "secret" not in text
    assert "\n" not in text


@pytest.mark.parametrize("url", ["nosuchthing://host/name", "postgresql://host:port/name"])
def test_a_url_that_is_none_is_bad_input(url: str) -> None:
    with pytest.raises(InputError, match="`--storage` must be a path or postgresql://"):
        storage_at(url)


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: object, **options: object) -> None:
        raise ImportError("psycopg")

    monkeypatch.setattr(optuna.storages, "RDBStorage", without)
    with pytest.raises(InputError, match=r'pip install "shapelaw\[postgres\]"'):
        storage_at("postgresql://localhost/search")


def test_a_path_below_a_file_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="could not be written"):
        storage_at(tmp_path / "file" / "study.log")


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"
    assert shown("postgresql://me@host/name") == "postgresql://me@host/name"
    assert shown(Path("a/b.log")) == "a/b.log"


def test_a_storage_that_is_open_stays_open() -> None:
    storage = optuna.storages.InMemoryStorage()
    with closing(storage) as opened:
        assert opened is storage


def test_a_study_in_sqlite_is_continued(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    first = explore(ASKED, MadeUpEngine(), EFFORT, storage=url)
    engine = MadeUpEngine()
    assert explore(ASKED, engine, EFFORT, storage=url).known == first.known
    assert engine.calls == []


def failing(times: int, error: Exception) -> Any:
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "answered"

    return call


def test_a_database_that_is_away_for_a_moment_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shapelaw.search.study.storage, "PAUSE", 0.001)
    lost = optuna.exceptions.StorageInternalError("server closed the connection")
    assert patiently(NOBODY, failing(3, lost)) == "answered"
    with pytest.raises(WorkError, match="server closed the connection"):
        patiently(NOBODY, failing(3, lost), patience=0)


def test_other_errors_are_not_waited_for() -> None:
    with pytest.raises(KeyError):
        patiently(NOBODY, failing(1, KeyError("a defect")))
    with pytest.raises(WorkError, match="free space, or choose another file"):
        patiently("study.log", failing(1, OSError(28, "No space left on device")))


def test_an_error_without_words_is_named() -> None:
    assert "(TimeoutError)" in str(unreachable("study.log", TimeoutError()))


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

    found = explore(ASKED, Restarting(), Effort(measurements=5, first=[5]), storage=url)
    assert len(found.measured) == 5


@pytest.mark.slow
def test_the_dashboard_opens_the_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason='pip install "shapelaw[dashboard]"')
    path, engine = tmp_path / "study.log", MadeUpEngine()
    explore(ASKED, engine, EFFORT, storage=path)
    with closing(path) as storage:
        app = dashboard.wsgi(storage)
        answers: list[str] = []
        request = {
            "REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies", "SERVER_NAME": "here",
            "SERVER_PORT": "80", "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
        }  # fmt: skip
        body = b"".join(app(request, lambda *words: answers.append(words[0])))
    assert answers == ["200 OK"]
    (summary,) = json.loads(body)["study_summaries"]
    assert summary["study_name"] == study_name(ASKED, engine)
    assert summary["directions"] == ["minimize", "maximize"]
