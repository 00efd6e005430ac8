"""The work of one worker, wherever it was started: train runs of a ledger until none is left.

A worker needs two things only: where the ledger is, and the sweep's folder. On several machines the
folder must lie on a file system that all of them share.
"""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch

from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.ledger import DIVERGED, RUNNING, Ledger, open_ledger
from shapelaw.trainers.ledger.liveness import Heartbeat
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.training.device import device_named
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.results import Row, settings_row
from shapelaw.trainers.training.spec import Diverged, RunSpec

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # between two looks of a worker that has nothing to do
PIECE = 0.25  # of such a pause
BEAT_SECONDS = 1.0  # between two heartbeats of a run


class Stopped(RuntimeError):
    """A run belongs to another worker now, or whoever started this worker is gone."""


def run_worker(
    ledger: str,
    folder: Path,
    *,
    pack: int | None = None,
    share: int | None = None,
    alive: Callable[[], bool] = lambda: True,
    idle_seconds: float = float("inf"),
) -> None:
    """Train runs of the ledger until every one has ended.

    Parameters
    ----------
    ledger
        Where the ledger is: the path of its file or the URL of its database.
    folder
        The sweep's folder, with the prepared corpus; checkpoints and weights go there.
    pack
        Most runs of one shape to train at once; by default as many as a GPU gains from, which is
        measured, and one on a CPU.
    share
        Runs that are left for each worker: a pack takes no more, so that all workers have some.
    alive
        Asked after every step; when it is false the worker stops and leaves its runs to others.
    idle_seconds
        Leave after so long without work, although others still train: they may die and leave
        their run, so this must be longer than the time after which a worker counts as dead.

    Raises
    ------
    WorkError
        The ledger or the folder cannot be used from here.
    """
    place = Folder(folder)
    if not (place.corpus / "corpus.json").exists():
        raise WorkError(
            f"{folder} holds no prepared corpus on this machine; the --out folder must be on a "
            "file system that all machines of the sweep share, under one path"
        )
    book, corpus = open_ledger(ledger), Corpus.load(place.corpus)
    worker = _Worker(book, corpus, place, device_named(), alive)
    try:
        worker.work(pack, share, idle_seconds)
    except BaseException:  # told to end: the next worker need not wait until this one is dead
        with suppress(WorkError):  # where the ledger is out of reach, that is what is told
            book.give_back()
        raise


@dataclass(frozen=True)
class _Worker:
    """A worker with everything that it needs for a run."""

    ledger: Ledger
    corpus: Corpus
    folder: Folder
    device: torch.device
    alive: Callable[[], bool]

    def work(self, pack: int | None, share: int | None, idle_seconds: float) -> None:
        """Take and train runs until every one has ended."""
        pause, idle_since = FIRST_PAUSE, time.monotonic()
        while self.alive():
            spec = self.ledger.claim()
            if spec is not None:
                specs = [spec, *self._claim_more(spec, pack, share)]
                self._train_claimed(specs, measured=pack is None)
                pause, idle_since = FIRST_PAUSE, time.monotonic()
                continue
            others = any(entry.state == RUNNING for entry in self.ledger.entries())
            if not others or time.monotonic() - idle_since > idle_seconds:
                return
            self._sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _sleep(self, seconds: float) -> None:
        """Sleep in short pieces, so that a worker that is no longer wanted leaves soon."""
        end = time.monotonic() + seconds
        while self.alive() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PIECE))

    def _claim_more(self, first: RunSpec, pack: int | None, share: int | None) -> list[RunSpec]:
        """Take the runs that may be trained together with one that was claimed."""
        if pack is None and self.device.type == "cpu":
            return []
        from shapelaw.trainers.gpu.autotune import REPLICAS
        from shapelaw.trainers.gpu.stack import stackable

        most = min(pack or REPLICAS[-1], share or REPLICAS[-1])
        if most < 2:
            return []
        alike = stackable(first)
        return self.ledger.claim_more(first, lambda spec: stackable(spec) == alike, most - 1)

    def _train_claimed(self, specs: Sequence[RunSpec], *, measured: bool) -> None:
        """Train claimed runs and record how each ended.

        Should a pack fail, its runs are trained one by one: then an error is that of one run.
        """
        with _Claim(self, specs) as claim:
            try:
                if measured and len(specs) > 1:
                    claim.keep(self._measured_pack(specs[0]))
                self._train(claim)
            except Stopped:
                claim.keep(0)
            except Exception as error:  # whatever it is, the other runs of the plan go on
                if not claim.specs:  # the end of a run could not be recorded
                    raise
                claim.failed(f"{type(error).__name__}: {error}")
            for spec in claim.specs:  # of a pack that failed
                if claim.wanted:
                    claim.leave(spec)
                    self._train_claimed([spec], measured=False)
            claim.keep(0)

    def _measured_pack(self, spec: RunSpec) -> int:
        """Return how many runs like this one the device gains from; measured once per sweep."""
        from shapelaw.trainers.gpu.autotune import REPLICAS, choose_packing, packing_key, packings

        choose = partial(choose_packing, most=(REPLICAS[-1], 1))
        known = packings(
            [spec], self.corpus.train(), self.folder.packings, device=self.device, choose=choose
        )
        return known[packing_key(spec, self.device)].replicas

    def _train(self, claim: "_Claim") -> None:
        """Train runs on the GPU that this worker sees, else on a core; several in one stack.

        On a GPU the whole step is compiled and captured.
        """
        specs, trackers = claim.specs, self.folder.trackers()
        if self.device.type == "cpu" and len(specs) == 1:
            folder = self.folder.run(specs[0].run_id)
            try:
                rows = train_run(specs[0], self.corpus, folder, watch=claim.watch, tell=claim.note,
                             trackers=trackers)  # fmt: skip
            except Diverged as error:
                row = settings_row(specs[0], self.corpus, status=DIVERGED)
                claim.diverged(specs[0], row, str(error))
            else:
                claim.finished(specs[0], rows)
            return
        from shapelaw.trainers.gpu.packed_loop import PackEvents, train_pack
        from shapelaw.trainers.gpu.packed_step import Options

        compiler = "" if self.device.type == "cpu" else "inductor"
        events = PackEvents(watch=claim.watch, ended=claim.ended, note=claim.note)
        options = Options(compiler=compiler, trackers=trackers)
        train_pack(specs, self.corpus, self.folder.run, device=self.device, options=options,
                   events=events)  # fmt: skip


