"""What is installed, what the machine has, and what is missing for what."""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from search.throughput.registry import engines_here
from trainers.sweep import cores

PACKAGES = ("shapelaw", "numpy", "scipy", "pandas", "torch", "optuna", "matplotlib", "tokenizers")
# Optional package -> what it is for and how to get it.
OPTIONAL = {"transformers": "loading exported models (pip install 'shapelaw[hf]')"}
GIBIBYTE = 2**30


def examine() -> dict[str, object]:
    """Versions, cores, memory, disk, GPU, engines, and what is missing for what."""
    missing = [f"{name}: {use}" for name, use in OPTIONAL.items() if not _version(name)]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) or "missing" for name in PACKAGES},
        "cores": cores(),
        "memory_gib": _memory(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / GIBIBYTE, 1),
        "gpu": _gpu(),
        "engines": engines_here(),
        "missing": missing or "nothing",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return round(total / GIBIBYTE, 1)


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "none: training and measuring run on the CPU"
