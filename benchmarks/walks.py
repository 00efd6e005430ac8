"""Number of files that a reader opens to follow one command of the project.

``python benchmarks/walks.py check`` traces ``shapelaw check`` from a run table's file to its
printed report; ``python benchmarks/walks.py propose`` traces ``shapelaw propose`` with a printed
law and the roofline engine. A reader follows every call from one function to another once: the walk
is the list of files of the called functions, in the order of these first calls. *entered* counts
changes of file, *returns* the changes to a file that the walk left before. The walk skips computed
attributes and special methods of classes (``len(runs)``, ``runs["loss"]``). The second line leaves
out the mathematics of a fit (laws, solver, uncertainty), which is independent of run tables; the
third counts only calls into the folder of run tables.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType, FunctionType

import shapelaw
from shapelaw.scaling.files import data_folder

ROOT = Path(shapelaw.__file__).resolve().parent.parent
PACKAGES = ("scaling", "search", "trainers")
MATHEMATICS = ("scaling/laws", "scaling/solver", "scaling/uncertainty")
TABLES = "scaling/runs"
ARGUMENTS = {
    "check": [str(data_folder() / "quickstart" / "runs.csv"), "--starts", "8", "--resamples", "8"],
    "propose": [
        *("--params", "300M", "--tokens", "10B", "--law", "paper-2510.18245"),
        *("--engine", "roofline:h100"),
    ],
}


class Tracer:
    """Profiler that records the file of every project function, for each function that calls it."""

    def __init__(self, values: set[CodeType]) -> None:
        self.walk: list[str] = []
        self._values = values
        self._inside: list[FrameType] = []  # frames of skipped functions that are running
        self._recorded: set[tuple[CodeType, CodeType | None]] = set()
        self._names: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if self._inside:
            if event == "return" and frame is self._inside[-1]:
                self._inside.pop()
            return
        if event != "call":
            return
        if frame.f_code in self._values:
            self._inside.append(frame)
            return
        name, caller = self._name(frame.f_code), frame.f_back
        while caller is not None and self._name(caller.f_code) is None:
            caller = caller.f_back
        step = frame.f_code, None if caller is None else caller.f_code
        if name is not None and step not in self._recorded:
            self._recorded.add(step)
            self.walk.append(name)

    def _name(self, code: CodeType) -> str | None:
        """Return a function's file; None outside the project, for lambdas and comprehensions."""
        if code not in self._names:
            path = Path(code.co_filename).resolve()
            name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("elsewhere")
            in_project = name.parts[0] in PACKAGES and not code.co_name.startswith("<")
            self._names[code] = str(name) if in_project else None
        return self._names[code]


def values_of_classes() -> set[CodeType]:
    """Collect the code of the computed attributes and special methods of the project's classes."""
    codes = set()
    modules = [module for name, module in sys.modules.items() if name.startswith("shapelaw.")]
    classes = {
        value for module in modules for value in vars(module).values() if isinstance(value, type)
    }
    for name, member in (item for value in classes for item in vars(value).items()):
        function = member if name.startswith("__") and callable(member) else None
        function = member.fget if isinstance(member, property) else function
        function = member.func if isinstance(member, cached_property) else function
        if isinstance(function, FunctionType):
            codes.add(function.__code__)
    return codes


def follow(work: Callable[[], object]) -> list[str]:
    """Record the walk of a call, after a first call that imports all modules."""
    work()
    tracer = Tracer(values_of_classes())
    sys.setprofile(tracer)
    try:
        work()
    finally:
        sys.setprofile(None)
    return tracer.walk


def figures(walk: list[str]) -> dict[str, int]:
    """Count calls, files, changes of file and returns to an earlier file."""
    entered = [name for name, _ in groupby(walk)]
    files = len(set(entered))
    return {
        "calls": len(walk),
        "files": files,
        "entered": len(entered),
        "returns": len(entered) - files,
    }


def command(choice: str) -> None:
    """Run a command of the application and discard its output."""
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
    parser.add_argument("choice", choices=list(ARGUMENTS), help="Command to trace.")
    parser.add_argument("--files", action="store_true", help="Print the walk, one file per line.")
    options = parser.parse_args()
    walk = follow(lambda: command(options.choice))
    if options.files:
        print("\n".join(name for name, _ in groupby(walk)))
    print(f"{options.choice}: {figures(walk)}")
    shorter = [name for name in walk if not name.startswith(MATHEMATICS)]
    print(f"{options.choice}, without the mathematics of a fit: {figures(shorter)}")
    print(f"{options.choice}, calls into {TABLES}: {sum(name.startswith(TABLES) for name in walk)}")


if __name__ == "__main__":
    main()
