"""Promise: `shapelaw --help` answers in under 0.3 seconds."""

import statistics
import subprocess
import time

from record import finish

RUNS = 20


def main() -> None:
    seconds = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        subprocess.run(["shapelaw", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begun)
    warm = seconds[1:]
    finish(
        "startup",
        {"median_s": statistics.median(warm), "max_s": max(warm), "runs": RUNS, "promise_s": 0.3},
    )


if __name__ == "__main__":
    main()
