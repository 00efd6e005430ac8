"""The Optuna sampler of shapelaw, and Optuna's own ones behind the same study.

Ours (``calibrated``) proposes the shape whose measurement is expected to add most hypervolume to
the front: the loss of every enumerated shape is known, its speed is predicted by a time model that
is fitted anew to all measurements before each proposal. Shapes that other workers are measuring
count as measured at their predicted speed, so that several workers do not ask for the same.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.acquisition import expected_gain, expected_improvement, reference_point
from shapelaw.search.study.problem import Question
from shapelaw.search.time_model.model import Forecast, TimeModel

CALIBRATED = "calibrated"
LIVE = (TrialState.RUNNING, TrialState.WAITING)
PICK = FloatDistribution(0.0, 1.0)
NEGLIGIBLE = 1e-12  # an expected gain that is no gain


def row_of(question: Question, trial: FrozenTrial) -> int | None:
    """The row of a trial: as announced, or as enqueued; None before either."""
    if "row" in trial.user_attrs:
        return int(trial.user_attrs["row"])
    picks = trial.system_attrs.get("fixed_params")
    if picks is None or not set(question.grid.parameters) <= set(picks):
        return None
    return question.grid.row(picks.__getitem__)


def result_of(trial: FrozenTrial) -> Measurement | str | None:
    """What a finished trial found: a measurement, or the engine's reason; None otherwise."""
    if trial.state == TrialState.COMPLETE and "measurement" in trial.user_attrs:
        return Measurement(**trial.user_attrs["measurement"])
    if trial.state == TrialState.FAIL and "reason" in trial.user_attrs:
        return str(trial.user_attrs["reason"])
    return None


