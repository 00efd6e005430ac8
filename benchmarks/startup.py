"""CPU time of `shapelaw --help`; promise: less than 0.15 s."""

import statistics
import subprocess
from resource import RUSAGE_CHILDREN, getrusage

from record import finish

RUNS = 20


def cpu_seconds() -> float:
    """Return the user and system seconds of all processes that have ended."""
    usage = getrusage(RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    seconds = []
    for _ in range(RUNS + 1):
        begun = cpu_seconds()
        subprocess.run(["shapelaw", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(cpu_seconds() - begun)
    warm = seconds[1:]
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
