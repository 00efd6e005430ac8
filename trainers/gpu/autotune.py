"""Measured choice of the number of runs to train at once on a device, stored in a file.

Two methods are tried: replicas of one shape in one stack
(:mod:`shapelaw.trainers.gpu.packed_loop`), and several worker processes that share the device.
Processes on one GPU run concurrently only under NVIDIA's MPS (``nvidia-cuda-mps-control -d``).
Without it they alternate, which the trials take into account.
"""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.files import write_json
from shapelaw.scaling.schema import read_document
from shapelaw.scaling.signals import interrupts_left_to_parent
from shapelaw.trainers.cuda_graph import WARMUP, Note
from shapelaw.trainers.gpu.packed_step import EAGER, Feed, Options, PackedStep
from shapelaw.trainers.gpu.resident_batches import resident
from shapelaw.trainers.gpu.stack import Stack, stackable
from shapelaw.trainers.training.device import device_label, free_bytes, synchronize
from shapelaw.trainers.training.spec import RunSpec

REPLICAS = (1, 2, 4, 8, 16, 32, 64, 128)
PROCESSES = (2, 4, 8)
MIN_GAIN = 1.05  # speed ratio above which a larger packing is tried further, or chosen
MAX_MEMORY_SHARE = 0.8  # of the free memory, for the expected memory of a trial
TRIAL_TOKENS = 2_000_000  # of the shard; enough for a similar order of reads as in a run
TRIAL_SCHEDULE_STEPS = 10**9  # so many that a trial never reaches the decay
MAX_START_SECONDS = 600.0  # until a process of a trial is ready


