"""Checks that a frame passes once, before it becomes a run table."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import pandas as pd

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import names_in, select
from shapelaw.scaling.runs.columns import NUMERIC
from shapelaw.scaling.runs.diagnosis import row_marks
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.validation import (
    losses_in_nats,
    parse_switches,
    refuse_losses_above_uniform,
    refuse_unknown_kinds,
    to_numbers,
    validate,
)

MAX_LISTED_RUNS = 1000  # runs left out that are named one by one


def check_frame(
    frame: pd.DataFrame, name: str, where: str | None, exclude: Iterable[str]
) -> dict[str, Any]:
    """Check a frame of runs, and keep its finished and chosen runs with losses in nats.

    Parameters and errors are those of :meth:`shapelaw.scaling.runs.table.RunTable.of`.

    Returns
    -------
    Arguments of a run table: ``frame``, ``left_out`` and ``notes``.
    """
    names = frame["run_id"] if "run_id" in frame else [f"row-{i + 2}" for i in range(len(frame))]
    runs = frame.assign(run_id=pd.Series(names, index=frame.index).astype(str))
    left_out = excluded_or_unfinished(runs, set(exclude), name)
    # The index still counts the rows of the file, from which errors derive line numbers.
    runs = runs[~runs["run_id"].isin(left_out)] if left_out else runs
    runs = to_numbers(runs, [column for column in runs if column in NUMERIC])
    runs = with_ratios(parse_switches(runs, name), name)
    if where is not None:
        known = {str(column): runs[column] for column in runs} | row_marks(runs, names_in(where))
        chosen = select(where, known, len(runs))
        left_out |= dict.fromkeys(runs["run_id"][~chosen], f"not in `{where}`")
        # Text that kept a column from being numeric may be gone with its rows.
        runs = to_numbers(runs[chosen], [column for column in runs if column in NUMERIC])
    validate(runs, name)
    runs, notes = losses_in_nats(runs, name)
    refuse_losses_above_uniform(runs, name)
    refuse_unknown_kinds(runs, name)
    runs = runs.reset_index(drop=True)
    runs.attrs = {}
    return {
        "frame": runs,
        "left_out": shorten_left_out(left_out),
        "notes": tuple(notes),
    }


def shorten_left_out(left_out: dict[str, str]) -> dict[str, str]:
    """Keep the first ``MAX_LISTED_RUNS`` of the runs left out, and count the others."""
    more = len(left_out) - MAX_LISTED_RUNS
    if more <= 0:
        return left_out
    return dict(islice(left_out.items(), MAX_LISTED_RUNS)) | {
        f"{more} more runs": "for the same reasons"
    }


def excluded_or_unfinished(runs: pd.DataFrame, exclude: set[str], source: str) -> dict[str, str]:
    """Map the runs excluded by name and the unfinished runs to the reason."""
    if unknown := sorted(exclude - set(runs["run_id"])) if exclude else []:
        raise InputError(
            f"{source} has no run {unknown[0]!r} to exclude; look at its run_id column"
        )
    removed = dict.fromkeys(sorted(exclude), "excluded by name")
    if "status" in runs:
        status = runs["status"].astype(object).fillna("done").astype(str)
        unfinished = (status != "done") & ~runs["run_id"].isin(exclude)
        removed |= dict(zip(runs["run_id"][unfinished], status[unfinished], strict=True))
    return removed
