"""Progress bars of commands on standard error; library calls show none by default."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Item = TypeVar("Item")
QUIET_SECONDS = 2.0  # shorter work shows no bar
_shown: "ContextVar[Progress | None]" = ContextVar("progress", default=None)


@contextmanager
def progress_shown(*, quiet: bool = False) -> Iterator[None]:
    """Show progress bars of the block on a terminal, once the block takes over two seconds.

    Parameters
    ----------
    quiet
        Show no bars, as for a command that prints JSON.
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
    """Make a progress display that appears after two seconds and disappears at its end.

    Parameters
    ----------
    console
        The console to draw on.
    clock
        A function that returns the time in seconds.
    """
    from rich.console import RenderableType
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    class LateProgress(Progress):
        started = clock()

        def get_renderables(self) -> Iterable[RenderableType]:
            if clock() - self.started >= QUIET_SECONDS:
                yield from super().get_renderables()

    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    return LateProgress(*columns, console=console, transient=True)


@contextmanager
def working(description: str, *, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Add a bar for the block to the progress display, if the command shows one.

    Parameters
    ----------
    description
        The text before the bar.
    total
        The number of items, where known.

    Yields
    ------
    A function to call with the number of finished items.
    """
    bar = _shown.get()
    if bar is None:
        yield lambda done: None
        return
    task = bar.add_task(description, total=total)
    try:
        yield lambda done: bar.update(task, completed=done)
    finally:
        bar.remove_task(task)


def track(items: Iterable[Item], description: str, *, total: int | None = None) -> Iterator[Item]:
    """Iterate over items and advance a bar, if the command shows one.

    Parameters
    ----------
    items
        The items to iterate over.
    description
        The text before the bar.
    total
        The number of items, where known.
    """
    with working(description, total=total) as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(done)
