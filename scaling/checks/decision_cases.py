"""Decisions that a run table can test: pairs of shapes, and the smaller runs to decide from."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shapelaw.scaling.architectures.shape import RATIOS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.levels import LEVEL_TOLERANCE, count_levels
from shapelaw.scaling.runs.table import RunTable

MIN_SIZE_STEP = 1.5  # ratio of the decided size to the largest fitted size, at least
MIN_SHAPE_RATIO = 1.25  # of one ratio between the two shapes, at least
SHAPE_COLUMNS = (*RATIOS, "num_hidden_layers")
# Runs of a pair agree in these columns, so that only their shapes differ.
RECIPE_COLUMNS = (
    *("corpus", "tokenizer", "context_length", "batch_tokens", "batch_sequences"),
    "learning_rate",
)


@dataclass(frozen=True, kw_only=True)
class DecisionCase:
    """Decision between two shapes of nearly equal N and D, to be made from smaller models.

    Parameters
    ----------
    table
        Name of the run table.
    cut
        Largest N of a fitted run, parameters.
    fitted
        Positions of the fitted runs in the table, (m,).
    sizes
        Number of levels of N among the fitted runs.
    first, second
        Positions of the replicates of each shape, (k,) each; one position if it has no replicates.
    distance
        Distance of the two shapes: Euclidean, in ln of the ratios and of the number of layers.
    """

    table: str
    cut: float
    fitted: np.ndarray
    sizes: int
    first: np.ndarray
    second: np.ndarray
    distance: float


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """Pair of shapes that could be decided, with all runs that it would use up."""

    first: np.ndarray
    second: np.ndarray
    distance: float
    replicates: int
    tokens: float
    used: set[object]


def decision_cases(
    runs: RunTable,
    table: str = "",
    *,
    tolerance: float = LEVEL_TOLERANCE,
) -> list[DecisionCase]:
    """Enumerate the disjoint decisions of a run table: every run is decided about at most once.

    The two most different shapes with nearly equal N and D form the first pair, the two most
    different of the remaining shapes the next pair, and so on; losses are not read. Of several
    token counts of one pair, that with the most replicates is chosen, then the largest. The fitted
    runs of a pair are all runs that are smaller by a factor of at least 1.5. Checkpoints of one
    training run count as one run.

    Parameters
    ----------
    runs
        Run table with the fields or ratios of shapes.
    table
        Name of the table in the result.
    tolerance
        Relative difference up to which N, or D, of two runs are nearly equal.

    Returns
    -------
    list of DecisionCase
        Decisions, smallest size first; none where no two shapes have nearly equal N and D.

    Raises
    ------
    InputError
        No column of the table describes a shape.
    """
    names = [name for name in SHAPE_COLUMNS if name in runs]
    if not names:
        raise InputError(
            f"decisions need a column that describes shapes, such as {', '.join(SHAPE_COLUMNS)}, "
            f"but the table has {', '.join(runs.columns)}; add the fields of the shapes"
        )
    levels = runs.size_level
    chosen = _matching(
        _candidates(runs, np.log(runs.frame[names].to_numpy(dtype=float)), tolerance)
    )
    cases = []
    for pair in chosen:
        smaller = min(pair.first[0], pair.second[0], key=lambda row: float(runs.sizes[row]))
        level = levels == levels[smaller]  # pairs of one level share their fitted runs
        fitted = np.flatnonzero(runs.sizes * MIN_SIZE_STEP <= runs.sizes[level].min())
        if len(fitted):
            cases.append(
                DecisionCase(
                    table=table, cut=float(runs.sizes[fitted].max()), fitted=fitted,
                    sizes=count_levels(levels[fitted]), first=pair.first, second=pair.second,
                    distance=pair.distance,
                )
            )  # fmt: skip
    return sorted(cases, key=lambda case: case.cut)


def _candidates(runs: RunTable, shapes: np.ndarray, tolerance: float) -> Iterator[_Candidate]:
    """Pair all different shapes that have nearly equal N and D and the same recipe."""
    names = runs.run_ids if runs.run_groups is None else runs.run_groups
    recipes: np.ndarray = np.zeros(len(runs))
    if recorded := [name for name in RECIPE_COLUMNS if name in runs]:
        recipes = runs.frame.groupby(recorded, dropna=False).ngroup().to_numpy()
    unique, units = np.unique(runs.replicates, return_inverse=True)
    rows = [np.flatnonzero(units == unit) for unit in range(len(unique))]
    rows.sort(key=lambda unit: int(unit[0]))
    leaders = np.array([unit[0] for unit in rows])
    logs = np.log(np.stack([runs.sizes, runs.tokens], axis=1))[leaders]
    for place, one in enumerate(leaders):
        gap = np.abs(shapes[leaders] - shapes[one])
        near = (np.abs(logs - logs[place]) <= np.log1p(tolerance)).all(axis=1)
        near &= recipes[leaders] == recipes[one]
        near &= gap.max(axis=1) >= np.log(MIN_SHAPE_RATIO)
        for other in np.flatnonzero(near):
            if other > place:
                yield _Candidate(
                    first=rows[place],
                    second=rows[other],
                    distance=round(float(np.linalg.norm(gap[other])), 9),
                    replicates=min(len(rows[place]), len(rows[other])),
                    tokens=float(runs.tokens[one]),
                    used={*names[rows[place]], *names[rows[other]]},
                )


def _matching(candidates: Iterator[_Candidate]) -> list[_Candidate]:
    """Choose disjoint pairs greedily: the most different shapes first."""
    chosen: list[_Candidate] = []
    used: set[object] = set()
    for pair in sorted(candidates, key=lambda c: (-c.distance, -c.replicates, -c.tokens)):
        if not pair.used & used:
            chosen.append(pair)
            used |= pair.used
    return chosen