class _Claim:
    """Runs that a worker holds: they have its heartbeats until their end is recorded."""

    def __init__(self, worker: _Worker, specs: Sequence[RunSpec]) -> None:
        self._worker, self._ledger = worker, worker.ledger
        self._waiting = {spec.run_id: spec for spec in specs}
        self._step = 0
        self._heartbeat = Heartbeat(self._beat, BEAT_SECONDS)

    def __enter__(self) -> Self:
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._heartbeat.__exit__(*error)

    def _beat(self) -> bool:
        """Beat for every run; false if one of them is lost, and not because it has just ended."""
        try:
            return all(
                self._ledger.beat(run_id, self._step) or run_id not in self._waiting
                for run_id in tuple(self._waiting)
            )
        except WorkError:
            return True  # out of reach for a while; the training goes on, the end will tell

    @property
    def wanted(self) -> bool:
        """Whether all runs are still this worker's, and it is to go on."""
        return not self._heartbeat.lost and self._worker.alive()

    @property
    def specs(self) -> list[RunSpec]:
        """The runs that have not ended."""
        return list(self._waiting.values())

    def watch(self, step: int) -> None:
        """Stop the training where it is not wanted any more."""
        self._step = step
        if not self.wanted:
            raise Stopped

    def note(self, text: str) -> None:
        """Add a remark to every run."""
        for run_id in self._waiting:
            self._ledger.note(run_id, text)

    def leave(self, spec: RunSpec) -> None:
        """Hold a run no longer: it has ended, or goes on under a claim of its own."""
        del self._waiting[spec.run_id]

    def keep(self, most: int) -> None:
        """Give runs back beyond the first ones; another worker goes on with them."""
        for spec in self.specs[most:]:
            self.leave(spec)
            self._ledger.release(spec.run_id)

    def ended(self, spec: RunSpec, rows: list[Row]) -> None:
        """Record how a run of a pack has ended."""
        if rows[-1]["status"] == DIVERGED:
            self.diverged(spec, rows[-1], "the loss is no longer a finite number")
        else:
            self.finished(spec, rows)

    def finished(self, spec: RunSpec, rows: list[Row]) -> None:
        """Record the rows of a run."""
        self.leave(spec)
        self._ledger.finish(spec.run_id, rows)

    def diverged(self, spec: RunSpec, row: Row, message: str) -> None:
        """Record that a run diverged."""
        self.leave(spec)
        self._ledger.diverge(spec.run_id, message, row)

    def failed(self, reason: str) -> None:
        """Record that the run failed; several are only told that they will be trained alone."""
        if len(self._waiting) > 1:
            self.note(f"trained alone because its pack failed: {reason}")
            return
        for spec in self.specs:
            self.leave(spec)
            self._ledger.fail(spec.run_id, reason)
