"""What a launcher is, and how its workers are watched until every run has ended."""

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shapelaw.scaling.display.console import note
from shapelaw.scaling.errors import InputError

POLL_SECONDS = 0.25
# Workers that died in a row, without a single step of training between: then something kills them.
DEATHS = 10
# A worker of a cluster leaves after so long without work and gives its machine back; longer than
# the ledger takes to see that another worker is dead.
IDLE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """What every worker is told; see :func:`shapelaw.trainers.sweep.worker.run_worker`."""

    ledger: str
    folder: Path
    pack: int | None = None
    share: int | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """How a worker ended.

    ``reason`` is empty if it found nothing left to do; ``again`` says that another start may help
    (a kill, a lost machine), as it would not after an error that the worker itself reported.
    """

    reason: str = ""
    again: bool = False


class Launcher(ABC):
    """Start workers, each of which calls ``run_worker``, and watch over them.

    Parameters
    ----------
    options
        Settings by name, as ``--option NAME=VALUE`` gives them.

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
        """Whether workers may run on other machines than this one."""

    @abstractmethod
    def open(self, job: WorkerJob) -> None:
        """Connect to what starts the workers.

        Raises
        ------
        InputError
            It is not there, or not installed.
        """

    @abstractmethod
    def default_workers(self) -> int:
        """How many workers this place is made for; asked after :meth:`open`."""

    @abstractmethod
    def start(self, job: WorkerJob, numbers: Sequence[int]) -> None:
        """Start the workers of these numbers; one that died may be started again."""

    @abstractmethod
    def look(self, number: int) -> End | None:
        """How a worker ended; None while it works or waits for its turn."""

    @abstractmethod
    def stop(self) -> None:
        """End every worker and disconnect; may be called twice."""


def supervise(
    launcher: Launcher, job: WorkerJob, workers: int, progress: Callable[[], float | None]
) -> list[str]:
    """Run workers until every run has ended, and start those again that died.

    Parameters
    ----------
    launcher
        Open already; it is stopped at the end, however that comes.
    progress
        Called several times a second: how much was trained so far, in any unit, or None when every
        run has ended.

    Returns
    -------
    Why workers died, the last first; empty if all ended in order.
    """
    reasons: list[str] = []
    living = set(range(workers))
    deaths, best = 0, -1.0
    with _ended_by_sigterm():
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
                again = [number for number in died if ended[number].again and deaths <= DEATHS]
                living = (living - set(ended)) | set(again)
                if again:
                    launcher.start(job, again)
                time.sleep(POLL_SECONDS)
        finally:
            launcher.stop()
    return reasons


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, with the workers stopped and exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        note("error: stopped; the same command goes on from here")
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse_unknown(launcher: str, options: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse options that a launcher does not have.

    Raises
    ------
    InputError
        Names the option and those that there are.
    """
    for name in options:
        if name not in known:
            there = f"one of {', '.join(known)}" if known else "none: this launcher has no options"
            raise InputError(f"`--option` of {launcher} must be {there}, but got {name!r}")


def number_of(launcher: str, name: str, value: str) -> float:
    """The value of an option that must be a number ≥ 0.

    Raises
    ------
    InputError
        It is not one.
    """
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InputError(f"`{name} >= 0` must hold for --option of {launcher}, but got {value!r}")
    return number
