"""Train several runs of one shape at once on one device, and return a row for each."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.gpu.cuda_graph import CapturedStep, Note, compiled
from shapelaw.trainers.gpu.resident_batches import ResidentBatches, ResidentTokens, resident
from shapelaw.trainers.gpu.stack import Stack, stackable
from shapelaw.trainers.training import checkpoint
from shapelaw.trainers.training.device import attention_kernels, device_label, synchronize
from shapelaw.trainers.training.execution import Execution, attention_path
from shapelaw.trainers.training.loop import CHECKPOINT_SECONDS, Watch
from shapelaw.trainers.training.results import (
    Row,
    diverged,
    export_run,
    keep_rows,
    measured,
    settings_row,
)
from shapelaw.trainers.training.spec import Diverged, RunSpec
from shapelaw.trainers.training.trackers import Recorder, recording

BLOCK_STEPS = 256  # most steps between two looks at the clock; their inputs are on the device
BLOCK_SECONDS = 0.5
HOST_BLOCK_BYTES = 2**28  # of gathered sequences, where the tokens stay on the host


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a stack runs; the numbers are the same up to rounding.

    ``compiler`` is the backend of :func:`torch.compile` that forward pass and optimiser are given
    to (``"inductor"``), or empty; ``capture`` makes the whole step one CUDA graph on a GPU;
    ``export`` writes the weights of a finished run.
    """

    compiler: str = ""
    capture: bool = True
    export: bool = True


EAGER = Options()  # not compiled; on a GPU the step is still one graph


def packs(specs: Iterable[RunSpec], size: int) -> list[list[RunSpec]]:
    """Group runs that can be trained in one stack, at most ``size`` each, in the order given."""
    groups: dict[tuple[object, ...], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(stackable(spec), []).append(spec)
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]


class Feed:
    """Inputs of a block of steps on the device, so that a step needs nothing from the host.

    With the tokens on the device a block holds where windows begin, else the sequences themselves.
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
        self.capacity = BLOCK_STEPS if held else max(1, HOST_BLOCK_BYTES // bytes_per_step)
        self.capacity = min(self.capacity, BLOCK_STEPS)
        device = stack.device
        self.inputs = torch.zeros((self.capacity, *item), dtype=torch.int64, device=device)
        self.rates = torch.zeros(
            (self.capacity, len(stack.specs)), dtype=torch.float64, device=device
        )
        self.index = torch.zeros(1, dtype=torch.int64, device=device)

    def fill(self, first: int, count: int, end: int) -> None:
        """Put the inputs of ``count`` steps from ``first``, of ``end`` in all, on the device."""
        steps = range(first, first + count)
        distinct = {id(order): order for order in self.orders}
        known = {
            key: [order.starts(step) if self.held else order.host(step) for step in steps]
            for key, order in distinct.items()
        }
        block = np.stack([np.stack(known[id(order)]) for order in self.orders], axis=1)
        self._move(torch.from_numpy(block), self.inputs)
        self._move(self.stack.shares(first, count, end), self.rates)
        self.index.zero_()

    def _move(self, block: Tensor, target: Tensor) -> None:
        pinned = block.pin_memory() if target.device.type == "cuda" else block
        target[: len(block)].copy_(pinned, non_blocking=True)

    def take(self) -> tuple[Tensor, Tensor]:
        """Sequences (R, S, T + 1) and shares (R,) of the next step of the block."""
        inputs = self.inputs.index_select(0, self.index)[0]
        shares = self.rates.index_select(0, self.index)[0]
        self.index.add_(1)
        return (self.held.windows(inputs, self.length) if self.held else inputs), shares


class PackedStep:
    """One training step of a stack, from tensors on the device to tensors on the device.

    ``losses`` (R,) are those of the last step; ``ended`` (R,) is the step at which a replica's
    loss stopped being a finite number, or -1.
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
        self.advance = CapturedStep(self._step, device, capture=options.capture, note=note)

    def _step(self) -> None:
        batch, share = self.feed.take()
        losses = self._loss(batch)
        gradients = self.stack.gradients(losses)
        broken = (self.ended < 0) & ~torch.isfinite(losses.detach())
        self.ended.copy_(torch.where(broken, self.count, self.ended))
        self.count.add_(1)
        self._update(gradients, share, self.count)
        self.losses.copy_(losses.detach())

    def block(self, first: int, count: int, end: int) -> None:
        """Take ``count`` steps from ``first``, under a schedule of ``end``, and wait for them."""
        self.feed.fill(first, count, end)
        self.count.fill_(first)
        with attention_kernels(self.stack.device):
            for _ in range(count):
                self.advance()
        synchronize(self.stack.device)


