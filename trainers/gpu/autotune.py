"""How many runs to train at once on a device: measured, decided, and remembered as data.

Two ways are tried: replicas of one shape in one stack (:mod:`shapelaw.trainers.gpu.packed_loop`),
and several worker processes that share the device. Processes of one GPU run side by side only under
NVIDIA's MPS (``nvidia-cuda-mps-control -d``); without it they take turns, and the trials show that.
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
from shapelaw.scaling.files import read_json, write_json
from shapelaw.trainers.cuda_graph import WARMUP, Note
from shapelaw.trainers.gpu.packed_step import EAGER, Feed, Options, PackedStep
from shapelaw.trainers.gpu.resident_batches import resident
from shapelaw.trainers.gpu.stack import Stack, stackable
from shapelaw.trainers.training.device import device_label, free_bytes, synchronize
from shapelaw.trainers.training.spec import RunSpec

REPLICAS = (1, 2, 4, 8, 16, 32, 64, 128)
PROCESSES = (2, 4, 8)
LEAST_GAIN = 1.05  # a larger stack must be this much faster to be tried further, or chosen
MEMORY_SHARE = 0.8  # of what is free that a trial may be expected to take
TRIAL_TOKENS = 2_000_000  # of the shard; enough that the order of a trial is like a run's
ENDLESS = 10**9  # steps of a trial's schedule: it never comes to the decay
START_SECONDS = 600.0  # that a process of a trial may take to get ready


@dataclass(frozen=True, kw_only=True)
class PackTrial:
    """Measured speed of ``processes`` processes with ``replicas`` replicas each.

    ``tokens_per_second`` is that of all together; 0 where the trial failed, and ``note`` says why.
    ``bytes`` is the most memory that one process held on the GPU.
    """

    replicas: int
    processes: int
    tokens_per_second: float
    bytes: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """The decision for one shape, recipe and device, with the trials that it rests on."""

    replicas: int
    processes: int
    tokens_per_second: float
    device: str
    shape: str
    trials: tuple[PackTrial, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Packing":
        """Read what :func:`dataclasses.asdict` wrote."""
        trials = tuple(PackTrial(**trial) for trial in values["trials"])
        return cls(**(values | {"trials": trials}))


def packing_key(spec: RunSpec, device: torch.device) -> str:
    """Digest of what a packing depends on: shape, batch, optimiser, dtype, device, torch."""
    _, _, *recipe = stackable(spec)
    text = json.dumps([asdict(spec.shape), recipe, device_label(device), torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def packings(
    specs: Iterable[RunSpec],
    tokens: np.ndarray,
    path: Path,
    *,
    device: torch.device,
    choose: "Callable[..., Packing] | None" = None,
) -> dict[str, Packing]:
    """The packing of every spec by :func:`packing_key`, measured where the file lacks it.

    Parameters
    ----------
    path
        The JSON file of decisions, kept beside the ledger; written after every measurement.
    choose
        Measures one spec; :func:`choose_packing` by default.
    """
    known = _known(path)
    for spec in specs:
        key = packing_key(spec, device)
        if key not in known:
            known[key] = (choose or choose_packing)(spec, tokens, device=device)
            write_json(path, {name: asdict(packing) for name, packing in known.items()})
    return known


def _known(path: Path) -> dict[str, Packing]:
    if not path.exists():
        return {}
    try:
        return {key: Packing.from_json(values) for key, values in read_json(path).items()}
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no file of packings ({error}); move it away and it is measured again"
        ) from None


def choose_packing(
    spec: RunSpec,
    tokens: np.ndarray,
    *,
    device: torch.device,
    seconds: float = 2.0,
    options: Options = EAGER,
    most: tuple[int, int] = (REPLICAS[-1], PROCESSES[-1]),
) -> Packing:
    """Measure stacks and processes for one shape and take the fastest.

    Stacks grow while a doubling still gains 5 %, and while the memory lasts; then processes are
    tried, with one replica each and with the best stack each, under the same rule.

    Parameters
    ----------
    seconds
        Of one timed trial, after its warm-up.
    most
        Most replicas, most processes.

    Raises
    ------
    InputError
        Not even one replica could be trained.
    """
    tokens = np.array(tokens[:TRIAL_TOKENS])

    def measure(replicas: int, processes: int) -> PackTrial:
        if processes == 1:
            return trial_stack(spec, tokens, replicas, device=device, seconds=seconds,
                               options=options)  # fmt: skip
        return trial_processes(spec, tokens, (replicas, processes), device=device,
                               seconds=seconds, options=options)  # fmt: skip

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
    """Try larger and larger packings until one gains too little, fails or would not fit."""
    trials: list[PackTrial] = []
    last = below
    for replicas, processes in counts:
        if last is not None and not _fits(last, replicas * processes, device):
            break
        trials.append(measure(replicas, processes))
        before = trials[-2].tokens_per_second if len(trials) > 1 else 0.0
        if trials[-1].tokens_per_second <= LEAST_GAIN * before:
            break
        last = trials[-1]
    return trials


def _fits(last: PackTrial, replicas: int, device: torch.device) -> bool:
    """Whether a packing should fit, if memory grows with the replicas as it did so far."""
    free = free_bytes(device)
    each = last.bytes / last.replicas
    return free is None or each * replicas <= MEMORY_SHARE * free


def _fastest(trials: list[PackTrial]) -> PackTrial:
    """The fastest; of those within 5 % of it, the one with the fewest runs at once."""
    top = max(trial.tokens_per_second for trial in trials)
    close = [trial for trial in trials if LEAST_GAIN * trial.tokens_per_second >= top]
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
    """Speed of one stack of replicas that differ in their seeds."""
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
        step.block(0, done, ENDLESS)
        ready()
        begun, first, block = time.perf_counter(), done, 1
        while time.perf_counter() - begun < seconds:
            step.block(done, block, ENDLESS)
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
    """Speed of several processes on one device that start their timed part together.

    Parameters
    ----------
    counts
        Replicas in each process, processes.
    """
    replicas, processes = counts
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    arguments = (spec.as_json(), tokens, replicas, str(device), seconds, asdict(options))
    children = [
        context.Process(target=_child, args=(arguments, barrier, results), daemon=True)
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    try:
        trials = [results.get(timeout=START_SECONDS) for _ in children]
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
    """One process of a trial; whatever goes wrong is its note."""
    text, tokens, replicas, device, seconds, options = arguments
    torch.set_num_threads(1)

    def ready() -> None:
        barrier.wait(timeout=START_SECONDS)

    try:
        spec, place = RunSpec.from_json(text), torch.device(device)
        trial = _time(spec, tokens, replicas, place, seconds, Options(**options), ready)
    except Exception as error:  # the parent must hear of it, whatever it is
        note = f"{type(error).__name__}: {error}"
        trial = PackTrial(replicas=replicas, processes=1, tokens_per_second=0.0, note=note)
    if not trial.tokens_per_second:
        barrier.abort()
    results.put(asdict(trial))
