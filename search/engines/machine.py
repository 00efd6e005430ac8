"""Calibration of a machine: its memory bandwidth and peak arithmetic, for the roofline."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from shapelaw.scaling.files import write_text
from shapelaw.search.engines._base import describe_processor
from shapelaw.search.engines._roofline import calibrated_hardware_path
from shapelaw.search.engines.accelerators import Hardware
from shapelaw.search.workload import DTYPES

READ_BYTES = 2**27  # well above the caches of one core
MATMUL_SIZE = 1024
TURNS = 8  # repeats of which the fastest counts


def read_bandwidth(turns: int = TURNS) -> float:
    """Measure the bytes per CPU second that one thread reads, the best of sums and products."""
    import torch

    values = torch.ones(READ_BYTES // 4)
    rows = values.view(-1, 2**14)
    factors = torch.ones(len(rows))
    best = min(
        _fastest(lambda: values.sum(), turns),
        _fastest(lambda: torch.mv(rows.t(), factors), turns),
        _fastest(lambda: torch.dot(values, values), turns),
    )
    return READ_BYTES / best


def matmul_peak(dtype: str, turns: int = TURNS) -> float:
    """Measure the FLOP per CPU second of a large square matrix product on one thread."""
    import torch

    a, b = (torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=getattr(torch, dtype)) for _ in range(2))
    return 2 * MATMUL_SIZE**3 / _fastest(lambda: a @ b, turns)


def calibrate(key: str = "this", turns: int = TURNS) -> Hardware:
    """Measure one core of this machine as a hardware entry.

    Each figure is the best of several turns, in CPU seconds. Other processes that use the memory
    at the same time lower the measured bandwidth.
    """
    import torch

    torch.set_num_threads(1)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    day = time.strftime("%Y-%m-%d")
    return Hardware(
        key=key,
        name=describe_processor(),
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        bandwidth=read_bandwidth(turns),
        peak_flops={dtype: matmul_peak(dtype, turns) for dtype in DTYPES},
        source=f"shapelaw measure --calibrate, {day}, torch {torch.__version__}, load {load}",
    )


def write_hardware(device: Hardware, path: Path | None = None) -> Path:
    """Write an entry to a TOML file for ``roofline:FILE.toml``; None: for ``roofline:this``."""
    target = path or calibrated_hardware_path()
    peaks = ", ".join(f"{dtype} = {peak:.4e}" for dtype, peak in device.peak_flops.items())
    lines = [
        f"[{device.key}]",
        f'name = "{_escape(device.name)}"',
        f"memory = {device.memory:.6e}",
        f"bandwidth = {device.bandwidth:.4e}",
        f"peak_flops = {{ {peaks} }}",
        f'source = "{_escape(device.source)}"',
        *([f"link = {device.link:.4e}"] if device.link else []),
    ]
    write_text(target, "\n".join(lines) + "\n")
    return target


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _fastest(call: Callable[[], object], turns: int) -> float:
    seconds = []
    for _ in range(turns + 1):
        begun = time.thread_time()
        call()
        seconds.append(time.thread_time() - begun)
    return min(seconds[1:])
