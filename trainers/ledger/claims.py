"""Claims of runs: transactions that give planned runs, and those of dead workers, to one worker."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from shapelaw.trainers.ledger.entry import PLANNED, RUNNING
from shapelaw.trainers.ledger.liveness import Watch, is_gone, this_process
from shapelaw.trainers.ledger.store import Row, Store, StoreSession
from shapelaw.trainers.training.spec import RunSpec

STALE_SECONDS = 30.0
THIS_RUN = "sweep = :sweep AND run_id = :run_id"
CLAIMED_RUN = f"{THIS_RUN} AND claim = :claim AND state = '{RUNNING}'"


@dataclass
class HeldRun:
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


class Claimant:
    """One worker that claims rows of a sweep.

    Parameters
    ----------
    store, sweep
        Database, and name of the sweep in it.
    watch
        Heartbeat counters of the running rows as this worker has seen them.
    """

    def __init__(self, store: Store, sweep: str, watch: Watch) -> None:
        self.owner = uuid.uuid4().hex
        self._store, self._sweep, self._watch = store, sweep, watch

    def claim(self, session: StoreSession, ticket: str, alive_after: float) -> Row | None:
        """Claim the first row that can be claimed, under the id ``ticket``.

        A row counts as one of a dead worker after ``alive_after`` seconds without a heartbeat.
        """
        taken = self._claimed(session, ticket)
        if taken:  # an earlier attempt was committed, but its answer was lost
            return taken[0]
        limit = f" LIMIT 1{self._store.skip_locked}"
        for row in (*self._dead(session, alive_after), *self._planned(session, limit)):
            if self._take_unchanged(session, row, ticket):
                return row
        return None

    def claim_more(
        self,
        session: StoreSession,
        claim: str,
        fits: Callable[[RunSpec], bool],
        most: int,
        alive_after: float,
    ) -> list[Row]:
        """Claim up to ``most`` further rows that pass ``fits`` under a claim that has one."""
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

    def _claimed(self, session: StoreSession, claim: str) -> list[Row]:
        """Return the rows held under a claim."""
        return session.rows(
            "SELECT run_id, spec FROM shapelaw_runs WHERE sweep = :sweep AND claim = :claim",
            sweep=self._sweep, claim=claim,
        )  # fmt: skip

    def _planned(self, session: StoreSession, limit: str = "") -> list[Row]:
        """Return the planned rows in the order of the plan."""
        return session.rows(
            f"SELECT run_id, spec FROM shapelaw_runs WHERE sweep = :sweep AND state = '{PLANNED}' "
            f"ORDER BY position, run_id{limit}",
            sweep=self._sweep,
        )

    def _dead(self, session: StoreSession, alive_after: float) -> list[Row]:
        """Return the running rows whose worker is dead."""
        running = session.rows(
            "SELECT run_id, spec, claim, beats, process FROM shapelaw_runs "
            f"WHERE sweep = :sweep AND state = '{RUNNING}' ORDER BY position, run_id",
            sweep=self._sweep,
        )
        still = self._watch.look({row["run_id"]: (row["claim"], row["beats"]) for row in running})
        return [
            row
            for row in running
            if still[row["run_id"]] > alive_after or is_gone(row["process"] or "")
        ]

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

    def _take(self, session: StoreSession, condition: str, ticket: str, **values: object) -> bool:
        """Claim a row if it still meets a condition and no other transaction holds it."""
        free = f"SELECT run_id FROM shapelaw_runs WHERE {condition}{self._store.skip_locked}"
        if not session.rows(free, sweep=self._sweep, **values):
            return False
        process, now = this_process(), self._store.now
        session.change(
            f"UPDATE shapelaw_runs SET state = '{RUNNING}', claim = :ticket, owner = :owner, "
            "host = :host, pid = :pid, process = :process, beats = beats + 1, "
            f"attempts = attempts + 1, heartbeat = {now}, started = COALESCE(started, {now}), "
            f"ended = NULL, speed = NULL WHERE {THIS_RUN}",
            sweep=self._sweep, run_id=values["run_id"], ticket=ticket, owner=self.owner,
            host=process.host, pid=process.pid, process=process.mark,
        )  # fmt: skip
        return True
