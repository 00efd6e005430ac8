"""Heartbeats of workers, and how others tell that a worker is dead without comparing clocks.

A worker counts its heartbeats. Who looks at it measures with its own monotonic clock for how long
the count stood still, so neither a clock that is set back or forward nor two machines that disagree
about the time can make a living worker look dead, or a dead one alive.
"""

import os
import socket
import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Between two looks at most this much counts as seen: whoever slept, or was frozen with the rest of
# its machine, has not watched.
LONGEST_GAP = 5.0


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process of some machine; ``mark`` tells it from all others, before and after a reboot."""

    host: str
    pid: int
    mark: str


def this_process() -> ProcessId:
    """Identify the calling process."""
    host, pid = socket.gethostname(), os.getpid()
    return ProcessId(host=host, pid=pid, mark="/".join((_machine(host), str(pid), _begun(pid))))


def is_gone(mark: str) -> bool:
    """Tell whether a process of this very machine has ended; False where that cannot be known."""
    machine, _, rest = mark.rpartition("/")[0].rpartition("/")
    begun = mark.rpartition("/")[2]
    if not rest.isdigit() or machine != _machine(socket.gethostname()):
        return False
    return not process_exists(int(rest)) or _begun(int(rest)) != begun


def process_exists(pid: int) -> bool:
    """Tell whether a process of this machine lives (zombies are dead)."""
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
    """Beat from a thread while a ``with`` lasts, so that a long compilation looks alive.

    ``lost`` says that the work belongs to somebody else now.

    Parameters
    ----------
    beat
        Called again and again; it returns False where the work was lost, which ends the beating.
        A beat that is missed is no failure: the next one counts.
    seconds
        Between two beats.
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
    """Remember for how long counters were seen standing still.

    Parameters
    ----------
    clock
        Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked = clock()
        self._seen: dict[str, tuple[Hashable, float]] = {}

    def look(self, counters: Mapping[str, Hashable]) -> dict[str, float]:
        """Seconds for which each counter stood still, as far as it was watched."""
        now = self._clock()
        gap, self._looked = min(max(now - self._looked, 0.0), LONGEST_GAP), now
        seen = {}
        for name, counter in counters.items():
            before, still = self._seen.get(name, (None, 0.0))
            seen[name] = (counter, still + gap if before == counter else 0.0)
        self._seen = seen
        return {name: still for name, (_, still) in seen.items()}


def _machine(host: str) -> str:
    """Identify the machine, its boot, and the container in which its process ids hold."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{host}:{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return host


def _begun(pid: int) -> str:
    """When a process began, in ticks since the boot: a reused id has another."""
    try:
        return _stat(pid)[19]
    except (OSError, IndexError):
        return ""


def _stat(pid: int) -> list[str]:
    """Fields of ``/proc/PID/stat`` from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
