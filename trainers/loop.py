"""Train one run, resumable at any step, and return its rows of the run table.

A run with branches (WSD-S) goes along its trunk, the part with the stable learning rate; before
each decay but the last it keeps the state of the trunk, decays, is evaluated, and goes back.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scaling.errors import WorkError
from scaling.files import read_json, write_json, write_whole
from trainers import checkpoint
from trainers.corpus import Batches, Corpus
from trainers.encoding import load_encoding
from trainers.engine import Engine, uncompiled
from trainers.evaluate import Evaluation, evaluate, evaluate_sets
from trainers.export import export
from trainers.model import Transformer
from trainers.optim import Optimizer
from trainers.rows import Row, result_columns, settings_row
from trainers.spec import RunSpec

LOG = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 10.0
CHECKPOINT, TRUNK = "checkpoint.safetensors", "trunk.safetensors"
# Called after every step with the steps done; may raise to stop the run.
Watch = Callable[[int], None]
# Called with a sentence about a run that goes on, but not as planned.
Tell = Callable[[str], None]


class Diverged(RuntimeError):
    """The training loss is no longer a finite number."""


def build(spec: RunSpec) -> Transformer:
    """The model of a spec at its initial weights."""
    attention = (spec.engine or Engine()).attention
    model = Transformer(spec.shape, context_length=spec.recipe.context_length, attention=attention)
    model.initialise(spec.seed)
    return model


def train(
    spec: RunSpec,
    corpus: Corpus,
    folder: Path,
    *,
    watch: Watch = lambda step: None,
    tell: Tell = LOG.warning,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> list[Row]:
    """Train one run to its end, from its checkpoint if there is one.

    Parameters
    ----------
    folder
        Holds ``checkpoint.safetensors`` while the run goes on; at the end ``model.safetensors``,
        ``config.json`` and a tokenizer (Hugging Face), and ``windows.npy``, the held-out loss of
        every window (``windows-STEPS.npy`` for a branch). Compiled code is kept beside it.
    watch
        Called after every step with the optimiser steps that were computed so far.
    tell
        Called with a sentence where the run goes on, but not as planned.

    Returns
    -------
    The rows of the run table, one for each branch, by ascending tokens.

    Raises
    ------
    Diverged
        The loss became infinite or NaN.
    """
    torch.set_num_threads(1)
    run = _Run(spec.with_engine(), corpus, folder, tell)
    rows = run.resume()
    while len(rows) < len(run.ends):
        run.go(watch, checkpoint_seconds)
        rows.append(run.row())
        write_json(folder / "rows.json", {"rows": rows})
        run.back_to_trunk()
    export(
        folder,
        run.model,
        max_position_embeddings=spec.recipe.context_length,
        tokenizer=load_encoding(Path(corpus.folder)),
    )
    for name in (CHECKPOINT, TRUNK, "rows.json"):
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
        self.engine = spec.engine or Engine()
        self.batches = Batches(
            corpus.train(),
            context_length=spec.recipe.context_length,
            sequences=spec.recipe.sequences,
            seed=spec.data_seed,
        )
        self._begin()

    def _begin(self) -> None:
        self.model = build(self.spec)
        self.optimizer = Optimizer(self.model, self.spec.recipe, self.ends[0])
        self.branch = self.step = 0
        self.spent = 0.0
        self.since = time.perf_counter()

    def resume(self) -> list[Row]:
        """Stand where the checkpoint does, or at the beginning; return the rows so far."""
        path = self.folder / CHECKPOINT
        begun = checkpoint.resume(path, self.model, self.optimizer, self.identity, tell=self.tell)
        rows = self._rows_so_far(begun.branch)
        if len(rows) < begun.branch or not self._may_return(begun):
            self.tell(f"{self.folder} lacks what its checkpoint builds on; the run begins again")
            self._begin()
            rows, begun = [], checkpoint.Progress(step=0, seconds=0.0, identity=self.identity)
        self.branch, self.step = begun.branch, begun.step
        self.spent = begun.seconds
        if begun.compilation is not None and begun.compilation != self.engine.compilation:
            self.engine = Engine(attention=self.engine.attention, compilation=begun.compilation)
        self.losses = self.engine.losses(self.model, self.spec.recipe, self._compiled())
        self.since = time.perf_counter()
        return rows

    def _compiled(self) -> Path:
        """The folder for compiled code, shared by all runs of a sweep."""
        return (self.folder.parent / ".compiled").absolute()

    def _rows_so_far(self, count: int) -> list[Row]:
        path = self.folder / "rows.json"
        return read_json(path)["rows"][:count] if count and path.exists() else []

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

    def go(self, watch: Watch, checkpoint_seconds: float) -> None:
        """Train to the end of the branch on the way."""
        end, last = self.ends[self.branch], self.branch + 1 == len(self.ends)
        self.optimizer.steps = end
        saved = time.perf_counter()
        while self.step < end:
            if not last and self.step == self._leaves(self.branch):
                self._save(TRUNK, branch=self.branch + 1)
            self._train_one()
            self.step += 1
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

    def _train_one(self) -> None:
        batch = torch.from_numpy(self.batches(self.step))
        try:
            self._backward(batch)
        except Diverged:
            raise
        except Exception as error:  # a compiler fails in many ways; without it, they are the run's
            if self.engine.compilation == "none":
                raise
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            self.tell(f"compilation failed ({reason}); the run goes on without")
            self.engine = Engine(attention=self.engine.attention, compilation="none")
            self.losses = self.engine.losses(self.model, self.spec.recipe)
            for weight in self.model.parameters():
                weight.grad = None
            with uncompiled():
                self._backward(batch)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.recipe.clip)
        self.optimizer.step(self.step)

    def _backward(self, batch: Tensor) -> None:
        loss = self.losses(batch).mean()
        if not torch.isfinite(loss):
            raise Diverged(f"training loss is {loss.item()} at step {self.step}")
        loss.backward()

    def row(self) -> Row:
        """Evaluate, and keep the loss of every held-out window."""
        seconds, end = self.seconds, self.ends[self.branch]
        with uncompiled():
            result, sets = self._evaluate()
        if not np.isfinite(result.loss):
            raise Diverged(f"held-out loss is {result.loss} after {end} steps")
        name = "windows.npy" if end == self.spec.steps else f"windows-{end}.npy"
        write_whole(self.folder / name, lambda target: np.save(target, result.windows))
        # The engine that was used, should the planned one have failed.
        settings = settings_row(self.spec, self.corpus, status="done", end=end)
        used = {"attention": self.engine.attention, "compilation": self.engine.compilation}
        tokens = end * self.spec.recipe.batch_tokens
        return settings | used | result_columns(result, sets, seconds=seconds, tokens=tokens)

    def _evaluate(self) -> tuple[Evaluation, dict[str, Evaluation]]:
        corpus, recipe = self.corpus, self.spec.recipe
        whole = evaluate(
            self.model, corpus.validation(), recipe, bytes_per_token=corpus.bytes_per_token
        )
        return whole, evaluate_sets(self.model, corpus.validation_sets(), recipe)

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
