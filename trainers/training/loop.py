"""Train one run, resumable at any step, and return its rows of the run table.

A run with branches (WSD-S) goes along its trunk, the part with the stable learning rate; before
each decay but the last it keeps the state of the trunk, decays, is evaluated, and goes back.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import SupportsFloat

import torch

from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.corpus.batches import Batches
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch, reseed
from shapelaw.trainers.objectives.registry import objective_of
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.training import checkpoint
from shapelaw.trainers.training.checkpoint import Tell as Tell
from shapelaw.trainers.training.execution import Execution, keep_freed_memory, without_compiled_code
from shapelaw.trainers.training.results import (
    Row,
    evaluate_branch,
    export_run,
    finished_rows,
    keep_rows,
    rows_so_far,
    settings_row,
)
from shapelaw.trainers.training.spec import Diverged, RunSpec
from shapelaw.trainers.training.trackers import Recorder, recording

LOG = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 10.0
CHECKPOINT, TRUNK = "checkpoint.safetensors", "trunk.safetensors"
# Called after every step with the steps done; may raise to stop the run.
Watch = Callable[[int], None]


def build_model(spec: RunSpec) -> Transformer:
    """Build the model of a spec at its initial weights."""
    attention = (spec.engine or Execution()).attention
    model = Transformer(spec.shape, context_length=spec.recipe.context_length, attention=attention)
    model.initialise(spec.seed, spec.recipe.residual_init)
    return model


def train_run(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    watch: Watch = lambda step: None,
    tell: Tell = LOG.warning,
    trackers: Sequence[str] = ("csv",),
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> list[Row]:
    """Train one run to its end, from its checkpoint if there is one.

    Parameters
    ----------
    folder
        Holds ``checkpoint.safetensors`` while the run goes on; at the end ``model.safetensors``,
        ``config.json`` and a tokenizer (Hugging Face), and ``windows.npy``, the held-out loss of
        every window (``windows-STEPS.npy`` for a branch), ``metrics.csv`` and the rows. Compiled
        code is kept beside it.
    watch
        Called after every step with the optimiser steps that were computed so far.
    tell
        Called with a sentence where the run goes on, but not as planned.
    trackers
        Where metrics go, as :func:`shapelaw.trainers.training.trackers.read_trackers` gives them.

    Returns
    -------
    The rows of the run table, one for each branch, by ascending tokens.

    Raises
    ------
    Diverged
        The loss became infinite or NaN.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    known = finished_rows(spec, folder, spec.identity(corpus))
    if known is not None:
        return known  # all was done but for telling so
    run = _Run(spec.with_engine(), corpus, folder, tell)
    rows = run.resume()
    with recording(trackers, folder, batch_tokens=spec.recipe.batch_tokens) as recorder:
        recorder.start(settings_row(run.spec, corpus, status="running"), run.computed)
        while len(rows) < len(run.ends):
            run.go(watch, recorder, checkpoint_seconds)
            rows.append(run.row())
            recorder.result(run.computed, rows[-1])
            if len(rows) < len(run.ends):  # its model, where the model of a run of its own would be
                export_run(spec, run.model, corpus, folder.parent / str(rows[-1]["run_id"]))
            keep_rows(spec, corpus, folder, rows)
            run.back_to_trunk()
    export_run(spec, run.model, corpus, folder)
    for name in (CHECKPOINT, TRUNK):
        (folder / name).unlink(missing_ok=True)
    return rows


