"""Candidate runs to train next: a grid over the observed ranges, box limits and costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.part import Columns
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable, as_run_table
from shapelaw.scaling.runs.validation import check_numbers, require_columns

TOKENS_PER_PARAMETER = "tokens_per_parameter"
WHOLE_NUMBERS = (*INTEGER_FIELDS, "gqa")
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the runs of a design.

    Parameters
    ----------
    within
        Lowest and highest value by column: columns of the law, and ``tokens_per_parameter``.
    stretch
        The factor by which columns that ``within`` leaves out may exceed the observed range. A law
        is only known to hold near its runs: without a box, a design chooses D/N above 100,000.
    most_runs
        The largest number of runs.
    most_repeats
        The largest number of runs at one candidate. A fit gives equal weight to all runs: beyond a
        few, repeats would only increase the weight of one place.
    smallest_gain
        The smallest share of the initial squared error that a run must remove; the choice stops
        where no run does.

    Raises
    ------
    InputError
        A range is empty or not positive, or a number is below its least value.
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
        """Find the lowest and highest allowed value of every column.

        Parameters
        ----------
        observed
            Columns of the runs trained so far, (n,) each.

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
    """Add D/N to the columns of a law."""
    return {**columns, TOKENS_PER_PARAMETER: columns[D] / columns[N]}


def inside(columns: Columns, box: Mapping[str, Range]) -> np.ndarray:
    """Find the rows inside a box, ends included.

    Parameters
    ----------
    columns
        Columns of the law, (n,) each.
    box
        Lowest and highest value by column.

    Returns
    -------
    A mask of the rows, (n,).

    Raises
    ------
    InputError
        No row is inside; the text names the limit that most rows break.
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
            "give other candidates, or widen the box with `within`"
        )
    return mask


def costs(runs: RunTable | pd.DataFrame) -> np.ndarray:
    """Count the training FLOPs of every row: ``flops_counted`` where given, else 6·N·D.

    Block diffusion passes every token twice, noisy and clean: 12·N·D.

    Parameters
    ----------
    runs
        A run table or candidates with N and D, and the column ``objective`` where it is another
        than next-token prediction.

    Returns
    -------
    FLOPs, (n,).

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
            raise InputError(
                "`flops_counted > 0` must hold for every candidate, but one is empty; fill the "
                "column, or leave it out to count 6·N·D"
            )
        return frame["flops_counted"].to_numpy(dtype=float)
    require_columns(frame, (runs.size_column, D), "the candidates")
    return np.asarray(6.0 * passes_per_token(frame) * runs.sizes * runs.tokens)


def passes_per_token(runs: pd.DataFrame) -> np.ndarray:
    """Return how often the layers pass a training token: twice in block diffusion, (n,).

    One block over the whole ``context_length`` is masked diffusion, which passes it once.
    """
    passes = np.ones(len(runs))
    if "objective" in runs:
        sizes = runs["objective"].astype(str).str.extract(r"^block:(\d+)", expand=False)
        blocks = sizes.astype(float).to_numpy()
        passes[np.isfinite(blocks)] = 2
        if "context_length" in runs:
            passes[blocks == runs["context_length"].to_numpy(dtype=float)] = 1
    return passes


def grid_candidates(
    fit: Fit,
    *,
    within: Mapping[str, Range] | None = None,
    sizes: int = 10,
    token_counts: int = 10,
    per_ratio: int = 3,
) -> pd.DataFrame:
    """Build a grid over N, D and the law's ratios inside the observed ranges.

    The grid is even in logarithms. Whole numbers (layers, query heads per KV head) are rounded. The
    grid contains every combination of ratios: where some combinations are no shape, use candidates
    from :class:`shapelaw.scaling.space.space.Space` instead.

    Parameters
    ----------
    fit
        The fit whose law and observed ranges define the grid.
    within
        Ranges to use instead of the observed ones, by column.
    sizes, token_counts, per_ratio
        The number of values of N, of D and of every ratio.

    Returns
    -------
    One row per candidate with the columns of the law.

    Raises
    ------
    InputError
        No D/N of the grid lies in the range that ``within`` gives for it.
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
    return np.unique(np.maximum(np.round(values), 1.0)) if name in WHOLE_NUMBERS else values
