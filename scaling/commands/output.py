"""Print fits and notes to a terminal."""

import sys
from typing import TYPE_CHECKING

from shapelaw.scaling.display.console import note, print_table

if TYPE_CHECKING:
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import RunTable


def print_fit(fitted: "Fit") -> None:
    """Print a fit: what was fitted and how it ended, parameters, what to know."""
    lines = fitted.summary().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("  "))
    last = first + len(fitted.parameters())
    sys.stdout.write("\n".join(lines[:first]) + "\n")
    table = fitted.frame().reset_index()
    ends = table.select_dtypes("number").columns
    table[ends] = table[ends].map(lambda value: f"{value:.5g}")
    print_table(table)
    sys.stdout.write("\n".join(line.strip() for line in lines[last:]) + "\n")


def note_other_runs(fitted: "Fit", runs: "RunTable") -> None:
    """Say on standard error that a table is not the one that a fit was made from, if so."""
    if runs.fingerprint != fitted.data_sha256:
        note(
            f"note: these {len(runs)} runs are not the {len(fitted.run_ids)} that the fit was "
            "made from; what is said of the fit is said of its own"
        )
