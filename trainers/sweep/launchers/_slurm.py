"""Workers as jobs of SLURM, through submitit (extra ``[slurm]``).

submitit puts a job that reaches its time limit or is preempted back into the queue, and the job
resumes from its last checkpoint. https://github.com/facebookincubator/submitit
"""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.extras import installing
from shapelaw.trainers.sweep.launchers._base import IDLE_SECONDS, End, Launcher, WorkerJob

DEFAULTS = {"name": "shapelaw", "timeout_min": 240, "cpus_per_task": 1}
MAX_REQUEUES = 1000  # a sweep may take more than a hundred time limits
GRACE_SECONDS, STOP_SECONDS = 2.0, 10.0
CLUSTERS = ("slurm", "local")
LISTS = ("setup", "srun_args", "teardown")  # several commands, separated by ;
UNSUPPORTED = ("additional_parameters",)  # a dictionary, which an option cannot express


class SlurmLauncher(Launcher):
    """Launcher of one SLURM job per worker, all in one job array.

    The options are the settings of submitit by name (``partition``, ``timeout_min``, ``mem_gb``,
    ``gpus_per_node``, ``account``, ``qos``, ``constraint``, ``array_parallelism``, ...), and
    ``cluster=local`` for a trial of the same code path with processes of this machine.
    """

    several_machines = True

    def __init__(self, options: Mapping[str, str]) -> None:
        self.cluster = options.get("cluster", "slurm")
        if self.cluster not in CLUSTERS:
            raise InputError(
                f"`cluster` must be one of {', '.join(CLUSTERS)}, but got {self.cluster!r}"
            )
        given = {name: value for name, value in options.items() if name != "cluster"}
        self.parameters = DEFAULTS | (_parameters(given) if given else {})
        self.jobs: dict[int, Any] = {}
        self.executor: Any = None

    def open(self, job: WorkerJob) -> None:
        """Create the executor; the jobs write logs to ``slurm/`` in the folder of the sweep."""
        submitit = _submitit()
        settings = {"slurm_max_num_timeout": MAX_REQUEUES} if self.cluster == "slurm" else {}
        try:
            self.executor = submitit.AutoExecutor(
                folder=job.folder / "slurm", cluster=self.cluster, **settings
            )
            self.executor.update_parameters(**self.parameters)
        except RuntimeError as error:
            raise InputError(
                f"there is no SLURM here ({error}); run this on a login node of the cluster, or "
                "give --option cluster=local for a trial on this machine"
            ) from error

    def default_workers(self) -> int:
        """Refuse to choose a number, because SLURM does not report its free resources."""
        raise InputError(
            "`--workers N` must be given with --launcher slurm: the number of jobs to submit"
        )

    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        """Submit the workers as one array."""
        with _interrupts_enabled(), self.executor.batch():
            jobs = [self.executor.submit(Worker(job)) for _ in numbers]
        self.jobs.update(zip(numbers, jobs, strict=True))

    def look(self, number: int) -> End | None:
        """Return the end of a worker, or None while it runs.

        A worker on a lost node or of a cancelled job can be restarted, but not one that reported an
        error itself.
        """
        job = self.jobs[number]
        if not job.done():
            return None
        if not job.paths.result_pickle.exists():
            return End(reason=f"was lost: job {job.job_id} is {job.state}", again=True)
        error = job.exception()
        return End(reason=f"failed in job {job.job_id}: {_cause(error)}" if error else "")

    def stop(self) -> None:
        """Cancel the jobs that have not ended, and wait for processes of this machine."""
        left = self._left(list(self.jobs.values()), GRACE_SECONDS)
        end = time.monotonic() + STOP_SECONDS
        while left:  # a process that is still starting may miss the first signal
            for job in left:
                job.cancel(check=False)
            left = self._left(left, 1.0)
            if self.cluster != "local" or time.monotonic() > end:
                break
        self.jobs = {}

    def _left(self, jobs: list[Any], seconds: float) -> list[Any]:
        """Return the jobs that have not ended, after a wait for processes of this machine."""
        end = time.monotonic() + (seconds if self.cluster == "local" else 0.0)
        left = [job for job in jobs if not job.done()]
        while left and time.monotonic() < end:
            time.sleep(0.1)
            left = [job for job in left if not job.done()]
        return left


@contextmanager
def _interrupts_enabled() -> Iterator[None]:
    """Enable SIGINT, with which submitit cancels jobs, for processes started here.

    A command that a shell started in the background ignores SIGINT, and its child processes would
    inherit this.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class Worker:
    """Worker that submitit can put back into the queue."""

    def __init__(self, job: WorkerJob) -> None:
        self.job = job

    def __call__(self) -> None:
        """Run the worker on a node of the cluster."""
        from shapelaw.trainers.sweep.worker import run_worker

        job = self.job
        run_worker(
            job.ledger, job.folder, pack=job.pack, share=job.share, idle_seconds=IDLE_SECONDS
        )

    def checkpoint(self) -> Any:
        """Return what submitit puts into the queue at the time limit: the same worker."""
        return _submitit().helpers.DelayedSubmission(self)


def _parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """Convert options to parameters of submitit; those specific to SLURM get their prefix."""
    submitit = _submitit()
    general = submitit.AutoExecutor._typed_parameters()
    special = sorted(set(submitit.SlurmExecutor._valid_parameters()) - set(UNSUPPORTED))
    parameters: dict[str, Any] = {}
    for name, value in options.items():
        if name in general:
            parameters[name] = _typed(name, value, general[name])
        elif name in special:
            parameters[f"slurm_{name}"] = _value(name, value)
        else:
            known = ", ".join(sorted({*general, *special, "cluster"}))
            raise InputError(f"`--option` of slurm must be one of {known}, but got {name!r}")
    return parameters


def _typed(name: str, value: str, kind: type) -> Any:
    if kind is bool and value in ("true", "false"):
        return value == "true"
    try:
        if kind is not bool:
            return kind(value)
    except ValueError:
        pass
    raise InputError(f"`{name}` must be of type {kind.__name__}, but got {value!r}")


def _value(name: str, value: str) -> Any:
    if name in LISTS:
        return [part.strip() for part in value.split(";")]
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdigit() else value


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise InputError(
            f"submitit is not installed; install it by `{installing('submitit')}`"
        ) from None
    return submitit


def _cause(error: Exception) -> str:
    """Return the last line of the traceback that submitit quotes between two rules."""
    trace = str(error).split("-" * 22)
    lines = (trace[1] if len(trace) > 2 else str(error)).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
