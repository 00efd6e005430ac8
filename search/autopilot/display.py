"""A progress display: the stage, the run and the time left, as a bar or as plain lines."""

import sys
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from shapelaw.trainers.ledger.entry import Entry
from shapelaw.trainers.ledger.ledger import RUNNING

LINE_SECONDS = 20.0  # between plain lines where there is no terminal


@dataclass
class Display:
    """Shows how far a chain of stages is.

    ``seconds`` is the expected length of each stage; it is corrected by what stages really take.
    """

    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    workers: int = 1

    def __post_init__(self) -> None:
        self.console = Console(stderr=True)
        self.live = not self.quiet and self.console.is_terminal
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.begun: dict[str, float] = {}
        self.done: set[str] = set()
        self.start_share: dict[str, float] = {}
        self.last_line = 0.0
        self.rate: float | None = None

    def forecast(self, seconds: dict[str, float], workers: int) -> None:
        """Set the expected seconds of each stage."""
        self.seconds, self.workers = dict(seconds), workers
        if self.live:
            self.progress = Progress(
                TextColumn("[bold]{task.fields[stage]:<12}"),
                BarColumn(bar_width=30),
                TextColumn(
                    "{task.percentage:>3.0f} %  {task.fields[left]:<13} {task.fields[what]}"
                ),
                console=self.console,
                transient=True,
            )
            self.progress.start()
            self.task = self.progress.add_task("", total=1.0, stage="", left="", what="")

    def update(self, stage: str, share: float, what: str) -> None:
        """Say that a share of a stage is done."""
        now = time.monotonic()
        if stage not in self.begun:
            self.begun[stage], self.start_share[stage] = now, share
            self.last_line = 0.0
        left = self._left(stage, share, now)
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=share, stage=stage, left=left, what=what)
        elif not self.quiet and now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            print(f"{stage}: {100 * share:.0f} %, {left}  {what}", file=sys.stderr, flush=True)

    def training(self, stage: str, entries: list[Entry]) -> None:
        """Say how far the runs of a stage are, by their FLOPs."""
        total = sum(entry.flops for entry in entries)
        done = sum(entry.flops * entry.step / entry.steps for entry in entries)
        running = [
            f"{entry.run_id} {100 * entry.step / entry.steps:.0f} %"
            for entry in entries
            if entry.state == RUNNING
        ]
        finished = sum(entry.row is not None for entry in entries)
        what = f"{finished} of {len(entries)} runs done; {', '.join(running)}"
        self.update(stage, done / max(total, 1.0), what)

    def finished(self, stage: str) -> None:
        """Say that a stage ended."""
        if stage in self.begun and not self.quiet:
            seconds = time.monotonic() - self.begun[stage]
            self.console.print(f"{stage} done in {seconds:.0f} s", highlight=False)
        self._correct(stage)
        self.done.add(stage)

    def _correct(self, stage: str) -> None:
        """Scale the forecast of the confirmation by what the proxies took."""
        spent = time.monotonic() - self.begun.get(stage, time.monotonic())
        if stage == "proxies" and self.start_share[stage] == 0 and self.seconds.get(stage):
            self.seconds["confirmation"] *= spent / self.seconds[stage]

    def _left(self, stage: str, share: float, now: float) -> str:
        gained = share - self.start_share[stage]
        spent = now - self.begun[stage]
        own = self.seconds.get(stage, 0.0) * (1 - share)
        if gained > 0.02:
            own = spent / gained * (1 - share)
        later = [
            value
            for name, value in self.seconds.items()
            if name not in self.done and name not in self.begun
        ]
        minutes, seconds = divmod(int(own + sum(later)), 60)
        return f"{minutes} min {seconds:02d} s left"

    def close(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()
