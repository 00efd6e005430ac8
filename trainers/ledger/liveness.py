"""Heartbeats of workers, and detection of dead workers without comparing clocks.

A worker counts its heartbeats. An observer measures with its own monotonic clock for how long the
count has not changed. Neither a clock that is set back or forward nor two machines with different
times can therefore make a living worker look dead, or a dead one alive.
"""

import os
import socket
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Seconds between two observations that count as observed at most. An observer that slept, or was
# frozen together with its machine, has not observed the time in between.
MAX_OBSERVED_GAP = 5.0


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """Identity of a process; ``mark`` is unique across machines, reboots and reused ids."""

    host: str
    pid: int
    mark: str


def this_process() -> ProcessId:
    """Identify the calling process."""
    host, pid = socket.gethostname(), os.getpid()
    return ProcessId(
        host=host, pid=pid, mark="/".join((_machine(host), str(pid), _start_ticks(pid)))
    )


def is_gone(mark: str) -> bool:
    """Return True if a process of this machine has ended.

    The result is False for a process of another machine, because its state is unknown.

    Parameters
    ----------
    mark
        Mark of a :class:`ProcessId`.
    """
    rest, _, start = mark.rpartition("/")
    machine, _, pid = rest.rpartition("/")
    if not pid.isdigit() or machine != _machine(socket.gethostname()):
        return False
    return not process_exists(int(pid)) or _start_ticks(int(pid)) != start


def process_exists(pid: int) -> bool:
    """Return True if a process of this machine is alive; zombies count as dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return True


class Heartbeat:
    """Context manager that sends heartbeats from a thread, also during a long compilation.

    ``lost`` is true if the work now belongs to another worker.

    Parameters
    ----------
    beat
        Function that sends one heartbeat. It returns False if the work was lost, which ends the
        heartbeats. A missed heartbeat should not raise an error, because the next one follows.
    seconds
        Seconds between two heartbeats.
    """

    def __init__(self, beat: Callable[[], bool], seconds: float) -> None:
        self.lost = False
        self._beat, self._seconds = beat, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.lost and not self._ended.wait(self._seconds):
            self.lost = not self._beat()


class Watch:
    """Observer that measures for how long counters have not changed.

    Parameters
    ----------
    clock
        Monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked = clock()
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def look(self, counters: Mapping[str, Hashable]) -> dict[str, float]:
        """Return the observed seconds for which each counter has not changed."""
        now = self._clock()
        gap, self._looked = min(max(now - self._looked, 0.0), MAX_OBSERVED_GAP), now
        seen = {}
        for name, counter in counters.items():
            before, still = self._seen.get(name, (None, 0.0))
            seen[name] = (counter, still + gap if before == counter else 0.0)
        self._seen = seen
        return {name: still for name, (_, still) in seen.items()}


def _machine(host: str) -> str:
    """Identify the machine, its boot and the container in which process ids are valid."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{host}:{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return host


def _start_ticks(pid: int) -> str:
    """Return the start of a process in clock ticks since boot, which differs for a reused id."""
    try:
        return _stat(pid)[19]
    except (OSError, IndexError):
        return ""


def _stat(pid: int) -> list[str]:
    """Read the fields of ``/proc/PID/stat`` from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
