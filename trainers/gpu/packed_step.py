"""Training step of a stack with its inputs on the device, one CUDA graph on a GPU."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shapelaw.trainers.cuda_graph import Captured, Note, compiled
from shapelaw.trainers.gpu.resident_batches import ResidentBatches, ResidentTokens
from shapelaw.trainers.gpu.stack import Stack, stackable
from shapelaw.trainers.objectives.objective import Batch, reseed
from shapelaw.trainers.training.device import attention_kernels, synchronize
from shapelaw.trainers.training.spec import RunSpec

MAX_BLOCK_STEPS = 256  # steps whose inputs are on the device at once
HOST_BLOCK_BYTES = 2**28  # of the sequences of a block, if the tokens stay on the host


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the execution of a stack; they affect numbers only by rounding.

    ``compiler`` is the backend of :func:`torch.compile` for forward pass and optimiser
    (``"inductor"``), or empty for no compilation. ``capture`` makes the whole step one CUDA graph
    on a GPU. ``export`` writes the weights of a finished run. ``trackers`` are the names of
    trackers of metrics.
    """

    compiler: str = ""
    capture: bool = True
    export: bool = True
    trackers: tuple[str, ...] = ("csv",)


EAGER = Options()  # without compilation; on a GPU the step is still one graph


def packs(specs: Iterable[RunSpec], size: int) -> list[list[RunSpec]]:
    """Group runs that can be trained in one stack, at most ``size`` per group, in their order."""
    groups: dict[tuple[object, ...], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(stackable(spec), []).append(spec)
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]


class Feed:
    """Inputs of a block of steps on the device, so that a step needs no data from the host.

    If the tokens are on the device, a block contains the starts of windows, else the sequences.
    """

    def __init__(self, stack: Stack, tokens: np.ndarray, held: ResidentTokens | None) -> None:
        recipe = stack.specs[0].recipe
        self.stack, self.held, self.length = stack, held, recipe.context_length + 1
        orders = {
            seed: ResidentBatches(
                tokens,
                context_length=recipe.context_length,
                sequences=recipe.sequences,
                seed=seed,
                device=torch.device("cpu"),
            )
            for seed in {spec.data_seed for spec in stack.specs}
        }
        self.orders = [orders[spec.data_seed] for spec in stack.specs]
        size = (len(stack.specs), recipe.sequences)
        item = size if held else (*size, self.length)
        bytes_per_step = 8 * int(np.prod(item))
        self.capacity = MAX_BLOCK_STEPS if held else max(1, HOST_BLOCK_BYTES // bytes_per_step)
        self.capacity = min(self.capacity, MAX_BLOCK_STEPS)
        device = stack.device
        self.inputs = torch.zeros((self.capacity, *item), dtype=torch.int64, device=device)
        self.rates = torch.zeros(
            (self.capacity, len(stack.specs)), dtype=torch.float64, device=device
        )
        self.index = torch.zeros(1, dtype=torch.int64, device=device)
        self.draws = torch.Generator()
        noise = self._draw(0, stack.specs[0])
        self.noise = None
        if noise is not None:
            noises = (self.capacity, len(stack.specs), *noise.shape)
            self.noise = torch.zeros(noises, device=device)

    def _draw(self, step: int, spec: RunSpec) -> Tensor | None:
        """Draw the noise of a step of a run, as the run would alone on a CPU."""
        reseed(self.draws, spec.data_seed, step)
        recipe = spec.recipe
        return self.stack.objective.draw(recipe.sequences, recipe.context_length, self.draws)

    def fill(self, first: int, count: int, end: int) -> None:
        """Copy the inputs of ``count`` steps from ``first``, of ``end`` in total, to the device."""
        steps = range(first, first + count)
        distinct = {id(order): order for order in self.orders}
        inputs = {
            key: [order.starts(step) if self.held else order.host(step) for step in steps]
            for key, order in distinct.items()
        }
        block = np.stack([np.stack(inputs[id(order)]) for order in self.orders], axis=1)
        self._move(torch.from_numpy(block), self.inputs)
        self._move(self.stack.shares(first, count, end), self.rates)
        if self.noise is not None:
            drawn = [[self._draw(step, spec) for spec in self.stack.specs] for step in steps]
            rows = [torch.stack([each for each in row if each is not None]) for row in drawn]
            self._move(torch.stack(rows), self.noise)
        self.index.zero_()

    def _move(self, block: Tensor, target: Tensor) -> None:
        pinned = block.pin_memory() if target.device.type == "cuda" else block
        target[: len(block)].copy_(pinned, non_blocking=True)

    def take(self) -> tuple[Batch, Tensor]:
        """Return sequences (R, S, T + 1) and learning-rate shares (R,) of the next step."""
        inputs = self.inputs.index_select(0, self.index)[0]
        shares = self.rates.index_select(0, self.index)[0]
        noise = None if self.noise is None else self.noise.index_select(0, self.index)[0]
        self.index.add_(1)
        tokens = self.held.windows(inputs, self.length) if self.held else inputs
        return Batch(tokens, noise=noise), shares


class PackedStep:
    """Training step of a stack that reads and writes only tensors on the device.

    ``losses`` (R,) are the losses of the last step. ``ended`` (R,) is the step at which the loss of
    a replica was not finite any more, or -1.
    """

    def __init__(
        self, stack: Stack, feed: Feed, options: Options, *, note: Note = lambda text: None
    ) -> None:
        self.stack, self.feed = stack, feed
        replicas, device = len(stack.specs), stack.device
        self.losses = torch.zeros(replicas, device=device)
        self.ended = torch.full((replicas,), -1.0, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self._loss, self._update = stack.losses, stack.update
        if options.compiler:
            self._loss = compiled(stack.losses, note=note, backend=options.compiler)
            self._update = compiled(stack.update, note=note, backend=options.compiler)
        self.advance = Captured(
            self._step,
            device,
            capture=options.capture,
            generators=[stack.generator],
            note=note,
        )

    def _step(self) -> None:
        batch, share = self.feed.take()
        losses = self._loss(batch)
        gradients = self.stack.gradients(losses)
        diverged = (self.ended < 0) & ~torch.isfinite(losses.detach())
        self.ended.copy_(torch.where(diverged, self.count, self.ended))
        self.count.add_(1)
        self._update(gradients, share, self.count)
        self.losses.copy_(losses.detach())

    def block(self, first: int, count: int, end: int) -> None:
        """Train ``count`` steps from ``first`` in a schedule of ``end`` steps and wait for them."""
        self.feed.fill(first, count, end)
        self.count.fill_(first)
        with attention_kernels(self.stack.device):
            for step in range(first, first + count):
                reseed(self.stack.generator, self.stack.specs[0].data_seed, step)
                self.advance()
        synchronize(self.stack.device)
