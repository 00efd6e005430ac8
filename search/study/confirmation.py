"""The leaders of a search are measured again, and "on the front" gets a probability.

The fastest of many noisy measurements is fast partly by luck, and a cheap mode measures short
outputs. So the shapes that may stand on the front are measured once more, all in turns and at full
length, and these new measurements replace the old ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from shapelaw.search.engines._base import Engine, Measurement
from shapelaw.search.engines.cache import CachedEngine
from shapelaw.search.study.problem import Question

if TYPE_CHECKING:
    from shapelaw.search.study.study import Found
    from shapelaw.search.workload import Workload

DRAWS = 2000
CHANCE = 0.05  # of being on the front: who has less is no leader


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """What measuring the leaders again says.

    Attributes
    ----------
    before, again
        By row, the leaders' measurements of the search, and the new ones (or why there is none).
    probability
        By row, of being on the front (or the fastest, where that is the goal). It is among the
        leaders, by the new measurements.
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
    """Share of bootstrap draws in which no other shape is as good, (n,).

    Each draw takes every shape's mean speed anew from the spread of its repeats (Student's t, as in
    its interval); a shape with one repeat stays where it is. Losses are taken as they are.
    """
    loss = np.asarray(losses, dtype=float)
    speeds = drawn_speeds(measurements, draws=draws, seed=seed)
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
    """Share of bootstrap draws in which each shape is the fastest, (n,)."""
    speeds = drawn_speeds(measurements, draws=draws, seed=seed)
    first = np.bincount(speeds.argmax(axis=1), minlength=len(measurements))
    return np.asarray(first / len(speeds))


def drawn_speeds(
    measurements: Sequence[Measurement], *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Output tokens/s as they might have been measured, (draws, n)."""
    rates = np.array([found.output_tokens_per_second for found in measurements])
    half = np.array([(found.high - found.low) / 2 for found in measurements])
    freedom = np.array([max(found.repeats - 1, 1) for found in measurements])
    errors = half / student.ppf(0.975, freedom)
    draw = np.random.default_rng(seed).standard_t(freedom, size=(draws, len(rates)))
    return np.asarray(rates + errors * draw)


def leaders(question: Question, measured: Mapping[int, Measurement], *, most: int = 8) -> list[int]:
    """The rows most likely to be on the front (or the fastest) within all limits, likeliest first.

    Those with less than 5 % are left out, unless nothing has more.
    """
    rows = [row for row, found in measured.items() if question.counts(row, found)]
    if not rows:
        return []
    chances = _chances(question, {row: measured[row] for row in rows})
    ranked = sorted(rows, key=lambda row: -chances[row])
    likely = [row for row in ranked if chances[row] >= CHANCE]
    return (likely or ranked[:1])[:most]


def measure_again(
    found: "Found",
    engine: Engine,
    *,
    workload: "Workload | None" = None,
    most: int = 8,
    always: Sequence[int] = (),
) -> Confirmed:
    """Measure the leaders of a search again, in turns.

    Parameters
    ----------
    engine
        What measures; one that keeps its measurements is made to measure afresh.
    workload
        The full one, where the search used a shortened one.
    most
        Leaders at most.
    always
        Rows to measure as well (the baseline), so that all ratios are of one session.
    """
    question = found.question
    chosen = leaders(question, found.measured, most=most)
    rows = list(dict.fromkeys([*(row for row in always if row in found.measured), *chosen]))
    work = workload or question.workload
    if isinstance(engine, CachedEngine):
        engine = CachedEngine(engine.engine, engine.store, fresh=True)
    results = engine.measure_all([question.table[row] for row in rows], work)
    again = dict(zip(rows, results, strict=True))
    asked = Question(
        table=question.table, losses=question.losses, workload=work, goal=question.goal,
        device=question.device,
    )  # fmt: skip
    measured = {
        row: result
        for row, result in again.items()
        if isinstance(result, Measurement) and asked.counts(row, result)
    }
    return Confirmed(
        before={row: found.measured[row] for row in rows},
        again=again,
        probability=dict.fromkeys(rows, 0.0) | _chances(asked, measured),
    )


def _chances(question: Question, measured: Mapping[int, Measurement]) -> dict[int, float]:
    rows, found = list(measured), list(measured.values())
    if not rows:
        return {}
    if question.goal.fastest:
        chances = fastest_probability(found)
    else:
        chances = front_probability(question.losses[rows], found)
    return dict(zip(rows, chances.tolist(), strict=True))
