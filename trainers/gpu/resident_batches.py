"""Tokens that stay on the device, and batches gathered there."""

import numpy as np
import torch
from torch import Tensor

from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.training.device import free_bytes

RESIDENT_SHARE = 0.5  # of the device's free memory that tokens may take


SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    """The batches of :class:`shapelaw.trainers.corpus.batches.Batches`, as tensors on a device.

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
