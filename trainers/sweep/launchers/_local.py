"""Workers as processes of this machine: one per GPU, or else one per core with one thread."""

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import SpawnProcess

from shapelaw.scaling.signals import TERMINATED, interrupts_left_to_parent
from shapelaw.trainers.sweep.launchers._base import End, Launcher, WorkerJob, refuse_unknown

STOP_SECONDS = 5.0


class LocalLauncher(Launcher):
    """Launcher of processes that end together with this one."""

    several_machines = False

    def __init__(self, options: Mapping[str, str]) -> None:
        refuse_unknown("local", options, ())
        self.processes: dict[int, SpawnProcess] = {}
        self.devices: list[str] = []

    def open(self, job: WorkerJob) -> None:
        """Find the GPUs of this machine."""
        self.devices = visible_devices()

    def default_workers(self) -> int:
        """Return the number of GPUs, or else of cores."""
        return len(self.devices) or cores()

    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        """Start processes; the GPUs are assigned in turn."""
        context = multiprocessing.get_context("spawn")
        for number in numbers:
            device = self.devices[number % len(self.devices)] if self.devices else ""
            process = context.Process(
                target=_process,
                args=(job, os.getpid(), device),
                daemon=True,
            )
            with interrupts_left_to_parent():
                process.start()
            self.processes[number] = process

    def look(self, number: int) -> End | None:
        """Return the end of a process, or None while it runs.

        A killed process can be restarted.
        """
        code = self.processes[number].exitcode
        if code is None:
            return None
        if code < 0 or code == TERMINATED:
            number = -code if code < 0 else signal.SIGTERM
            return End(reason=f"was ended by {signal.Signals(number).name}", again=True)
        return End(reason=f"ended with code {code}" if code else "")

    def stop(self) -> None:
        """Terminate the processes, which then release their runs; kill those that do not end."""
        for process in self.processes.values():
            process.terminate()
        end = time.monotonic() + STOP_SECONDS
        for process in self.processes.values():
            process.join(max(end - time.monotonic(), 0.0))
            if process.is_alive():
                process.kill()
                process.join()


def cores() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """Return the names of the usable GPUs for ``CUDA_VISIBLE_DEVICES``."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in names.split(",") if name.strip()][:count] or [
        str(index) for index in range(count)
    ]


def _process(job: WorkerJob, parent: int, device: str) -> None:
    """Run a worker in this process; after SIGTERM it ends with the next step and releases its runs.

    This module does not import torch, so that the environment is set before torch reads it. An
    exception in a handler could come up in the middle of a transaction or of an import.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles SIGINT and ends its workers
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
    from shapelaw.scaling.display.console import hide_warnings, note
    from shapelaw.scaling.errors import InputError, WorkError
    from shapelaw.trainers.sweep.worker import run_worker

    hide_warnings()
    stops: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
    try:
        run_worker(job.ledger, job.folder, pack=job.pack, share=job.share,
             alive=lambda: not stops and os.getppid() == parent)  # fmt: skip
    except (InputError, WorkError) as error:
        note(f"worker: {error}")
        raise SystemExit(1) from None
    if stops:
        raise SystemExit(TERMINATED)
