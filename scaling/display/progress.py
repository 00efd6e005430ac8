"""Progress bars on standard error, for commands: a library call shows none unless asked to."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
_shown: "ContextVar[Progress | None]" = ContextVar("progress", default=None)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show the progress of what runs inside, where standard error is a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        token = _shown.set(bar)
        try:
            yield
        finally:
            _shown.reset(token)


def track(items: Iterable[Item], words: str, *, total: int | None = None) -> Iterator[Item]:
    """Go through items and move a bar, if one is shown."""
    bar = _shown.get()
    if bar is None:
        yield from items
        return
    task = bar.add_task(words, total=total)
    try:
        for item in items:
            yield item
            bar.advance(task)
    finally:
        bar.remove_task(task)
