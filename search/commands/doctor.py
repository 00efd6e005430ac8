"""The ``doctor`` command: installed packages, resources of the machine, and extras."""

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from shapelaw.scaling.extras import extra_states, installed_version
from shapelaw.search.engines.registry import engine_states
from shapelaw.trainers.sweep.launchers._local import cores

PACKAGES = ("shapelaw", "numpy", "scipy", "pandas", "torch", "optuna", "matplotlib", "tokenizers")
GIBIBYTE = 2**30


def examine() -> dict[str, Any]:
    """Report versions, cores, memory, disk, GPU, engines and extras."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: installed_version(name) or "missing" for name in PACKAGES},
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / GIBIBYTE, 1),
        "gpu": _gpu_name(),
        "engines": engine_states(),
        "extras": extra_states(),
    }


def as_lines(examined: dict[str, Any]) -> dict[str, object]:
    """Return a report with a line for each extra."""
    lines = {name: value for name, value in examined.items() if name != "extras"}
    for name, state in examined["extras"].items():
        lacking, install = ", ".join(state["missing"]), state["install"]
        found = f"lacks {lacking} (`{install}`)" if lacking else "installed"
        lines[f"[{name}]"] = f"{state['for']}: {found}"
    return lines


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
