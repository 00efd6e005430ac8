"""Notes that several commands print."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shapelaw.scaling.display.console import note

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import RunTable


def law_for(law: str | None, tables: "Sequence[RunTable]") -> str:
    """Return a law as given, or by default the one that the columns of the tables allow.

    The default is ``conditional``, and ``chinchilla`` with a note on standard error where a table
    has no shape ratios.
    """
    from shapelaw.scaling.architectures.shape import RATIOS

    if law is not None:
        return law
    absent = [name for name in RATIOS if any(name not in table for table in tables)]
    if not absent:
        return "conditional"
    note(f"note: the law is chinchilla, since the table has no `{absent[0]}`; --law names another")
    return "chinchilla"


def note_warnings(fitted: "Fit") -> None:
    """Print the warnings of the run table that a fit carries, on standard error."""
    for text in fitted.table_warnings:
        note(f"warning: {text}")


def note_other_runs(fitted: "Fit", runs: "RunTable") -> None:
    """Print a note on standard error if a run table is not that of a fit.

    Parameters
    ----------
    fitted
        Fit with the hash of its run table.
    runs
        Run table of the command.
    """
    if runs.fingerprint != fitted.data_sha256:
        these = f"these {len(runs)} runs are" if len(runs) != 1 else "this 1 run is"
        note(
            f"note: {these} not the {len(fitted.run_ids)} of the fit; "
            "statements about the fit refer to the runs of the fit"
        )
