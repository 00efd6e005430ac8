"""The command line, run as a user does."""

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
    """Start the command in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )  # type: ignore[call-overload]
