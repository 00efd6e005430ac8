"""A predicted engine: the roofline of a device, from its published bandwidth and peak."""

import tomllib
from pathlib import Path

import numpy as np

from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.units import number_format
from shapelaw.search.engines._base import Engine, Measurement, bytes_served
from shapelaw.search.engines.accelerators import Hardware, hardware
from shapelaw.search.engines.cache import cache_folder
from shapelaw.search.workload import Workload


class RooflineEngine(Engine):
    """The time that arithmetic or memory needs at the least, whichever is longer.

    Prefill: FLOPs of all prompts at their mean context over the peak, or the weights over the
    bandwidth. Decode, per step: FLOPs over the peak, or weights once and the KV cache of every
    sequence at its mean length over the bandwidth. No overheads: an upper bound that ranks shapes,
    not a forecast (arXiv 2402.16363 discusses the model). ``roofline:KEY`` is a device of
    ``data/hardware.toml``, ``roofline:this`` and ``roofline:FILE.toml`` what
    ``shapelaw measure --calibrate`` wrote.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        There is no such device, or its entry is not complete.
    """

    name = "roofline"
    kind = "predicted"

    def __init__(self, hardware_name: str | None = None) -> None:
        self.hardware = hardware_named(hardware_name or "h100")
        self.device = self.hardware.name

    @property
    def label(self) -> str:
        """``roofline:HARDWARE``."""
        return f"{self.name}:{self.hardware.key}"

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
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


def roofline(shape: Costs, workload: Workload, device: Hardware) -> tuple[np.ndarray, np.ndarray]:
    """Seconds to the first token and per token after it: arithmetic or memory at its peak.

    Of one shape, or (n,) of a table of n; whether the device can hold them is not asked.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The device has no such arithmetic.
    """
    peak = device.peak_flops.get(workload.dtype)
    if peak is None:
        raise InputError(
            f"the entry of {device.name} gives no {workload.dtype} arithmetic, only "
            f"{', '.join(device.peak_flops)}; choose one of these in the workload"
        )
    weights = shape.weight_bytes(workload.bytes_per_value)
    cache = workload.concurrency * shape.kv_bytes(workload.kv_bytes_per_value)
    prompt = workload.concurrency * workload.input_tokens
    ttft = np.maximum(
        prompt * shape.forward_flops(workload.input_tokens / 2) / peak, weights / device.bandwidth
    )
    context = workload.input_tokens + workload.output_tokens / 2
    tpot = np.maximum(
        workload.concurrency * shape.forward_flops(context) / peak,
        (weights + cache * context) / device.bandwidth,
    )
    return ttft, tpot


def own_hardware() -> Path:
    """Where the measured entry of this machine is kept."""
    return cache_folder() / "hardware.toml"


def hardware_named(text: str) -> Hardware:
    """A device by its key, ``this`` (measured here), or the only entry of a TOML file.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        There is none, or the file does not hold one complete entry.
    """
    if text == "this":
        path = own_hardware()
        if not path.exists():
            raise InputError(
                "`roofline:this` needs measured figures of this machine, and there are none; "
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
    wrong = InputError(
        f"{path} must hold one table with `name`, `memory`, `bandwidth`, `peak_flops` and "
        "`source`, numbers above 0; shapelaw measure --calibrate --out FILE.toml writes one"
    )
    if len(entries) != 1:
        raise wrong
    ((key, entry),) = entries.items()
    try:
        entry["peak_flops"] = {number_format(n): v for n, v in entry["peak_flops"].items()}
        device = Hardware(key=key, **entry)
        numbers = [device.memory, device.bandwidth, *device.peak_flops.values()]
        complete = bool(device.peak_flops) and all(float(number) > 0 for number in numbers)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise wrong from None
    if not complete:
        raise wrong
    return device
