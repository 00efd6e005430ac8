"""The records of a loop in its folder, and the lock of the folder.

Every loop has a file with its settings; the autopilot also has one decision a line.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Required, TypedDict

from filelock import FileLock, Timeout

from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import (
    MAX_JSON_BYTES,
    nothing_left,
    parse_json,
    read_bytes,
    write_json,
    write_text,
)
from shapelaw.scaling.schema import (
    Count,
    Fraction,
    Name,
    NonNegative,
    Positive,
    PositiveFloat,
    Within,
    conform,
    damaged,
)
from shapelaw.search.reports.loop_record import Setting, read_loop_record
from shapelaw.trainers.optimizers.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """The settings of every loop. All of them but ``workers`` decide its results.

    Attributes
    ----------
    command
        Command that runs the loop, and the name of its record.
    corpus
        Name, file or folder of the training text.
    vocab_size
        Vocabulary of the tokenizer; None: bytes.
    workers
        Parallel training runs; None: one per core.
    """

    command: ClassVar[str]

    corpus: str = "stdlib"
    vocab_size: int | None = None
    seed: int = 0
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class LoopSettings(CorpusSettings):
    """The settings of a quickstart.

    Attributes
    ----------
    effort
        Factor on every token budget, above 0 and up to 100.
    measurements
        Shapes that the search measures, at least 3.

    Raises
    ------
    InputError
        ``effort`` or ``measurements`` is out of range.
    """

    command: ClassVar[str] = "quickstart"

    effort: float = 1.0
    measurements: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.effort <= 100:
            raise InputError(f"`0 < --effort <= 100` must hold, but got {self.effort}")
        if self.measurements < 3:
            raise InputError(f"`--measurements >= 3` must hold, but got {self.measurements}")


class PlannedRuns(TypedDict):
    """First line of a record of decisions."""

    round: Count
    stop: str
    runs: list[dict[Name, Any]]


class RecordedDecision(PlannedRuns, total=False):
    """Further line of a record of decisions."""

    certainty: Required[Fraction]
    proposed: Required[Name]
    shape: dict[Name, Setting]
    speedup: PositiveFloat
    rival: Name | None
    choices: Positive
    trained: Positive
    flops: Required[PositiveFloat]
    core_hours: Required[NonNegative]


def keep_record(folder: Path, settings: CorpusSettings) -> None:
    """Write the settings to a folder, or check that they equal the folder's.

    Raises
    ------
    InputError
        The folder has other settings, or holds files of another command.
    """
    command = settings.command
    path = folder / f"{command}.json"
    given = {name: value for name, value in asdict(settings).items() if name != "workers"}
    if path.exists():
        stored: dict[str, Any] = dict(read_loop_record(path).get("settings", {}))
        if stored != given:
            changed = [name for name in given if stored.get(name) != given[name]]
            raise InputError(
                f"{folder} holds a run of `shapelaw {command}` with another "
                f"{', '.join(changed) or 'record'} ({shown(stored)}); choose another --out "
                "folder, or delete it"
            )
        return
    if folder.exists() and any(entry.name != "work" for entry in folder.iterdir()):
        raise InputError(
            f"{folder} holds other files than those of `shapelaw {command}`; choose another --out"
        )
    versions = {name: version(name) for name in ("torch", "numpy", "scipy", "optuna")}
    record: dict[str, Any] = {
        "settings": given,
        "recipe": asdict(Recipe()),
        "python": sys.version.split()[0],
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "stage_seconds": {},
    }
    write_json(path, record)


@contextmanager
def locked_folder(folder: Path, command: str = "quickstart") -> Iterator[None]:
    """Lock a folder for one loop; the lock ends with the process.

    Raises
    ------
    WorkError
        Another loop holds the lock, or the folder cannot be written to.
    """
    lock = FileLock(folder / "work" / "lock")
    with nothing_left(folder / "work"), _held(lock, folder, command):
        yield


@contextmanager
def _held(lock: FileLock, folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a folder, which is created."""
    try:
        (folder / "work").mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise WorkError(f"another {command} is at work in {folder}; wait for it") from None
    except OSError as error:
        raise WorkError(
            f"{folder} cannot be written to ({error.strerror}); choose another --out folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


DECISIONS = "decisions.jsonl"
MAKE_AGAIN = "delete it: the same command makes it again from the recorded measurements"


@dataclass(frozen=True)
class DecisionRecord:
    """A JSON-lines file with one decision a line, which is written whole or not at all."""

    path: Path

    def lines(self) -> list[dict[str, Any]]:
        """Return the recorded decisions, oldest first.

        Raises
        ------
        InputError
            The file is damaged.
        """
        if not self.path.exists():
            return []
        try:
            lines = read_bytes(self.path, MAX_JSON_BYTES).splitlines()
            return [_decision(line, number) for number, line in enumerate(lines)]
        except InputError as error:
            raise damaged(self.path, error, MAKE_AGAIN) from None

    def append(self, decision: dict[str, Any]) -> None:
        """Add a decision. A kill leaves the file with or without the whole line."""
        lines = [*self.lines(), decision]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_text(self.path, text)


def _decision(line: bytes, number: int) -> dict[str, Any]:
    """Read a line of a record, of which the first plans runs and the others decide."""
    place = f"line {number + 1}"
    values = conform(parse_json(line, place), dict, place)
    conform(values.get("round"), Annotated[int, Within(number, number)], f"{place}.round")
    decision: dict[str, Any] = conform(values, RecordedDecision if number else PlannedRuns, place)
    return decision
