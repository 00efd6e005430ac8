"""Workers as tasks of a Ray cluster (extra ``[ray]``).

Ray places them, and starts those again whose node died; which run a worker trains is the ledger's
business. https://docs.ray.io/en/latest/ray-core/tasks.html
"""

import math
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.trainers.sweep.launchers._base import (
    IDLE_SECONDS,
    End,
    Launcher,
    WorkerJob,
    number_of,
    refuse_unknown,
)

ADDRESS = "auto"  # the cluster of RAY_ADDRESS, else one that runs on this machine
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # where `ray start` leaves its address
KNOCK_SECONDS = 5.0
OPTIONS = ("address", "num_cpus", "num_gpus", "memory", "accelerator_type")


class RayLauncher(Launcher):
    """Tasks of a running Ray cluster, found by ``address``.

    Options: ``address`` (``auto``, ``HOST:PORT``, or ``local`` for a cluster of this machine that
    lives as long as the command), and what one worker needs: ``num_cpus`` (1), ``num_gpus`` (1
    where the cluster has GPUs), ``memory`` (bytes), ``accelerator_type``.
    """

    several_machines = True

    def __init__(self, options: Mapping[str, str]) -> None:
        refuse_unknown("ray", options, OPTIONS)
        self.address = options.get("address", ADDRESS)
        self.needs: dict[str, Any] = {"num_cpus": 1.0}
        for name in ("num_cpus", "num_gpus", "memory"):
            if name in options:
                self.needs[name] = number_of("ray", name, options[name])
        if "accelerator_type" in options:
            self.needs["accelerator_type"] = options["accelerator_type"]
        self.tasks: dict[int, Any] = {}
        self.connected = False

    def open(self, job: WorkerJob) -> None:
        """Connect to the cluster, unless this process is connected to one."""
        ray = _ray()
        if not ray.is_initialized():
            try:
                _knock(self.address)
                ray.init(address=self.address, logging_level="warning", include_dashboard=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"no Ray cluster answers at {self.address!r} ({_first_line(error)}); start one "
                    "with `ray start --head`, or give --option address=HOST:PORT"
                ) from error
            self.connected = True
        if "num_gpus" not in self.needs:
            self.needs["num_gpus"] = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0

    def default_workers(self) -> int:
        """As many as the cluster holds now."""
        there = _ray().cluster_resources()
        counts = [
            there.get(name, 0.0) / self.needs[need]
            for name, need in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "memory"))
            if self.needs.get(need)
        ]
        return max(1, math.floor(min(counts, default=1.0)))

    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        """Submit one task per worker."""
        ray = _ray()
        for number in numbers:
            task = ray.remote(_task).options(name=f"shapelaw worker {number}", **self.needs)
            self.tasks[number] = task.remote(job)

    def look(self, number: int) -> End | None:
        """An error of the worker itself is final; a lost machine is not."""
        ray = _ray()
        task = self.tasks[number]
        ready, _ = ray.wait([task], timeout=0)
        if not ready:
            return None
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            return End(reason=f"failed: {error.cause}")
        except ray.exceptions.RayError as error:
            return End(reason=f"was lost: {_first_line(error)}", again=True)
        return End()

    def stop(self) -> None:
        """Cancel the tasks and leave the cluster."""
        ray = _ray()
        if ray.is_initialized():
            for task in self.tasks.values():
                ray.cancel(task, force=True)
        self.tasks = {}
        if self.connected:
            ray.shutdown()
            self.connected = False


def _task(job: WorkerJob) -> None:
    """Be a worker; runs on a machine of the cluster, where shapelaw must be installed."""
    from shapelaw.trainers.sweep.worker import run_worker

    run_worker(job.ledger, job.folder, pack=job.pack, share=job.share, idle_seconds=IDLE_SECONDS)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(f"Ray is not installed; `{installing('ray')}`") from None
    return ray


def _knock(address: str) -> None:
    """See that somebody listens: ray.init alone tries for ten minutes.

    Raises
    ------
    OSError
        Nobody does.
    """
    if address == ADDRESS:
        address = os.environ.get("RAY_ADDRESS", "")
    if not address and CURRENT_CLUSTER.exists():  # of the last `ray start`, which may have ended
        address = CURRENT_CLUSTER.read_text().strip()
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
