"""Command that draws a fit and its runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shapelaw.scaling.commands.options import (
    Cutoffs,
    FitFile,
    Json,
    LeaveOutBy,
    Runs,
    output_file,
)
from shapelaw.scaling.commands.output import note_other_runs
from shapelaw.scaling.commands.table_options import ALL_RUNS, RunOptions, with_table_options
from shapelaw.scaling.display.console import echo, print_json
from shapelaw.scaling.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import RunTable

KINDS = {
    "law": "loss against each shape ratio, or measured against predicted",
    "residuals": "by predicted loss, N, D and shape",
    "qq": "quantiles of the residuals",
    "contours": "iso-loss in N and D with budgets and the compute-optimal line",
    "profile": "objective against each parameter",
    "drift": "parameters when the largest runs are held out (refits)",
    "held-out": "errors on the largest runs, held out (refits)",
    "comparison": "laws ranked by their errors on the largest runs, held out (refits)",
}
DEFAULT_CUTOFFS = 4
KINDS_HELP = "; ".join(f"{name}: {content}" for name, content in KINDS.items())


@with_table_options
def plot(
    kind: Annotated[str, typer.Argument(help=f"{KINDS_HELP}.", metavar="KIND")],
    fit: FitFile,
    runs: Runs,
    out: Annotated[
        Path,
        typer.Option(
            help="Picture to write, .png or .svg.", metavar="FILE", callback=output_file()
        ),
    ],
    by: LeaveOutBy = "size",
    cutoff: Cutoffs = None,
    law: Annotated[
        list[str] | None,
        typer.Option(
            help="With comparison: law to compare with that of the fit; repeatable.",
            metavar="LAW",
        ),
    ] = None,
    read: RunOptions = ALL_RUNS,
    json: Json = False,
) -> None:
    """Draw a fit and its runs as a picture."""
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.plots.style import ending_of, save_figure

    ending_of(out)
    draw = _drawing(kind, by, cutoff or DEFAULT_CUTOFFS, law or [])
    table, fitted = read.load(runs), Fit.load(fit)
    note_other_runs(fitted, table)
    with progress_shown():
        save_figure(draw(fitted, table), out)
    document = {"kind": kind, "law": fitted.law_name, "n_runs": len(table), "file": str(out)}
    print_json(document) if json else echo(f"{kind} of {fitted.law_name}: {out}")


def _drawing(
    kind: str, by: str, cutoffs: list[float] | int, laws: list[str]
) -> "Callable[[Fit, RunTable], Figure]":
    """Return the function that draws a kind of picture.

    Raises
    ------
    InputError
        ``kind`` is not one of :data:`KINDS`.
    """
    from shapelaw.scaling.checks.comparison import compare
    from shapelaw.scaling.checks.holdout import HoldOut, leave_largest_out
    from shapelaw.scaling.fitting.refits import settings_like
    from shapelaw.scaling.plots.contours import plot_contours
    from shapelaw.scaling.plots.holdout import plot_comparison, plot_drift, plot_held_out
    from shapelaw.scaling.plots.law import plot_law
    from shapelaw.scaling.plots.residuals import plot_profiles, plot_qq, plot_residuals

    def hold_out(fitted: "Fit", table: "RunTable") -> HoldOut:
        runs, settings = fitted.count_as_fitted(table), settings_like(fitted)
        return leave_largest_out(fitted.law, runs, by=by, cutoffs=cutoffs, **settings)

    def comparison(fitted: "Fit", table: "RunTable") -> "Figure":
        compared = list(dict.fromkeys([fitted.law_name, *laws]))
        runs, settings = fitted.count_as_fitted(table), settings_like(fitted)
        return plot_comparison(compare(compared, runs, by=by, cutoffs=cutoffs, **settings))

    drawings: dict[str, Callable[[Fit, RunTable], Figure]] = {
        "law": plot_law,
        "residuals": plot_residuals,
        "qq": plot_qq,
        "contours": plot_contours,
        "profile": plot_profiles,
        "drift": lambda fitted, table: plot_drift(hold_out(fitted, table)),
        "held-out": lambda fitted, table: plot_held_out(hold_out(fitted, table)),
        "comparison": comparison,
    }
    if kind not in drawings:
        raise InputError(f"`KIND` must be one of {', '.join(KINDS)}, but got {kind!r}")
    return drawings[kind]


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command()(plot)
