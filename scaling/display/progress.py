"""Progress bars on standard error, for commands: a library call shows none unless asked to."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")
QUIET_SECONDS = 2.0  # what takes less shows no bar
_shown: "ContextVar[Progress | None]" = ContextVar("progress", default=None)


@contextmanager
def progress_shown(*, quiet: bool = False) -> Iterator[None]:
    """Show the progress of the block once it takes over two seconds, if on a terminal.

    Parameters
    ----------
    quiet
        Show nothing: a command prints JSON.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with late_progress(console) as bar:
        token = _shown.set(bar)
        try:
            yield
        finally:
            _shown.reset(token)


def late_progress(console: "Console", clock: Callable[[], float] = time.monotonic) -> "Progress":
    """Make a display that stays empty for its first two seconds and is gone at its end."""
    from rich.console import RenderableType
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    class LateProgress(Progress):
        begun = clock()

        def get_renderables(self) -> Iterable[RenderableType]:
            if clock() - self.begun >= QUIET_SECONDS:
                yield from super().get_renderables()

    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    return LateProgress(*columns, console=console, transient=True)


@contextmanager
def working(words: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar for the block, if one is shown; call the result with the number of items done."""
    bar = _shown.get()
    if bar is None:
        yield lambda done: None
        return
    task = bar.add_task(words, total=total)
    try:
        yield lambda done: bar.update(task, completed=done)
    finally:
        bar.remove_task(task)


def track(items: Iterable[Item], words: str, *, total: int | None = None) -> Iterator[Item]:
    """Go through items and move a bar, if one is shown."""
    with working(words, total=total) as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(done)
