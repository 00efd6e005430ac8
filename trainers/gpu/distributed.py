"""One run over several processes by torchrun: DDP, or FSDP2 for models larger than one GPU.

    torchrun --nproc-per-node 8 -m shapelaw.trainers.gpu.distributed run.json --corpus FOLDER --out
    FOLDER

``run.json`` contains the output of :meth:`shapelaw.trainers.training.spec.RunSpec.as_json`. Every
process takes its rows of the same batch, which is a function of (seed, step). Gradients are
averaged and clipped by their global norm, so that the numbers equal those of one process up to
rounding. The checkpoint is that of :mod:`shapelaw.trainers.training.checkpoint`, from which any
number of processes can resume.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.scaling.files import write_json
from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.gpu.sharding import Trainer, World
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch
from shapelaw.trainers.training import checkpoint
from shapelaw.trainers.training.device import device_label
from shapelaw.trainers.training.execution import Execution, attention_path
from shapelaw.trainers.training.loop import CHECKPOINT, CHECKPOINT_SECONDS, Watch
from shapelaw.trainers.training.results import (
    Row,
    diverged_row,
    evaluate_branch,
    export_run,
    keep_rows,
    settings_row,
)
from shapelaw.trainers.training.spec import Diverged, RunSpec
from shapelaw.trainers.training.trackers import Recorder, recording

MODES = ("ddp", "fsdp")


@contextmanager
def joined(mode: str) -> Iterator[World]:
    """Join the processes that torchrun started: NCCL with one GPU each, else gloo on the CPU.

    Raises
    ------
    InputError
        The mode is unknown, or torchrun did not start this process.
    """
    if mode not in MODES:
        raise InputError(f"`--mode` must be one of {', '.join(MODES)}, but got {mode!r}")
    if not dist.is_torchelastic_launched():
        raise InputError(
            "distributed training is started by torchrun; use "
            "`torchrun --nproc-per-node 2 -m shapelaw.trainers.gpu.distributed ...`"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        size = dist.get_world_size()
        mesh = init_device_mesh(device.type, (size,))
        yield World(mode=mode, rank=dist.get_rank(), size=size, device=device, mesh=mesh)
    finally:
        dist.destroy_process_group()


def train_distributed(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    world: World,
    watch: Watch = lambda step: None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Row | None:
    """Train one run over a group of processes, from its checkpoint if there is one.

    Parameters
    ----------
    spec
        Run to train.
    corpus
        Corpus to train on.
    folder
        Folder of the run as in :func:`shapelaw.trainers.training.loop.train_run`, visible to every
        process.
    world
        Group of processes.
    watch
        Function that is called after every step in the first process.
    checkpoint_seconds
        Seconds between two checkpoints.

    Returns
    -------
    Row or None
        Row of the run table in the first process, None in the others.

    Raises
    ------
    InputError
        The sequences of a step cannot be distributed evenly, or the run has branches.
    Diverged
        The loss is infinite or NaN.
    """
    _check(spec, world)
    torch.set_num_threads(1)
    spec = spec.computed_by(Execution(attention=attention_path(world.device)))
    recipe, identity = spec.recipe, spec.identity(corpus)
    trainer = Trainer(spec, world, folder / CHECKPOINT, identity)
    # Only the first process writes metrics.
    names = ("csv",) if world.rank == 0 else ()
    with recording(names, folder, batch_tokens=recipe.batch_tokens) as recorder:
        recorder.start(settings_row(spec, corpus, status="running"), trainer.begun.step)
        seconds = _run_steps(
            trainer, spec.batches(corpus), watch, recorder, checkpoint_seconds, identity
        )
        model, _ = trainer.gather()
        row = _finish(spec, model.to(world.device), corpus, folder, world, seconds)
        if row is not None:
            recorder.result(spec.steps, row)
    dist.barrier()
    return row


def _run_steps(
    trainer: Trainer,
    batches: Batches,
    watch: Watch,
    recorder: Recorder,
    checkpoint_seconds: float,
    identity: str,
) -> float:
    """Train the remaining steps and return the seconds of all steps."""
    begun, steps, first = trainer.begun, trainer.spec.steps, trainer.world.rank == 0
    clock = saved = time.perf_counter()
    for index in range(begun.step, steps):
        due = first and time.perf_counter() - saved >= checkpoint_seconds
        due = trainer.step(Batch(torch.from_numpy(batches(index))), index, checkpoint_due=due)
        spent = begun.seconds + time.perf_counter() - clock
        recorder.log(index + 1, trainer.metrics | {"seconds": spent})
        if due and index + 1 < steps:
            trainer.save(checkpoint.Progress(step=index + 1, seconds=spent, identity=identity))
            saved = time.perf_counter()
        if first:
            watch(index + 1)
    return begun.seconds + time.perf_counter() - clock


def _check(spec: RunSpec, world: World) -> None:
    sequences = spec.recipe.sequences
    if sequences % world.size:
        raise InputError(
            f"`sequences % processes == 0` must hold, but got {sequences} sequences for "
            f"{world.size} processes; use a multiple of the number of processes"
        )
    if spec.branches:
        raise InputError(
            f"`branches` of a distributed run must be empty, but {spec.run_id} has "
            f"{len(spec.branches)}; plan each token count as a separate run"
        )


def _finish(
    spec: RunSpec, model: Transformer, corpus: Corpus, folder: Path, world: World, seconds: float
) -> Row | None:
    if world.rank:
        return None
    row = evaluate_branch(spec, model, corpus, folder, end=spec.steps, seconds=seconds)
    row |= {"device": f"{world.size} x {device_label(world.device)}, {world.mode}"}
    export_run(spec, model, corpus, folder)
    keep_rows(spec, corpus, folder, [row])
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the run of a JSON file under torchrun; the first process prints its row as JSON."""
    parser = argparse.ArgumentParser(
        prog="shapelaw.trainers.gpu.distributed", description=main.__doc__
    )
    parser.add_argument("run", type=Path, help="JSON of a run")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of a prepared corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--mode", default="fsdp", help="ddp or fsdp")
    given = parser.parse_args(arguments)
    try:
        row = _run(given.run, given.corpus, given.out, given.mode)
    except (InputError, WorkError) as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{error}\n")
        raise SystemExit(2 if isinstance(error, InputError) else 1) from None
    if row is not None:
        sys.stdout.write(json.dumps(row) + "\n")


def _run(run: Path, corpus_folder: Path, out: Path, mode: str) -> Row | None:
    try:
        spec = RunSpec.from_json(run.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run} is not a run ({error}); write RunSpec.as_json() to it") from None
    with joined(mode) as world:
        corpus = Corpus.load(corpus_folder)
        try:
            row = train_distributed(spec, corpus, out, world=world)
        except Diverged:
            row = None if world.rank else diverged_row(spec, corpus, world.device)
    if row is not None:
        write_json(out / "row.json", row)
    return row


if __name__ == "__main__":
    main()
