"""Command that chooses the next runs to train, and its back-test on past runs."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shapelaw.scaling.commands.options import (
    MOST,
    FitFile,
    Json,
    OutTable,
    Runs,
)
from shapelaw.scaling.commands.output import note_other_runs
from shapelaw.scaling.commands.table_options import ALL_RUNS, RunOptions, with_table_options
from shapelaw.scaling.display.console import print_result

if TYPE_CHECKING:
    from shapelaw.scaling.design.backtests import Backtest
    from shapelaw.scaling.design.candidates import Limits
    from shapelaw.scaling.design.next_batch import Design
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import RunTable

SEEDS = 6  # of a back-test
STEPS = 4  # budgets of a back-test
STARTS = 8  # of each fit of a back-test, which has about a hundred fits


Budget = Annotated[
    str | None,
    typer.Option(
        "--budget-flops",
        help="Training FLOPs of all chosen runs together, such as 1e20 (default: none; "
        "needed without --backtest).",
        metavar="FLOPS",
    ),
]
GoalText = Annotated[
    str | None,
    typer.Option(
        "--goal",
        help="Quantity to estimate: predict:n=1e9,tokens=2e10, predict:FILE, "
        "optimum:RATIO[@N], choice:FILE, a table with two rows (their difference), or "
        "decision:FILE, a table of shapes of which the best is wanted (default: none; "
        "needed without --backtest).",
        metavar="GOAL",
    ),
]
Candidates = Annotated[
    Path | None,
    typer.Option(
        help="Table of runs to choose from (default: a grid over the fitted ranges).",
        metavar="FILE",
    ),
]
Within = Annotated[
    list[str] | None,
    typer.Option(
        help="Keep candidates with a column in a range, such as tokens=1e8:2e10; repeatable.",
        metavar="COLUMN=LOW:HIGH",
    ),
]
MostRuns = Annotated[int, typer.Option(help="Most runs to choose.", min=1, max=MOST, metavar="N")]
WithBacktest = Annotated[
    bool,
    typer.Option(
        "--backtest",
        help="Choose no runs: replay the choice on this table with its largest runs held out, "
        "and compare it with random choice and with the cheapest runs first.",
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        help="With --backtest: random sets of runs to begin with.", min=2, max=MOST, metavar="N"
    ),
]


@with_table_options
def next_runs(
    fit: FitFile,
    runs: Runs,
    budget: Budget = None,
    goal: GoalText = None,
    candidates: Candidates = None,
    within: Within = None,
    most_runs: MostRuns = 32,
    backtest: WithBacktest = False,
    seeds: Seeds = SEEDS,
    read: RunOptions = ALL_RUNS,
    out: OutTable = None,
    json: Json = False,
) -> None:
    """Choose the most informative runs for a budget of FLOPs."""
    from shapelaw.scaling.design.goals import parse_goal
    from shapelaw.scaling.design.next_batch import next_runs
    from shapelaw.scaling.errors import InputError
    from shapelaw.scaling.fitting.result import Fit
    from shapelaw.scaling.runs.table import write_runs

    fitted, table = Fit.load(fit), read.load(runs)
    result: Backtest | Design
    if backtest:
        given = {"--budget-flops": budget, "--goal": goal, "--candidates": candidates,
                 "--within": within}  # fmt: skip
        refused = ", ".join(name for name, value in given.items() if value)
        if refused:
            raise InputError(
                f"`{refused}` must be left out with --backtest, which predicts the largest runs "
                "of the table from the others"
            )
        result = _backtest(fitted, table, seeds)
    elif budget is None or goal is None:
        raise InputError("`--budget-flops` and `--goal` must be given, or --backtest")
    else:
        note_other_runs(fitted, table)
        target = parse_goal(goal, fitted, read.rows_beside)
        limits = read_limits(within or [], most_runs)
        pool = None if candidates is None else read.rows_beside(candidates)
        flops = read_flops(budget)
        result = next_runs(fitted, pool, flops, goal=target, runs=table, limits=limits)
    if out is not None:
        write_runs(out, result.frame())
    print_result(result, json=json)


def _backtest(fitted: "Fit", table: "RunTable", seeds: int) -> "Backtest":
    """Replay the choice of runs on a table with the law of a fit, fitted as the fit was."""
    from shapelaw.scaling.design.backtests import backtest
    from shapelaw.scaling.display.progress import progress_shown
    from shapelaw.scaling.fitting.refits import FitSettings, fit_quickly, settings_like

    settings: FitSettings = {**settings_like(fitted), "starts": STARTS, "resamples": 0}
    runs, fit_runs = fitted.count_as_fitted(table), partial(fit_quickly, fitted.law, **settings)
    with progress_shown():
        return backtest(runs, fit_runs, seeds=seeds, steps=STEPS)


def read_flops(text: str) -> float:
    """Read a positive number of FLOPs such as ``1e20``.

    Raises
    ------
    InputError
        The text is no positive number.
    """
    from shapelaw.scaling.errors import InputError

    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InputError(f"`--budget-flops > 0` must hold, but got {text!r}; write 1e20")
    return value


def read_limits(within: list[str], most_runs: int) -> "Limits":
    """Read ``COLUMN=LOW:HIGH`` limits.

    Raises
    ------
    InputError
        A text has another form.
    """
    from shapelaw.scaling.design.candidates import Limits
    from shapelaw.scaling.design.goals import NAMES
    from shapelaw.scaling.errors import InputError

    ranges = {}
    for text in within:
        name, _, ends = text.partition("=")
        try:
            low, high = (_number(end) for end in ends.split(":"))
        except ValueError:
            raise InputError(
                f"`--within` must be COLUMN=LOW:HIGH such as tokens=1e8:2e10, but got {text!r}"
            ) from None
        ranges[NAMES.get(name, name)] = (low, high)
    return Limits(within=ranges, most_runs=most_runs)


def _number(text: str) -> float:
    """Read a number, or a count such as 20B."""
    from shapelaw.scaling.units import parse_count

    try:
        return float(text)
    except ValueError:
        return float(parse_count(text))


def mount(app: typer.Typer) -> None:
    """Add the command to an application."""
    app.command("next-runs")(next_runs)
