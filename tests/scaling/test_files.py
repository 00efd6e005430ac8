import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json, sha256, write_json, write_text, write_whole


def test_a_file_is_written_whole_into_a_new_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    write_text(path, "ä = 1\n")
    assert path.read_bytes() == "ä = 1\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["table.csv"]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "fit.json"
    write_text(path, "a long first content")
    write_text(path, "second")
    assert path.read_text() == "second"


def test_an_open_reader_of_a_replaced_file_keeps_the_old_content(tmp_path):
    path = tmp_path / "fit.json"
    path.write_text("old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_the_temporary_file_has_the_ending_of_the_file(tmp_path):
    endings = []
    write_whole(tmp_path / "runs.parquet", lambda target: endings.append(target.suffix))
    assert endings == [".parquet"]


def test_a_written_file_has_the_usual_permissions(tmp_path):
    path, usual = tmp_path / "written", tmp_path / "usual"
    write_text(path, "")
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("before", [None, "old content"])
@pytest.mark.parametrize(
    ("raised", "seen"),
    [(OSError(28, "No space left on device"), WorkError), (ZeroDivisionError, ZeroDivisionError)],
)
def test_a_writer_that_fails_leaves_the_folder_as_it_was(tmp_path, before, raised, seen):
    path = tmp_path / "runs.csv"
    if before is not None:
        path.write_text(before)

    def write(target):
        target.write_text("half of the new con")
        raise raised

    with pytest.raises(seen) as caught:
        write_whole(path, write)
    if seen is WorkError:
        assert str(caught.value) == (
            f"{path} could not be written (No space left on device); "
            "free space or choose another folder"
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if before is None else ["runs.csv"])
    assert before is None or path.read_text() == before


def test_a_folder_that_cannot_be_created_raises_work_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match=r"could not be written \(.*\); free space or choose"):
        write_text(tmp_path / "file" / "below.txt", "text")


def test_a_folder_in_place_of_the_file_raises_work_error(tmp_path):
    (tmp_path / "runs.csv").mkdir()
    with pytest.raises(WorkError, match=r"runs.csv could not be written \(Is a directory\)"):
        write_text(tmp_path / "runs.csv", "text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs.csv"]


def test_json_keeps_every_digit(tmp_path):
    document = {"third": 1 / 3, "tiny": 5e-324, "count": 1_235_814_400, "text": "√N", "none": None}
    write_json(tmp_path / "fit.json", document)
    assert read_json(tmp_path / "fit.json") == document


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_rejects_nan_and_infinity_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "fit.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": value})
    assert read_json(path) == {"old": 1}


def test_a_missing_json_file_raises_with_its_name(tmp_path):
    with pytest.raises(InputError, match=r"fit.json cannot be read: No such file or directory; gi"):
        read_json(tmp_path / "fit.json")


@pytest.mark.parametrize("content", [b"", b"{", b"not json", b"\xff\xfe\x00", b'{"a": 1} {}'])
def test_content_that_is_not_json_raises(tmp_path, content):
    path = tmp_path / "fit.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fit.json is not JSON \(.+\); give a file that shapelaw"):
        read_json(path)


@pytest.mark.parametrize(("document", "kind"), [([1], "list"), (1.5, "float"), ("a", "str")])
def test_json_that_is_not_an_object_raises(tmp_path, document, kind):
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"must hold a JSON object, but holds a {kind}"):
        read_json(path)


def test_sha256_equals_the_hash_of_the_bytes(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(b"\x00\r\n\xff")
    assert sha256(path) == hashlib.sha256(b"\x00\r\n\xff").hexdigest()


def test_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        write_text(pipe, "whole")
        assert read.result(timeout=60) == "whole"
    assert pipe.is_fifo()
