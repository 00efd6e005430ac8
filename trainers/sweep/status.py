"""How far a sweep is: every run, how fast it goes, and when it will all be done."""

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
from shapelaw.trainers.ledger.entry import Entry
from shapelaw.trainers.ledger.ledger import (
    DIVERGED,
    DONE,
    FAILED,
    PLANNED,
    RUNNING,
    STALE_SECONDS,
    STATES,
)

if TYPE_CHECKING:
    from rich.table import Table

LINE_SECONDS = 30.0
LOOK_SECONDS = 1.0
SHOWN = 30  # runs that a table of a terminal has room for
MINUTE, HOUR, DAY = 60, 3600, 86_400


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run; ``heartbeat_age`` and ``seconds_left`` in seconds, None where not known."""

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
    """All runs of a sweep.

    ``counts`` are runs by state, ``workers`` those that train and were heard of lately, and
    ``seconds_left`` is until the last run ends, None where no speed is known or nobody works.
    """

    counts: dict[str, int]
    workers: int
    share: float
    seconds_left: float | None
    runs: tuple[RunStatus, ...]

    @property
    def ended(self) -> bool:
        """Whether no run is planned or running."""
        return self.counts[PLANNED] + self.counts[RUNNING] == 0

    def headline(self) -> str:
        """Counts and time left, in one line."""
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)
        line = f"{counted(len(self.runs), 'run')}: {counts}; {100 * self.share:.0f} % of the FLOPs"
        if self.ended:
            return line
        if not self.workers:
            return f"{line}; no worker at work now (`shapelaw sweep run` starts them)"
        workers = counted(self.workers, "worker")
        if self.seconds_left is None:
            return f"{line}; {workers}, time left not known yet"
        return f"{line}; about {duration(self.seconds_left)} left with {workers}"

    def view(self) -> View:
        """Return counts and time left, and a row per run."""
        import pandas as pd

        rows = [{name: text(run) for name, text in COLUMNS.items()} for run in self.runs]
        return View(title=self.headline(), tables={"runs": pd.DataFrame(rows, dtype=object)})


def status_of(entries: Sequence[Entry]) -> SweepStatus:
    """Where a sweep stands.

    Running runs are judged by their own speed, planned ones by the FLOP/s of runs that cost about
    as much per step; they are dealt out to the workers that live now, in the order of the plan.
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
    """What speed to expect of a run, from those that were measured.

    Small steps run at fewer FLOP/s than large ones, so measured runs count by their nearness in
    ln FLOPs per step.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        found = ((entry.flops / entry.steps, _flops_per_second(entry)) for entry in entries)
        self.measured = [(math.log(cost), rate) for cost, rate in found if rate]
        self.known: dict[float, float | None] = {}

    def at(self, cost: float) -> float | None:
        """FLOP/s of a run with so many FLOPs per step; None before anything was measured."""
        if cost not in self.known:
            weights = [
                math.exp(-((math.log(cost) - other) ** 2)) + 1e-6 for other, _ in self.measured
            ]
            total = sum(w * rate for w, (_, rate) in zip(weights, self.measured, strict=True))
            self.known[cost] = total / sum(weights) if weights else None
        return self.known[cost]


def _flops_per_second(entry: Entry) -> float | None:
    """Measured FLOP/s of a run that goes on or is done."""
    if entry.state == RUNNING and entry.speed:
        return entry.speed * entry.flops / entry.steps
    if entry.state != DONE:
        return None
    if entry.attempts == 1 and entry.started and entry.ended:  # evaluation included
        seconds = entry.ended - entry.started
    else:  # the time between two attempts says nothing
        found = [row.get("seconds") for row in entry.rows]
        seconds = max((float(value) for value in found if isinstance(value, float)), default=0.0)
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
    """FLOPs that need not be spent any more."""
    ended = entry.state not in (PLANNED, RUNNING)
    return entry.flops * (1.0 if ended else entry.step / entry.steps)


def _tokens_per_second(entry: Entry) -> float | None:
    if entry.state == RUNNING:
        return entry.speed * entry.tokens_per_step if entry.speed else None
    speeds = [row.get("tokens_per_second") for row in reversed(entry.rows)]
    return next((float(speed) for speed in speeds if isinstance(speed, int | float)), None)


def _seconds_left(entry: Entry, rates: Rates) -> float | None:
    """Seconds of work that a run still needs."""
    if entry.state not in (PLANNED, RUNNING):
        return None
    if entry.seconds_left is not None:
        return entry.seconds_left
    rate = rates.at(entry.flops / entry.steps)
    return (entry.flops - _done(entry)) / rate if rate else None


def _until_all_ended(
    entries: Sequence[Entry], left: dict[str, float | None], alive: list[Entry]
) -> float | None:
    """Seconds until the last run ends, when each live worker takes the next run as it gets free."""
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
    """Seconds in words that fit their size.

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
    "heard of": lambda run: (
        "" if run.heartbeat_age is None else f"{duration(run.heartbeat_age)} ago"
    ),
    "left": lambda run: "" if run.seconds_left is None else duration(run.seconds_left),
    "message": lambda run: run.message,
}
STYLES = {RUNNING: "green", FAILED: "red", DIVERGED: "yellow"}
FIRST = (RUNNING, FAILED, DIVERGED, PLANNED)  # what a crowded terminal shows first


def status_table(status: SweepStatus, *, room: int = SHOWN) -> "Table":
    """A table for a terminal: running, failed and diverged runs first where not all have room."""
    from rich.table import Table
    from rich.text import Text

    runs = list(status.runs)
    if len(runs) > room:
        rank = {state: place for place, state in enumerate(FIRST)}
        chosen = sorted(runs, key=lambda run: rank.get(run.state, len(FIRST)))[:room]
        runs = [run for run in runs if run in chosen]
    table = Table(title=Text(status.headline()), title_justify="left", header_style="bold")
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for run in runs:
        cells = (Text(text(run)) for text in COLUMNS.values())  # a name in brackets is no markup
        table.add_row(*cells, style=STYLES.get(run.state))
    if len(runs) < len(status.runs):
        table.caption = f"{counted(len(status.runs) - len(runs), 'more run')}: --json shows all"
    return table


def show_status(look: Callable[[], SweepStatus], *, watch: bool = False) -> None:
    """Print a table on a terminal, with ``watch`` until every run has ended; else text, once."""
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
            time.sleep(LOOK_SECONDS)
            status = look()


@contextmanager
def shown_progress() -> Iterator[Callable[[Sequence[Entry]], None]]:
    """A report for :func:`shapelaw.trainers.sweep.sweep.run_plan`, on standard error.

    A live table on a terminal, else a line now and then.
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
            if time.monotonic() - last >= LOOK_SECONDS:
                last = time.monotonic()
                table = status_table(status_of(entries), room=_room(console.height))
                live.update(table, refresh=True)

        yield report


def progress_lines() -> Callable[[Sequence[Entry]], None]:
    """A report that writes a line to standard error now and then."""
    last = time.monotonic()

    def report(entries: Sequence[Entry]) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            sys.stderr.write(status_of(entries).headline() + "\n")
            sys.stderr.flush()

    return report


def _room(height: int) -> int:
    """Runs that fit below a title, a header and above a caption."""
    return max(height - 8, 3)
