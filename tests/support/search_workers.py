"""Program of a worker of a study, which a test can kill.

    python search_workers.py STORAGE LOG SECONDS WANTED [SAMPLER]

Every measurement writes a line at its begin and at its end.
"""

import os
import sys
from pathlib import Path

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.study import Effort, explore
from shapelaw.search.workload import Workload
from support.made_up import MadeUpEngine, made_up_problem


class LoggingEngine(MadeUpEngine):
    """Synthetic engine that writes its calls to a file."""

    def __init__(self, log: Path, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self.log = log

    def measure(self, shape: Shape, workload: Workload) -> Measurement:
        self._log("begin", shape)
        result = super().measure(shape, workload)
        self._log("end", shape)
        return result

    def _log(self, event: str, shape: Shape) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()} {event} {shape}\n")


def main() -> None:
    """Run the study until the wanted rows are measured."""
    storage, log, seconds, wanted, *sampler = sys.argv[1:]
    engine = LoggingEngine(Path(log), float(seconds))
    effort = Effort(measurements=int(wanted), first=[5, 0], sampler=(*sampler, "calibrated")[0])
    explore(made_up_problem(), engine, effort, storage=storage)


if __name__ == "__main__":
    main()
