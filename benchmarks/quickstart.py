"""Time and memory of `shapelaw quickstart`; promise: about 12 minutes and 4 GB on 2 cores.

All arguments, with --out among them, are passed to the command.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from record import COMMAND, finish

PROCESSES = 3  # the command and one worker per core


def main() -> None:
    arguments = sys.argv[1:]
    out = Path(arguments[arguments.index("--out") + 1])
    begun = time.perf_counter()
    subprocess.run([*COMMAND, "quickstart", *arguments], check=True)
    seconds = time.perf_counter() - begun
    # Linux gives the largest process in kibibytes; at most three processes run at once.
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    stages = json.loads((out / "quickstart.json").read_text())["stage_seconds"]
    name = f"quickstart-{out.name}"
    finish(
        name,
        {
            "minutes": seconds / 60,
            "promise_minutes": 12,
            "largest_process_gib": largest,
            "at_most_gib": PROCESSES * largest,
            "promise_gib": 4,
            "stage_seconds": stages,
        },
    )


if __name__ == "__main__":
    main()
