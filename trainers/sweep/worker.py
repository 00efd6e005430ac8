"""What a worker does, wherever it was started: train runs of a ledger until none is left.

A worker needs two things only: where the ledger is, and the sweep's folder. On several machines the
folder must lie on a file system that all of them share.
"""

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.corpus.corpus import Corpus
from shapelaw.trainers.ledger.ledger import DIVERGED, RUNNING, Ledger, open_ledger
from shapelaw.trainers.ledger.liveness import Heartbeat
from shapelaw.trainers.sweep.folder import Folder
from shapelaw.trainers.training.device import device_named
from shapelaw.trainers.training.loop import Tell, Watch, train
from shapelaw.trainers.training.results import Row, settings_row
from shapelaw.trainers.training.spec import Diverged, RunSpec

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # between two looks of a worker that has nothing to do
PIECE = 0.25  # of such a pause
BEAT_SECONDS = 1.0  # between two heartbeats of a run


class Stopped(RuntimeError):
    """The run belongs to another worker now, or whoever started this worker is gone."""


def work(
    ledger: str,
    folder: Path,
    *,
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
    alive
        Asked after every step; when it is false the worker stops and leaves its run to others.
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
    try:
        _work(book, corpus, place, alive, idle_seconds)
    except BaseException:  # told to end: the next worker need not wait until this one is dead
        with suppress(WorkError):  # where the ledger is out of reach, that is what is told
            book.give_back()
        raise


def _work(
    book: Ledger, corpus: Corpus, place: Folder, alive: Callable[[], bool], idle_seconds: float
) -> None:
    """Take and train runs until every one has ended."""
    pause, idle_since = FIRST_PAUSE, time.monotonic()
    while alive():
        spec = book.claim()
        if spec is not None:
            _train_one(spec, corpus, place, book, alive)
            pause, idle_since = FIRST_PAUSE, time.monotonic()
            continue
        others = any(entry.state == RUNNING for entry in book.entries())
        if not others or time.monotonic() - idle_since > idle_seconds:
            return
        _sleep(pause * random.uniform(0.5, 1.0), alive)
        pause = min(2 * pause, LONGEST_PAUSE)


def _sleep(seconds: float, alive: Callable[[], bool]) -> None:
    """Sleep in short pieces, so that a worker that is no longer wanted leaves soon."""
    end = time.monotonic() + seconds
    while alive() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, PIECE))


def _train_one(
    spec: RunSpec, corpus: Corpus, folder: Folder, ledger: Ledger, alive: Callable[[], bool]
) -> None:
    """Train one claimed run and record how it ended; a run that was lost is not recorded."""
    reached = 0

    def beat() -> bool:
        try:
            return ledger.beat(spec.run_id, reached)
        except WorkError:
            return True  # out of reach for a while; the training goes on, the end will tell

    with Heartbeat(beat, BEAT_SECONDS) as heartbeat:

        def watch(step: int) -> None:
            nonlocal reached
            reached = step
            if heartbeat.lost or not alive():
                raise Stopped

        def tell(text: str) -> None:
            ledger.note(spec.run_id, text)

        try:
            rows = train_here(spec, corpus, folder, watch=watch, tell=tell)
        except Stopped:
            ledger.release(spec.run_id)
        except Diverged as error:
            ledger.diverge(spec.run_id, str(error), settings_row(spec, corpus, status=DIVERGED))
        except Exception as error:  # whatever it is, the other runs of the plan go on
            ledger.fail(spec.run_id, f"{type(error).__name__}: {error}")
        else:
            ledger.finish(spec.run_id, rows)


def train_here(
    spec: RunSpec, corpus: Corpus, folder: Folder, *, watch: Watch, tell: Tell
) -> list[Row]:
    """Train a run on the GPU that this worker sees, else on a core; its rows.

    On a GPU the whole step is compiled and captured, see :mod:`shapelaw.trainers.gpu.packed_loop`.

    Raises
    ------
    Diverged
        The loss became infinite or NaN.
    """
    device = device_named()
    if device.type == "cpu":
        return train(
            spec, corpus, folder.run(spec.run_id), watch=watch, tell=tell,
            trackers=folder.trackers(),
        )  # fmt: skip
    from shapelaw.trainers.gpu.packed_loop import Options, train_pack

    options = Options(compiler="inductor")
    [rows] = train_pack(
        [spec], corpus, folder.run, device=device, options=options, watch=watch, note=tell
    )
    if rows[-1]["status"] == DIVERGED:
        raise Diverged(f"the loss of {spec.run_id} is no longer a finite number")
    return rows
