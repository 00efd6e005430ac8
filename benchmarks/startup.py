"""CPU time of `shapelaw --help`; promise: less than 0.15 s."""

import statistics
import subprocess
from resource import RUSAGE_CHILDREN, getrusage

from record import COMMAND, finish

RUNS = 20


def cpu_seconds() -> float:
    """Return the user and system seconds of all processes that have ended."""
    usage = getrusage(RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds_of_help() -> float:
    """Return the CPU seconds of one `shapelaw --help`."""
    begun = cpu_seconds()
    subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return cpu_seconds() - begun


def main() -> None:
    warm = [seconds_of_help() for _ in range(RUNS + 1)][1:]
    finish(
        "startup",
        {
            "median_cpu_s": statistics.median(warm),
            "max_cpu_s": max(warm),
            "runs": RUNS,
            "promise_cpu_s": 0.15,
        },
    )


if __name__ == "__main__":
    main()
