"""Heartbeats of a worker: a thread that tells the ledger that its run is alive."""

import threading
from typing import Self

from shapelaw.scaling.errors import WorkError
from shapelaw.trainers.ledger.ledger import Ledger

BEAT_SECONDS = 1.0


class Heart:
    """Beats for a run from a thread, so that a long compilation or evaluation looks alive."""

    def __init__(self, ledger: Ledger, run_id: str) -> None:
        self.step = 0
        self.lost = False
        self._ledger, self._run_id = ledger, run_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self.lost = not self._ledger.beat(self._run_id, self.step)
            except WorkError:
                continue  # out of reach for a while; the training goes on, the end will tell
            if self.lost:
                return
