"""Transactions on the plan of a ledger: add runs, and plan runs that ended again."""

from collections.abc import Collection, Sequence

from shapelaw.scaling.errors import InputError
from shapelaw.trainers.ledger.claims import THIS_RUN
from shapelaw.trainers.ledger.entry import PLANNED
from shapelaw.trainers.ledger.store import StoreSession
from shapelaw.trainers.training.spec import RunSpec


def add_runs(
    session: StoreSession, sweep: str, pairs: Sequence[tuple[RunSpec, str]], name: str
) -> None:
    """Add runs to the plan of a sweep, each with the hash of its settings.

    Parameters
    ----------
    session
        Open transaction.
    sweep
        Name of the sweep.
    pairs
        Runs with their identities. A run that is present keeps its state.
    name
        Name of the ledger in the error.

    Raises
    ------
    InputError
        A run of the same name is present with other settings.
    """
    query = "SELECT run_id, identity FROM shapelaw_runs WHERE sweep = :sweep"
    rows = session.rows(query, sweep=sweep)
    identity_of = {row["run_id"]: row["identity"] for row in rows}
    position = len(identity_of)
    for spec, identity in pairs:
        present = identity_of.get(spec.run_id)
        if present is None and _insert(session, sweep, spec, identity, position):
            identity_of[spec.run_id] = identity
            position += 1
            continue
        if present is None:  # another process added the run in the meantime
            query = f"SELECT identity FROM shapelaw_runs WHERE {THIS_RUN}"
            (row,) = session.rows(query, sweep=sweep, run_id=spec.run_id)
            present = row["identity"]
        if present != identity:
            raise InputError(
                f"the ledger {name} has a run {spec.run_id!r} with other settings "
                "(shape, tokens, recipe, corpus, seed or torch version); "
                "choose another --out folder or another run_id"
            )


def _insert(session: StoreSession, sweep: str, spec: RunSpec, identity: str, position: int) -> bool:
    inserted = session.change(
        "INSERT INTO shapelaw_runs (sweep, run_id, position, spec, identity, state, flops, "
        "steps) VALUES (:sweep, :run_id, :position, :spec, :identity, :state, :flops, :steps) "
        "ON CONFLICT (sweep, run_id) DO NOTHING",
        sweep=sweep, run_id=spec.run_id, position=position, spec=spec.as_json(),
        identity=identity, state=PLANNED, flops=spec.flops, steps=spec.all_steps,
    )  # fmt: skip
    return inserted == 1


def plan_again(
    session: StoreSession,
    sweep: str,
    states: Collection[str],
    run_ids: Collection[str] | None,
) -> int:
    """Plan the runs in some states again, all of them or those of some ids; return their number."""
    rows = session.rows("SELECT run_id, state FROM shapelaw_runs WHERE sweep = :sweep", sweep=sweep)
    return sum(
        session.change(
            f"UPDATE shapelaw_runs SET state = '{PLANNED}', message = NULL, note = NULL, "
            "result = NULL, claim = NULL, started = NULL, ended = NULL "
            f"WHERE {THIS_RUN} AND state = :state",
            sweep=sweep, run_id=row["run_id"], state=row["state"],
        )
        for row in rows
        if row["state"] in states and (run_ids is None or row["run_id"] in run_ids)
    )  # fmt: skip
