"""The command line, run as a user does."""

import subprocess
import sys

SMALL = ("--effort", "0.02", "--measurements", "4", "--json")


def shapelaw(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    command = [sys.executable, "-c", "from shapelaw.search.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options
    )  # type: ignore[call-overload]
