"""Workers as processes of this machine: one per GPU, else one per core with one thread each."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import SpawnProcess

from shapelaw.trainers.sweep.launchers._base import End, Launcher, WorkerJob, refuse_unknown

STOP_SECONDS = 5.0
TOLD_TO_END = 128 + signal.SIGTERM  # the exit code of a worker that gave its run back


class LocalLauncher(Launcher):
    """Processes, which end when this one does."""

    several_machines = False

    def __init__(self, options: Mapping[str, str]) -> None:
        refuse_unknown("local", options, ())
        self.processes: dict[int, SpawnProcess] = {}
        self.devices: list[str] = []

    def open(self, job: WorkerJob) -> None:
        """Find the GPUs."""
        self.devices = visible_devices()

    def default_workers(self) -> int:
        """One per GPU, else one per core."""
        return len(self.devices) or cores()

    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        """Start processes; GPUs are dealt out in turn."""
        context = multiprocessing.get_context("spawn")
        for number in numbers:
            device = self.devices[number % len(self.devices)] if self.devices else ""
            process = context.Process(
                target=_process,
                args=(job, os.getpid(), device),
                daemon=True,
            )
            process.start()
            self.processes[number] = process

    def look(self, number: int) -> End | None:
        """A process that was killed may be started again."""
        code = self.processes[number].exitcode
        if code is None:
            return None
        if code < 0 or code == TOLD_TO_END:
            number = -code if code < 0 else signal.SIGTERM
            return End(reason=f"was ended by {signal.Signals(number).name}", again=True)
        return End(reason=f"ended with code {code}" if code else "")

    def stop(self) -> None:
        """Tell the processes to end, which lets them give their runs back; then end them."""
        for process in self.processes.values():
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            process.join(max(end - time.monotonic(), 0.0))
            if process.is_alive():
                process.kill()
                process.join()


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",") if name.strip()][:count] or [
        str(index) for index in range(count)
    ]


def _process(job: WorkerJob, parent: int, device: str) -> None:
    """Be a worker. This module imports no torch, so the environment is set before torch looks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its workers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TOLD_TO_END))
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
    from shapelaw.scaling.display.console import note
    from shapelaw.scaling.errors import InputError, WorkError
    from shapelaw.trainers.sweep.worker import run_worker

    try:
        run_worker(job.ledger, job.folder, pack=job.pack, share=job.share,
             alive=lambda: os.getppid() == parent)  # fmt: skip
    except (InputError, WorkError) as error:
        note(f"worker: {error}")
        raise SystemExit(1) from None