@dataclass(frozen=True, kw_only=True)
class PackTrial:
    """Measured speed of ``processes`` processes with ``replicas`` replicas each.

    ``tokens_per_second`` is the total of all processes, 0 for a failed trial, for which ``note`` is
    the reason. ``bytes`` is the largest GPU memory of one process.
    """

    replicas: int
    processes: int
    tokens_per_second: float
    bytes: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Chosen packing for one shape, recipe and device, with its trials."""

    replicas: int
    processes: int
    tokens_per_second: float
    device: str
    shape: str
    trials: tuple[PackTrial, ...]


def packing_key(spec: RunSpec, device: torch.device) -> str:
    """Return a digest of shape, batch, optimiser, dtype, device and torch version."""
    _, _, *recipe = stackable(spec)
    text = json.dumps([spec.shape.row(), recipe, device_label(device), torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def packings(
    specs: Iterable[RunSpec],
    tokens: np.ndarray,
    path: Path,
    *,
    device: torch.device,
    choose: "Callable[..., Packing] | None" = None,
) -> dict[str, Packing]:
    """Return the packing of every spec by :func:`packing_key`; measure those not in the file.

    Parameters
    ----------
    specs
        Runs to pack.
    tokens
        Training tokens.
    path
        JSON file of packings, written after every measurement.
    device
        Device of training.
    choose
        Function that measures one spec; :func:`choose_packing` by default.
    """
    measured = _stored(path)
    for spec in specs:
        key = packing_key(spec, device)
        if key not in measured:
            measured[key] = (choose or choose_packing)(spec, tokens, device=device)
            write_json(path, {name: asdict(packing) for name, packing in measured.items()})
    return measured


def _stored(path: Path) -> dict[str, Packing]:
    if not path.exists():
        return {}
    return read_document(path, dict[str, Packing], "move it away to measure again")


def choose_packing(
    spec: RunSpec,
    tokens: np.ndarray,
    *,
    device: torch.device,
    seconds: float = 2.0,
    options: Options = EAGER,
    most: tuple[int, int] = (REPLICAS[-1], PROCESSES[-1]),
) -> Packing:
    """Measure stacks and processes for one shape and choose the fastest packing.

    The stack is enlarged while a doubling gains at least 5 % and the memory suffices. Then several
    processes are tried by the same rule, with one replica each and with the best stack each.

    Parameters
    ----------
    spec
        Run to pack.
    tokens
        Training tokens.
    device
        Device of training.
    seconds
        Seconds of one timed trial after its warm-up.
    options
        Options of the stack.
    most
        Largest numbers of replicas and of processes.

    Raises
    ------
    InputError
        Not even one replica can be trained.
    """
    tokens = np.array(tokens[:TRIAL_TOKENS])
    settings: dict[str, Any] = {"device": device, "seconds": seconds, "options": options}

    def measure(replicas: int, processes: int) -> PackTrial:
        if processes == 1:
            return trial_stack(spec, tokens, replicas, **settings)
        return trial_processes(spec, tokens, (replicas, processes), **settings)

    trials = _growing([(k, 1) for k in REPLICAS if k <= most[0]], measure, device)
    best = _fastest(trials)
    if not best.tokens_per_second:
        raise InputError(
            f"{spec.shape} cannot be trained on {device_label(device)}: {best.note}; "
            "use fewer sequences or another device"
        )
    for replicas in sorted({1, best.replicas}):
        counts = [(replicas, p) for p in PROCESSES if p <= most[1]]
        trials += _growing(counts, measure, device, below=best)
    chosen = _fastest(trials)
    return Packing(
        replicas=chosen.replicas,
        processes=chosen.processes,
        tokens_per_second=chosen.tokens_per_second,
        device=device_label(device),
        shape=str(spec.shape),
        trials=tuple(trials),
    )


def _growing(
    counts: list[tuple[int, int]],
    measure: Callable[[int, int], PackTrial],
    device: torch.device,
    below: PackTrial | None = None,
) -> list[PackTrial]:
    """Try increasing packings until one gains too little, fails or would not fit into memory."""
    trials: list[PackTrial] = []
    last = below
    for replicas, processes in counts:
        if last is not None and not _fits(last, replicas * processes, device):
            break
        trials.append(measure(replicas, processes))
        before = trials[-2].tokens_per_second if len(trials) > 1 else 0.0
        if trials[-1].tokens_per_second <= MIN_GAIN * before:
            break
        last = trials[-1]
    return trials


def _fits(last: PackTrial, replicas: int, device: torch.device) -> bool:
    """Return True if a packing should fit into memory, which is proportional to the replicas."""
    free = free_bytes(device)
    each = last.bytes / last.replicas
    return free is None or each * replicas <= MAX_MEMORY_SHARE * free


def _fastest(trials: list[PackTrial]) -> PackTrial:
    """Return the trial with the fewest runs at once among those within 5 % of the fastest."""
    top = max(trial.tokens_per_second for trial in trials)
    close = [trial for trial in trials if MIN_GAIN * trial.tokens_per_second >= top]
    return min(close, key=lambda trial: (trial.processes, trial.replicas))


def trial_stack(
    spec: RunSpec,
    tokens: np.ndarray,
    replicas: int,
    *,
    device: torch.device,
    seconds: float = 2.0,
    options: Options = EAGER,
) -> PackTrial:
    """Measure the speed of one stack of replicas with different seeds."""
    return _time(spec, tokens, replicas, device, seconds, options, lambda: None)


def _time(
    spec: RunSpec,
    tokens: np.ndarray,
    replicas: int,
    device: torch.device,
    seconds: float,
    options: Options,
    ready: Callable[[], None],
) -> PackTrial:
    notes: list[str] = []
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        step = _prepare(spec, tokens, replicas, device, options, notes.append)
        done = 2 * WARMUP
        step.block(0, done, TRIAL_SCHEDULE_STEPS)
        ready()
        begun, first, block = time.perf_counter(), done, 1
        while time.perf_counter() - begun < seconds:
            step.block(done, block, TRIAL_SCHEDULE_STEPS)
            done += block
            block = min(2 * block, step.feed.capacity)
        synchronize(device)
        elapsed = time.perf_counter() - begun
    except torch.OutOfMemoryError:
        return PackTrial(
            replicas=replicas, processes=1, tokens_per_second=0.0, note="out of memory"
        )
    trained = (done - first) * replicas * spec.recipe.batch_tokens
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return PackTrial(
        replicas=replicas,
        processes=1,
        tokens_per_second=trained / elapsed,
        bytes=peak,
        note="; ".join(notes),
    )


def _prepare(
    spec: RunSpec,
    tokens: np.ndarray,
    replicas: int,
    device: torch.device,
    options: Options,
    note: Note,
) -> PackedStep:
    specs = [replace(spec, run_id=str(i), seed=spec.seed + i) for i in range(replicas)]
    stack = Stack(specs, device)
    return PackedStep(stack, Feed(stack, tokens, resident(tokens, device)), options, note=note)


def trial_processes(
    spec: RunSpec,
    tokens: np.ndarray,
    counts: tuple[int, int],
    *,
    device: torch.device,
    seconds: float = 2.0,
    options: Options = EAGER,
) -> PackTrial:
    """Measure the speed of several processes on one device, timed simultaneously.

    Parameters
    ----------
    spec
        Run to pack.
    tokens
        Training tokens.
    counts
        Number of replicas in each process, and number of processes.
    device
        Device of training.
    seconds
        Seconds of the timed part.
    options
        Options of the stacks.
    """
    replicas, processes = counts
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    arguments = (spec.as_json(), tokens, replicas, str(device), seconds, asdict(options))
    children = [
        context.Process(target=_child, args=(arguments, barrier, results), daemon=True)
        for _ in range(processes)
    ]
    with interrupts_left_to_parent():
        for child in children:
            child.start()
    try:
        trials = [results.get(timeout=MAX_START_SECONDS) for _ in children]
    except Empty:
        return PackTrial(replicas=replicas, processes=processes, tokens_per_second=0.0,
                     note="a process did not get ready")  # fmt: skip
    finally:
        for child in children:
            child.terminate()
            child.join()
    notes = sorted({trial["note"] for trial in trials if trial["note"]})
    failed = any(not trial["tokens_per_second"] for trial in trials)
    return PackTrial(
        replicas=replicas,
        processes=processes,
        tokens_per_second=0.0 if failed else sum(trial["tokens_per_second"] for trial in trials),
        bytes=max(trial["bytes"] for trial in trials),
        note="; ".join(notes),
    )


def _child(arguments: tuple[Any, ...], barrier: Any, results: Any) -> None:
    """Run one process of a trial; any error becomes its note."""
    text, tokens, replicas, device, seconds, options = arguments
    torch.set_num_threads(1)

    def ready() -> None:
        barrier.wait(timeout=MAX_START_SECONDS)

    try:
        spec, place = RunSpec.from_json(text), torch.device(device)
        trial = _time(spec, tokens, replicas, place, seconds, Options(**options), ready)
    except Exception as error:  # any error is reported to the parent
        note = f"{type(error).__name__}: {error}"
        trial = PackTrial(replicas=replicas, processes=1, tokens_per_second=0.0, note=note)
    if not trial.tokens_per_second:
        barrier.abort()
    results.put(asdict(trial))
