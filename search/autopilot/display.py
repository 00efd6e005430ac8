"""The progress display of a quickstart, as a bar or as plain lines."""

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from shapelaw.scaling.display.tables import counted
from shapelaw.search.autopilot.time_left import TimeLeft
from shapelaw.trainers.ledger.entry import RUNNING, Entry
from shapelaw.trainers.sweep.status import duration

LINE_SECONDS = 20.0  # between plain lines where there is no terminal


@dataclass
class Display:
    """A display of the current stage, its runs and the time left."""

    quiet: bool = False

    def __post_init__(self) -> None:
        self.console = Console(stderr=True)
        self.live = not self.quiet and self.console.is_terminal
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.time_left = TimeLeft()
        self.stage = ""
        self.last_line = 0.0

    def forecast(self, seconds: dict[str, float]) -> None:
        """Set the expected seconds of each stage."""
        self.time_left = TimeLeft(seconds)
        if self.live:
            self.progress = Progress(
                TextColumn("[bold]{task.fields[stage]:<12}"),
                BarColumn(bar_width=30),
                TextColumn(
                    "{task.percentage:>3.0f} %  {task.fields[left]:<20} {task.fields[what]}"
                ),
                console=self.console,
                transient=True,
            )
            self.progress.start()
            self.task = self.progress.add_task("", total=1.0, stage="", left="", what="")

    def update(self, stage: str, share: float, what: str) -> None:
        """Show that a share of a stage is done."""
        left = f"about {duration(self.time_left.update(stage, share))} left"
        now = time.monotonic()
        due = stage != self.stage or now - self.last_line >= LINE_SECONDS
        self.stage = stage
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=share, stage=stage, left=left, what=what)
        elif not self.quiet and due:
            self.last_line = now
            print(f"{stage}: {100 * share:.0f} %, {left}  {what}", file=sys.stderr, flush=True)

    def training(self, stage: str, entries: list[Entry]) -> None:
        """Show the progress of the runs of a stage, by their FLOPs."""
        total = sum(entry.flops for entry in entries)
        done = sum(entry.flops * entry.step / entry.steps for entry in entries)
        running = [
            f"{entry.run_id} {100 * entry.step / entry.steps:.0f} %"
            for entry in entries
            if entry.state == RUNNING
        ]
        finished = sum(entry.row is not None for entry in entries)
        what = f"{finished} of {counted(len(entries), 'run')} done; {', '.join(running)}"
        self.update(stage, done / max(total, 1.0), what)

    def finished(self, stage: str) -> None:
        """Show that a stage ended."""
        seconds = self.time_left.finish(stage)
        if not self.quiet:
            self.console.print(f"{stage} done in {seconds:.0f} s", highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()
