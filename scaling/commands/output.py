"""Notes that several commands print."""

from typing import TYPE_CHECKING

from shapelaw.scaling.display.console import note
from shapelaw.scaling.display.tables import counted

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import RunTable


def note_other_runs(fitted: "Fit", runs: "RunTable") -> None:
    """Note on standard error that a table is not the one that a fit was made from, if so."""
    if runs.fingerprint != fitted.data_sha256:
        note(
            f"note: these {counted(len(runs), 'run')} are not the {len(fitted.run_ids)} that the "
            "fit was made from; statements about the fit refer to its own runs"
        )
