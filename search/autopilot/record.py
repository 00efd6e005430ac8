"""The record of a loop in its folder, and the lock of the folder."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import read_json, write_json
from shapelaw.trainers.optimizers.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The settings of a loop. All of them but ``workers`` decide its results.

    Attributes
    ----------
    corpus
        Name, file or folder of the training text.
    vocab_size
        Vocabulary of the tokenizer; None: bytes.
    effort
        Factor on every token budget, above 0 and up to 100.
    measurements
        Shapes that the search measures, at least 3.
    workers
        Parallel training runs; None: one per core.

    Raises
    ------
    InputError
        ``effort`` or ``measurements`` is out of range.
    """

    corpus: str = "stdlib"
    vocab_size: int | None = None
    seed: int = 0
    effort: float = 1.0
    measurements: int = 20
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.effort <= 100:
            raise InputError(f"`0 < --effort <= 100` must hold, but got {self.effort}")
        if self.measurements < 3:
            raise InputError(f"`--measurements >= 3` must hold, but got {self.measurements}")


def keep_record(folder: Path, settings: LoopSettings) -> None:
    """Write the settings to a folder, or check that they equal the folder's.

    Raises
    ------
    InputError
        The folder has other settings, or holds other files than a quickstart's.
    """
    path = folder / "quickstart.json"
    given = {name: value for name, value in asdict(settings).items() if name != "workers"}
    if path.exists():
        stored = read_json(path).get("settings")
        if stored != given:
            changed = [name for name in given if (stored or {}).get(name) != given[name]]
            raise InputError(
                f"{folder} holds a quickstart with another {', '.join(changed) or 'record'} "
                f"({stored}); choose another --out folder, or delete it"
            )
        return
    if folder.exists() and any(entry.name != "work" for entry in folder.iterdir()):
        raise InputError(f"{folder} holds other files than a quickstart's; choose another --out")
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
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for one quickstart; the lock ends with the process.

    Raises
    ------
    WorkError
        Another quickstart holds the lock, or the folder cannot be written to.
    """
    lock = FileLock(folder / "work" / "lock")
    try:
        (folder / "work").mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise WorkError(f"another quickstart is at work in {folder}; wait for it") from None
    except OSError as error:
        raise WorkError(
            f"{folder} cannot be written to ({error.strerror}); choose another --out folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
