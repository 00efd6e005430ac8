"""An engine that predicts by the roofline of a device: its bandwidth and peak arithmetic."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from shapelaw.scaling.architectures.architecture import Architecture
from shapelaw.scaling.architectures.costs import Costs
from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.architectures.shape_table import ShapeTable
from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import read_toml
from shapelaw.scaling.schema import conform
from shapelaw.scaling.space.family_table import FamilyTable
from shapelaw.scaling.units import number_format
from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines.accelerators import Hardware, hardware
from shapelaw.search.engines.cache import cache_folder
from shapelaw.search.engines.concurrency import MOST_AT_ONCE
from shapelaw.search.workload import BATCH, DTYPES, STEADY, Workload

ACCELERATOR = 1e13  # FLOP/s in bfloat16 above which a device is no processor core


class RooflineEngine(Engine):
    """An engine that predicts the least time that arithmetic or memory needs.

    seconds = max(FLOPs / peak, bytes / bandwidth). Prefill: FLOPs of all prompts at their mean
    context, and the bytes of the weights. Decode, per step: FLOPs of one token per sequence, and
    the bytes of the weights and of every sequence's KV cache at its mean length. Weights are those
    that a step reads: no look-up tables, and of E experts, k for each of n tokens, on average
    E·(1 - (1 - k/E)^n). Windows limit contexts, and latents are cached once and not expanded in
    decoding. Overheads are neglected, so the speed is an upper bound that ranks shapes and no
    forecast (arXiv 2402.16363 discusses the model). A model split over GPUs has their parts of
    FLOPs and bytes, and two all-reduces per layer of the activations; embeddings and logits are
    split as well.
    ``roofline:KEY`` is a device of ``data/hardware.toml``; ``roofline:this``
    and ``roofline:FILE.toml`` are entries that ``shapelaw measure --calibrate`` wrote.

    Raises
    ------
    shapelaw.scaling.errors.InputError
        The device does not exist, or its entry is incomplete.
    """

    name = "roofline"
    kind = "predicted"
    is_formula = True
    serves_architectures = True
    supported = frozenset({"weights", "tensor_parallel", "prompts", "automatic"})
    known_error = (
        "an upper bound without overheads; on an H200, Surefire-1B over LLaMA-3.2-1B is 1.41 by it "
        "and 1.47 as arXiv 2510.18245 measured"
    )

    def __init__(self, hardware_name: str | None = None) -> None:
        self.hardware = hardware_named(hardware_name or "h100")
        self.device = self.hardware.name
        if self.hardware.peak_flops.get("bfloat16", 0.0) > ACCELERATOR:
            self.default_dtype = "bfloat16"

    @property
    def label(self) -> str:
        """Return ``roofline:HARDWARE``."""
        return f"{self.name}:{self.hardware.key}"

    def times(self, table: ShapeTable, workload: Workload) -> tuple[np.ndarray, np.ndarray]:
        """Compute both times of every shape, NaN where it does not fit in memory; (n,) each."""
        best = _best_settings(table, workload, self.hardware)
        return best.ttft, best.tpot

    def speeds(
        self, table: ShapeTable, workload: Workload
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute output tokens/s of each GPU, and both times; NaN where it does not fit."""
        best = _best_settings(table, workload, self.hardware)
        return best.rate, best.ttft, best.tpot

    def measure(self, shape: Shape | Architecture, workload: Workload) -> Measurement:
        """Predict the speed on as many devices as the workload splits a model over."""
        device = self.hardware
        best = best_setting(shape, workload, device)
        if not np.isfinite(best.rate[0]):
            raise InputError(_refusal(shape, workload, device))
        ttft, tpot = best.ttft[0], best.tpot[0]
        workload = replace(
            workload,
            concurrency=int(best.concurrency[0]),
            automatic=False,
            prompts=STEADY if workload.steady else BATCH,
            tensor_parallel=(int(best.gpus[0]),),
        )
        return Measurement.predicted(
            workload,
            engine=self.label,
            device=self.device,
            version="1",
            ttft=float(ttft),
            tpot=float(tpot),
        )


