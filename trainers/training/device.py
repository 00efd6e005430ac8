"""The device that trains, its name in a row, and batches whose tokens live on it."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.corpus.corpus import Batches

AUTO = "auto"
RESIDENT_SHARE = 0.5  # of the device's free memory that tokens may take
SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def choose(name: str = AUTO) -> torch.device:
    """The device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    ``auto`` is the first GPU that torch sees, else the CPU; Apple's is taken only by name.

    Raises
    ------
    InputError
        There is no such device here.
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
            "auto takes a GPU where there is one"
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


def describe(device: torch.device) -> str:
    """The device as a row of the run table names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def free_bytes(device: torch.device) -> int | None:
    """Bytes of memory that a GPU has free; None where that is not the limit."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def synchronize(device: torch.device) -> None:
    """Wait for all work of a device, so that a clock read after it is honest."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def attention_kernels(device: torch.device) -> Iterator[None]:
    """Prefer flash attention on a GPU; the others stay allowed for dtypes that it cannot take."""
    if device.type != "cuda":
        yield
        return
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(order, set_priority=True):
        yield


class ResidentTokens:
    """A whole shard of tokens on a device, moved once.

    Unsigned tokens are kept as signed integers of the same width, because torch gathers those on
    every device, and read back by a mask: a uint16 shard takes two bytes per token.
    """

    def __init__(self, tokens: np.ndarray, device: torch.device) -> None:
        width = tokens.dtype.itemsize
        signed = tokens.view(np.dtype(f"i{width}"))
        self.values = torch.tensor(signed, dtype=SIGNED[width], device=device)
        self.mask = (1 << 8 * width) - 1 if tokens.dtype.kind == "u" and width < 8 else -1

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Tokens of the windows that begin at ``starts`` (...), (..., length), int64."""
        positions = starts.unsqueeze(-1) + torch.arange(length, device=starts.device)
        return self.values[positions].long() & self.mask


def resident(tokens: np.ndarray, device: torch.device) -> ResidentTokens | None:
    """The tokens on the device, or None where they stay better on the host.

    They stay on the host for the CPU (a memory-mapped shard is as near as it can be) and where
    they would take more than half of the GPU's free memory.
    """
    free = free_bytes(device)
    if free is None or tokens.nbytes > RESIDENT_SHARE * free:
        return None
    return ResidentTokens(tokens, device)


class _Positions:
    """Stands for a shard in :class:`Batches` and answers where a window begins."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, window: slice) -> np.ndarray:
        return np.array([window.start])


class ResidentBatches:
    """The batches of :class:`shapelaw.trainers.corpus.corpus.Batches`, as tensors on a device.

    The order comes from that class itself, so a batch is the same function of (seed, step); only
    the gathering happens on the device, where the tokens lie.

    Parameters
    ----------
    tokens
        The shard, one-dimensional integers.
    held
        The same tokens on the device, from :func:`resident`; several orders may share them. None
        gathers on the host and moves the batch.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        context_length: int,
        sequences: int,
        seed: int,
        device: torch.device,
        held: ResidentTokens | None = None,
    ) -> None:
        order = {"context_length": context_length, "sequences": sequences, "seed": seed}
        self.length, self.device, self.held = context_length + 1, device, held
        self.positions = Batches(_Positions(len(tokens)), **order)  # type: ignore[arg-type]
        self.host = Batches(tokens, **order)

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step begin, (sequences,), int64."""
        return self.positions(step)[:, 0]

    def __call__(self, step: int) -> Tensor:
        """Sequences of a step with their next token, (sequences, context_length + 1), int64."""
        if self.held is None:
            return torch.from_numpy(self.host(step)).to(self.device)
        starts = torch.from_numpy(self.starts(step)).to(self.device)
        return self.held.windows(starts, self.length)
