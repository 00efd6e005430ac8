"""Workers as tasks of a Ray cluster (extra ``[ray]``).

Ray places the workers and restarts those whose node died. The ledger determines the runs that a
worker trains. https://docs.ray.io/en/latest/ray-core/tasks.html
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

ADDRESS = "auto"  # the cluster of RAY_ADDRESS, or else one that runs on this machine
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # written by `ray start`
CONNECT_SECONDS = 5.0
OPTIONS = ("address", "num_cpus", "num_gpus", "memory", "accelerator_type")


class RayLauncher(Launcher):
    """Launcher of tasks on a running Ray cluster.

    The options are ``address`` (``auto``, ``HOST:PORT``, or ``local`` for a cluster of this machine
    that ends with the command) and the resources of one worker: ``num_cpus`` (default 1),
    ``num_gpus`` (default 1 if the cluster has GPUs), ``memory`` (bytes) and ``accelerator_type``.
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
        """Connect to the cluster, unless this process is already connected to one."""
        ray = _ray()
        if not ray.is_initialized():
            try:
                _check_connection(self.address)
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
        """Return the number of workers for which the cluster has resources now."""
        resources = _ray().cluster_resources()
        counts = [
            resources.get(name, 0.0) / self.needs[need]
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
        """Return the end of a worker, or None while it runs.

        A worker on a lost machine can be restarted, but not one that reported an error itself.
        """
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
    """Run a worker on a machine of the cluster, on which shapelaw must be installed."""
    from shapelaw.trainers.sweep.worker import run_worker

    run_worker(job.ledger, job.folder, pack=job.pack, share=job.share, idle_seconds=IDLE_SECONDS)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(f"Ray is not installed; install it by `{installing('ray')}`") from None
    return ray


def _check_connection(address: str) -> None:
    """Check that a cluster listens at an address, because ray.init would try for ten minutes.

    Raises
    ------
    OSError
        No process listens at the address.
    """
    if address == ADDRESS:
        address = os.environ.get("RAY_ADDRESS", "")
    if not address and CURRENT_CLUSTER.exists():  # of the last `ray start`, which may have ended
        address = CURRENT_CLUSTER.read_text().strip()
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
