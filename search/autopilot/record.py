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
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json, write_json, write_text
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
        stored = read_json(path).get("settings")
        if stored != given:
            changed = [name for name in given if (stored or {}).get(name) != given[name]]
            raise InputError(
                f"{folder} holds a run of `shapelaw {command}` with another "
                f"{', '.join(changed) or 'record'} ({stored}); choose another --out folder, or "
                "delete it"
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
            return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]
        except ValueError as error:
            raise InputError(
                f"{self.path} is damaged ({error}); delete it: the same command makes it again "
                "from the recorded measurements"
            ) from None

    def append(self, decision: dict[str, Any]) -> None:
        """Add a decision. A kill leaves the file with or without the whole line."""
        lines = [*self.lines(), decision]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_text(self.path, text)
