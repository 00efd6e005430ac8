"""Runs that a run table leaves out, each with its reason."""

from itertools import islice

import pandas as pd

from shapelaw.scaling.errors import InputError

MAX_LISTED_RUNS = 1000  # runs left out that are named one by one


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
