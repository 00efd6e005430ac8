"""Worker of a sweep: trains runs of a ledger until none is left.

A worker needs only the address of the ledger and the folder of the sweep. For workers on several
machines, the folder must be on a file system that all machines share.
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
from shapelaw.trainers.ledger.entry import DIVERGED, RUNNING
from shapelaw.trainers.ledger.ledger import Ledger
from shapelaw.trainers.ledger.liveness import Heartbeat
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.training.device import device_named
from shapelaw.trainers.training.loop import train_run
from shapelaw.trainers.training.results import Row, settings_row
from shapelaw.trainers.training.spec import Diverged, RunSpec

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds between two attempts of an idle worker to claim
ALIVE_CHECK_SECONDS = 0.25  # between two checks in such a pause that the worker is still needed
BEAT_SECONDS = 1.0  # between two heartbeats of a run


class Stopped(RuntimeError):
    """Error that stops training: another worker has the run, or this worker must end."""


def run_worker(
    ledger: str,
    folder: Path,
    *,
    pack: int | None = None,
    share: int | None = None,
    alive: Callable[[], bool] = lambda: True,
    idle_seconds: float = float("inf"),
) -> None:
    """Train runs of a ledger until every run has ended.

    Parameters
    ----------
    ledger
        Path of the file of the ledger, or URL of its database.
    folder
        Folder of the sweep with the prepared corpus. Checkpoints and weights are written to it.
    pack
        Largest number of runs of one shape to train at once; by default as many as increase the
        throughput of a GPU, which is measured, and one on a CPU.
    share
        Largest number of runs in a pack, so that every worker gets some.
    alive
        Predicate that is checked after every step. If it is false, the worker stops and leaves its
        runs to others.
    idle_seconds
        Seconds without work after which the worker ends although other workers still train. A run
        of a worker that dies must be taken over, so this must be longer than the time after which a
        worker counts as dead.

    Raises
    ------
    WorkError
        The ledger or the folder cannot be used from here.
    """
    place = Folder(folder)
    if not (place.corpus / "corpus.json").exists():
        raise WorkError(
            f"{folder} holds no prepared corpus on this machine; the --out folder must be on a "
            "file system that all machines of the sweep share, with the same path on each"
        )
    book, corpus = Ledger(ledger), Corpus.load(place.corpus)
    worker = _Worker(book, corpus, place, device_named(), alive)
    try:
        worker.work(pack, share, idle_seconds)
    except BaseException:  # stopped: other workers can claim the runs at once
        with suppress(WorkError):  # keeps the first error if the ledger is out of reach
            book.give_back()
        raise


@dataclass(frozen=True)
class _Worker:
    """Worker with its ledger, corpus, folder and device."""

    ledger: Ledger
    corpus: Corpus
    folder: Folder
    device: torch.device
    alive: Callable[[], bool]

    def work(self, pack: int | None, share: int | None, idle_seconds: float) -> None:
        """Claim and train runs until every run has ended."""
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
        """Sleep in short intervals, so that a worker that must end does so soon."""
        end = time.monotonic() + seconds
        while self.alive() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, ALIVE_CHECK_SECONDS))

    def _claim_more(self, first: RunSpec, pack: int | None, share: int | None) -> list[RunSpec]:
        """Claim further runs that can be trained together with a claimed run."""
        if (pack is None and self.device.type == "cpu") or first.conversion is not None:
            return []
        from shapelaw.trainers.gpu.autotune import REPLICAS
        from shapelaw.trainers.gpu.stack import stackable

        most = min(pack or REPLICAS[-1], share or REPLICAS[-1])
        if most < 2:
            return []
        group = stackable(first)

        def fits(spec: RunSpec) -> bool:
            return spec.conversion is None and stackable(spec) == group

        return self.ledger.claim_more(first, fits, most - 1)

    def _train_claimed(self, specs: Sequence[RunSpec], *, measured: bool) -> None:
        """Train claimed runs and record the end of each.

        If a pack fails, its runs are trained one by one, so that an error belongs to one run.
        """
        with _Claim(self, specs) as claim:
            try:
                if measured and len(specs) > 1:
                    claim.keep(self._measured_pack(specs[0]))
                self._train(claim)
            except Stopped:
                claim.keep(0)
            except Exception as error:  # of any kind: the plan's other runs are still trained
                if not claim.specs:  # the end of a run could not be recorded
                    raise
                claim.failed(f"{type(error).__name__}: {error}")
            for spec in claim.specs:  # runs of a pack that failed
                if claim.valid:
                    claim.leave(spec)
                    self._train_claimed([spec], measured=False)
            claim.keep(0)

    def _measured_pack(self, spec: RunSpec) -> int:
        """Return how many such runs the device trains fastest; measured once per sweep."""
        from shapelaw.trainers.gpu.autotune import REPLICAS, choose_packing, packing_key, packings

        choose = partial(choose_packing, most=(REPLICAS[-1], 1))
        measured = packings(
            [spec], self.corpus.train(), self.folder.packings, device=self.device, choose=choose
        )
        return measured[packing_key(spec, self.device)].replicas

    def _train(self, claim: "_Claim") -> None:
        """Train runs on the GPU of this worker, else on a CPU core; several runs in one stack.

        A conversion is always trained on a CPU core.

        On a GPU the whole step is compiled and captured as a CUDA graph.
        """
        specs, trackers = claim.specs, self.folder.trackers()
        alone = self.device.type == "cpu" or specs[0].conversion is not None
        if alone and len(specs) == 1:
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
    """Claimed runs of a worker, with heartbeats until the end of each is recorded."""

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
        """Send a heartbeat of every run; return False if a run was lost that has not just ended."""
        try:
            return all(
                self._ledger.beat(run_id, self._step) or run_id not in self._waiting
                for run_id in tuple(self._waiting)
            )
        except WorkError:
            return (
                True  # the ledger is out of reach for now; recording the end will raise the error
            )

    @property
    def valid(self) -> bool:
        """True if all runs still belong to this worker and it should continue."""
        return not self._heartbeat.lost and self._worker.alive()

    @property
    def specs(self) -> list[RunSpec]:
        """Runs that have not ended."""
        return list(self._waiting.values())

    def watch(self, step: int) -> None:
        """Stop the training if the claim is not valid any more."""
        self._step = step
        if not self.valid:
            raise Stopped

    def note(self, text: str) -> None:
        """Add a remark to every run."""
        for run_id in self._waiting:
            self._ledger.note(run_id, text)

    def leave(self, spec: RunSpec) -> None:
        """Drop a run that has ended or continues under a claim of its own."""
        del self._waiting[spec.run_id]

    def keep(self, most: int) -> None:
        """Release all but the first ``most`` runs, so that other workers can claim them."""
        for spec in self.specs[most:]:
            self.leave(spec)
            self._ledger.release(spec.run_id)

    def ended(self, spec: RunSpec, rows: list[Row]) -> None:
        """Record the end of a run of a pack."""
        if rows[-1]["status"] == DIVERGED:
            self.diverged(spec, rows[-1], "the loss is no longer a finite number")
        else:
            self.finished(spec, rows)

    def finished(self, spec: RunSpec, rows: list[Row]) -> None:
        """Record the rows of a finished run."""
        self.leave(spec)
        self._ledger.finish(spec.run_id, rows)

    def diverged(self, spec: RunSpec, row: Row, message: str) -> None:
        """Record that a run diverged."""
        self.leave(spec)
        self._ledger.diverge(spec.run_id, message, row)

    def failed(self, reason: str) -> None:
        """Record that the run failed; if there are several, note that each is trained alone."""
        if len(self._waiting) > 1:
            self.note(f"trained alone because its pack failed: {reason}")
            return
        for spec in self.specs:
            self.leave(spec)
            self._ledger.fail(spec.run_id, reason)
