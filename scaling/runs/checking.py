"""Checks that a frame passes once, before it becomes a run table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from shapelaw.scaling.display.printable import shown
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.filters import names_in, select
from shapelaw.scaling.runs.columns import NUMERIC, SIZES, D, N
from shapelaw.scaling.runs.contradictions import refuse_contradictions
from shapelaw.scaling.runs.diagnosis import row_marks
from shapelaw.scaling.runs.losses import in_one_unit, refuse_losses_above_uniform
from shapelaw.scaling.runs.mapping import ColumnMapping, suggestion
from shapelaw.scaling.runs.ratios import notes_on_gates, with_ratios
from shapelaw.scaling.runs.validation import (
    name_lines,
    parse_switches,
    refuse_unknown_kinds,
    to_numbers,
    validate,
)
from shapelaw.scaling.units import NATS

MAX_LISTED_RUNS = 1000  # runs left out that are named one by one
MAX_OPTIONS = 110  # characters of options to type, beside which columns are listed
FINISHED = ("done", "finished", "completed", "complete", "success", "succeeded", "ok")
UNFINISHED = (
    *("failed", "crashed", "killed", "running", "pending", "preempted", "preempting", "cancelled"),
    *("canceled", "diverged", "stopped", "error", "timeout", "queued"),
)
OWN_FAILURES = ("failed", "diverged")  # statuses of sweeps of this package, left out as they are
FAILED_ELSEWHERE = "failed run"  # status `failed` of an experiment tracker


@dataclass(frozen=True, kw_only=True)
class TableNotation:
    """Notation of a table: names of its columns, unit of its losses, marks of failed runs.

    Attributes
    ----------
    columns
        Changes of the columns, as :class:`shapelaw.scaling.runs.mapping.ColumnMapping` parses them.
    loss_unit
        Unit of the losses, where the table has no column for it.
    drop_failed
        Leave out runs that did not finish or have no finite loss, instead of refusing them.
    """

    columns: str | Mapping[str, str] | None = None
    loss_unit: str | None = None
    drop_failed: bool = False


def check_frame(
    frame: pd.DataFrame,
    name: str,
    where: str | None,
    exclude: Iterable[str],
    notation: TableNotation = TableNotation(),
) -> dict[str, Any]:
    """Check a frame of runs, and keep its finished and chosen runs with losses in one unit.

    Parameters and errors are those of :meth:`shapelaw.scaling.runs.table.RunTable.of`.

    Returns
    -------
    Arguments of a run table: ``frame``, ``loss_unit``, ``left_out`` and ``notes``.
    """
    mapping = ColumnMapping.parse(notation.columns)
    frame = mapping.apply(frame, name)
    names = frame["run_id"] if "run_id" in frame else [f"row-{i + 2}" for i in range(len(frame))]
    runs = with_status(frame.assign(run_id=pd.Series(names, index=frame.index).astype(str)))
    left_out = excluded_or_unfinished(runs, set(exclude), name, drop_failed=notation.drop_failed)
    # The index still counts the rows of the file, from which errors derive line numbers.
    runs = runs[~runs["run_id"].isin(left_out)] if left_out else runs
    runs = to_numbers(runs, [column for column in runs if column in NUMERIC])
    counting = notes_on_gates(runs)
    runs = with_ratios(parse_switches(runs, name), name)
    if where is not None:
        known = {str(column): runs[column] for column in runs} | row_marks(runs, names_in(where))
        chosen = select(where, known, len(runs))
        left_out |= dict.fromkeys(runs["run_id"][~chosen], f"not in `{where}`")
        # Text that kept a column from being numeric may be gone with its rows.
        runs = to_numbers(runs[chosen], [column for column in runs if column in NUMERIC])
    validate(runs, name)
    require_known_columns(runs, name)
    refuse_contradictions(runs, name)
    runs, unit, notes = in_one_unit(runs, name, notation.loss_unit)
    if unit == NATS:
        refuse_losses_above_uniform(runs, name)
    refuse_unknown_kinds(runs, name)
    runs = runs.reset_index(drop=True)
    runs.attrs = {}
    return {
        "frame": runs,
        "loss_unit": unit,
        "left_out": shorten_left_out(left_out),
        "notes": (*mapping.describe(), *notes, *counting),
    }


def require_known_columns(runs: pd.DataFrame, source: str) -> None:
    """Refuse a table without losses, tokens or sizes that has them under well-known other names.

    Raises
    ------
    InputError
        A column has another name; the message gives the option to type.
    """
    lacking = [name for name in ("loss", D) if name not in runs]
    if not any(size in runs for size in SIZES.values()):
        lacking.append(N)
    options = suggestion(runs, lacking) if lacking else ""
    if not options:
        return
    columns = ", ".join(name for name in map(str, runs.columns) if name != "run_id")
    known = f"it has {shown(columns, 80)[1:-1]}; " if len(options) < MAX_OPTIONS else ""
    missing = ", ".join(f"`{name}`" for name in lacking)
    raise InputError(f"{source} lacks {missing}; {known}type {options}")


def shorten_left_out(left_out: dict[str, str]) -> dict[str, str]:
    """Keep the first ``MAX_LISTED_RUNS`` of the runs left out, and count the others."""
    more = len(left_out) - MAX_LISTED_RUNS
    if more <= 0:
        return left_out
    return dict(islice(left_out.items(), MAX_LISTED_RUNS)) | {
        f"{more} more runs": "for the same reasons"
    }


def with_status(runs: pd.DataFrame) -> pd.DataFrame:
    """Take a column ``State`` of an experiment tracker as ``status``, with `done` for finished."""
    runs = runs.copy(deep=False)
    if "status" not in runs:
        state = [name for name in runs if str(name).strip().lower() == "state"]
        words = runs[state[0]].astype(object).map(_word) if state else pd.Series(dtype=object)
        if not len(words) or not set(words) <= {*FINISHED, *UNFINISHED}:
            return runs
        runs["status"] = words.replace(dict.fromkeys(OWN_FAILURES, FAILED_ELSEWHERE))
    runs["status"] = (
        runs["status"].astype(object).map(lambda w: "done" if _word(w) in FINISHED else w)
    )
    return runs


def _word(status: object) -> str:
    return "done" if pd.isna(status) else str(status).strip().lower()  # type: ignore[call-overload]


def excluded_or_unfinished(
    runs: pd.DataFrame, exclude: set[str], source: str, *, drop_failed: bool = False
) -> dict[str, str]:
    """Map the runs to leave out to the reason: those excluded by name, unfinished or failed.

    Raises
    ------
    InputError
        There is no run to exclude by a name; or runs are said to be done but have no finite loss,
        or failed in a way that is not this package's, and ``drop_failed`` is not given.
    """
    if unknown := sorted(exclude - set(runs["run_id"])) if exclude else []:
        raise InputError(
            f"{source} has no run {shown(unknown[0])} to exclude; look at its run_id column"
        )
    removed = dict.fromkeys(sorted(exclude), "excluded by name")
    kept = ~runs["run_id"].isin(exclude)
    status = pd.Series("done", index=runs.index)
    if "status" in runs:
        status = runs["status"].astype(object).fillna("done").astype(str)
    ours = (status != "done") & kept & status.isin(OWN_FAILURES)
    foreign = (status != "done") & kept & ~ours
    infinite = pd.Series(data=False, index=runs.index)
    if "loss" in runs:
        losses = pd.to_numeric(runs["loss"], errors="coerce")
        infinite = (runs["loss"].isna() | np.isinf(losses)) & kept & ~ours & ~foreign
    failed = foreign | infinite
    why = status.where(foreign, "no finite loss")
    if failed.any() and not drop_failed:
        counts = why[failed].value_counts().items()
        reasons = shown("; ".join(f"{count} {reason}" for reason, count in counts), 100)[1:-1]
        raise InputError(
            f"{source}: every run must have finished with a finite loss, but {int(failed.sum())} "
            f"of {len(runs)} rows have not ({reasons}; {name_lines(runs, failed.to_numpy())}); "
            "leave them out with --drop-failed, or one of them with --exclude RUN_ID"
        )
    unfinished, why = ours | failed, status.where(ours, why)
    return removed | dict(zip(runs["run_id"][unfinished], why[unfinished], strict=True))