@dataclass(frozen=True)
class Setting:
    """Setting of each shape with the highest throughput per GPU; (n,) each.

    ``rate`` (output tokens/s of each GPU) and both times are NaN where no setting serves a shape.
    """

    rate: np.ndarray
    ttft: np.ndarray
    tpot: np.ndarray
    concurrency: np.ndarray
    gpus: np.ndarray


def best_setting(model: Costs | Architecture, workload: Workload, device: Hardware) -> Setting:
    """Choose the number of GPUs and the automatic concurrency of each shape."""
    settings = [
        _split_setting(model, replace(workload, tensor_parallel=(gpus,)), device)
        for gpus in workload.tensor_parallel
    ]
    rates = np.stack([setting.rate for setting in settings])
    order = np.argmax(np.nan_to_num(rates, nan=-1.0), axis=0)
    columns = np.arange(len(settings[0].rate))
    return Setting(
        *(
            np.stack([getattr(setting, field.name) for setting in settings])[order, columns]
            for field in fields(Setting)
        )
    )


def _best_settings(
    table: ShapeTable | FamilyTable, workload: Workload, device: Hardware
) -> Setting:
    """Choose the setting of each model of a table; a table of a family by its structures."""
    if isinstance(table, ShapeTable):
        return best_setting(table, workload, device)
    parts = [(rows, best_setting(part, workload, device)) for rows, part in table.parts()]
    columns = []
    for each in fields(Setting):
        column = np.zeros(len(table))
        for rows, setting in parts:
            column[rows] = getattr(setting, each.name)
        columns.append(column)
    return Setting(*columns)


def _split_setting(model: Costs | Architecture, workload: Workload, device: Hardware) -> Setting:
    """Return the setting of each shape on one number of GPUs."""
    count = np.size(model.weight_bytes(1))
    if workload.automatic:
        at_once = _most_at_once(model, workload, device)
    else:
        at_once = np.full(count, workload.concurrency)
    ttft, tpot = roofline(model, workload, device, np.maximum(at_once, 1))
    needed = bytes_per_gpu(model, workload, np.maximum(at_once, 1))
    served = (needed <= device.memory) & (at_once > 0) & model.splits_over(workload.gpus)
    ttft, tpot = np.where(served, ttft, np.nan), np.where(served, tpot, np.nan)
    rate = workload.output_rate(ttft, tpot) * at_once / workload.concurrency
    return Setting(rate, ttft, tpot, at_once, np.full(count, workload.gpus))


