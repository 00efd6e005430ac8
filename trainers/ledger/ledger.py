"""The durable record of planned, running, done, failed and diverged runs.

One SQLite file for the workers of one machine, or a PostgreSQL database for any number of machines.
A worker takes a row, shows by heartbeats that it lives, and records how the run ended. A dead one's
row is taken over: at once where its process is known to be gone, else after its heartbeat has been
seen standing still for ``STALE_SECONDS``. No judgement rests on a wall clock, see
:mod:`shapelaw.trainers.ledger.liveness`; times are kept for the display only. A worker that has
lost its row cannot record anything any more.
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
BEAT_PATIENCE = 1.0  # training does not stand still for a heartbeat
BEAT_PAUSE = 5.0  # after one that did not get through
THIS = "sweep = :sweep AND run_id = :run_id"
MINE = f"{THIS} AND claim = :claim AND state = '{RUNNING}'"


@dataclass
class _Held:
    """A row that this worker has taken: the claim, and when which step was reached."""

    claim: str
    reached: float  # clock of the last heartbeat that got through
    pause_until: float = float("-inf")
    first: tuple[float, int] | None = None

    def speed(self, now: float, step: int) -> float | None:
        """Steps per second since the first one that was seen."""
        if self.first is None and step > 0:  # a run that goes on does not begin at step 0
            self.first = now, step
        begun, at = self.first or (now, step)
        return (step - at) / (now - begun) if now > begun and step > at else None


class Ledger:
    """The ledger at a path or URL; opening it creates it.

    Every method is one transaction, safe against other workers, against a kill at any point and
    against a server that is restarted. A lock or a lost connection is waited out.

    Parameters
    ----------
    address
        Path of an SQLite file on a local disk, or ``postgresql://user:password@host/database``.
    sweep
        Which of the sweeps of a database; also as ``?sweep=NAME`` in the URL.
    patience
        Seconds for which a lock or a lost connection is waited out: 60 for a file, 300 for a
        database.
    clock
        Seconds that never go back; for tests.

    Raises
    ------
    InputError
        The address cannot be understood, or a database has no sweep named.
    LedgerUnreachable
        It stayed locked or out of reach.
    WorkError
        It cannot be used: no right to write, no ledger, or one of another version.
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
        """The address without a password."""
        return self._store.name

    def plan(self, specs: Iterable[RunSpec], identities: Iterable[str]) -> None:
        """Add runs; one that is already there with the same identity keeps its state.

        Raises
        ------
        InputError
            A run of that name is there with other settings; nothing is planned then.
        """
        pairs = list(zip(specs, identities, strict=True))
        self._store.transact(lambda session: self._plan(session, pairs))

    def _plan(self, session: StoreSession, pairs: list[tuple[RunSpec, str]]) -> None:
        known = {
            row["run_id"]: row["identity"]
            for row in session.rows(
                "SELECT run_id, identity FROM shapelaw_runs WHERE sweep = :sweep", sweep=self.sweep
            )
        }
        position = len(known)
        for spec, identity in pairs:
            found = known.get(spec.run_id)
            if found is None and self._insert(session, spec, identity, position):
                known[spec.run_id] = identity
                position += 1
                continue
            if found is None:  # another planner was faster by a moment
                (row,) = session.rows(
                    f"SELECT identity FROM shapelaw_runs WHERE {THIS}",
                    sweep=self.sweep, run_id=spec.run_id,
                )  # fmt: skip
                found = row["identity"]
            if found != identity:
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
        """Take a run whose worker is dead, or the next planned one; None if there is none.

        Call it again and again where None comes back and runs are still running: a worker is dead
        once this ledger has seen its heartbeat stand still for more than ``alive_after`` seconds.
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
        """Take further runs that a worker can train together with one that it has claimed.

        Parameters
        ----------
        fits
            Tells whether a run can be trained together with the first.
        most
            Runs to take at most; those of dead workers come first, then planned ones in order.
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
        if len(taken) > 1:  # committed before, and the answer was lost
            return taken
        rows: list[Row] = []
        for row in (*self._dead(session, alive_after), *self._planned(session)):
            if len(rows) == most:
                break
            if row.get("claim") == claim:
                continue
            fitting = fits(RunSpec.from_json(row["spec"]))
            if fitting and self._take_seen(session, row, claim):
                rows.append(row)
        return rows

    def _claim(self, session: StoreSession, ticket: str, alive_after: float) -> Row | None:
        taken = self._claimed(session, ticket)
        if taken:  # committed before, and the answer was lost
            return taken[0]
        limit = f" LIMIT 1{self._store.skip_locked}"
        for row in (*self._dead(session, alive_after), *self._planned(session, limit)):
            if self._take_seen(session, row, ticket):
                return row
        return None

    def _claimed(self, session: StoreSession, claim: str) -> list[Row]:
        """Rows that are held under a claim."""
        return session.rows(
            "SELECT run_id, spec FROM shapelaw_runs WHERE sweep = :sweep AND claim = :claim",
            sweep=self.sweep, claim=claim,
        )  # fmt: skip

    def _planned(self, session: StoreSession, limit: str = "") -> list[Row]:
        """Planned rows in the order of the plan."""
        return session.rows(
            f"SELECT run_id, spec FROM shapelaw_runs WHERE sweep = :sweep AND state = '{PLANNED}' "
            f"ORDER BY position, run_id{limit}",
            sweep=self.sweep,
        )

    def _take_seen(self, session: StoreSession, row: Row, ticket: str) -> bool:
        """Make a row of :meth:`_dead` or :meth:`_planned` ours if it is still as it was seen."""
        if "claim" not in row:
            return self._take(
                session, f"{THIS} AND state = '{PLANNED}'", ticket, run_id=row["run_id"]
            )
        # A dead worker's: it may have given a sign of life since it was looked at.
        same = f"{MINE} AND beats = :beats"
        return self._take(session, same, ticket, claim=row["claim"], beats=row["beats"],
                          run_id=row["run_id"])  # fmt: skip

    def _dead(self, session: StoreSession, alive_after: float) -> list[Row]:
        """Running rows whose worker is gone."""
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
        """Make a row ours if it is still as we saw it and nobody else is about to change it."""
        free = f"SELECT run_id FROM shapelaw_runs WHERE {condition}{self._store.skip_locked}"
        if not session.rows(free, sweep=self.sweep, **values):
            return False
        process, now = this_process(), self._store.now
        session.change(
            f"UPDATE shapelaw_runs SET state = '{RUNNING}', claim = :ticket, owner = :owner, "
            "host = :host, pid = :pid, process = :process, beats = beats + 1, "
            f"attempts = attempts + 1, heartbeat = {now}, started = COALESCE(started, {now}), "
            f"ended = NULL, speed = NULL WHERE {THIS}",
            sweep=self.sweep, run_id=values["run_id"], ticket=ticket, owner=self.owner,
            host=process.host, pid=process.pid, process=process.mark,
        )  # fmt: skip
        return True

    def beat(self, run_id: str, step: int) -> bool:
        """Say that the run goes on; False if it is no longer this worker's.

        A ledger that cannot be reached does not stop the training: the beat is left out, and only
        after the ledger's patience does it become an error.

        Raises
        ------
        LedgerUnreachable
            No heartbeat got through for as long as the ledger is patient.
        """
        held, now = self._held.get(run_id), self._clock()
        if held is None:
            return False
        if now < held.pause_until:
            return True
        speed = held.speed(now, step)
        try:
            found = self._store.transact(
                lambda session: session.change(
                    "UPDATE shapelaw_runs SET beats = beats + 1, step = :step, speed = :speed, "
                    f"heartbeat = {self._store.now} WHERE {MINE}",
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
        return found == 1

    def note(self, run_id: str, text: str) -> bool:
        """Add a remark to a run of this worker, once: it went on, but not as planned.

        False if the run is no longer this worker's.
        """
        held = self._held.get(run_id)
        if held is None:
            return False
        keys = {"sweep": self.sweep, "run_id": run_id, "claim": held.claim}

        def work(session: StoreSession) -> bool:
            found = session.rows(f"SELECT note FROM shapelaw_runs WHERE {MINE}", **keys)
            lines = (found[0]["note"] or "").splitlines() if found else []
            added = "\n".join(dict.fromkeys([*lines, _plain(text)]))
            change = f"UPDATE shapelaw_runs SET note = :note WHERE {MINE}"
            return session.change(change, note=added, **keys) == 1

        return self._store.transact(work)

    def finish(self, run_id: str, row: dict[str, object] | list[dict[str, object]]) -> bool:
        """Record a finished run with its row, or rows, of the run table.

        False if another has the run.
        """
        return self._end(run_id, DONE, None, row)

    def fail(self, run_id: str, message: str) -> bool:
        """Record that a run failed, and why; it may be retried. False if another has the run."""
        return self._end(run_id, FAILED, message, None)

    def diverge(self, run_id: str, message: str, row: dict[str, object]) -> bool:
        """Record that a run diverged; its row has no loss. False if another has the run."""
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
                f"step = CASE WHEN :ended = '{DONE}' THEN steps ELSE step END WHERE {MINE}",
                **keys,
                **values,
            )
            if changed:
                return True
            # Committed before, and the answer was lost?
            found = f"SELECT state FROM shapelaw_runs WHERE {THIS} AND claim = :claim"
            return [known["state"] for known in session.rows(found, **keys)] == [state]

        recorded = self._store.transact(work)
        self._held.pop(run_id, None)
        return recorded

    def adopt(self, run_id: str, rows: list[dict[str, object]]) -> bool:
        """Record a planned run as done that was trained under another ledger.

        False if it is not planned any more.
        """
        change = (
            f"UPDATE shapelaw_runs SET state = '{DONE}', result = :result, step = steps "
            f"WHERE {THIS} AND state = '{PLANNED}'"
        )
        keys = {"sweep": self.sweep, "run_id": run_id, "result": json.dumps(rows)}
        return self._store.transact(lambda session: session.change(change, **keys)) == 1

    def release(self, run_id: str) -> bool:
        """Give a run back, for a worker that has to end: the next one goes on with it.

        False if the run is no longer this worker's.
        """
        held = self._held.pop(run_id, None)
        if held is None:
            return False
        change = (
            f"UPDATE shapelaw_runs SET state = '{PLANNED}', claim = NULL, speed = NULL WHERE {MINE}"
        )
        keys = {"sweep": self.sweep, "run_id": run_id, "claim": held.claim}
        return self._store.transact(lambda session: session.change(change, **keys)) == 1

    def give_back(self) -> None:
        """Give back what the last claim took, even where its answer did not arrive.

        For a worker that is told to end at any moment, between a claim and its training too.
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
        """Plan runs again that failed, or diverged; return how many.

        Parameters
        ----------
        states
            ``failed``, ``diverged`` or both. A run that diverged will do so again under the same
            settings, unless a fault of the machine was behind it.
        run_ids
            Only these; by default all.

        Raises
        ------
        InputError
            Another state is named.
        """
        states = list(states)
        for state in states:
            if state not in (FAILED, DIVERGED):
                raise InputError(
                    f"`states` must be {FAILED} or {DIVERGED}, but got {state!r}; "
                    "runs that are planned, running or done need no retry"
                )
        wanted = None if run_ids is None else set(run_ids)

        def work(session: StoreSession) -> int:
            rows = session.rows(
                "SELECT run_id, state FROM shapelaw_runs WHERE sweep = :sweep", sweep=self.sweep
            )
            return sum(
                session.change(
                    f"UPDATE shapelaw_runs SET state = '{PLANNED}', message = NULL, note = NULL, "
                    "result = NULL, claim = NULL, started = NULL, ended = NULL "
                    f"WHERE {THIS} AND state = :state",
                    sweep=self.sweep, run_id=row["run_id"], state=row["state"],
                )
                for row in rows
                if row["state"] in states and (wanted is None or row["run_id"] in wanted)
            )  # fmt: skip

        return self._store.transact(work)

    def entries(self) -> list[Entry]:
        """All runs in the order in which they were planned."""
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
        """The run table: rows of all runs that are done or diverged, in the order of the plan."""
        import pandas as pd

        return pd.DataFrame([row for entry in self.entries() for row in entry.rows])


def open_ledger(
    address: str | Path, *, sweep: str | None = None, patience: float | None = None
) -> Ledger:
    """The ledger at a path or a ``postgresql://`` URL, see :class:`Ledger`."""
    return Ledger(address, sweep=sweep, patience=patience)


def _plain(text: str) -> str:
    """Text that every database takes: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()
