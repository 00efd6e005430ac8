"""Published memory, bandwidth and peak arithmetic of accelerators, from data/hardware.toml."""

import tomllib
from dataclasses import dataclass
from typing import Annotated, Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import data_folder
from shapelaw.scaling.schema import Name, NonNegative, PositiveFloat, Within
from shapelaw.search.engines._base import Engine


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device: memory in bytes, bandwidth in bytes/s, dense FLOP/s by number format.

    ``link`` is the bandwidth to other devices of its kind in bytes/s each way; 0: none is known.
    """

    key: Name
    name: Name
    memory: PositiveFloat
    bandwidth: PositiveFloat
    peak_flops: Annotated[dict[Name, PositiveFloat], Within(1)]
    source: str
    link: NonNegative = 0.0


def hardware_names() -> tuple[str, ...]:
    """Return the short names of all devices."""
    return tuple(_entries())


def hardware(key: str) -> Hardware:
    """Load a device by its short name.

    Raises
    ------
    InputError
        No device has that name.
    """
    table = _entries()
    if key not in table:
        raise InputError(f"`hardware` must be one of {', '.join(table)}, but got {key!r}")
    return Hardware(key=key, **table[key])


def _entries() -> dict[str, Any]:
    return tomllib.loads((data_folder() / "hardware.toml").read_text(encoding="utf-8"))


def device_of(engine: Engine) -> Hardware | None:
    """Return published figures of the hardware that an engine's label names; None if unknown."""
    device = getattr(getattr(engine, "engine", engine), "hardware", None)
    if isinstance(device, Hardware):
        return device
    text = engine.label.partition(":")[2]
    for key in (text, text.rpartition("-")[0]):  # HARDWARE or HARDWARE-BACKEND
        try:
            return hardware(key)
        except InputError:
            continue
    return None
