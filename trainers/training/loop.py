"""Train one run, resumable at any step, and return its rows of the run table.

A run with branches (WSD-S) follows its trunk, the part with the stable learning rate. Before each
decay but the last it saves the state of the trunk, decays, is evaluated, and returns to the trunk.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import SupportsFloat

import torch

from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.models.mixture_of_experts import set_balance_loss
from shapelaw.trainers.models.next_predictions import add_predictions
from shapelaw.trainers.models.qk_clip import clip_logits, watch_logits
from shapelaw.trainers.models.transformer import Transformer
from shapelaw.trainers.objectives.objective import Batch, LossFunction, Objective, reseed
from shapelaw.trainers.optimizers.optimizer import Optimizer
from shapelaw.trainers.training import checkpoint
from shapelaw.trainers.training.averaging import BestWeights
from shapelaw.trainers.training.checkpoint import Tell as Tell
from shapelaw.trainers.training.converted_model import (
    consider_weights,
    convert_parent,
    finish_conversion,
    objective_at,
)
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
# Receives the number of steps done after every step; may raise an error to stop the run.
Watch = Callable[[int], None]


def build_model(spec: RunSpec) -> Transformer:
    """Build the model of a spec at its initial weights."""
    attention = (spec.engine or Execution()).attention
    model = Transformer(spec.shape, context_length=spec.recipe.context_length, attention=attention)
    recipe = spec.recipe
    add_predictions(model, recipe.mtp_weight, attention=attention)
    model.initialise(spec.seed, recipe.residual_init)
    if recipe.qk_clip:
        watch_logits(model)
    set_balance_loss(model, recipe.balance_loss, per_sequence=recipe.balance_over == "sequence")
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
    spec
        Run to train.
    corpus
        Corpus to train on.
    folder
        Folder of the run. It contains ``checkpoint.safetensors`` during training, and at the end
        ``model.safetensors``, ``config.json`` and a tokenizer (Hugging Face), ``windows.npy`` with
        the held-out loss of every window (``windows-STEPS.npy`` for a branch), ``metrics.csv`` and
        the rows. Compiled code is kept beside it.
    watch
        Function that is called after every step with the number of computed optimiser steps.
    tell
        Function that is called with a sentence if the run continues after an unexpected event.
    trackers
        Names of trackers, as from :func:`shapelaw.trainers.training.trackers.read_trackers`.
    checkpoint_seconds
        Seconds between two checkpoints.

    Returns
    -------
    list of Row
        Rows of the run table, one for each branch, by ascending tokens.

    Raises
    ------
    Diverged
        The loss is infinite or NaN.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    finished = finished_rows(spec, folder, spec.identity(corpus))
    if finished is not None:
        return finished  # trained before, but the end was not recorded
    run = _Run(spec.with_engine(), corpus, folder, tell)
    rows = run.resume()
    with recording(trackers, folder, batch_tokens=spec.recipe.batch_tokens) as recorder:
        recorder.start(settings_row(run.spec, corpus, status="running"), run.computed)
        while len(rows) < len(run.ends):
            rows.append(run.train_branch(watch, recorder, checkpoint_seconds))
            if len(rows) < len(run.ends):  # its model, in the folder of a separate run
                export_run(spec, run.model, corpus, folder.parent / str(rows[-1]["run_id"]))
            keep_rows(spec, corpus, folder, rows)
            run.back_to_trunk()
    export_run(spec, run.model, corpus, folder)
    for name in (CHECKPOINT, TRUNK):
        (folder / name).unlink(missing_ok=True)
    return rows


class _Run:
    """Run in memory: model, optimiser and progress.

    ``branch`` counts the finished branches; ``step`` is the step in the schedule of the present
    branch.
    """

    def __init__(self, spec: RunSpec, corpus: Corpus, folder: Path, tell: Tell) -> None:
        self.spec, self.corpus, self.folder, self.tell = spec, corpus, folder, tell
        self.ends = spec.ends
        self.identity = spec.identity(corpus)
        self.engine = spec.engine or Execution()
        self.generator = torch.Generator()
        self.batches = spec.batches(corpus)
        self._begin()

    def _begin(self) -> None:
        self.model = self._initial_model()
        self.optimizer = Optimizer(self.model, self.spec.recipe, self.ends[0])
        conversion = self.spec.conversion
        self.best = None if conversion is None else BestWeights(conversion.average)
        self.losses: dict[Objective, LossFunction] = {}
        self.branch = self.step = 0
        self.spent = 0.0
        self.since = time.perf_counter()

    def _initial_model(self) -> Transformer:
        if self.spec.conversion is None:
            return build_model(self.spec)
        return convert_parent(self.spec, self.folder.parent)

    def resume(self) -> list[Row]:
        """Restore the checkpoint, or start at the beginning; return the rows so far."""
        path = self.folder / CHECKPOINT
        begun = checkpoint.resume(path, self.model, self.optimizer, self.identity, tell=self.tell,
                                  further=self.best)  # fmt: skip
        rows = rows_so_far(self.folder, self.identity)[: begun.branch]
        if len(rows) < begun.branch or not self._may_return(begun):
            self.tell(f"{self.folder} lacks files that its checkpoint needs; the run begins again")
            self._begin()
            rows, begun = [], checkpoint.Progress(step=0, seconds=0.0, identity=self.identity)
        self.branch, self.step = begun.branch, begun.step
        self.spent = begun.seconds
        if begun.compilation is not None and begun.compilation != self.engine.compilation:
            self.engine = Execution(attention=self.engine.attention, compilation=begun.compilation)
        self.since = time.perf_counter()
        return rows

    def _compiled(self) -> Path:
        """Return the folder for compiled code, shared by all runs of a sweep."""
        return (self.folder.parent / ".compiled").absolute()

    def _may_return(self, begun: checkpoint.Progress) -> bool:
        """Return True if a checkpoint can return to the trunk, or needs no return."""
        if begun.branch + 1 >= len(self.ends) or begun.step <= self._leaves(begun.branch):
            return True
        return checkpoint.intact(self.folder / TRUNK, self.identity)

    def _leaves(self, branch: int) -> int:
        """Return the step at which a branch leaves the trunk."""
        return self.spec.recipe.stable_steps(self.ends[branch])

    @property
    def computed(self) -> int:
        """Computed steps, with the decays of finished branches."""
        decays = (self.ends[b] - self._leaves(b) for b in range(self.branch))
        return self.step + sum(decays)

    @property
    def seconds(self) -> float:
        """Seconds of training of the present weights."""
        return self.spent + time.perf_counter() - self.since

    def train_branch(self, watch: Watch, recorder: Recorder, checkpoint_seconds: float) -> Row:
        """Train to the end of the present branch, and record its row."""
        self._go(watch, recorder, checkpoint_seconds)
        row = self._row()
        recorder.result(self.computed, row)
        return row

    def _go(self, watch: Watch, recorder: Recorder, checkpoint_seconds: float) -> None:
        """Train to the end of the present branch."""
        end, last = self.ends[self.branch], self.branch + 1 == len(self.ends)
        self.optimizer.steps = end
        saved = time.perf_counter()
        while self.step < end:
            if not last and self.step == self._leaves(self.branch):
                self._save(TRUNK, branch=self.branch + 1)
            metrics = self._train_one()
            self.step += 1
            if self.best is not None:
                consider_weights(self.spec, self.step, self.model, self.corpus, self.best)
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
        checkpoint.save(self.folder / name, self.model, self.optimizer, progress, further=self.best)

    def _train_one(self) -> dict[str, SupportsFloat]:
        """Train one step and return its metrics."""
        batch = Batch(torch.from_numpy(self.batches(self.step)))
        try:
            loss = self._backward(batch)
        except Diverged:
            raise
        except Exception as error:  # of any kind; recurs without compilation if the run fails
            if self.engine.compilation == "none":
                raise
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            self.tell(f"compilation failed ({reason}); the run continues without it")
            self.engine = Execution(attention=self.engine.attention, compilation="none")
            self.losses = {}
            for weight in self.model.parameters():
                weight.grad = None
            with without_compiled_code():
                loss = self._backward(batch)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.recipe.clip)
        self.optimizer.step(self.step)
        threshold = self.spec.recipe.qk_clip
        clipped = clip_logits(self.model, threshold) if threshold else {}
        return {
            "tokens": (self.step + 1) * self.spec.recipe.batch_tokens,
            "seconds": self.seconds,
            "loss": loss,
            "learning_rate": self.optimizer.parts[0].param_groups[0]["lr"],
            "gradient_norm": norm,
            **self.model.balance_experts(),
            **clipped,
        }

    def _backward(self, batch: Batch) -> float:
        """Add the gradients of a batch and return its loss."""
        draws = reseed(self.generator, self.spec.data_seed, self.step)
        loss, _ = self._loss()(self.model, batch, draws)
        value = loss.item()
        if not math.isfinite(value):
            raise Diverged(f"training loss is {value} at step {self.step}")
        loss.backward()
        return value

    def _loss(self) -> LossFunction:
        """Return the loss function of the present step, compiled once for each objective."""
        objective = objective_at(self.spec, self.step)
        if objective not in self.losses:
            folder = self._compiled()
            self.losses[objective] = self.engine.compile_loss(objective, self.model, folder)
        return self.losses[objective]

    def _row(self) -> Row:
        """Evaluate the finished branch and write the loss of every window."""
        if self.best is not None:
            finish_conversion(self.model, self.folder, self.best)
        used = self.spec.computed_by(self.engine)  # differs from the planned one if that failed
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
        """Return to the state at which the branch left the trunk, if another branch follows."""
        self.branch += 1
        if self.branch == len(self.ends):
            return
        # The saved state is the checkpoint of the next branch, at which a resume starts from now
        # on.
        (self.folder / TRUNK).replace(self.folder / CHECKPOINT)
        begun = checkpoint.resume(
            self.folder / CHECKPOINT, self.model, self.optimizer, self.identity, tell=self.tell
        )
        if begun.branch != self.branch:
            raise WorkError(f"{self.folder / CHECKPOINT} is damaged; start the run again")
        self.step, self.spent, self.since = begun.step, begun.seconds, time.perf_counter()
