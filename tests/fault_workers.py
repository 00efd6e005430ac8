"""Workers that can be killed at any moment: children of one process that has torch loaded already.

Run as ``python fault_workers.py LEDGER FOLDER OPTIONS`` (JSON): every line on its input starts one
worker, whose process id it prints; they end when it does.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch._dynamo  # noqa: F401 -- the optimisers import it late: once is enough

from trainers import worker
from trainers.loop import train

DAY = 86_400.0


def main(ledger: str, folder: str, options: str) -> None:
    """Start workers as they are asked for."""
    chosen = json.loads(options)
    assert train.__kwdefaults__ is not None
    train.__kwdefaults__["checkpoint_seconds"] = chosen.get("checkpoint_seconds", 0.03)
    worker.BEAT_SECONDS = 0.1
    if limit := chosen.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    parent = os.getpid()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if chosen.get("clock_jumps"):
                jump()
            worker.work(ledger, Path(folder), alive=lambda: os.getppid() == parent)
            sys.stderr.flush()
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


def jump() -> None:
    """From now on the clock of this process is set back and forward all the time."""
    real, draw = time.time, random.Random(os.getpid())
    time.time = lambda: real() + draw.choice((-DAY, 0.0, DAY))  # type: ignore[assignment]


if __name__ == "__main__":
    main(*sys.argv[1:])
