"""Journal of a study in a file: Optuna's format, read past torn lines and written past stale locks.

A process that is killed can leave the begin of a line, or the lock. Optuna's own backend glues the
next record to the torn line, after which nobody can read the file, and waits for a lock whose path
is relative forever.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

from shapelaw.scaling.display.console import note
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.schema import Count, Name, conform

BEGIN = b'{"op_code"'  # of a record as Optuna writes it
ID = {"study_id": Count}
TRIAL = {"trial_id": Count}
# The fields that Optuna reads from the record of each of its operations.
OPERATIONS: dict[int, dict[str, Any]] = {
    0: {"study_name": Name, "directions": list[int]},
    1: ID,
    2: ID | {"user_attr": dict[str, Any]},
    3: ID | {"system_attr": dict[str, Any]},
    4: ID,
    5: TRIAL | {"param_name": Name, "param_value_internal": float, "distribution": str},
    6: TRIAL | {"state": Count, "values": list[float] | None},
    7: TRIAL | {"step": int, "intermediate_value": Any},
    8: TRIAL | {"user_attr": dict[str, Any]},
    9: TRIAL | {"system_attr": dict[str, Any]},
}
GRACE_SECONDS = 10.0  # without a change of a lock, which is held for milliseconds
OLD_SECONDS = 300.0  # by the clock of the file system, of a lock that is taken over at once
LONGEST_PAUSE = 0.5  # seconds


class StudyJournal(BaseJournalBackend):
    """Backend of Optuna's journal storage in a file, tolerant of damaged lines.

    A torn last line is cut off before the next record is written. Damaged lines in the middle are
    skipped and counted in :attr:`damaged`; a whole record that an older version glued to a torn
    one is read.

    Parameters
    ----------
    path
        The file, which is created.

    Attributes
    ----------
    damaged
        Numbers of the damaged lines that were read so far, from 1.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.path.touch()
        self.damaged: list[int] = []
        self._lock = _StudyLock(str(self.path))
        self._reached = {0: (0, 0)}  # bytes and lines read, by the number of records

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Read the records from a number on, up to the last complete line."""
        number = log_number_from if log_number_from in self._reached else 0
        place, lines = self._reached[number]
        with self.path.open("rb") as file:
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):  # torn, or being written
                    return
                place, lines = place + len(line), lines + 1
                record = read_record(line)
                if record is None or line.rfind(BEGIN) > 0:
                    self._note(lines)
                if record is None:
                    continue
                number += 1
                self._reached = {0: (0, 0), number: (place, lines)}
                if number > log_number_from:
                    yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write records as whole lines; a torn last line is cut off first."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._locked(), self.path.open("ab") as file:
            self._cut_torn_line()
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def repair(self) -> None:
        """Cut a torn last line off, and take a lock over that a dead process left."""
        if self._torn_bytes() or self._lock.is_held():
            with self._locked():
                self._cut_torn_line()

    def _note(self, line: int) -> None:
        if line not in self.damaged:
            self.damaged.append(line)

    def _torn_bytes(self) -> int:
        """Return the length of an incomplete last line."""
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            torn = 0
            while torn < size:
                step = min(4096, size - torn)
                file.seek(size - torn - step)
                chunk = file.read(step)
                end = chunk.rfind(b"\n")
                if end >= 0:
                    return torn + step - end - 1
                torn += step
            return torn

    def _cut_torn_line(self) -> None:
        """Cut an incomplete last line off; only with the lock, so that nobody is writing it."""
        if torn := self._torn_bytes():
            os.truncate(self.path, self.path.stat().st_size - torn)
            note(f"note: a torn last line of {torn} bytes was cut off from {self.path}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # another process took it over while this one slept
                self._lock.release()


def read_record(line: bytes) -> dict[str, Any] | None:
    """Read a line of a journal, or the last whole record in it; None if it holds none."""
    for text in dict.fromkeys((line, line[max(line.rfind(BEGIN), 0) :])):
        try:
            record = json.loads(text)
            for name, kind in OPERATIONS[conform(record, dict)["op_code"]].items():
                conform(record.get(name), kind, name)
            conform(record.get("worker_id"), Name)
        except (InputError, ValueError, KeyError, TypeError, RecursionError):
            continue
        return dict(record)
    return None


class _StudyLock(JournalFileSymlinkLock):
    """Optuna's lock, which is taken over from a process that died with it."""

    def is_held(self) -> bool:
        """Return whether any process holds the lock, or left it."""
        return os.path.lexists(self._lock_file)

    def acquire(self) -> bool:
        """Make the lock, and wait while another process holds it."""
        pause, since, seen = 0.001, time.monotonic(), 0.0
        while True:
            with suppress(FileExistsError):
                Path(self._lock_file).symlink_to(self._lock_target_file)
                return True
            with suppress(FileNotFoundError):
                made = Path(self._lock_file).lstat().st_mtime
                if made != seen:
                    since, seen = time.monotonic(), made
                waited = time.monotonic() - since
                if waited > GRACE_SECONDS or time.time() - made > OLD_SECONDS:
                    with suppress(RuntimeError):
                        self.release()
                    note(f"note: {self._lock_file} was left by a process that ended: taken over")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
