"""Signals that end a command: SIGTERM like Ctrl-C, and neither of them in its child processes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT  # exit code after Ctrl-C
TERMINATED = 128 + signal.SIGTERM  # exit code after SIGTERM


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Raise SystemExit with the code 143 at a SIGTERM, so that blocks are left in order.

    Only the main thread may handle signals; in another one the context has no effect.
    """

    def stop(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    with _handled(signal.SIGTERM, stop):
        yield


@contextmanager
def interrupts_left_to_parent() -> Iterator[None]:
    """Let the processes that are started in the context ignore Ctrl-C from their first moment on.

    A terminal sends Ctrl-C to all processes of a command; the parent ends its children itself.
    """
    with _handled(signal.SIGINT, signal.SIG_IGN):
        yield


@contextmanager
def _handled(number: signal.Signals, handler: object) -> Iterator[None]:
    """Set the handler of a signal in the main thread, and restore the earlier one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        signal.signal(number, before)
