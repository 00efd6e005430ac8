"""The command line, run as a user does."""

import signal
import subprocess
import sys

COMMAND = [sys.executable, "-c", "from shapelaw.search.cli import main; main()"]
SMALL = ("--effort", "0.02", "--measurements", "4", "--json")


def shapelaw(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options
    )  # type: ignore[call-overload]


def started_shapelaw(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    """Start the command in a process group of its own, with Ctrl-C in force, as a terminal does.

    A process that was itself started in the background ignores Ctrl-C, and so would its children.
    """
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )  # type: ignore[call-overload]
