"""Measure this machine's bandwidth and peak, for the roofline of this machine."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from shapelaw.scaling.files import write_text
from shapelaw.search.engines._base import this_device
from shapelaw.search.engines._roofline import own_hardware
from shapelaw.search.engines.accelerators import Hardware
from shapelaw.search.workload import DTYPES

READ_BYTES = 2**27  # well above the caches that one core sees


MATMUL_SIZE = 1024


TURNS = 8


def read_bandwidth(turns: int = TURNS) -> float:
    """Bytes per CPU second that one thread reads from memory: the best of sums and products."""
    import torch

    values = torch.ones(READ_BYTES // 4)
    rows = values.view(-1, 2**14)
    factors = torch.ones(len(rows))
    best = min(
        _least(lambda: values.sum(), turns),
        _least(lambda: torch.mv(rows.t(), factors), turns),
        _least(lambda: torch.dot(values, values), turns),
    )
    return READ_BYTES / best


def matmul_peak(dtype: str, turns: int = TURNS) -> float:
    """FLOP per CPU second of a large square product on one thread, in a number format."""
    import torch

    a, b = (torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=getattr(torch, dtype)) for _ in range(2))
    return 2 * MATMUL_SIZE**3 / _least(lambda: a @ b, turns)


def calibrate(key: str = "this", turns: int = TURNS) -> Hardware:
    """Measure this machine: a hardware entry of one core.

    The best of several turns in CPU seconds; on a machine where others work at the same time they
    share the memory, and the bandwidth is less than it has.
    """
    import torch

    torch.set_num_threads(1)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    day = time.strftime("%Y-%m-%d")
    return Hardware(
        key=key,
        name=this_device(),
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        bandwidth=read_bandwidth(turns),
        peak_flops={dtype: matmul_peak(dtype, turns) for dtype in DTYPES},
        source=f"shapelaw measure --calibrate, {day}, torch {torch.__version__}, load {load}",
    )


def write_hardware(device: Hardware, path: Path | None = None) -> Path:
    """Write an entry where ``roofline:FILE.toml`` reads it; without a path, ``roofline:this``."""
    target = path or own_hardware()
    peaks = ", ".join(f"{dtype} = {peak:.4e}" for dtype, peak in device.peak_flops.items())
    lines = [
        f"[{device.key}]",
        f'name = "{_quoted(device.name)}"',
        f"memory = {device.memory:.6e}",
        f"bandwidth = {device.bandwidth:.4e}",
        f"peak_flops = {{ {peaks} }}",
        f'source = "{_quoted(device.source)}"',
    ]
    write_text(target, "\n".join(lines) + "\n")
    return target


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _least(call: Callable[[], object], turns: int) -> float:
    seconds = []
    for _ in range(turns + 1):
        begun = time.thread_time()
        call()
        seconds.append(time.thread_time() - begun)
    return min(seconds[1:])
