"""The ``doctor`` command: installed packages, resources of the machine, and missing extras."""

import os
import platform
import shutil
import sys
from pathlib import Path

from shapelaw.scaling.extras import installed_version, missing_extras
from shapelaw.search.engines.registry import engine_states
from shapelaw.trainers.sweep.launchers._local import cores

PACKAGES = ("shapelaw", "numpy", "scipy", "pandas", "torch", "optuna", "matplotlib", "tokenizers")
GIBIBYTE = 2**30


def examine() -> dict[str, object]:
    """Report versions, cores, memory, disk, GPU, engines and missing extras."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: installed_version(name) or "missing" for name in PACKAGES},
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / GIBIBYTE, 1),
        "gpu": _gpu_name(),
        "engines": engine_states(),
        "missing": list(missing_extras()) or "nothing",
    }


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return round(total / GIBIBYTE, 1)


def _gpu_name() -> str:
    if installed_version("torch") is None:
        return "unknown: torch is not installed"
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "none: training and measuring run on the CPU"
