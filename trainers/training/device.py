"""Device of training, its name in a row, its free memory and its attention kernels."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from shapelaw.scaling.errors import InputError

AUTO = "auto"


def device_named(name: str = AUTO) -> torch.device:
    """Return the device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    ``auto`` is the first CUDA GPU that torch finds, else the CPU. An Apple GPU is used only by
    name.

    Raises
    ------
    InputError
        This machine has no such device.
    """
    if name == AUTO:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(
            f"`device` must be auto, cpu, cuda, cuda:N or mps, but got {name!r}; "
            "auto takes a GPU if there is one"
        )
    if device.type == "cuda":
        return _cuda(name, device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"`device` mps needs an Apple GPU, but {_build()} sees none; use cpu")
    return device


def _cuda(name: str, index: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        seen = f"{count} of them" if count else "none"
        raise InputError(
            f"`device` {name} needs a CUDA GPU of that number, but {_build()} sees {seen}; "
            "use cpu, or install a build of torch for CUDA"
        )
    return torch.device("cuda", index)


def _build() -> str:
    return f"torch {torch.__version__}"


def device_label(device: torch.device) -> str:
    """Return the name of a device in a row of the run table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes of free memory of a GPU; None for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Wait for all work of a device, so that a clock read afterwards includes it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def attention_kernels(device: torch.device) -> Iterator[None]:
    """Prefer flash attention on a GPU; allow other kernels for data types it does not support."""
    if device.type != "cuda":
        yield
        return
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        yield
