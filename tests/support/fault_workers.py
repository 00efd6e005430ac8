"""Workers that tests kill at any moment: children of one process that has imported torch.

The process starts a worker for each line of its input (JSON) and prints the worker's process id.
The workers end with the process.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 -- the optimisers import it late: once is enough

from shapelaw.trainers.gpu import packed_loop
from shapelaw.trainers.gpu.packed_loop import train_pack
from shapelaw.trainers.sweep import worker
from shapelaw.trainers.training.loop import train_run

DAY = 86_400.0
CHECKPOINT_SECONDS = 0.03
BEAT_SECONDS = 0.1


def main() -> None:
    """Start a worker for each line of the input."""
    assert train_run.__kwdefaults__ is not None
    train_run.__kwdefaults__["checkpoint_seconds"] = CHECKPOINT_SECONDS
    assert train_pack.__kwdefaults__ is not None
    train_pack.__kwdefaults__["checkpoint_seconds"] = CHECKPOINT_SECONDS
    packed_loop.BLOCK_SECONDS = CHECKPOINT_SECONDS
    worker.BEAT_SECONDS = BEAT_SECONDS
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end are reaped automatically
    for line in sys.stdin:
        parent, child = os.getpid(), os.fork()
        if child == 0:
            try:
                work(json.loads(line), parent)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


def work(options: dict[str, Any], parent: int) -> None:
    """Run a worker with the options of its line."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(options["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if limit := options.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if options.get("clock_jumps"):
        make_clock_jump()
    alive = lambda: os.getppid() == parent  # noqa: E731
    worker.run_worker(
        options["ledger"], Path(options["folder"]), pack=options.get("pack"), alive=alive
    )


def make_clock_jump() -> None:
    """Replace the clock of this process by one that jumps by a day at random."""
    real, draw = time.time, random.Random(os.getpid())
    time.time = lambda: real() + draw.choice((-DAY, 0.0, DAY))  # type: ignore[assignment]


if __name__ == "__main__":
    main()
