"""Accelerators by name: memory, bandwidth and peak, from data/hardware.toml."""

import tomllib
from dataclasses import dataclass

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder
from shapelaw.search.engines._base import Engine


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device: bytes of memory, bytes per second, dense FLOP/s by number format."""

    key: str
    name: str
    memory: float
    bandwidth: float
    peak_flops: dict[str, float]
    source: str


def hardware(key: str) -> Hardware:
    """A device by its short name.

    Raises
    ------
    InputError
        There is none of that name.
    """
    table = tomllib.loads((data_folder() / "hardware.toml").read_text(encoding="utf-8"))
    if key not in table:
        raise InputError(f"hardware must be one of {', '.join(table)}, but got {key!r}")
    return Hardware(key=key, **table[key])


def device_of(engine: Engine) -> Hardware | None:
    """Published figures of an engine's hardware, by what its label names behind the colon."""
    known = getattr(getattr(engine, "engine", engine), "hardware", None)
    if isinstance(known, Hardware):
        return known
    text = engine.label.partition(":")[2]
    for key in (text, text.rpartition("-")[0]):  # HARDWARE or HARDWARE-BACKEND
        try:
            return hardware(key)
        except InputError:
            continue
    return None
