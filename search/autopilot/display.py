"""The progress display of a quickstart, as a bar or as plain lines."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from shapelaw.scaling.display.tables import counted
from shapelaw.search.autopilot.time_left import TimeLeft
from shapelaw.trainers.ledger.entry import RUNNING, Entry
from shapelaw.trainers.sweep.status import duration

CERTAINTY_WIDTH = 30  # characters of a certainty of 1
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
        if self.live and self.progress is None:
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

    def decided(self, decision: dict[str, Any], level: float) -> None:
        """Show a decision of the autopilot: its certainty against the cost so far."""
        if not self.quiet:
            self.console.print(
                decision_line(decision, level), highlight=False, markup=False, soft_wrap=True
            )

    def close(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()


def decision_line(decision: dict[str, Any], level: float) -> str:
    """Format a decision as a line with a bar of its certainty, in which ``|`` marks the level.

    Examples
    --------
    >>> decision_line({"round": 0, "stop": "", "runs": [{}, {}]}, 0.9)
    'plan: 2 runs'
    """
    if "certainty" not in decision:
        return f"plan: {counted(len(decision['runs']), 'run')}"
    done = round(CERTAINTY_WIDTH * decision["certainty"])
    bar = list("█" * done + "·" * (CERTAINTY_WIDTH - done))
    bar[min(round(CERTAINTY_WIDTH * level), CERTAINTY_WIDTH - 1)] = "|"
    next_step = decision["stop"] or f"{counted(len(decision['runs']), 'more run')}"
    return (
        f"{decision['core_hours']:8.3g} core-h {decision['flops']:8.2g} FLOP  {''.join(bar)} "
        f"{decision['certainty']:.3f}  {decision['proposed']}; {next_step}"
    )
