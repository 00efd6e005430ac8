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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.ledger.entry import (
    DIVERGED,
    DONE,
    FAILED,
    PLANNED,
    RUNNING,
    STATES,
    Entry,
    read_entry,
)
from shapelaw.trainers.ledger.liveness import Watch, is_gone, this_process
from shapelaw.trainers.ledger.registry import is_database, store_at
from shapelaw.trainers.ledger.store import LedgerUnreachable, Row, StoreSession
from shapelaw.trainers.training.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DIVERGED", "DONE", "FAILED", "PLANNED", "RUNNING", "STALE_SECONDS", "STATES", "Entry",
    "Ledger", "LedgerUnreachable", "is_database", "open_ledger",
]  # fmt: skip
STALE_SECONDS = 30.0
BEAT_PATIENCE = 1.0  # seconds that training waits at most for a heartbeat to be written
BEAT_PAUSE = 5.0  # seconds without attempts after a heartbeat that could not be written
THIS_RUN = "sweep = :sweep AND run_id = :run_id"
CLAIMED_RUN = f"{THIS_RUN} AND claim = :claim AND state = '{RUNNING}'"


@dataclass
class _Held:
    """A claimed row of this worker: the claim, and the times of heartbeats and steps."""

    claim: str
    reached: float  # clock of the last heartbeat that was written
    pause_until: float = float("-inf")
    first: tuple[float, int] | None = None

    def speed(self, now: float, step: int) -> float | None:
        """Return the steps per second since the first reported step."""
        if self.first is None and step > 0:  # a resumed run does not begin at step 0
            self.first = now, step
        begun, at = self.first or (now, step)
        return (step - at) / (now - begun) if now > begun and step > at else None


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
        self.owner = uuid.uuid4().hex
        self._store, self.sweep = store_at(address, sweep, patience)
        self._clock = clock
        self._watch = Watch(clock)
        self._held: dict[str, _Held] = {}
        self._ticket = ""  # of the last claim
        self._store.prepare()

    @property
    def name(self) -> str:
        """Address without its password."""
        return self._store.name

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
        self._store.transact(lambda session: self._plan(session, pairs))

    def _plan(self, session: StoreSession, pairs: list[tuple[RunSpec, str]]) -> None:
        identity_of = {
            row["run_id"]: row["identity"]
            for row in session.rows(
                "SELECT run_id, identity FROM shapelaw_runs WHERE sweep = :sweep", sweep=self.sweep
            )
        }
        position = len(identity_of)
        for spec, identity in pairs:
            present = identity_of.get(spec.run_id)
            if present is None and self._insert(session, spec, identity, position):
                identity_of[spec.run_id] = identity
                position += 1
                continue
            if present is None:  # another process added the run in the meantime
                (row,) = session.rows(
                    f"SELECT identity FROM shapelaw_runs WHERE {THIS_RUN}",
                    sweep=self.sweep, run_id=spec.run_id,
                )  # fmt: skip
                present = row["identity"]
            if present != identity:
                raise InputError(
                    f"the ledger {self.name} has a run {spec.run_id!r} with other settings "
                    "(shape, tokens, recipe, corpus, seed or torch version); "
                    "choose another --out folder or another run_id"
                )

    def _insert(self, session: StoreSession, spec: RunSpec, identity: str, position: int) -> bool:
        inserted = session.change(
            "INSERT INTO shapelaw_runs (sweep, run_id, position, spec, identity, state, flops, "
            "steps) VALUES (:sweep, :run_id, :position, :spec, :identity, :state, :flops, :steps) "
            "ON CONFLICT (sweep, run_id) DO NOTHING",
            sweep=self.sweep, run_id=spec.run_id, position=position, spec=spec.as_json(),
            identity=identity, state=PLANNED, flops=spec.flops, steps=spec.all_steps,
        )  # fmt: skip
        return inserted == 1

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
        row = self._store.transact(lambda session: self._claim(session, ticket, alive_after))
        if row is None:
            return None
        return self._hold(row, ticket)

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
            lambda session: self._claim_more(session, claim, fits, most, alive_after)
        )
        return [self._hold(row, claim) for row in rows if row["run_id"] != first.run_id]

    def _hold(self, row: Row, claim: str) -> RunSpec:
        self._held[row["run_id"]] = _Held(claim=claim, reached=self._clock())
        return RunSpec.from_json(row["spec"])

    def _claim_more(
        self,
        session: StoreSession,
        claim: str,
        fits: Callable[[RunSpec], bool],
        most: int,
        alive_after: float,
    ) -> list[Row]:
        taken = self._claimed(session, claim)
        if len(taken) > 1:  # an earlier attempt was committed, but its answer was lost
            return taken
        rows: list[Row] = []
        for row in (*self._dead(session, alive_after), *self._planned(session)):
            if len(rows) == most:
                break
            if row.get("claim") == claim:
                continue
            fitting = fits(RunSpec.from_json(row["spec"]))
            if fitting and self._take_unchanged(session, row, claim):
                rows.append(row)
        return rows

    def _claim(self, session: StoreSession, ticket: str, alive_after: float) -> Row | None:
        taken = self._claimed(session, ticket)
        if taken:  # an earlier attempt was committed, but its answer was lost
            return taken[0]
        limit = f" LIMIT 1{self._store.skip_locked}"
        for row in (*self._dead(session, alive_after), *self._planned(session, limit)):
            if self._take_unchanged(session, row, ticket):
                return row
        return None

    def _claimed(self, session: StoreSession, claim: str) -> list[Row]:
        """Return the rows held under a claim."""
        return session.rows(
            "SELECT run_id, spec FROM shapelaw_runs WHERE sweep = :sweep AND claim = :claim",
            sweep=self.sweep, claim=claim,
        )  # fmt: skip

    def _planned(self, session: StoreSession, limit: str = "") -> list[Row]:
        """Return the planned rows in the order of the plan."""
        return session.rows(
            f"SELECT run_id, spec FROM shapelaw_runs WHERE sweep = :sweep AND state = '{PLANNED}' "
            f"ORDER BY position, run_id{limit}",
            sweep=self.sweep,
        )

    def _take_unchanged(self, session: StoreSession, row: Row, ticket: str) -> bool:
        """Claim a row of :meth:`_dead` or :meth:`_planned` if it is unchanged since it was read."""
        if "claim" not in row:
            return self._take(
                session, f"{THIS_RUN} AND state = '{PLANNED}'", ticket, run_id=row["run_id"]
            )
        # The worker may have sent a heartbeat since the row was read.
        same = f"{CLAIMED_RUN} AND beats = :beats"
        return self._take(session, same, ticket, claim=row["claim"], beats=row["beats"],
                          run_id=row["run_id"])  # fmt: skip

    def _dead(self, session: StoreSession, alive_after: float) -> list[Row]:
        """Return the running rows whose worker is dead."""
        running = session.rows(
            "SELECT run_id, spec, claim, beats, process FROM shapelaw_runs "
            f"WHERE sweep = :sweep AND state = '{RUNNING}' ORDER BY position, run_id",
            sweep=self.sweep,
        )
        still = self._watch.look({row["run_id"]: (row["claim"], row["beats"]) for row in running})
        return [
            row
            for row in running
            if still[row["run_id"]] > alive_after or is_gone(row["process"] or "")
        ]

    def _take(self, session: StoreSession, condition: str, ticket: str, **values: object) -> bool:
        """Claim a row if it still meets a condition and no other transaction holds it."""
        free = f"SELECT run_id FROM shapelaw_runs WHERE {condition}{self._store.skip_locked}"
        if not session.rows(free, sweep=self.sweep, **values):
            return False
        process, now = this_process(), self._store.now
        session.change(
            f"UPDATE shapelaw_runs SET state = '{RUNNING}', claim = :ticket, owner = :owner, "
            "host = :host, pid = :pid, process = :process, beats = beats + 1, "
            f"attempts = attempts + 1, heartbeat = {now}, started = COALESCE(started, {now}), "
            f"ended = NULL, speed = NULL WHERE {THIS_RUN}",
            sweep=self.sweep, run_id=values["run_id"], ticket=ticket, owner=self.owner,
            host=process.host, pid=process.pid, process=process.mark,
        )  # fmt: skip
        return True

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

        def work(session: StoreSession) -> int:
            rows = session.rows(
                "SELECT run_id, state FROM shapelaw_runs WHERE sweep = :sweep", sweep=self.sweep
            )
            return sum(
                session.change(
                    f"UPDATE shapelaw_runs SET state = '{PLANNED}', message = NULL, note = NULL, "
                    "result = NULL, claim = NULL, started = NULL, ended = NULL "
                    f"WHERE {THIS_RUN} AND state = :state",
                    sweep=self.sweep, run_id=row["run_id"], state=row["state"],
                )
                for row in rows
                if row["state"] in states and (selected is None or row["run_id"] in selected)
            )  # fmt: skip

        return self._store.transact(work)

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
        return [read_entry(row) for row in rows]

    def table(self) -> "pd.DataFrame":
        """Return the run table: rows of all done or diverged runs in the order of the plan."""
        import pandas as pd

        return pd.DataFrame([row for entry in self.entries() for row in entry.rows])


def open_ledger(
    address: str | Path, *, sweep: str | None = None, patience: float | None = None
) -> Ledger:
    """Open the ledger at a path or a ``postgresql://`` URL; see :class:`Ledger`."""
    return Ledger(address, sweep=sweep, patience=patience)


def _plain(text: str) -> str:
    """Remove NUL characters and unpaired surrogates, which databases do not accept."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