class CalibratedSampler(BaseSampler):
    """Proposes the shape of the largest expected gain, see the module.

    Parameters
    ----------
    question
        The enumerated space, its losses, and what counts.
    """

    def __init__(self, question: Question) -> None:
        self._question = question

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters; none for an enqueued trial, whose values are given."""
        if "fixed_params" in trial.system_attrs:
            return {}
        return dict.fromkeys(self._question.grid.parameters, PICK)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The picks of the shape to measure next."""
        if not search_space:
            return {}
        known: dict[int, Measurement | str] = {}
        pending = []
        for other in study.get_trials(deepcopy=False):
            row, result = row_of(self._question, other), result_of(other)
            if row is not None and result is not None:
                known[row] = result
            elif row is not None and other.state in LIVE:
                pending.append(row)
        left = [row for row in dict.fromkeys(pending) if row not in known]
        picks = self._question.grid.picks(next_row(self._question, known, left))
        return {name: picks[name] for name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The middle: only reached by a study whose parameters are not those of the space."""
        return 0.5


def next_row(
    question: Question, known: Mapping[int, Measurement | str], pending: Sequence[int] = ()
) -> int:
    """The row that is worth most to measure, of those neither known nor pending.

    Parameters
    ----------
    known
        What was measured, or why the engine cannot run it, by row.
    pending
        Rows that others measure now.

    Returns
    -------
    A row; where nothing is free, any allowed one: the claim of it then gives way.
    """
    free = question.allowed.copy()
    free[[*known, *pending]] = False
    if not free.any():
        return int(np.argmax(question.allowed))
    measured = {row: found for row, found in known.items() if isinstance(found, Measurement)}
    rows, table = np.array(list(measured), dtype=int), question.table
    model = TimeModel.fit(
        table.take(rows), list(measured.values()), question.workload, device=question.device
    )
    if len(pending):
        model = model.believing(table.take(np.array(pending, dtype=int)))
    forecast = model.forecast(table)
    within = [row for row, result in measured.items() if question.counts(row, result)]
    speeds = np.log(forecast.rate)
    for row in within:
        speeds[row] = np.log(measured[row].output_tokens_per_second)
    believed = [row for row in pending if question.allowed[row]]
    points = np.array([*within, *believed], dtype=int)
    worth = _worth(question, forecast, points, speeds)
    worth[~free] = -np.inf
    return int(np.argmax(worth))


def _worth(
    question: Question, forecast: Forecast, points: np.ndarray, speeds: np.ndarray
) -> np.ndarray:
    """What measuring each row is expected to add, (n,); where it is nothing, how near it comes."""
    losses, mean, deviation = question.losses, np.log(forecast.rate), forecast.deviation
    if question.goal.fastest:
        best = np.array(speeds[points].max() if len(points) else mean[question.allowed].min())
        gain = expected_improvement(mean, deviation, best)
        near = (mean - best) / deviation
    else:
        allowed = np.flatnonzero(question.allowed)
        ends = np.union1d(allowed[front(losses[allowed], speeds[allowed])], points)
        ends = ends[front(losses[ends], speeds[ends])]
        reference = reference_point(losses[ends], speeds[ends])
        known = losses[points], speeds[points]
        gain = expected_gain(losses, mean, deviation, known=known, reference=reference)
        near = (mean - _best_within(known, losses, reference[1])) / deviation
    gain = gain * _within_limits(question, forecast)
    # Ranks only among shapes of no expected gain: the surest misses come last.
    return np.asarray(np.where(gain > NEGLIGIBLE, gain, NEGLIGIBLE * ndtr(near)))


def _best_within(
    known: tuple[np.ndarray, np.ndarray], losses: np.ndarray, least: float
) -> np.ndarray:
    """The best known ln speed at no more than each loss."""
    order = np.argsort(known[0])
    best = np.maximum.accumulate(np.append(least, known[1][order]))
    return np.asarray(best[np.searchsorted(known[0][order], losses, side="right")])


def _within_limits(question: Question, forecast: Forecast) -> np.ndarray:
    """Probability that each shape keeps the service level."""
    work, sure = question.workload, np.ones(len(question.losses))
    if work.max_ttft is not None:
        sure *= ndtr(np.log(work.max_ttft / forecast.ttft) / forecast.ttft_deviation)
    if work.max_tpot is not None:
        sure *= ndtr(np.log(work.max_tpot / forecast.tpot) / forecast.tpot_deviation)
    return sure


def opening(question: Question, count: int) -> list[int]:
    """Rows along the front of loss against what the roofline says: where a search may begin.

    Nothing is measured for it: the time model speaks from its prior alone.
    """
    table = question.table
    model = TimeModel.fit(
        table.take(np.array([], dtype=int)), [], question.workload, device=question.device
    )
    allowed = np.flatnonzero(question.allowed)
    speeds = model.forecast(table.take(allowed)).rate
    rows = allowed[front(question.losses[allowed], speeds)]
    rows = rows[np.argsort(question.losses[rows])]
    picked = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [int(row) for row in rows[np.unique(picked)]]


def broken_constraints(trial: FrozenTrial) -> Sequence[float]:
    """Optuna's view of the limits: as recorded with the measurement."""
    return list(trial.user_attrs.get("constraints", []))


def _tpe(question: Question, seed: int, **options: Any) -> BaseSampler:
    return optuna.samplers.TPESampler(multivariate=True, seed=seed, **options)


def _nsga2(question: Question, seed: int, **options: Any) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(population_size=20, seed=seed, **options)


def _gp(question: Question, seed: int, **options: Any) -> BaseSampler:
    if tuple(map(int, optuna.__version__.split(".")[:2])) < (4, 5):
        raise InputError(f"sampler gp needs `optuna >= 4.5`, but got {optuna.__version__}")
    return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False, **options)


def _random(question: Question, seed: int, **options: Any) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _calibrated(question: Question, seed: int, **options: Any) -> BaseSampler:
    return CalibratedSampler(question)


SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    CALIBRATED: _calibrated,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "random": _random,
}


def sampler_named(name: str, question: Question, seed: int) -> BaseSampler:
    """Make a sampler by name.

    Raises
    ------
    InputError
        There is none of that name, or the installed Optuna is too old for it.
    """
    if name not in SAMPLERS:
        raise InputError(f"`sampler` must be one of {', '.join(SAMPLERS)}, but got {name!r}")
    options = {"constraints_func": broken_constraints} if question.constrained else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental, and deprecated in Optuna 5 without loss
        return SAMPLERS[name](question, seed, **options)
