"""One worker of a search, in a process of its own that a test can kill.

    python search_workers.py STORAGE LOG SECONDS WANTED [SAMPLER]

Every measurement writes a line when it begins and one when it ends.
"""

import os
import sys
from pathlib import Path

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.study import Effort, explore
from shapelaw.search.workload import Workload
from support.made_up import MadeUpEngine, question


class LoggingEngine(MadeUpEngine):
    """Tells a file what it does."""

    def __init__(self, log: Path, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self.log = log

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        self._tell("begin", shape)
        found = super().measure(shape, workload)
        self._tell("end", shape)
        return found

    def _tell(self, what: str, shape: Shape) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {what} {shape}\n")


def main() -> None:
    """Search until the wanted rows are known."""
    storage, log, seconds, wanted, *sampler = sys.argv[1:]
    engine = LoggingEngine(Path(log), float(seconds))
    effort = Effort(measurements=int(wanted), first=[5, 0], sampler=(*sampler, "calibrated")[0])
    explore(question(), engine, effort, storage=storage)


if __name__ == "__main__":
    main()