class _Run:
    """A run in memory: model, optimiser, and where it stands.

    ``branch`` counts the ends that were reached; ``step`` is the place in the schedule of the
    branch on the way.
    """

    def __init__(self, spec: RunSpec, corpus: Corpus, folder: Path, tell: Tell) -> None:
        self.spec, self.corpus, self.folder, self.tell = spec, corpus, folder, tell
        self.ends = spec.ends
        self.identity = spec.identity(corpus)
        self.engine = spec.engine or Execution()
        self.objective, self.generator = objective_of(spec.recipe), torch.Generator()
        self.batches = Batches(
            corpus.train(),
            context_length=spec.recipe.context_length,
            sequences=spec.recipe.sequences,
            seed=spec.data_seed,
        )
        self._begin()

    def _begin(self) -> None:
        self.model = build_model(self.spec)
        self.optimizer = Optimizer(self.model, self.spec.recipe, self.ends[0])
        self.branch = self.step = 0
        self.spent = 0.0
        self.since = time.perf_counter()

    def resume(self) -> list[Row]:
        """Stand where the checkpoint does, or at the beginning; return the rows so far."""
        path = self.folder / CHECKPOINT
        begun = checkpoint.resume(path, self.model, self.optimizer, self.identity, tell=self.tell)
        rows = rows_so_far(self.folder, self.identity)[: begun.branch]
        if len(rows) < begun.branch or not self._may_return(begun):
            self.tell(f"{self.folder} lacks what its checkpoint builds on; the run begins again")
            self._begin()
            rows, begun = [], checkpoint.Progress(step=0, seconds=0.0, identity=self.identity)
        self.branch, self.step = begun.branch, begun.step
        self.spent = begun.seconds
        if begun.compilation is not None and begun.compilation != self.engine.compilation:
            self.engine = Execution(attention=self.engine.attention, compilation=begun.compilation)
        self.loss = self.engine.compile_loss(self.objective, self.model, self._compiled())
        self.since = time.perf_counter()
        return rows

    def _compiled(self) -> Path:
        """The folder for compiled code, shared by all runs of a sweep."""
        return (self.folder.parent / ".compiled").absolute()

    def _may_return(self, begun: checkpoint.Progress) -> bool:
        """Whether a checkpoint inside the decay of a branch has its way back to the trunk."""
        if begun.branch + 1 >= len(self.ends) or begun.step <= self._leaves(begun.branch):
            return True
        return checkpoint.intact(self.folder / TRUNK, self.identity)

    def _leaves(self, branch: int) -> int:
        """The step at which a branch leaves the trunk."""
        return self.spec.recipe.stable_steps(self.ends[branch])

    @property
    def computed(self) -> int:
        """Steps that were computed, with the decays of finished branches."""
        decays = (self.ends[b] - self._leaves(b) for b in range(self.branch))
        return self.step + sum(decays)

    @property
    def seconds(self) -> float:
        """Seconds of training that the weights at hand took."""
        return self.spent + time.perf_counter() - self.since

    def go(self, watch: Watch, recorder: Recorder, checkpoint_seconds: float) -> None:
        """Train to the end of the branch on the way."""
        end, last = self.ends[self.branch], self.branch + 1 == len(self.ends)
        self.optimizer.steps = end
        saved = time.perf_counter()
        while self.step < end:
            if not last and self.step == self._leaves(self.branch):
                self._save(TRUNK, branch=self.branch + 1)
            metrics = self._train_one()
            self.step += 1
            recorder.log(self.computed, metrics)
            watch(self.computed)
            if time.perf_counter() - saved >= checkpoint_seconds and self.step < end:
                self._save(CHECKPOINT, branch=self.branch)
                saved = time.perf_counter()

    def _save(self, name: str, *, branch: int) -> None:
        progress = checkpoint.Progress(
            step=self.step,
            seconds=self.seconds,
            identity=self.identity,
            branch=branch,
            compilation=self.engine.compilation,
        )
        checkpoint.save(self.folder / name, self.model, self.optimizer, progress)

    def _train_one(self) -> dict[str, SupportsFloat]:
        """Take a step and return its metrics."""
        batch = Batch(torch.from_numpy(self.batches(self.step)))
        try:
            loss = self._backward(batch)
        except Diverged:
            raise
        except Exception as error:  # a compiler fails in many ways; without it, they are the run's
            if self.engine.compilation == "none":
                raise
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            self.tell(f"compilation failed ({reason}); the run goes on without")
            self.engine = Execution(attention=self.engine.attention, compilation="none")
            self.loss = self.engine.compile_loss(self.objective, self.model)
            for weight in self.model.parameters():
                weight.grad = None
            with without_compiled_code():
                loss = self._backward(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.recipe.clip)
        self.optimizer.step(self.step)
        return {
            "tokens": (self.step + 1) * self.spec.recipe.batch_tokens,
            "seconds": self.seconds,
            "loss": loss,
            "learning_rate": self.optimizer.parts[0].param_groups[0]["lr"],
            "gradient_norm": norm,
        }

    def _backward(self, batch: Batch) -> float:
        """Add the gradients of a batch and return its loss."""
        draws = reseed(self.generator, self.spec.data_seed, self.step)
        loss, _ = self.loss(self.model, batch, draws)
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(f"training loss is {value} at step {self.step}")
        loss.backward()
        return value

    def row(self) -> Row:
        """Evaluate the branch that was trained to its end, and keep the loss of every window."""
        used = self.spec.computed_by(self.engine)  # should the planned one have failed
        with without_compiled_code():
            return evaluate_branch(
                used,
                self.model,
                self.corpus,
                self.folder,
                end=self.ends[self.branch],
                seconds=self.seconds,
            )

    def back_to_trunk(self) -> None:
        """Go back to where the branch left the trunk, if another branch is to come."""
        self.branch += 1
        if self.branch == len(self.ends):
            return
        # The kept state is the checkpoint of the next branch: from now on a resume starts there.
        (self.folder / TRUNK).replace(self.folder / CHECKPOINT)
        begun = checkpoint.resume(
            self.folder / CHECKPOINT, self.model, self.optimizer, self.identity, tell=self.tell
        )
        if begun.branch != self.branch:
            raise WorkError(f"{self.folder / CHECKPOINT} was damaged; start the run again")
        self.step, self.spent, self.since = begun.step, begun.seconds, time.perf_counter()
