"""Wait in tests for what other processes and threads do, however busy the machine is."""

import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds; only a failure takes as long


def wait_until(holds: Callable[[], object], what: str, *, pause: float = 0.02) -> None:
    """Wait until a condition holds; ``what`` says for what, in the words of the failure."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE:.0f} s in vain for {what}"
        time.sleep(pause)
