"""Tokens in the memory of the device, and batches gathered there."""

import numpy as np
import torch
from torch import Tensor

from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.training.device import free_bytes

MAX_TOKENS_SHARE = 0.5  # of the free memory of the device
SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ResidentTokens:
    """Whole shard of tokens on a device, copied once.

    Unsigned tokens are stored as signed integers of the same width, because PyTorch can gather
    these on every device, and converted back by a mask. A uint16 shard takes two bytes per token.
    """

    def __init__(self, tokens: np.ndarray, device: torch.device) -> None:
        width = tokens.dtype.itemsize
        signed = tokens.view(np.dtype(f"i{width}"))
        self.values = torch.tensor(signed, dtype=SIGNED[width], device=device)
        self.mask = (1 << 8 * width) - 1 if tokens.dtype.kind == "u" and width < 8 else -1

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Return the tokens of windows that begin at ``starts`` (...) -> (..., length), int64."""
        positions = starts.unsqueeze(-1) + torch.arange(length, device=starts.device)
        return self.values[positions].long() & self.mask


def resident(tokens: np.ndarray, device: torch.device) -> ResidentTokens | None:
    """Copy the tokens to the device; return None if they should stay on the host.

    They stay on the host for a CPU, which reads the memory-mapped shard directly, and if they would
    take more than half of the free memory of the GPU.
    """
    free = free_bytes(device)
    if free is None or tokens.nbytes > MAX_TOKENS_SHARE * free:
        return None
    return ResidentTokens(tokens, device)


class _Positions:
    """Substitute for a shard in :class:`Batches` that returns the start of a window."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, window: slice) -> np.ndarray:
        return np.array([window.start])


class ResidentBatches:
    """Batches of :class:`shapelaw.trainers.corpus.batches.Batches` as tensors on a device.

    That class determines the order, so that a batch is the same function of (seed, step). Only the
    gathering happens on the device of the tokens.

    Parameters
    ----------
    tokens
        Shard, one-dimensional integers.
    context_length, sequences, seed
        As in :class:`~shapelaw.trainers.corpus.batches.Batches`.
    device
        Device of the batches.
    held
        The same tokens on the device, from :func:`resident`, which several orders can share. With
        None, batches are gathered on the host and copied.
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
        """Return the starts of the windows of a step, (sequences,), int64."""
        return self.positions(step)[:, 0]

    def __call__(self, step: int) -> Tensor:
        """Return the sequences of a step with their next token, (sequences, context_length + 1)."""
        if self.held is None:
            return torch.from_numpy(self.host(step)).to(self.device)
        starts = torch.from_numpy(self.starts(step)).to(self.device)
        return self.held.windows(starts, self.length)
