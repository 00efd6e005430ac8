"""Journals of studies whose process was killed in the middle of a line or with the lock."""

import os
import re
from pathlib import Path

import optuna
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.search.study import journal
from shapelaw.search.study.journal import StudyJournal, read_record
from shapelaw.search.study.storage import open_storage


def study_in(path: Path, trials: int) -> list[float]:
    """Run trials whose value is their number, and return all values in the file."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=open_storage(path), study_name="s", load_if_exists=True)
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, float(trial.number))
    again = optuna.load_study(study_name="s", storage=open_storage(path))
    return [trial.value for trial in again.trials if trial.value is not None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A journal with three finished trials: a line for the study, then two for each trial."""
    path = tmp_path / "study.log"
    assert study_in(path, 3) == [0, 1, 2]
    assert len(path.read_bytes().splitlines()) == 7
    return path


def test_torn_last_line_is_cut_off_with_a_note(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = file.read_bytes()
    begin = whole[: whole[:-1].rfind(b"\n") + 1]
    file.write_bytes(whole[:-20])
    assert study_in(file, 1) == [0, 1, 3]  # the third trial has no value any more
    assert file.read_bytes().startswith(begin + b'{"op_code":')
    torn = len(whole) - 20 - len(begin)
    assert f"a torn last line of {torn} bytes was cut off" in capsys.readouterr().err


def test_record_glued_to_a_torn_line_is_read_and_the_line_noted(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5][:30] + lines[5]
    file.write_bytes(b"".join(lines))
    assert study_in(file, 1) == [0, 1, 2, 3]
    assert re.search(r"damaged lines of .*study.log were skipped: 6$", capsys.readouterr().err)


def test_damaged_line_in_the_middle_is_skipped_and_noted(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[4] = b'{"op_code":6,"trial_id":\n'  # the result of the second trial
    file.write_bytes(b"".join(lines))
    assert study_in(file, 0) == [0, 2]
    assert "were skipped: 5" in capsys.readouterr().err


@pytest.mark.parametrize("relative", [False, True])
def test_lock_of_a_dead_process_is_taken_over_with_a_note(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(file.parent.parent)
    path = file.relative_to(file.parent.parent) if relative else file
    lock = Path(f"{file}.lock")
    lock.touch()
    old = file.stat().st_mtime - journal.OLD_SECONDS - 1
    os.utime(lock, (old, old))
    assert study_in(path, 1) == [0, 1, 2, 3]
    assert f"{lock} was left by a process that ended" in capsys.readouterr().err
    assert not lock.is_symlink()


def test_lock_that_does_not_change_is_taken_over_after_the_grace_period(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "GRACE_SECONDS", 0.05)
    Path(f"{file}.lock").touch()
    StudyJournal(file).append_logs([])
    assert not Path(f"{file}.lock").exists()


def test_records_are_read_on_from_any_number(file: Path) -> None:
    reader = StudyJournal(file)
    assert [len(list(reader.read_logs(number))) for number in (0, 7, 3, 5)] == [7, 0, 4, 2]


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000, b"3", b"{}", b'{"op_code":[],"worker_id":"w"}',
        b'{"op_code":1,"worker_id":"w","study_id":true}',
        b'{"op_code":6,"worker_id":"w","trial_id":0,"state":1,"values":["x"]}',
    ],
)  # fmt: skip
def test_line_that_is_no_record_of_optuna_is_damaged(line: bytes) -> None:
    assert read_record(line + b"\n") is None


def test_journal_whose_record_optuna_cannot_apply_is_refused(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"datetime_start":"', b'"datetime_start":"no date, ')
    file.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"study.log cannot be read .a record does not fit"):
        open_storage(file)
