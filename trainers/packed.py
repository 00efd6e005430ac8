"""Train several runs of one shape at once on one device, and return a row for each."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scaling.files import write_whole
from trainers import checkpoint
from trainers.corpus import Corpus
from trainers.device import (
    ResidentBatches,
    ResidentTokens,
    attention_kernels,
    describe,
    resident,
    synchronize,
)
from trainers.evaluate import evaluate
from trainers.graphs import CapturedStep, Note, compiled
from trainers.loop import CHECKPOINT_SECONDS, Watch
from trainers.rows import settings_row
from trainers.spec import RunSpec
from trainers.stacked import Stack, stackable

BLOCK_STEPS = 256  # most steps between two looks at the clock; their inputs are on the device
BLOCK_SECONDS = 0.5
HOST_BLOCK_BYTES = 2**28  # of gathered sequences, where the tokens stay on the host
DIVERGED = "diverged"
Row = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a stack runs; the numbers are the same up to rounding.

    ``compiler`` is the backend of :func:`torch.compile` that forward pass and optimiser are given
    to (``"inductor"``), or empty; ``capture`` makes the whole step one CUDA graph on a GPU.
    """

    compiler: str = ""
    capture: bool = True


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

    def fill(self, first: int, count: int) -> None:
        """Put the inputs of ``count`` steps from ``first`` on the device."""
        steps = range(first, first + count)
        distinct = {id(order): order for order in self.orders}
        known = {
            key: [order.starts(step) if self.held else order.host(step) for step in steps]
            for key, order in distinct.items()
        }
        block = np.stack([np.stack(known[id(order)]) for order in self.orders], axis=1)
        self._move(torch.from_numpy(block), self.inputs)
        self._move(self.stack.shares(first, count), self.rates)
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

    def block(self, first: int, count: int) -> None:
        """Take ``count`` steps from ``first`` and wait for them."""
        self.feed.fill(first, count)
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
    options: Options = Options(),
    watch: Watch = lambda step: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    note: Note = lambda text: None,
) -> list[Row]:
    """Train runs of one shape together, from their checkpoint if there is one.

    Parameters
    ----------
    specs
        One pack, from :func:`packs`.
    folders
        The folder of a run by its id: each gets the files that :func:`trainers.loop.train`
        leaves. The pack's checkpoint lies in the first one's.
    watch
        Called every half second or so with the steps done; may raise to stop the pack.
    note
        Told what was not possible: a failed compile, a failed capture.

    Returns
    -------
    The rows in the order of the specs. A run that diverged has a row with that status and without
    a loss; the others are not harmed by it. ``seconds`` is a run's share of the pack's time.
    """
    torch.set_num_threads(1)
    stack = Stack(specs, device)
    path = folders(specs[0].run_id) / "pack.safetensors"
    identity = _identity(specs, corpus)
    tokens = corpus.train()
    step = PackedStep(stack, Feed(stack, tokens, resident(tokens, device)), options, note=note)
    done, spent = _resume(path, stack, step, identity)
    seconds = _run(step, done, spent, watch, checkpoint_seconds, _saver(path, step, identity))
    rows = _finish(step, corpus, folders, seconds)
    path.unlink(missing_ok=True)
    return rows


def _run(
    step: PackedStep,
    done: int,
    spent: float,
    watch: Watch,
    checkpoint_seconds: float,
    save: Callable[[int, float], None],
) -> float:
    """Take the steps that are left, block by block, and return the seconds of all of them."""
    steps, block = step.stack.specs[0].steps, 1
    clock = saved = time.perf_counter()
    while done < steps and bool((step.ended < 0).any()):
        begun = time.perf_counter()
        block = min(block, step.feed.capacity, steps - done)
        step.block(done, block)
        done += block
        now = time.perf_counter()
        watch(done)
        block = max(1, min(2 * block, round(block * BLOCK_SECONDS / max(now - begun, 1e-9))))
        if now - saved >= checkpoint_seconds and done < steps:
            save(done, spent + now - clock)
            saved = time.perf_counter()
    return spent + time.perf_counter() - clock


def _finish(
    step: PackedStep, corpus: Corpus, folders: Callable[[str], Path], seconds: float
) -> list[Row]:
    """Evaluate and export every replica that lived to the end."""
    stack, rows = step.stack, []
    share = seconds / len(stack.specs)
    for index, (spec, ended) in enumerate(zip(stack.specs, step.ended.tolist(), strict=True)):
        settled: Row = {"device": describe(stack.device), "replicas": len(stack.specs)}
        row = None if ended >= 0 else _measure(stack, index, corpus, folders(spec.run_id), share)
        status = DIVERGED if row is None else "done"
        rows.append(settings_row(spec, corpus, status=status) | settled | (row or {}))
    return rows


def _measure(stack: Stack, index: int, corpus: Corpus, folder: Path, seconds: float) -> Row | None:
    spec = stack.specs[index]
    model, _ = stack.restore(index, steps=spec.steps)
    per_byte = corpus.bytes_per_token
    model.to(stack.device)
    result = evaluate(model, corpus.validation(), spec.recipe, bytes_per_token=per_byte)
    if not np.isfinite(result.loss):
        return None
    write_whole(folder / "windows.npy", lambda target: np.save(target, result.windows))
    checkpoint.export(folder, model.cpu(), max_position_embeddings=spec.recipe.context_length)
    return {
        "loss": result.loss,
        "loss_se": result.loss_se,
        "bits_per_byte": result.bits_per_byte,
        "seconds": seconds,
        "tokens_per_second": spec.steps * spec.recipe.batch_tokens / max(seconds, 1e-9),
    }


def _identity(specs: Sequence[RunSpec], corpus: Corpus) -> str:
    """Digest of what decides the numbers of a pack: its runs and their order."""
    text = "\n".join(spec.identity(corpus) for spec in specs)
    return hashlib.sha256(text.encode()).hexdigest()


def _saver(path: Path, step: PackedStep, identity: str) -> Callable[[int, float], None]:
    """What writes the pack's checkpoint: all replicas in one file, so that they stand together."""

    def save(done: int, seconds: float) -> None:
        from safetensors.torch import save_file

        progress = {"step": done, "seconds": seconds, "identity": identity}
        tensors = {name: value.cpu() for name, value in step.stack.state().items()}
        tensors["ended"] = step.ended.cpu()
        metadata = {"progress": json.dumps(progress)}
        write_whole(path, lambda target: save_file(tensors, target, metadata))

    return save


def _resume(path: Path, stack: Stack, step: PackedStep, identity: str) -> tuple[int, float]:
    """Steps done and seconds spent, after taking over a checkpoint of this very pack."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return 0, 0.0
    if progress["identity"] != identity:
        return 0, 0.0
    stack.load(tensors)
    step.ended.copy_(tensors["ended"])
    return int(progress["step"]), float(progress["seconds"])
