"""The record of a loop: its settings, kept in its folder, and the lock of the folder."""

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
    """What a user can choose; everything but ``workers`` decides the numbers.

    ``effort`` multiplies every token budget.
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
    """Write what decides the numbers, or check that it is what the folder was made with."""
    path = folder / "quickstart.json"
    chosen = {name: value for name, value in asdict(settings).items() if name != "workers"}
    if path.exists():
        kept = read_json(path).get("settings")
        if kept != chosen:
            changed = [name for name in chosen if (kept or {}).get(name) != chosen[name]]
            raise InputError(
                f"{folder} holds a quickstart with another {', '.join(changed) or 'record'} "
                f"({kept}); choose another --out folder, or delete it"
            )
        return
    if folder.exists() and any(entry.name != "work" for entry in folder.iterdir()):
        raise InputError(f"{folder} holds something else than a quickstart; choose another --out")
    versions = {name: version(name) for name in ("torch", "numpy", "scipy", "optuna")}
    record: dict[str, Any] = {
        "settings": chosen,
        "recipe": asdict(Recipe()),
        "python": sys.version.split()[0],
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "stage_seconds": {},
    }
    write_json(path, record)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Let one quickstart at a time work in a folder; the lock ends with the process.

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
