"""Waiting in tests for other processes and threads, independent of the machine's load."""

import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds; only a failing test waits as long


def wait_until(holds: Callable[[], object], what: str, *, pause: float = 0.02) -> None:
    """Wait until a condition holds; ``what`` names the condition in the failure message."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s in vain for {what}"
        time.sleep(pause)
