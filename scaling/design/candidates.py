"""Runs that could be trained next: a grid over what was observed, box limits and costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import Columns
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable, as_run_table
from shapelaw.scaling.runs.validation import check_numbers, require_columns

TOKENS_PER_PARAMETER = "tokens_per_parameter"
WHOLE = (*INTEGER_FIELDS, "gqa")
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be trained.

    Parameters
    ----------
    within
        Least and most by column: those of the law, and ``tokens_per_parameter``.
    stretch
        Columns that ``within`` leaves out may pass the observed range by this factor. A law is
        only known to hold near its runs: without a box, a design asks for D/N in the 100,000s.
    most_runs
        How many runs to choose at most.
    most_repeats
        How often one candidate may be trained. A fit weighs runs alike: beyond a few, repeats
        would only serve to give a place more weight.
    smallest_gain
        Stop when no run would remove this share of the first squared error.

    Raises
    ------
    InputError
        A range is empty or not positive, or a number makes no sense.
    """

    within: Mapping[str, Range] = field(default_factory=dict)
    stretch: float = 2.0
    most_runs: int = 32
    most_repeats: int = 3
    smallest_gain: float = 1e-3

    def __post_init__(self) -> None:
        for name, (low, high) in self.within.items():
            if not 0 < low <= high:
                raise InputError(f"`0 < low <= high` must hold for {name}, but got {low}, {high}")
        if not self.stretch >= 1:
            raise InputError(f"`stretch >= 1` must hold, but got {self.stretch}")
        for name in ("most_runs", "most_repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name} >= 1` must hold, but got {getattr(self, name)}")

    def box(self, observed: Columns) -> dict[str, Range]:
        """Least and most of every column, given the columns of the runs trained so far.

        Raises
        ------
        InputError
            ``within`` names a column that the law does not have.
        """
        columns = with_tokens_per_parameter(observed)
        for name in self.within:
            if name not in columns:
                raise InputError(
                    f"`within` must name one of {', '.join(columns)}, but got {name!r}"
                )
        box = {}
        for name, values in columns.items():
            stretched = float(values.min()) / self.stretch, float(values.max()) * self.stretch
            box[name] = self.within.get(name, stretched)
        return box


def with_tokens_per_parameter(columns: Columns) -> dict[str, np.ndarray]:
    """The columns and D/N."""
    return {**columns, TOKENS_PER_PARAMETER: columns[D] / columns[N]}


def inside(columns: Columns, box: Mapping[str, Range]) -> np.ndarray:
    """Mask of the rows inside a box, ends included, (n,).

    Raises
    ------
    InputError
        None is; the text names the limit that most rows break.
    """
    columns = with_tokens_per_parameter(columns)
    slack = 1e-9
    kept = {
        name: (columns[name] >= low * (1 - slack)) & (columns[name] <= high * (1 + slack))
        for name, (low, high) in box.items()
    }
    mask = np.asarray(np.logical_and.reduce(list(kept.values())))
    if not mask.any():
        worst = min(kept, key=lambda name: int(kept[name].sum()))
        low, high = box[worst]
        values = columns[worst]
        raise InputError(
            f"`{low:.4g} <= {worst} <= {high:.4g}` must hold for a candidate, but the "
            f"{len(values)} candidates have {values.min():.4g} to {values.max():.4g}; "
            f"give others, or widen the box with `within`"
        )
    return mask


def costs(runs: RunTable | pd.DataFrame) -> np.ndarray:
    """Count training FLOPs of every row: ``flops_counted`` where the table has it, else 6·N·D.

    Raises
    ------
    InputError
        A cost is not a positive number, or a column is missing.
    """
    runs = as_run_table(runs)
    frame = runs.frame
    if "flops_counted" in frame:
        check_numbers(frame, ("flops_counted",), "the candidates")
        if frame["flops_counted"].isna().any():
            raise InputError("`flops_counted > 0` must hold for every candidate, but one is empty")
        return frame["flops_counted"].to_numpy(dtype=float)
    require_columns(frame, (runs.size_column, D), "the candidates")
    return np.asarray(6.0 * runs.sizes * runs.tokens)


def grid_candidates(
    fit: Fit,
    *,
    within: Mapping[str, Range] | None = None,
    sizes: int = 10,
    token_counts: int = 10,
    per_ratio: int = 3,
) -> pd.DataFrame:
    """A grid over N, D and the law's ratios, even in logarithms, inside the observed ranges.

    Whole numbers (layers, grouped heads) are rounded. The ratios are combined freely: where not
    every combination is a shape, give candidates from :class:`shapelaw.scaling.space.space.Space`
    instead.

    Parameters
    ----------
    within
        Ranges to use instead of the observed ones, by column.

    Returns
    -------
    One row per candidate with the columns of the law.
    """
    ranges = {**fit.ranges, **(within or {})}
    counts = {N: sizes, D: token_counts}
    axes = [_axis(name, ranges[name], counts.get(name, per_ratio)) for name in fit.law.columns]
    frame = pd.DataFrame(list(product(*axes)), columns=list(fit.law.columns))
    ratio = ranges.get(TOKENS_PER_PARAMETER)
    if ratio is not None:
        frame = frame[(frame[D] / frame[N]).between(*ratio)].reset_index(drop=True)
    if frame.empty:
        raise InputError(
            f"`within` must leave a candidate, but no D/N of {ratio} has N in {ranges[N]} "
            f"and D in {ranges[D]}; widen one of them"
        )
    return frame


def _axis(name: str, ends: Range, count: int) -> np.ndarray:
    values = np.geomspace(*ends, count) if ends[1] > ends[0] else np.array([ends[0]])
    return np.unique(np.maximum(np.round(values), 1.0)) if name in WHOLE else values
