"""The ``measure`` command: the speed of a shape, and the peak speeds of this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.display.progress import working
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_json
from shapelaw.search.engines.cache import CachedEngine, stored_engine
from shapelaw.search.engines.machine import calibrate, write_hardware
from shapelaw.search.workload import parse_workload


def measure_config(
    config: Path | None, engine: str, workload: str, *, keep: bool = True, fresh: bool = False
) -> dict[str, Any]:
    """Measure one shape: a row that also says whether the workload's service level holds.

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
    chosen = stored_engine(engine, keep=keep, fresh=fresh)
    with working("measuring the shape"):
        found = chosen.measure(shape, asked)
    row = asdict(found)
    if asked.max_ttft is not None or asked.max_tpot is not None:
        row["meets_service_level"] = found.meets(asked)
    if isinstance(chosen, CachedEngine):
        row["kept"] = not chosen.measured
    return row


def calibrate_machine(config: Path | None, out: Path | None) -> dict[str, Any]:
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
    with working("measuring this machine"):
        device = calibrate()
    return asdict(device) | {"written": str(write_hardware(device, out))}
