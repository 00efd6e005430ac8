"""Training of several runs of one shape at once on one device, each with its usual files."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.cuda_graph import Note
from shapelaw.trainers.gpu.packed_step import EAGER, Feed, Options, PackedStep
from shapelaw.trainers.gpu.resident_batches import resident
from shapelaw.trainers.gpu.stack import Stack, begin
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.training import checkpoint
from shapelaw.trainers.training.checkpoint import Progress
from shapelaw.trainers.training.device import device_label
from shapelaw.trainers.training.execution import Execution, attention_path
from shapelaw.trainers.training.loop import CHECKPOINT, CHECKPOINT_SECONDS, TRUNK, Watch
from shapelaw.trainers.training.results import (
    Row,
    diverged_row,
    evaluate_branch,
    export_run,
    finished_rows,
    keep_rows,
    rows_so_far,
    settings_row,
)
from shapelaw.trainers.training.spec import Diverged, RunSpec
from shapelaw.trainers.training.trackers import Recorder, recording

BLOCK_SECONDS = 0.5  # of training between two calls of `PackEvents.watch`


@dataclass(frozen=True, kw_only=True)
class PackEvents:
    """Functions that are called during the training of a pack.

    ``watch`` receives the number of computed steps about every half second, and may raise an error
    to stop the pack. ``ended`` receives a run and its rows as soon as the run has ended. ``note``
    receives a sentence about an unexpected event.
    """

    watch: Watch = lambda step: None
    ended: Callable[[RunSpec, list[Row]], None] = lambda spec, rows: None
    note: Note = lambda text: None


def train_pack(
    specs: Sequence[RunSpec],
    corpus: Corpus,
    folders: Callable[[str], Path],
    *,
    device: torch.device,
    options: Options = EAGER,
    events: PackEvents = PackEvents(),
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> list[list[Row]]:
    """Train runs of one shape together, each from its own checkpoint if there is one.

    Runs with checkpoints at different steps are trained in several stacks, one after the other.

    Parameters
    ----------
    specs
        Runs of one pack, from :func:`shapelaw.trainers.gpu.packed_step.packs`.
    corpus
        Corpus to train on.
    folders
        Function from the id of a run to its folder. Each folder gets the files of a run trained
        alone (see :func:`shapelaw.trainers.training.loop.train_run`) including its checkpoint, so
        that the run can be resumed alone or in another pack.
    device
        Device of training.
    options
        Options of the stack.
    events
        Functions that are called during training.
    checkpoint_seconds
        Seconds between two checkpoints; infinite for none.

    Returns
    -------
    list of list of Row
        Rows of every spec, one for each branch by ascending tokens. A run that diverged has one row
        with this status and without a loss, and does not affect the others. ``seconds`` is the
        share of a run in the time of the pack.
    """
    torch.set_num_threads(1)
    execution = Execution(
        attention=attention_path(device), compilation="whole" if options.compiler else "none"
    )
    rows: dict[str, list[Row]] = {}
    members: dict[tuple[int, int, int | None], list[_Member]] = {}
    for spec in (spec.computed_by(execution) for spec in specs):
        folder, identity = folders(spec.run_id), spec.identity(corpus)
        finished = finished_rows(spec, folder, identity)
        if finished is None:
            member = _Member.at_checkpoint(spec, folder, identity, device, events.note)
            members.setdefault(member.place, []).append(member)
        else:  # trained before, but the end was not recorded
            rows[spec.run_id] = finished
            events.ended(spec, finished)
    for group in members.values():
        run = _PackRun(group, corpus, device, options, events)
        rows |= run.train(checkpoint_seconds)
    return [rows[spec.run_id] for spec in specs]


@dataclass(kw_only=True)
class _Member:
    """Run of a pack with the state in its folder.

    ``trunk`` is the state at which the present branch left the trunk, if it has.
    """

    spec: RunSpec
    folder: Path
    identity: str
    begun: Progress
    state: tuple[Transformer, Optimizer]
    rows: list[Row]
    trunk: tuple[Progress, tuple[Transformer, Optimizer]] | None = None

    @classmethod
    def at_checkpoint(
        cls, spec: RunSpec, folder: Path, identity: str, device: torch.device, note: Note
    ) -> "_Member":
        """Read the state of a run from its checkpoint, or create the initial state."""

        def read(name: str, tell: Note) -> tuple[Progress, tuple[Transformer, Optimizer]]:
            state = begin(spec, device)
            return checkpoint.resume(folder / name, *state, identity, tell=tell), state

        begun, state = read(CHECKPOINT, note)
        trunk = None
        if (folder / TRUNK).exists():
            trunk = read(TRUNK, lambda text: None)
            if trunk[0].branch != begun.branch + 1:  # damaged, or of an earlier branch
                trunk = None
        rows = rows_so_far(folder, identity)[: begun.branch]
        leaves = spec.recipe.stable_steps(spec.ends[begun.branch])
        last = begun.branch + 1 == len(spec.ends)
        if len(rows) < begun.branch or not (last or trunk or begun.step <= leaves):
            note(f"{folder} lacks files that its checkpoint needs; the run begins again")
            begun = Progress(step=0, seconds=0.0, identity=identity)
            state, rows, trunk = begin(spec, device), [], None
        return cls(spec=spec, folder=folder, identity=identity, begun=begun, state=state,
                   rows=rows, trunk=trunk)  # fmt: skip

    @property
    def place(self) -> tuple[int, int, int | None]:
        """Branch, step, and step of the trunk, equal for runs that can be resumed in one stack."""
        return self.begun.branch, self.begun.step, self.trunk[0].step if self.trunk else None


class _PackRun:
    """Training of a stack of runs: branch, step in its schedule, rows so far.

    The state at which a branch left the trunk is kept in memory and in the folder of every run.
    """

    def __init__(
        self,
        members: Sequence[_Member],
        corpus: Corpus,
        device: torch.device,
        options: Options,
        events: PackEvents,
    ) -> None:
        self.members, self.corpus, self.device = members, corpus, device
        self.options, self.events = options, events
        self.specs = [member.spec for member in members]
        self.ends = self.specs[0].ends
        self.branch, self.done, self.trunk_step = members[0].place
        self.trunk: dict[str, Tensor] = {}
        if self.trunk_step is not None:
            self.trunk = self._stack(member.trunk[1] for member in members if member.trunk).state()
        self.stack = self._stack(member.state for member in members)
        tokens = corpus.train()
        feed = Feed(self.stack, tokens, resident(tokens, device))
        self.step = PackedStep(self.stack, feed, options, note=events.note)
        self.computed = self.done + sum(
            self.ends[branch] - self._leaves(branch) for branch in range(self.branch)
        )
        self.recorders: list[Recorder] = []
        self.seconds = 0.0  # of training of the whole stack
        self.reported: set[int] = set()  # runs whose divergence was reported

    def _stack(self, begun: Iterable[tuple[Transformer, Optimizer]]) -> Stack:
        return Stack(self.specs, self.device, begun=list(begun))

    def _leaves(self, branch: int) -> int:
        """Return the step at which a branch leaves the trunk, for all runs of the stack."""
        return min(spec.recipe.stable_steps(self.ends[branch]) for spec in self.specs)

    def _seconds(self, member: _Member) -> float:
        """Return the seconds of a run: its share in the stack, and the seconds before."""
        return member.begun.seconds + self.seconds / len(self.members)

    def _living(self) -> list[int]:
        return [index for index, step in enumerate(self.step.ended.tolist()) if step < 0]

    def train(self, checkpoint_seconds: float) -> dict[str, list[Row]]:
        """Train to the end and return the rows of each run."""
        with ExitStack() as recorders:
            self._record(recorders)
            while self.branch < len(self.ends) and self._living():
                self._go(checkpoint_seconds)
                self._end_branch()
        return {member.spec.run_id: member.rows for member in self.members}

    def _record(self, recorders: ExitStack) -> None:
        """Open the trackers of every run."""
        for member in self.members:
            spec = member.spec
            recorder = recorders.enter_context(
                recording(self.options.trackers, member.folder,
                          batch_tokens=spec.recipe.batch_tokens)
            )  # fmt: skip
            settings = settings_row(
                spec, self.corpus, status="running", device=device_label(self.device)
            )
            recorder.start(settings, self.computed)
            self.recorders.append(recorder)

    def _go(self, checkpoint_seconds: float) -> None:
        """Train to the end of the present branch, block by block."""
        end, last = self.ends[self.branch], self.branch + 1 == len(self.ends)
        leaves = self._leaves(self.branch)
        saved, block = time.perf_counter(), 1
        while self.done < end and self._living():
            begun = time.perf_counter()
            if not last and self.done == leaves:
                self._leave_trunk(kept=math.isfinite(checkpoint_seconds))
            stop = leaves if not last and self.done < leaves else end
            block = min(block, self.step.feed.capacity, stop - self.done)
            self.step.block(self.done, block, end)
            self.done += block
            self.computed += block
            taken = time.perf_counter() - begun
            self.seconds += taken
            self._log(end)
            self._report_diverged()
            self.events.watch(self.computed)
            if time.perf_counter() - saved >= checkpoint_seconds and self.done < end:
                self._save(CHECKPOINT, branch=self.branch)
                saved = time.perf_counter()
            block = max(1, min(2 * block, round(block * BLOCK_SECONDS / max(taken, 1e-9))))

    def _log(self, end: int) -> None:
        """Log the metrics of the last step of a block for the runs that have not diverged."""
        losses = self.step.losses.tolist()
        for index in self._living():
            member = self.members[index]
            recipe, peak = member.spec.recipe, self.stack.optimizers[index].peaks[0]
            metrics = {
                "tokens": self.done * recipe.batch_tokens,
                "seconds": self._seconds(member),
                "loss": losses[index],
                "learning_rate": peak * recipe.share(self.done - 1, end),
            }
            self.recorders[index].log(self.computed, metrics)

    def _leave_trunk(self, *, kept: bool) -> None:
        self.trunk = {name: value.clone() for name, value in self.stack.state().items()}
        self.trunk_step = self.done
        if kept:
            self._save(TRUNK, branch=self.branch + 1)

    def _save(self, name: str, *, branch: int) -> None:
        """Write the checkpoint of every run that has not diverged, as for a run alone."""
        for index in self._living():
            member = self.members[index]
            progress = Progress(
                step=self.done,
                seconds=self._seconds(member),
                identity=member.identity,
                branch=branch,
            )
            state = self.stack.restore(index, steps=self.done)
            checkpoint.save(member.folder / name, *state, progress)

    def _report_diverged(self) -> None:
        """Report the runs whose loss is not finite any more."""
        for index in set(range(len(self.members))).difference(self._living(), self.reported):
            member = self.members[index]
            row = diverged_row(member.spec, self.corpus, self.device)
            member.rows = [row | {"replicas": len(self.members)}]
            self.reported.add(index)
            self.events.ended(member.spec, member.rows)

    def _end_branch(self) -> None:
        """Evaluate every run that has not diverged; return to the trunk, or end the runs."""
        for index in self._living():
            self._finish_branch(index)
        self._report_diverged()
        self.branch += 1
        if self.trunk_step is not None and self.branch < len(self.ends):
            self.done, self.trunk_step = self.trunk_step, None
            self.stack.load(self.trunk)
            self.trunk = {}

    def _finish_branch(self, index: int) -> None:
        member, end = self.members[index], self.ends[self.branch]
        spec, folder, last = member.spec, member.folder, end == self.ends[-1]
        model, _ = self.stack.restore(index, steps=end)
        try:
            row = evaluate_branch(spec, model.to(self.device), self.corpus, folder, end=end,
                           seconds=self._seconds(member))  # fmt: skip
        except Diverged:
            self.step.ended[index] = float(end)
            return
        finally:
            model.cpu()
        member.rows.append(row | {"replicas": len(self.members)})
        self.recorders[index].result(self.computed, row)
        if not last and self.options.export:
            export_run(spec, model, self.corpus, folder.parent / str(row["run_id"]))
        keep_rows(spec, self.corpus, folder, member.rows)
        if (folder / TRUNK).exists() and not last:
            # The saved state is the checkpoint of the next branch, at which a resume starts.
            (folder / TRUNK).replace(folder / CHECKPOINT)
        if last:
            if self.options.export:
                export_run(spec, model, self.corpus, folder)
            for name in (CHECKPOINT, TRUNK):
                (folder / name).unlink(missing_ok=True)
            self.events.ended(spec, member.rows)
