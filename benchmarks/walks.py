"""Count the files that a reader walks through who follows one call of the project.

``python benchmarks/walks.py check`` follows ``shapelaw check`` from a run table's file to its
printed report; ``python benchmarks/walks.py propose`` follows ``shapelaw propose`` with a printed
law and the roofline engine. A reader reads each function once, where it is first called: the walk
is the files of all project functions in the order of their first calls. *entered* counts changes of
file, *returns* those to a file that the walk left before. The second line leaves out the
mathematics of a fit (laws, solver, uncertainty), which knows no run table.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType

import shapelaw
from shapelaw.scaling.files import data_folder

ROOT = Path(shapelaw.__file__).resolve().parent.parent
PACKAGES = ("scaling", "search", "trainers")
MATHEMATICS = ("scaling/laws", "scaling/solver", "scaling/uncertainty")
ARGUMENTS = {
    "check": [str(data_folder() / "quickstart" / "runs.csv"), "--starts", "8", "--resamples", "8"],
    "propose": [
        *("--params", "300M", "--tokens", "10B", "--law", "paper-2510.18245"),
        *("--engine", "roofline:h100"),
    ],
}


class Tracer:
    """Notes the file of every project function when it is first called."""

    def __init__(self) -> None:
        self.walk: list[str] = []
        self._known: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or code in self._known:
            return
        self._known.add(code)
        path = Path(code.co_filename).resolve()
        # Lambdas, comprehensions and bodies of modules belong to what stands around them.
        if code.co_name.startswith("<") or not path.is_relative_to(ROOT):
            return
        name = path.relative_to(ROOT)
        if name.parts[0] in PACKAGES:
            self.walk.append(str(name))


def follow(work: Callable[[], object]) -> list[str]:
    """Note the walk of a call; it runs once before, so that no module is imported on the way."""
    work()
    tracer = Tracer()
    sys.setprofile(tracer)
    try:
        work()
    finally:
        sys.setprofile(None)
    return tracer.walk


def figures(walk: list[str]) -> dict[str, int]:
    """Count functions, files, changes of file and returns to an earlier file."""
    entered = [name for name, _ in groupby(walk)]
    files = len(set(entered))
    return {
        "functions": len(walk),
        "files": files,
        "entered": len(entered),
        "returns": len(entered) - files,
    }


def command(choice: str) -> None:
    """Run a command of the application and drop what it prints."""
    from shapelaw.search.cli import app

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.chdir(folder),
    ):
        app([choice, *ARGUMENTS[choice]], standalone_mode=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("choice", choices=list(ARGUMENTS), help="The command to follow.")
    parser.add_argument("--files", action="store_true", help="Print the walk, a file per line.")
    options = parser.parse_args()
    walk = follow(lambda: command(options.choice))
    if options.files:
        print("\n".join(name for name, _ in groupby(walk)))
    print(f"{options.choice}: {figures(walk)}")
    shorter = [name for name in walk if not name.startswith(MATHEMATICS)]
    print(f"{options.choice}, without the mathematics of a fit: {figures(shorter)}")


if __name__ == "__main__":
    main()