def train_pack(
    specs: Sequence[RunSpec],
    corpus: Corpus,
    folders: Callable[[str], Path],
    *,
    device: torch.device,
    options: Options = EAGER,
    watch: Watch = lambda step: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    note: Note = lambda text: None,
) -> list[list[Row]]:
    """Train runs of one shape together, from their checkpoint if there is one.

    Parameters
    ----------
    specs
        One pack, from :func:`packs`.
    folders
        The folder of a run by its id: each gets the files that
        :func:`shapelaw.trainers.training.loop.train` leaves. The pack's checkpoint lies in the
        first one's.
    watch
        Called every half second or so with the steps computed; may raise to stop the pack.
    note
        Told what was not possible: a failed compile, a failed capture.

    Returns
    -------
    For every spec its rows, one for each branch by ascending tokens. A run that diverged has one
    row with that status and without a loss; the others are not harmed by it. ``seconds`` is a
    run's share of the pack's time.
    """
    torch.set_num_threads(1)
    engine = Execution(
        attention=attention_path(device), compilation="whole" if options.compiler else "none"
    )
    stack = Stack([replace(spec, engine=engine) for spec in specs], device)
    tokens = corpus.train()
    step = PackedStep(stack, Feed(stack, tokens, resident(tokens, device)), options, note=note)
    run = _PackRun(step, corpus, folders)
    run.resume()
    with ExitStack() as recorders:
        run.record(recorders)
        while run.branch < len(run.ends):
            run.go(watch, checkpoint_seconds)
            run.end_branch()
    rows = run.finish(export=options.export)
    run.path.unlink(missing_ok=True)
    return rows


