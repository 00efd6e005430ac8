"""An engine that predicts by the roofline of a device: its bandwidth and peak arithmetic."""

import tomllib
from pathlib import Path

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import number_format
from shapelaw.search.engines._base import Engine, Measurement, bytes_served
from shapelaw.search.engines.accelerators import Hardware, hardware
from shapelaw.search.engines.cache import cache_folder
from shapelaw.search.workload import Workload


class RooflineEngine(Engine):
    """An engine that predicts the least time that arithmetic or memory needs.

    seconds = max(FLOPs / peak, bytes / bandwidth). Prefill: FLOPs of all prompts at their mean
    context, and the bytes of the weights. Decode, per step: FLOPs of one token per sequence, and
    the bytes of the weights and of every sequence's KV cache at its mean length. Overheads are
    neglected, so the speed is an upper bound that ranks shapes and no forecast (arXiv 2402.16363
    discusses the model). ``roofline:KEY`` is a device of ``data/hardware.toml``; ``roofline:this``
    and ``roofline:FILE.toml`` are entries that ``shapelaw measure --calibrate`` wrote.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The device does not exist, or its entry is incomplete.
    """

    name = "roofline"
    kind = "predicted"
    is_formula = True
    known_error = (
        "an upper bound without overheads; on an H200, Surefire-1B over LLaMA-3.2-1B is 1.41 by it "
        "and 1.47 as arXiv 2510.18245 measured"
    )

    def __init__(self, hardware_name: str | None = None) -> None:
        self.hardware = hardware_named(hardware_name or "h100")
        self.device = self.hardware.name

    @property
    def label(self) -> str:
        """Return ``roofline:HARDWARE``."""
        return f"{self.name}:{self.hardware.key}"

    def times(self, table: ShapeTable, workload: Workload) -> tuple[np.ndarray, np.ndarray]:
        """Compute both times of every shape, NaN where it does not fit in memory; (n,) each."""
        ttft, tpot = roofline(table, workload, self.hardware)
        fits = bytes_served(table, workload) <= self.hardware.memory
        return np.where(fits, ttft, np.nan), np.where(fits, tpot, np.nan)

    def measure(self, shape: Shape | Architecture, workload: Workload) -> Measurement:
        """Predict the speed on one device."""
        device = self.hardware
        ttft, tpot = roofline(shape, workload, device)
        needed = bytes_served(shape, workload)
        if needed > device.memory:
            raise InputError(
                f"{shape} under {workload} needs {needed / 1e9:.0f} GB, "
                f"{device.name} has {device.memory / 1e9:.0f}; lower the concurrency"
            )
        return Measurement.predicted(
            workload,
            engine=self.label,
            device=self.device,
            version="1",
            ttft=float(ttft),
            tpot=float(tpot),
        )


def roofline(
    shape: Costs | Architecture, workload: Workload, device: Hardware
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the roofline of prefill and decode (arXiv 2402.16363).

    Memory capacity is not checked.

    Parameters
    ----------
    shape
        One shape, a table of n, or an architecture of any family.

    Returns
    -------
    Seconds to the first token and seconds per output token after it; (n,) each for a table.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The device has no peak for the workload's number format.
    """
    peak = device.peak_flops.get(workload.dtype)
    if peak is None:
        raise InputError(
            f"the entry of {device.name} gives no {workload.dtype} arithmetic, only "
            f"{', '.join(device.peak_flops)}; choose one of these in the workload"
        )
    weights = shape.weight_bytes(workload.bytes_per_value)
    prompt = workload.concurrency * workload.input_tokens
    ttft = np.maximum(
        prompt * shape.forward_flops(workload.input_tokens / 2) / peak, weights / device.bandwidth
    )
    context = workload.input_tokens + workload.output_tokens / 2
    cache = workload.concurrency * shape.cache_bytes(context, workload.kv_bytes_per_value)
    tpot = np.maximum(
        workload.concurrency * shape.forward_flops(context) / peak,
        (weights + cache) / device.bandwidth,
    )
    return ttft, tpot


def calibrated_hardware_path() -> Path:
    """Return the path of the entry that a calibration of this machine writes."""
    return cache_folder() / "hardware.toml"


def hardware_named(text: str) -> Hardware:
    """Load a device by its key, ``this`` (the calibrated machine) or the path of a TOML file.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The device does not exist, or the file does not hold exactly one complete entry.
    """
    if text == "this":
        path = calibrated_hardware_path()
        if not path.exists():
            raise InputError(
                "`roofline:this` needs a calibration of this machine, which does not exist yet; "
                "run shapelaw measure --calibrate"
            )
        return _read_hardware(path)
    return _read_hardware(Path(text)) if text.endswith(".toml") else hardware(text)


def _read_hardware(path: Path) -> Hardware:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(f"{path} is not TOML ({error})") from None
    incomplete = InputError(
        f"{path} must hold one table with `name`, `memory`, `bandwidth`, `peak_flops` and "
        "`source`, all numbers above 0; shapelaw measure --calibrate --out FILE.toml writes one"
    )
    if len(entries) != 1:
        raise incomplete
    ((key, entry),) = entries.items()
    try:
        entry["peak_flops"] = {number_format(n): v for n, v in entry["peak_flops"].items()}
        device = Hardware(key=key, **entry)
        numbers = [device.memory, device.bandwidth, *device.peak_flops.values()]
        complete = bool(device.peak_flops) and all(float(number) > 0 for number in numbers)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise incomplete from None
    if not complete:
        raise incomplete
    return device
