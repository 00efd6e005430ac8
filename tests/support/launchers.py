"""Launchers of sweeps for tests."""

from collections.abc import Mapping, Sequence

from shapelaw.trainers.sweep.launchers._base import End, Launcher, WorkerJob
from shapelaw.trainers.sweep.worker import run_worker


class InProcess(Launcher):
    """Make this process the only worker, without the start of another Python."""

    several_machines = False

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self.started: list[int] = []

    def open(self, job: WorkerJob) -> None: ...

    def default_workers(self) -> int:
        return 1

    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        self.started += numbers
        run_worker(job.ledger, job.folder, pack=job.pack, share=job.share)

    def look(self, number: int) -> End | None:
        return End()

    def stop(self) -> None: ...
