"""Notes that several commands print."""

from typing import TYPE_CHECKING

from shapelaw.scaling.display.console import note
from shapelaw.scaling.display.tables import counted

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import RunTable


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
        note(
            f"note: these {counted(len(runs), 'run')} are not the {len(fitted.run_ids)} of "
            "the fit; statements about the fit refer to the runs of the fit"
        )
