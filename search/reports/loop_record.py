"""The record of a loop, ``quickstart.json`` or ``autopilot.json``: settings, machine, seconds."""

from pathlib import Path
from typing import Any, TypedDict

from shapelaw.scaling.schema import Count, Name, NonNegative, PositiveFloat, read_document

Setting = str | int | float | bool | None


class SeedNoise(TypedDict):
    """Standard deviation of ln loss between seeds, with its degrees of freedom."""

    deviation: NonNegative
    degrees: Count


class LoopRecord(TypedDict, total=False):
    """Content of ``quickstart.json`` and ``autopilot.json``."""

    settings: dict[Name, Setting]
    recipe: dict[Name, Setting | list[Setting]]
    python: str
    versions: dict[Name, str]
    machine: str
    stage_seconds: dict[Name, NonNegative]
    corpus: dict[Name, Any]
    seed_noise: SeedNoise
    served: dict[Name, PositiveFloat]


def read_loop_record(path: Path) -> LoopRecord:
    """Read the record of a loop.

    Raises
    ------
    InputError
        The file cannot be read, or a field has another type or range.
    """
    return read_document(path, LoopRecord, "move it away, and start in another --out folder")