def _most_at_once(model: Costs | Architecture, workload: Workload, device: Hardware) -> np.ndarray:
    """Find the most sequences that memory and service level allow, 0 for none, (n,).

    Both times and the memory grow with the number, and so does the throughput: the largest number
    has the highest throughput. It is found by bisection.
    """
    count = np.size(model.weight_bytes(1))
    low, high = np.zeros(count, dtype=int), np.full(count, MOST_AT_ONCE + 1)
    while (high - low > 1).any():
        middle = np.maximum((low + high) // 2, 1)
        ttft, tpot = roofline(model, workload, device, middle)
        within = bytes_per_gpu(model, workload, middle) <= device.memory
        for seconds, limit in ((ttft, workload.max_ttft), (tpot, workload.max_tpot)):
            within &= seconds <= (np.inf if limit is None else limit)
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    return low


def bytes_per_gpu(shape: Costs | Architecture, workload: Workload, concurrency: Any) -> Any:
    """Compute the bytes of weights and KV cache on each GPU; (n,) for a table of n shapes."""
    length = workload.input_tokens + workload.output_tokens
    cache = concurrency * shape.cache_bytes(length, workload.kv_bytes_per_value)
    weights = shape.weight_bytes(workload.bytes_per_value) / workload.gpus
    return cache * shape.cache_share(workload.gpus) + weights


def _refusal(shape: Shape | Architecture, workload: Workload, device: Hardware) -> str:
    """Say why no setting serves a shape."""
    split = [gpus for gpus in workload.tensor_parallel if shape.splits_over(gpus)]
    if not split:
        return (
            f"`tp` must divide the query heads and the key-value heads of {shape}, but got "
            f"{', '.join(map(str, workload.tensor_parallel))}; choose another number"
        )
    fewest = replace(workload, tensor_parallel=(max(split),))
    at_once = 1 if workload.automatic else workload.concurrency
    needed = bytes_per_gpu(shape, fewest, at_once)
    if needed > device.memory:
        way_out = "split it over more GPUs (tp)" if at_once == 1 else "lower the concurrency"
        return (
            f"{shape} under {workload} needs {needed / 1e9:.0f} GB, "
            f"{device.name} has {device.memory / 1e9:.0f}; {way_out}"
        )
    ttft, tpot = roofline(shape, fewest, device, 1)
    return (
        f"{shape} under {workload.served} has TTFT {float(ttft):.3g} s and TPOT {float(tpot):.3g} "
        f"s even alone on {device.name}; raise the limits, or split it over more GPUs (tp)"
    )


def roofline(
    shape: Costs | Architecture, workload: Workload, device: Hardware, concurrency: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the roofline of prefill and decode (arXiv 2402.16363).

    Memory capacity is not checked. With steady prompts, TTFT is the prefill of one prompt, and a
    token waits for the prefills of the other sequences, of which each falls into its decode once.
    The wait of a prompt for the step under way is neglected. A ring all-reduce of b bytes over t
    GPUs takes 2·(t − 1)/t·b / link, and nothing overlaps it.

    Parameters
    ----------
    shape
        One shape, a table of n, or an architecture of any family.
    concurrency
        Sequences at once, a number or (n,); None: the workload's.

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
    gpus = workload.gpus
    if gpus > 1 and not device.link:
        raise InputError(
            f"`tp` needs the bandwidth between devices, but the entry of {device.name} has no "
            "`link`; choose another device, or leave tp out"
        )
    at_once = workload.concurrency if concurrency is None else concurrency
    steady = workload.steady
    stored = workload.bytes_per_value / gpus
    ring = 2 * (gpus - 1) / gpus * DTYPES[workload.dtype] / (device.link or np.inf)
    # Seconds per token in the two all-reduces of each layer.
    reduced = 2 * shape.num_hidden_layers * shape.hidden_size * ring
    prompt = (1 if steady else at_once) * workload.input_tokens
    prefill_flops = prompt * shape.prefill_flops(workload.input_tokens) / gpus
    weights = stored * shape.read_parameters(prompt)
    ttft = np.maximum(prefill_flops / peak, weights / device.bandwidth) + prompt * reduced
    span = workload.input_tokens, workload.input_tokens + workload.output_tokens
    cache = at_once * shape.decode_cache_bytes(*span, workload.kv_bytes_per_value)
    weights = stored * shape.read_parameters(at_once)
    tpot = np.maximum(
        at_once * shape.decode_flops(*span) / gpus / peak,
        (weights + cache * shape.cache_share(gpus)) / device.bandwidth,
    )
    tpot = tpot + at_once * reduced
    if steady:
        tpot = tpot + (at_once - 1) * ttft / (workload.output_tokens - 1)
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
    entries = read_toml(path)
    try:
        if len(entries) != 1:
            raise InputError(f"it has {counted(len(entries), 'entry', 'entries')}")
        ((key, entry),) = entries.items()
        device: Hardware = conform(conform(entry, dict, key) | {"key": key}, Hardware)
        peaks = {number_format(name): peak for name, peak in device.peak_flops.items()}
    except InputError as error:
        raise InputError(
            f"{path} must hold one table with `name`, `memory`, `bandwidth`, `peak_flops` and "
            f"`source`, all numbers above 0, but {error}; shapelaw measure --calibrate --out "
            "FILE.toml writes one"
        ) from None
    return replace(device, peak_flops=peaks)
