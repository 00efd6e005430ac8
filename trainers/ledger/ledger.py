"""Durable record of planned, running, done, failed and diverged runs.

A ledger is an SQLite file for the workers of one machine, or a PostgreSQL database for any number
of machines. A worker claims a row, sends heartbeats while it trains, and records the end of the
run. The row of a dead worker is taken over: at once if its process is known to have ended, else
after its heartbeat counter has not changed for ``STALE_SECONDS``. No decision depends on a wall
clock (see :mod:`shapelaw.trainers.ledger.liveness`); times are stored for display only. A worker
that has lost its row cannot record anything for it.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import with_loss_kinds
from shapelaw.trainers.ledger.claims import (
    CLAIMED_RUN,
    STALE_SECONDS,
    THIS_RUN,
    Claimant,
    HeldRun,
)
from shapelaw.trainers.ledger.entry import (
    DIVERGED,
    DONE,
    FAILED,
    PLANNED,
    RUNNING,
    Entry,
    read_entry,
)
from shapelaw.trainers.ledger.liveness import Watch
from shapelaw.trainers.ledger.plan import add_runs, plan_again
from shapelaw.trainers.ledger.registry import store_at
from shapelaw.trainers.ledger.store import LedgerUnreachable, Row, StoreSession
from shapelaw.trainers.training.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

BEAT_PATIENCE = 1.0  # seconds that training waits at most for a heartbeat to be written
BEAT_PAUSE = 5.0  # seconds without attempts after a heartbeat that could not be written


class Ledger:
    """Ledger of one sweep at a path or URL, created when it is first opened.

    Every method is one transaction. It is safe against other workers, against a kill at any point
    and against a restart of the server. Locks and lost connections are retried.

    Parameters
    ----------
    address
        Path of an SQLite file on a local disk, or ``postgresql://user:password@host/database``.
    sweep
        Name of the sweep in a database; also as ``?sweep=NAME`` in the URL.
    patience
        Seconds for which locks and lost connections are retried; by default 60 for a file and 300
        for a database.
    clock
        Monotonic clock in seconds; tests replace it.

    Raises
    ------
    InputError
        The address is invalid, or no sweep is named for a database.
    LedgerUnreachable
        The ledger stayed locked or out of reach.
    WorkError
        The ledger cannot be used: no permission to write, not a ledger, or another version.
    """

    def __init__(
        self,
        address: str | Path,
        *,
        sweep: str | None = None,
        patience: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self.sweep = store_at(address, sweep, patience)
        self._clock = clock
        self._claimant = Claimant(self._store, self.sweep, Watch(clock))
        self._held: dict[str, HeldRun] = {}
        self._ticket = ""  # of the last claim
        self._store.prepare()

    @property
    def name(self) -> str:
        """Address without its password."""
        return self._store.name

    @property
    def owner(self) -> str:
        """Id of this ledger session in the rows that it claims."""
        return self._claimant.owner

    def plan(self, specs: Iterable[RunSpec], identities: Iterable[str]) -> None:
        """Add runs to the plan. A run that is present with the same identity keeps its state.

        Parameters
        ----------
        specs
            Runs to add.
        identities
            Hash of the settings of each run.

        Raises
        ------
        InputError
            A run of the same name is present with other settings. Then nothing is planned.
        """
        pairs = list(zip(specs, identities, strict=True))
        self._store.transact(lambda session: add_runs(session, self.sweep, pairs, self.name))

    def claim(self, alive_after: float = STALE_SECONDS) -> RunSpec | None:
        """Claim a run whose worker is dead, or else the next planned run.

        While other runs are running, call this method repeatedly: a worker counts as dead once this
        ledger has seen no change of its heartbeat counter for more than ``alive_after`` seconds.

        Parameters
        ----------
        alive_after
            Seconds without a heartbeat after which a worker counts as dead.

        Returns
        -------
        RunSpec or None
            The claimed run, or None if no run can be claimed now.
        """
        self._ticket = ticket = uuid.uuid4().hex
        row = self._store.transact(
            lambda session: self._claimant.claim(session, ticket, alive_after)
        )
        return None if row is None else self._hold(row, ticket)

    def claim_more(
        self,
        first: RunSpec,
        fits: Callable[[RunSpec], bool],
        most: int,
        alive_after: float = STALE_SECONDS,
    ) -> list[RunSpec]:
        """Claim further runs that a worker can train together with a run that it has claimed.

        Parameters
        ----------
        first
            Claimed run.
        fits
            Predicate that is true for a run that can be trained together with ``first``.
        most
            Largest number of runs to claim. Runs of dead workers come first, then planned runs in
            their order.
        alive_after
            Seconds without a heartbeat after which a worker counts as dead.
        """
        claim = self._held[first.run_id].claim
        rows = self._store.transact(
            lambda session: self._claimant.claim_more(session, claim, fits, most, alive_after)
        )
        return [self._hold(row, claim) for row in rows if row["run_id"] != first.run_id]

    def _hold(self, row: Row, claim: str) -> RunSpec:
        self._held[row["run_id"]] = HeldRun(claim=claim, reached=self._clock())
        return RunSpec.from_json(row["spec"])

    def beat(self, run_id: str, step: int) -> bool:
        """Record a heartbeat of a run and its step.

        A ledger out of reach does not stop the training: the heartbeat is skipped. Only after the
        patience of the ledger has passed is an error raised.

        Returns
        -------
        bool
            False if the run no longer belongs to this worker.

        Raises
        ------
        LedgerUnreachable
            No heartbeat could be written for the patience of the ledger.
        """
        held, now = self._held.get(run_id), self._clock()
        if held is None:
            return False
        if now < held.pause_until:
            return True
        speed = held.speed(now, step)
        try:
            changed = self._store.transact(
                lambda session: session.change(
                    "UPDATE shapelaw_runs SET beats = beats + 1, step = :step, speed = :speed, "
                    f"heartbeat = {self._store.now} WHERE {CLAIMED_RUN}",
                    sweep=self.sweep, run_id=run_id, claim=held.claim, step=step, speed=speed,
                ),
                patience=BEAT_PATIENCE,
            )  # fmt: skip
        except LedgerUnreachable:
            if now - held.reached > self._store.patience:
                raise
            held.pause_until = self._clock() + BEAT_PAUSE
            return True
        held.reached = now
        return changed == 1

    def note(self, run_id: str, text: str) -> bool:
        """Add a remark to a run of this worker; repeated remarks are stored once.

        Returns
        -------
        bool
            False if the run no longer belongs to this worker.
        """
        held = self._held.get(run_id)
        if held is None:
            return False
        keys = {"sweep": self.sweep, "run_id": run_id, "claim": held.claim}

        def work(session: StoreSession) -> bool:
            rows = session.rows(f"SELECT note FROM shapelaw_runs WHERE {CLAIMED_RUN}", **keys)
            lines = (rows[0]["note"] or "").splitlines() if rows else []
            added = "\n".join(dict.fromkeys([*lines, _plain(text)]))
            change = f"UPDATE shapelaw_runs SET note = :note WHERE {CLAIMED_RUN}"
            return session.change(change, note=added, **keys) == 1

        return self._store.transact(work)

    def finish(self, run_id: str, row: dict[str, object] | list[dict[str, object]]) -> bool:
        """Record a finished run with its row or rows of the run table.

        Returns
        -------
        bool
            False if the run belongs to another worker; then nothing is recorded.
        """
        return self._end(run_id, DONE, None, row)

    def fail(self, run_id: str, message: str) -> bool:
        """Record that a run failed and why; it can be retried.

        Returns
        -------
        bool
            False if the run belongs to another worker; then nothing is recorded.
        """
        return self._end(run_id, FAILED, message, None)

    def diverge(self, run_id: str, message: str, row: dict[str, object]) -> bool:
        """Record that a run diverged, with a row without a loss.

        Returns
        -------
        bool
            False if the run belongs to another worker; then nothing is recorded.
        """
        return self._end(run_id, DIVERGED, message, row)

    def _end(
        self,
        run_id: str,
        state: str,
        message: str | None,
        row: dict[str, object] | list[dict[str, object]] | None,
    ) -> bool:
        held = self._held.get(run_id)
        if held is None:
            return False
        keys = {"sweep": self.sweep, "run_id": run_id, "claim": held.claim}
        values = {
            "ended": state,
            "message": _plain(message) if message else None,
            "result": json.dumps(row) if row else None,
        }

        def work(session: StoreSession) -> bool:
            changed = session.change(
                "UPDATE shapelaw_runs SET state = :ended, message = :message, result = :result, "
                f"ended = {self._store.now}, speed = NULL, "
                f"step = CASE WHEN :ended = '{DONE}' THEN steps ELSE step END WHERE {CLAIMED_RUN}",
                **keys,
                **values,
            )
            if changed:
                return True
            # An earlier attempt may have been committed and only its answer lost.
            recorded = f"SELECT state FROM shapelaw_runs WHERE {THIS_RUN} AND claim = :claim"
            return [row["state"] for row in session.rows(recorded, **keys)] == [state]

        recorded = self._store.transact(work)
        self._held.pop(run_id, None)
        return recorded

    def adopt(self, run_id: str, rows: list[dict[str, object]]) -> bool:
        """Record a planned run as done that was trained under another ledger.

        Returns
        -------
        bool
            False if the run is not planned any more.
        """
        change = (
            f"UPDATE shapelaw_runs SET state = '{DONE}', result = :result, step = steps "
            f"WHERE {THIS_RUN} AND state = '{PLANNED}'"
        )
        keys = {"sweep": self.sweep, "run_id": run_id, "result": json.dumps(rows)}
        return self._store.transact(lambda session: session.change(change, **keys)) == 1

    def release(self, run_id: str) -> bool:
        """Return a run of this worker to the plan, so that another worker can resume it.

        Returns
        -------
        bool
            False if the run no longer belongs to this worker.
        """
        held = self._held.pop(run_id, None)
        if held is None:
            return False
        change = (
            f"UPDATE shapelaw_runs SET state = '{PLANNED}', claim = NULL, speed = NULL "
            f"WHERE {CLAIMED_RUN}"
        )
        keys = {"sweep": self.sweep, "run_id": run_id, "claim": held.claim}
        return self._store.transact(lambda session: session.change(change, **keys)) == 1

    def give_back(self) -> None:
        """Return the runs of the last claim to the plan, even if the answer to the claim was lost.

        A worker that is stopped between a claim and its training calls this method.
        """
        change = (
            f"UPDATE shapelaw_runs SET state = '{PLANNED}', claim = NULL, speed = NULL "
            f"WHERE sweep = :sweep AND claim = :claim AND state = '{RUNNING}'"
        )
        keys = {"sweep": self.sweep, "claim": self._ticket}
        self._store.transact(lambda session: session.change(change, **keys))

    def retry(
        self, *, states: Iterable[str] = (FAILED,), run_ids: Iterable[str] | None = None
    ) -> int:
        """Plan failed or diverged runs again.

        Parameters
        ----------
        states
            ``failed``, ``diverged`` or both. A run that diverged diverges again under the same
            settings, unless a fault of the machine was the cause.
        run_ids
            Ids of the runs to plan again; by default all.

        Returns
        -------
        int
            Number of runs planned again.

        Raises
        ------
        InputError
            Another state is given.
        """
        states = list(states)
        for state in states:
            if state not in (FAILED, DIVERGED):
                raise InputError(
                    f"`states` must be {FAILED} or {DIVERGED}, but got {state!r}; "
                    "runs that are planned, running or done need no retry"
                )
        selected = None if run_ids is None else set(run_ids)
        return self._store.transact(
            lambda session: plan_again(session, self.sweep, states, selected)
        )

    def entries(self) -> list[Entry]:
        """Return all runs in the order in which they were planned."""
        now = self._store.now
        rows = self._store.transact(
            lambda session: session.rows(
                f"SELECT shapelaw_runs.*, {now} - heartbeat AS age FROM shapelaw_runs "
                "WHERE sweep = :sweep ORDER BY position, run_id",
                sweep=self.sweep,
            ),
            write=False,
        )
        return [read_entry(row, self.name) for row in rows]

    def specs(self) -> dict[str, RunSpec]:
        """Return the specs of all runs by their ids."""
        query = "SELECT run_id, spec FROM shapelaw_runs WHERE sweep = :sweep"
        rows = self._store.transact(
            lambda session: session.rows(query, sweep=self.sweep), write=False
        )
        return {row["run_id"]: RunSpec.from_json(row["spec"]) for row in rows}

    def table(self) -> "pd.DataFrame":
        """Return the run table: rows of all done or diverged runs in the order of the plan."""
        import pandas as pd

        return pd.DataFrame(
            with_loss_kinds([row for entry in self.entries() for row in entry.rows])
        )


def _plain(text: str) -> str:
    """Remove NUL characters and unpaired surrogates, which databases do not accept."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
