"""Status of a sweep: the state and speed of every run, and the estimated time left."""

import heapq
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shapelaw.scaling.display.console import print_result
from shapelaw.scaling.display.tables import Result, View, counted
from shapelaw.trainers.ledger.claims import STALE_SECONDS
from shapelaw.trainers.ledger.entry import DIVERGED, DONE, FAILED, PLANNED, RUNNING, STATES, Entry

if TYPE_CHECKING:
    from rich.table import Table

LINE_SECONDS = 30.0  # between two printed lines of progress
REFRESH_SECONDS = 1.0  # between two updates of a table on a terminal
MAX_ROWS = 30  # of a table on a terminal
MINUTE, HOUR, DAY = 60, 3600, 86_400


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Status of one run; ``heartbeat_age`` and ``seconds_left`` are None if unknown."""

    run_id: str
    state: str
    step: int
    steps: int
    tokens_per_second: float | None
    worker: str | None
    heartbeat_age: float | None
    seconds_left: float | None
    attempts: int
    message: str


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepStatus(Result):
    """Status of all runs of a sweep.

    Attributes
    ----------
    counts
        Number of runs by state.
    workers
        Number of workers that train a run and sent a heartbeat lately.
    share
        Fraction of the FLOPs that is done.
    seconds_left
        Estimated seconds until the last run ends; None if no speed is known or no worker is
        running.
    runs
        Status of each run in the order of the plan.
    """

    counts: dict[str, int]
    workers: int
    share: float
    seconds_left: float | None
    runs: tuple[RunStatus, ...]

    @property
    def ended(self) -> bool:
        """True if no run is planned or running."""
        return self.counts[PLANNED] + self.counts[RUNNING] == 0

    def headline(self) -> str:
        """Return counts and time left in one line."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)
        line = f"{counted(len(self.runs), 'run')}: {counts}; {100 * self.share:.0f} % of the FLOPs"
        if self.ended:
            return line
        if not self.workers:
            return f"{line}; no worker is running (`shapelaw sweep run` starts workers)"
        workers = counted(self.workers, "worker")
        if self.seconds_left is None:
            return f"{line}; {workers}, time left not known yet"
        return f"{line}; about {duration(self.seconds_left)} left with {workers}"

    def view(self) -> View:
        """Return counts and time left, and one row per run."""
        import pandas as pd

        rows = [{name: text(run) for name, text in COLUMNS.items()} for run in self.runs]
        return View(title=self.headline(), tables={"runs": pd.DataFrame(rows, dtype=object)})


def status_of(entries: Sequence[Entry]) -> SweepStatus:
    """Summarise the entries of a ledger and estimate the time left.

    The time of a running run follows from its own speed, that of a planned run from the FLOP/s of
    runs with similar FLOPs per step. Planned runs are assigned to the present workers in the order
    of the plan.

    Parameters
    ----------
    entries
        Entries of all runs of the sweep.
    """
    rates = Rates(entries)
    left = {entry.run_id: _seconds_left(entry, rates) for entry in entries}
    alive = [entry for entry in entries if _alive(entry)]
    total = sum(entry.flops for entry in entries)
    return SweepStatus(
        counts={state: sum(entry.state == state for entry in entries) for state in STATES},
        workers=len(alive),
        share=sum(_done(entry) for entry in entries) / total if total else 1.0,
        seconds_left=_until_all_ended(entries, left, alive),
        runs=tuple(_run_status(entry, left[entry.run_id]) for entry in entries),
    )


