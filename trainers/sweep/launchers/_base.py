"""Interface of a launcher, and supervision of its workers until every run has ended."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.signals import ended_by_sigterm

POLL_SECONDS = 0.25
# Workers that may die in succession, without a step of training in between, before no worker is
# started again.
MAX_DEATHS = 10
# A worker of a cluster ends after so many seconds without work and frees its machine. The time is
# longer than that after which the ledger counts another worker as dead.
IDLE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """Arguments of every worker; see :func:`shapelaw.trainers.sweep.worker.run_worker`."""

    ledger: str
    folder: Path
    pack: int | None = None
    share: int | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """End of a worker.

    Attributes
    ----------
    reason
        Why the worker ended; empty if no run was left.
    again
        True if a restart may help, as after a kill or the loss of a machine, but not after an error
        that the worker itself reported.
    """

    reason: str = ""
    again: bool = False


class Launcher(ABC):
    """Launcher that starts workers, each of which calls ``run_worker``, and reports their ends.

    Parameters
    ----------
    options
        Settings by name, from ``--option NAME=VALUE``.

    Raises
    ------
    InputError
        An option is unknown or its value cannot be used.
    """

    @abstractmethod
    def __init__(self, options: Mapping[str, str]) -> None: ...

    @property
    @abstractmethod
    def several_machines(self) -> bool:
        """True if workers may run on other machines than this one."""

    @abstractmethod
    def open(self, job: WorkerJob) -> None:
        """Connect to the system that starts the workers.

        Raises
        ------
        InputError
            The system is not available or not installed.
        """

    @abstractmethod
    def default_workers(self) -> int:
        """Return the number of workers for which there is room; call after :meth:`open`."""

    @abstractmethod
    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        """Start the workers with these numbers; a worker that died can be started again."""

    @abstractmethod
    def look(self, number: int) -> End | None:
        """Return the end of a worker, or None while it is running or queued."""

    @abstractmethod
    def stop(self) -> None:
        """Stop every worker and disconnect; a second call has no effect."""


def supervise(
    launcher: Launcher, job: WorkerJob, workers: int, progress: Callable[[], float | None]
) -> list[str]:
    """Run workers until every run has ended, and restart workers that died.

    Parameters
    ----------
    launcher
        Opened launcher. It is stopped at the end, also after an error.
    job
        Arguments of every worker.
    workers
        Number of workers.
    progress
        Function that is called several times a second. It returns the amount of training done, in
        any unit, or None if every run has ended.

    Returns
    -------
    list of str
        Reasons why workers died, the latest first; empty if no worker died.
    """
    reasons: list[str] = []
    living = set(range(workers))
    deaths, best = 0, -1.0
    with ended_by_sigterm():
        try:
            launcher.start(job, sorted(living))
            while living and (now := progress()) is not None:
                if now > best:
                    deaths, best = 0, now
                ends = {number: launcher.look(number) for number in sorted(living)}
                ended = {number: end for number, end in ends.items() if end is not None}
                died = [number for number, end in ended.items() if end.reason]
                deaths += len(died)
                reasons = [ended[number].reason for number in died] + reasons
                again = [number for number in died if ended[number].again and deaths <= MAX_DEATHS]
                living = (living - set(ended)) | set(again)
                if again:
                    launcher.start(job, again)
                time.sleep(POLL_SECONDS)
        finally:
            launcher.stop()
    return reasons


def refuse_unknown(launcher: str, options: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse options that a launcher does not have.

    Raises
    ------
    InputError
        An option is unknown. The error names it and the options of the launcher.
    """
    for name in options:
        if name not in known:
            allowed = f"one of {', '.join(known)}" if known else "left out, as it has none"
            raise InputError(f"`--option` of {launcher} must be {allowed}, but got {name!r}")


def number_of(launcher: str, name: str, value: str) -> float:
    """Parse the value of an option that must be a number ≥ 0.

    Raises
    ------
    InputError
        The value is not such a number.
    """
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InputError(f"`{name} >= 0` must hold for --option of {launcher}, but got {value!r}")
    return number
