"""Run the command line as a user does."""

import subprocess
import sys

SMALL = ("--effort", "0.02", "--measurements", "4", "--json")


def shapelaw(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in its own process."""
    command = [sys.executable, "-c", "from shapelaw.search.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options
    )  # type: ignore[call-overload]
