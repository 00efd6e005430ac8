"""The ``measure`` command: a shape's speed; and what this machine can do at the most."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json
from shapelaw.search.engines._base import Engine
from shapelaw.search.engines.cache import CachedEngine, MeasurementStore
from shapelaw.search.engines.machine import calibrate, write_hardware
from shapelaw.search.engines.registry import engine_named
from shapelaw.search.workload import parse_workload


def measured(
    config: Path | None, engine: str, workload: str, *, keep: bool = True, fresh: bool = False
) -> dict[str, Any]:
    """The measurement of one shape as a row, with whether the workload's service level holds.

    Parameters
    ----------
    config
        Hugging Face ``config.json``.
    keep, fresh
        Look up and keep measurements in the user's cache folder; measure again what is there.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        No config is given or it is not of a known family; there is no such engine or workload; the
        engine cannot run the shape.
    """
    if config is None:
        raise InputError("a shape is missing; write shapelaw measure CONFIG.json, or --calibrate")
    shape, asked = Shape.from_config(read_json(config)), parse_workload(workload)
    chosen: Engine = engine_named(engine)
    if keep:
        chosen = CachedEngine(chosen, MeasurementStore.of_user(), fresh=fresh)
    found = chosen.measure(shape, asked)
    row = asdict(found)
    if asked.max_ttft is not None or asked.max_tpot is not None:
        row["meets_service_level"] = found.meets(asked)
    if isinstance(chosen, CachedEngine):
        row["kept"] = not chosen.measured
    return row


def calibrated(config: Path | None, out: Path | None) -> dict[str, Any]:
    """Measure this machine and write the entry: its fields and where it was written.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        A shape was given too, or ``out`` is not a TOML file.
    """
    if config is not None:
        raise InputError(f"--calibrate measures this machine, not {config}; leave one of them out")
    if out is not None and out.suffix != ".toml":
        raise InputError(f"`--out` must end in .toml to be an engine's hardware, but got {out}")
    device = calibrate()
    return asdict(device) | {"written": str(write_hardware(device, out))}
