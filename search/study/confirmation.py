"""Confirmation of a search: its leaders are measured again, and get a probability of leading.

The fastest of many noisy measurements is fast partly by chance, and a search may measure shortened
outputs. So the shapes that are likely to be on the front are measured again, with their repeats
interleaved and at full length, and the new measurements replace the old ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines.cache import CachedEngine
from shapelaw.search.study.problem import SearchProblem

if TYPE_CHECKING:
    from shapelaw.search.study.study import SearchResult
    from shapelaw.search.workload import Workload

DRAWS = 2000  # bootstrap draws
MIN_PROBABILITY = 0.05  # of being on the front, for a leader


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """Second measurements of the leaders of a search.

    Attributes
    ----------
    before, again
        By row, the leaders' measurements during the search, and the new ones (or the reason why
        the engine refuses a shape now).
    probability
        By row, the probability of being on the front of the leaders (or the fastest of them, where
        that is the goal), by the new measurements.
    """

    before: dict[int, Measurement]
    again: dict[int, Measurement | str]
    probability: dict[int, float]


def front_probability(
    losses: Sequence[float] | np.ndarray,
    measurements: Sequence[Measurement],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """Estimate the probability that each shape is on the front of loss against speed.

    The estimate is the share of bootstrap draws in which no other shape is as good. Each draw
    replaces every shape's mean speed by a draw from the spread of its repeats (Student's t, as in
    its interval); the speed of a shape with one repeat stays the same. Losses count as exact.

    Parameters
    ----------
    losses
        Predicted losses, (n,).

    Returns
    -------
    Probabilities, (n,).
    """
    loss = np.asarray(losses, dtype=float)
    speeds = draw_speeds(measurements, draws=draws, seed=seed)
    same_or_less = loss[None, :] <= loss[:, None]  # [i, j]: j has at most the loss of i
    less = loss[None, :] < loss[:, None]
    wins = np.zeros(len(loss))
    for speed in speeds:
        faster, as_fast = speed[None, :] > speed[:, None], speed[None, :] >= speed[:, None]
        wins += ~((same_or_less & faster) | (less & as_fast)).any(axis=1)
    return wins / max(len(speeds), 1)


def fastest_probability(
    measurements: Sequence[Measurement], *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Estimate the probability that each shape is the fastest, (n,), by bootstrap draws."""
    speeds = draw_speeds(measurements, draws=draws, seed=seed)
    first = np.bincount(speeds.argmax(axis=1), minlength=len(measurements))
    return np.asarray(first / len(speeds))


def draw_speeds(
    measurements: Sequence[Measurement], *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Draw output tokens/s from the spread of the repeats, (draws, n)."""
    rates = np.array([each.output_tokens_per_second for each in measurements])
    half = np.array([(each.high - each.low) / 2 for each in measurements])
    freedom = np.array([max(each.repeats - 1, 1) for each in measurements])
    errors = half / student.ppf(0.975, freedom)
    draw = np.random.default_rng(seed).standard_t(freedom, size=(draws, len(rates)))
    return np.asarray(rates + errors * draw)


def leaders(
    problem: SearchProblem, measured: Mapping[int, Measurement], *, most: int = 8
) -> list[int]:
    """Select the rows most likely to be on the front (or the fastest) within all limits.

    Parameters
    ----------
    most
        Largest number of leaders.

    Returns
    -------
    Rows by decreasing probability, without those below 5 %; the first row is always returned.
    """
    rows = [row for row, result in measured.items() if problem.within_limits(row, result)]
    if not rows:
        return []
    probabilities = _probabilities(problem, {row: measured[row] for row in rows})
    ranked = sorted(rows, key=lambda row: -probabilities[row])
    likely = [row for row in ranked if probabilities[row] >= MIN_PROBABILITY]
    return (likely or ranked[:1])[:most]


def measure_again(
    searched: "SearchResult",
    engine: Engine,
    *,
    workload: "Workload | None" = None,
    most: int = 8,
    always: Sequence[int] = (),
) -> Confirmation:
    """Measure the leaders of a search again, with their repeats interleaved.

    Parameters
    ----------
    engine
        The engine that measures; stored measurements are not used.
    workload
        Full workload, if the search used a shortened one; None: that of the search.
    most
        Largest number of leaders.
    always
        Rows to measure as well (the baseline), so that ratios are of one session.
    """
    problem = searched.problem
    chosen = leaders(problem, searched.measured, most=most)
    rows = list(dict.fromkeys([*(row for row in always if row in searched.measured), *chosen]))
    work = workload or problem.workload
    if isinstance(engine, CachedEngine):
        engine = CachedEngine(engine.engine, engine.store, fresh=True)
    results = engine.measure_all([problem.table[row] for row in rows], work)
    again = dict(zip(rows, results, strict=True))
    full_length = SearchProblem(
        table=problem.table, losses=problem.losses, workload=work, goal=problem.goal,
        device=problem.device,
    )  # fmt: skip
    measured = {
        row: result
        for row, result in again.items()
        if isinstance(result, Measurement) and full_length.within_limits(row, result)
    }
    return Confirmation(
        before={row: searched.measured[row] for row in rows},
        again=again,
        probability=dict.fromkeys(rows, 0.0) | _probabilities(full_length, measured),
    )


def _probabilities(problem: SearchProblem, measured: Mapping[int, Measurement]) -> dict[int, float]:
    rows, measurements = list(measured), list(measured.values())
    if not rows:
        return {}
    if problem.goal.fastest:
        probabilities = fastest_probability(measurements)
    else:
        probabilities = front_probability(problem.losses[rows], measurements)
    return dict(zip(rows, probabilities.tolist(), strict=True))