class _PackRun:
    """A pack on its way: branch, step in the branch's schedule, rows so far.

    The state where a branch left the trunk is kept in memory, and in the checkpoint.
    """

    def __init__(
        self,
        step: PackedStep,
        corpus: Corpus,
        folders: Callable[[str], Path],
    ) -> None:
        self.step, self.corpus, self.folders = step, corpus, folders
        self.specs = step.stack.specs
        self.path = folders(self.specs[0].run_id) / "pack.safetensors"
        self.identity = _identity(self.specs, corpus)
        self.ends = self.specs[0].ends
        self.branch = self.done = self.computed = 0
        self.trunk: dict[str, Tensor] = {}
        self.rows: list[list[Row]] = [[] for _ in self.specs]
        self.recorders: list[Recorder] = []
        self.seconds = 0.0

    def record(self, recorders: ExitStack) -> None:
        """Write the metrics of every replica to its own ``metrics.csv`` from here on."""
        device = device_label(self.step.stack.device)
        for spec in self.specs:
            folder, batch_tokens = self.folders(spec.run_id), spec.recipe.batch_tokens
            recorder = recorders.enter_context(
                recording(("csv",), folder, batch_tokens=batch_tokens)
            )
            settings = settings_row(spec, self.corpus, status="running", device=device)
            recorder.start(settings, self.computed)
            self.recorders.append(recorder)

    def _log(self, end: int) -> None:
        """Metrics of the last step of a block, of the replicas that live."""
        losses, ended = self.step.losses.tolist(), self.step.ended.tolist()
        for index, spec in enumerate(self.specs):
            if ended[index] < 0:
                peak = self.step.stack.optimizers[index].peaks[0]
                metrics = {
                    "tokens": self.done * spec.recipe.batch_tokens,
                    "seconds": self.seconds / len(self.specs),
                    "loss": losses[index],
                    "learning_rate": peak * spec.recipe.share(self.done - 1, end),
                }
                self.recorders[index].log(self.computed, metrics)

    @property
    def leaves(self) -> int:
        """The step at which the branch on the way leaves the trunk, for all replicas."""
        end = self.ends[self.branch]
        return min(spec.recipe.stable_steps(end) for spec in self.specs)

    def resume(self) -> None:
        """Stand where the checkpoint does, if there is one of this very pack."""
        try:
            progress, tensors = checkpoint.read(self.path)
        except checkpoint.UNREADABLE:
            return
        if progress["identity"] != self.identity:
            return
        self.branch, self.done = progress["branch"], progress["done"]
        self.computed, self.seconds = progress["computed"], progress["seconds"]
        self.rows = progress["rows"]
        self.step.stack.load(tensors)
        self.step.ended.copy_(tensors["ended"])
        self.trunk = {
            name.removeprefix("trunk."): value.to(self.step.stack.device)
            for name, value in tensors.items()
            if name.startswith("trunk.")
        }

    def go(self, watch: Watch, checkpoint_seconds: float) -> None:
        """Train to the end of the branch on the way, block by block."""
        end, last = self.ends[self.branch], self.branch + 1 == len(self.ends)
        saved, block = time.perf_counter(), 1
        while self.done < end and bool((self.step.ended < 0).any()):
            begun = time.perf_counter()
            if not last and self.done == self.leaves:
                state = self.step.stack.state()
                self.trunk = {name: value.clone() for name, value in state.items()}
            stop = self.leaves if not last and self.done < self.leaves else end
            block = min(block, self.step.feed.capacity, stop - self.done)
            self.step.block(self.done, block, end)
            self.done += block
            self.computed += block
            taken = time.perf_counter() - begun
            self.seconds += taken
            self._log(end)
            watch(self.computed)
            if time.perf_counter() - saved >= checkpoint_seconds and self.done < end:
                self.save()
                saved = time.perf_counter()
            block = max(1, min(2 * block, round(block * BLOCK_SECONDS / max(taken, 1e-9))))

    def save(self) -> None:
        """Write the state of all replicas in one file, so that they stand together."""
        progress = {
            "identity": self.identity,
            "branch": self.branch,
            "done": self.done,
            "computed": self.computed,
            "seconds": self.seconds,
            "rows": self.rows,
        }
        trunk = {f"trunk.{name}": value for name, value in self.trunk.items()}
        tensors = self.step.stack.state() | trunk | {"ended": self.step.ended}
        checkpoint.write(
            self.path, {name: value.cpu() for name, value in tensors.items()}, progress
        )

    def end_branch(self) -> None:
        """Add a row for every replica that lives, and go back to the trunk."""
        end = self.ends[self.branch]
        share = self.seconds / len(self.specs)
        for index, spec in enumerate(self.specs):
            if self.step.ended[index] < 0:
                model, _ = self.step.stack.restore(index, steps=end)
                model.to(self.step.stack.device)
                folder = self.folders(spec.run_id)
                try:
                    row = measured(spec, model, self.corpus, folder, end=end, seconds=share)
                    self.rows[index].append(row | {"replicas": len(self.specs)})
                    self.recorders[index].result(self.computed, row)
                except Diverged:
                    self.step.ended[index] = float(end)
                model.cpu()
        self.branch += 1
        if self.trunk:
            self.done = min(spec.recipe.stable_steps(end) for spec in self.specs)
            self.step.stack.load(self.trunk)
            self.trunk = {}

    def finish(self, *, export: bool) -> list[list[Row]]:
        """Export what lives and say of the others that they diverged."""
        device, about = self.step.stack.device, {"replicas": len(self.specs)}
        for index, spec in enumerate(self.specs):
            if self.step.ended[index] >= 0:
                self.rows[index] = [diverged(spec, self.corpus, device) | about]
            elif export:
                model, _ = self.step.stack.restore(index, steps=spec.steps)
                folder = self.folders(spec.run_id)
                export_run(spec, model, self.corpus, folder)
                keep_rows(spec, self.corpus, folder, self.rows[index])
        return self.rows


def _identity(specs: Sequence[RunSpec], corpus: Corpus) -> str:
    """Digest of what decides the numbers of a pack: its runs and their order."""
    text = "\n".join(spec.identity(corpus) for spec in specs)
    return hashlib.sha256(text.encode()).hexdigest()