class Rates:
    """Expected speed of a run, interpolated from measured runs.

    Small steps run at fewer FLOP/s than large ones. Measured runs are therefore weighted by their
    distance in ln FLOPs per step.

    Parameters
    ----------
    entries
        Entries of the sweep, measured or not.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        pairs = ((entry.flops / entry.steps, _flops_per_second(entry)) for entry in entries)
        self.measured = [(math.log(cost), rate) for cost, rate in pairs if rate]
        self.cached: dict[float, float | None] = {}

    def at(self, cost: float) -> float | None:
        """Return the expected FLOP/s of a run with ``cost`` FLOPs per step; None without data."""
        if cost not in self.cached:
            weights = [
                math.exp(-((math.log(cost) - other) ** 2)) + 1e-6 for other, _ in self.measured
            ]
            total = sum(w * rate for w, (_, rate) in zip(weights, self.measured, strict=True))
            self.cached[cost] = total / sum(weights) if weights else None
        return self.cached[cost]


def _flops_per_second(entry: Entry) -> float | None:
    """Return the measured FLOP/s of a running or done run."""
    if entry.state == RUNNING and entry.speed:
        return entry.speed * entry.flops / entry.steps
    if entry.state != DONE:
        return None
    if entry.attempts == 1 and entry.started and entry.ended:  # evaluation included
        seconds = entry.ended - entry.started
    else:  # the time between two attempts is not time of training
        times = [row.get("seconds") for row in entry.rows]
        seconds = max((float(value) for value in times if isinstance(value, float)), default=0.0)
    return entry.flops / seconds if seconds > 0 else None


def _run_status(entry: Entry, left: float | None) -> RunStatus:
    running = entry.state == RUNNING
    return RunStatus(
        run_id=entry.run_id,
        state=entry.state,
        step=entry.step,
        steps=entry.steps,
        tokens_per_second=_tokens_per_second(entry),
        worker=f"{entry.host}:{entry.pid}" if running and entry.host else None,
        heartbeat_age=entry.heartbeat_age,
        seconds_left=left,
        attempts=entry.attempts,
        message=entry.message or entry.note or "",
    )


def _alive(entry: Entry) -> bool:
    return entry.state == RUNNING and (entry.heartbeat_age or 0.0) <= STALE_SECONDS


def _done(entry: Entry) -> float:
    """Return the FLOPs of a run that are done, or not needed because it has ended."""
    ended = entry.state not in (PLANNED, RUNNING)
    return entry.flops * (1.0 if ended else entry.step / entry.steps)


def _tokens_per_second(entry: Entry) -> float | None:
    if entry.state == RUNNING:
        return entry.speed * entry.tokens_per_step if entry.speed else None
    speeds = [row.get("tokens_per_second") for row in reversed(entry.rows)]
    return next((float(speed) for speed in speeds if isinstance(speed, int | float)), None)


def _seconds_left(entry: Entry, rates: Rates) -> float | None:
    """Estimate the seconds of work that a run still needs."""
    if entry.state not in (PLANNED, RUNNING):
        return None
    if entry.seconds_left is not None:
        return entry.seconds_left
    rate = rates.at(entry.flops / entry.steps)
    return (entry.flops - _done(entry)) / rate if rate else None


def _until_all_ended(
    entries: Sequence[Entry], left: dict[str, float | None], alive: list[Entry]
) -> float | None:
    """Estimate the seconds until the last run ends.

    Every live worker takes the next run of the plan as soon as it is idle.
    """
    if not alive:
        return None if any(entry.state in (PLANNED, RUNNING) for entry in entries) else 0.0
    living = {entry.run_id for entry in alive}
    waiting = [e for e in entries if e.state in (PLANNED, RUNNING) and e.run_id not in living]
    seconds = [left[entry.run_id] for entry in (*alive, *waiting)]
    known = [value for value in seconds if value is not None]
    if len(known) < len(seconds):
        return None
    free = known[: len(alive)]
    heapq.heapify(free)
    for value in known[len(alive) :]:
        heapq.heappush(free, heapq.heappop(free) + value)
    return max(free)


def duration(seconds: float) -> str:
    """Format seconds in units that fit their size.

    Examples
    --------
    >>> duration(8), duration(200), duration(5000), duration(200_000)
    ('8 s', '3 min 20 s', '1 h 23 min', '2 d 7 h')
    """
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


COLUMNS: dict[str, Callable[[RunStatus], str]] = {
    "run_id": lambda run: run.run_id,
    "state": lambda run: run.state,
    "step": lambda run: f"{run.step}/{run.steps}",
    "tokens/s": lambda run: f"{run.tokens_per_second:,.0f}" if run.tokens_per_second else "",
    "worker": lambda run: run.worker or "",
    "heartbeat": lambda run: (
        "" if run.heartbeat_age is None else f"{duration(run.heartbeat_age)} ago"
    ),
    "left": lambda run: "" if run.seconds_left is None else duration(run.seconds_left),
    "message": lambda run: run.message,
}
STYLES = {RUNNING: "green", FAILED: "red", DIVERGED: "yellow"}
STATE_PRIORITY = (RUNNING, FAILED, DIVERGED, PLANNED)  # order if not all rows fit


def status_table(status: SweepStatus, *, room: int = MAX_ROWS) -> "Table":
    """Build a table for a terminal.

    If not all runs fit, running runs have priority, then failed and diverged ones.

    Parameters
    ----------
    status
        Status of the sweep.
    room
        Largest number of rows.
    """
    from rich.table import Table
    from rich.text import Text

    runs = list(status.runs)
    if len(runs) > room:
        rank = {state: place for place, state in enumerate(STATE_PRIORITY)}
        chosen = sorted(runs, key=lambda run: rank.get(run.state, len(STATE_PRIORITY)))[:room]
        runs = [run for run in runs if run in chosen]
    table = Table(title=Text(status.headline()), title_justify="left", header_style="bold")
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for run in runs:
        cells = (
            Text(text(run)) for text in COLUMNS.values()
        )  # Text, so that brackets in a name are not read as markup
        table.add_row(*cells, style=STYLES.get(run.state))
    if len(runs) < len(status.runs):
        table.caption = f"{counted(len(status.runs) - len(runs), 'more run')}: --json shows all"
    return table


def show_status(look: Callable[[], SweepStatus], *, watch: bool = False) -> None:
    """Print the status of a sweep.

    Parameters
    ----------
    look
        Function that returns the present status.
    watch
        True to update the table on a terminal until every run has ended. Without a terminal the
        status is printed once as text.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    status = look()
    if not console.is_terminal:
        print_result(status)
        return
    if not watch:
        console.print(status_table(status, room=len(status.runs)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(status_table(status, room=_room(console.height)), refresh=True)
            if status.ended:
                return
            time.sleep(REFRESH_SECONDS)
            status = look()


@contextmanager
def shown_progress() -> Iterator[Callable[[Sequence[Entry]], None]]:
    """Yield a progress report for :func:`shapelaw.trainers.sweep.sweep.run_plan`.

    The report is a live table on a terminal and else a line every half minute, both on standard
    error.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress_lines()
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        last = -math.inf

        def report(entries: Sequence[Entry]) -> None:
            nonlocal last
            if time.monotonic() - last >= REFRESH_SECONDS:
                last = time.monotonic()
                table = status_table(status_of(entries), room=_room(console.height))
                live.update(table, refresh=True)

        yield report


def progress_lines() -> Callable[[Sequence[Entry]], None]:
    """Return a progress report that writes a line to standard error every half minute."""
    last = time.monotonic()

    def report(entries: Sequence[Entry]) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            sys.stderr.write(status_of(entries).headline() + "\n")
            sys.stderr.flush()

    return report


def _room(height: int) -> int:
    """Return the number of rows that fit between title, header and caption."""
    return max(height - 8, 3)
