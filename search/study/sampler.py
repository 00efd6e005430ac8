"""Samplers of a study: shapelaw's own, and those of Optuna.

shapelaw's sampler (``calibrated``) proposes the shape with the largest expected hypervolume
improvement of the front. The loss of every enumerated shape is known; its speed is predicted by a
time model that is fitted to all measurements before each proposal. Shapes that other workers are
measuring count as measured at their predicted speed (the kriging believer), so that several
workers propose different shapes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.schema import conform
from shapelaw.scaling.space.pareto import front
from shapelaw.search.engines._base import Measurement
from shapelaw.search.study.acquisition import expected_gain, expected_improvement, reference_point
from shapelaw.search.study.problem import SearchProblem
from shapelaw.search.time_model.model import Forecast, TimeModel

CALIBRATED = "calibrated"
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)
MAX_FIELD = 10**12  # above every value of a field, so that larger numbers are damage
NEGLIGIBLE = 1e-12  # expected gains up to this count as none


def row_of(problem: SearchProblem, trial: FrozenTrial) -> int | None:
    """Return the row that a trial has recorded or was enqueued with; None before either.

    What a damaged file gives in their place counts as neither.
    """
    recorded = trial.user_attrs.get("row")
    if type(recorded) is int and 0 <= recorded < len(problem.allowed):
        return recorded
    values = trial.system_attrs.get("fixed_params")
    if recorded is not None or not isinstance(values, dict):
        return None
    if not all(_is_field(values.get(name)) for name in problem.encoding.parameters):
        return None
    return problem.encoding.row(values.__getitem__)


def _is_field(value: object) -> bool:
    return type(value) in (int, float) and 0 < value < MAX_FIELD  # type: ignore[operator]


def distributions(problem: SearchProblem) -> dict[str, IntDistribution]:
    """Return Optuna's distributions of the parameters, logarithmic because ratios count."""
    ends = problem.encoding.parameters
    return {name: IntDistribution(low, high, log=True) for name, (low, high) in ends.items()}


def recorded_measurement(trial: FrozenTrial) -> Measurement | None:
    """Return the measurement that a trial recorded; None if a damaged file gave it another form."""
    try:
        measurement: Measurement = conform(trial.user_attrs["measurement"], Measurement)
    except InputError:
        return None
    return measurement


def result_of(trial: FrozenTrial) -> Measurement | str | None:
    """Return a finished trial's measurement, or the engine's reason; None if it has neither."""
    if trial.state == TrialState.COMPLETE and "measurement" in trial.user_attrs:
        return recorded_measurement(trial)
    if trial.state == TrialState.FAIL and "reason" in trial.user_attrs:
        return str(trial.user_attrs["reason"])
    return None


class ShapeSampler(BaseSampler):
    """A sampler whose trials have the values of a shape of the space.

    Parameters
    ----------
    problem
        The search problem.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem

    def next_shape(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """Return the row of the shape to measure next."""
        raise NotImplementedError

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters; none for an enqueued trial, whose values are fixed."""
        return {} if "fixed_params" in trial.system_attrs else {**distributions(self._problem)}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of the shape to measure next."""
        if not search_space:
            return {}
        values = self._problem.encoding.values(self.next_shape(study, trial))
        return {name: values[name] for name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the least value, which only a study with other parameters needs."""
        return distributions(self._problem)[param_name].low


class CalibratedSampler(ShapeSampler):
    """A sampler that proposes the shape with the largest expected improvement."""

    def next_shape(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """Return the row with the largest acquisition value."""
        results: dict[int, Measurement | str] = {}
        pending = []
        for other in study.get_trials(deepcopy=False):
            row, result = row_of(self._problem, other), result_of(other)
            if row is not None and result is not None:
                results[row] = result
            elif row is not None and other.state in UNFINISHED:
                pending.append(row)
        pending = [row for row in dict.fromkeys(pending) if row not in results]
        return next_row(self._problem, results, pending)


class NearestShapeSampler(ShapeSampler):
    """A sampler of Optuna, each of whose proposals is moved to the nearest shape of the space.

    Where it would draw every parameter at random, a random shape is proposed instead: few points
    between the ends of the parameters are near a shape, and most nearest shapes lie at the edges.

    Parameters
    ----------
    sampler
        Sampler that knows only the ends of each parameter.
    """

    def __init__(self, problem: SearchProblem, sampler: BaseSampler, seed: int) -> None:
        super().__init__(problem)
        self._sampler, self._draw = sampler, np.random.default_rng(seed)

    def next_shape(self, study: optuna.Study, trial: FrozenTrial) -> int:
        """Return the row that is nearest to the proposal of Optuna's sampler."""
        space = self._sampler.infer_relative_search_space(study, trial)
        proposed = self._sampler.sample_relative(study, trial, space)
        if not proposed:
            return self._problem.encoding.random_row(self._draw)
        for name, distribution in distributions(self._problem).items():
            if name not in proposed:
                proposed[name] = self._sampler.sample_independent(study, trial, name, distribution)
        return self._problem.encoding.row(proposed.__getitem__)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tell Optuna's sampler that a trial begins."""
        self._sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell Optuna's sampler the values of a trial, so that it evaluates the constraints."""
        self._sampler.after_trial(study, trial, state, values)


def next_row(
    problem: SearchProblem, results: Mapping[int, Measurement | str], pending: Sequence[int] = ()
) -> int:
    """Choose the row with the largest acquisition value that is neither measured nor pending.

    Parameters
    ----------
    results
        By row, the measurement, or the reason why the engine cannot run the shape.
    pending
        Rows that other workers measure now.

    Returns
    -------
    A row. If no row is free, it is an allowed one, which the caller cannot claim.
    """
    free = problem.allowed.copy()
    free[[*results, *pending]] = False
    if not free.any():
        return int(np.argmax(problem.allowed))
    measured = {row: each for row, each in results.items() if isinstance(each, Measurement)}
    rows, table = np.array(list(measured), dtype=int), problem.table
    model = TimeModel.fit(
        table.take(rows), list(measured.values()), problem.workload, device=problem.device
    )
    if len(pending):
        model = model.with_predictions_as_data(table.take(np.array(pending, dtype=int)))
    forecast = model.forecast(table)
    within = [row for row, result in measured.items() if problem.within_limits(row, result)]
    speeds = np.log(forecast.rate)
    for row in within:
        speeds[row] = np.log(measured[row].output_tokens_per_second)
    assumed = [row for row in pending if problem.allowed[row]]
    points = np.array([*within, *assumed], dtype=int)
    values = _acquisition(problem, forecast, points, speeds)
    values[~free] = -np.inf
    return int(np.argmax(values))


def _acquisition(
    problem: SearchProblem, forecast: Forecast, points: np.ndarray, speeds: np.ndarray
) -> np.ndarray:
    """Compute the expected improvement by each row, (n,), with ties at none broken by nearness."""
    losses, mean, deviation = problem.losses, np.log(forecast.rate), forecast.deviation
    if problem.goal.fastest:
        best = np.array(speeds[points].max() if len(points) else mean[problem.allowed].min())
        gain = expected_improvement(mean, deviation, best)
        near = (mean - best) / deviation
    else:
        allowed = np.flatnonzero(problem.allowed)
        ends = np.union1d(allowed[front(losses[allowed], speeds[allowed])], points)
        ends = ends[front(losses[ends], speeds[ends])]
        reference = reference_point(losses[ends], speeds[ends])
        measured = losses[points], speeds[points]
        gain = expected_gain(losses, mean, deviation, measured=measured, reference=reference)
        near = (mean - _best_speed(measured, losses, reference[1])) / deviation
    gain = gain * _limits_probability(problem, forecast)
    # Among shapes without expected gain, those nearest to a gain come first.
    return np.asarray(np.where(gain > NEGLIGIBLE, gain, NEGLIGIBLE * ndtr(near)))


def _best_speed(
    measured: tuple[np.ndarray, np.ndarray], losses: np.ndarray, least: float
) -> np.ndarray:
    """Return the best measured ln speed at no more than each loss."""
    order = np.argsort(measured[0])
    best = np.maximum.accumulate(np.append(least, measured[1][order]))
    return np.asarray(best[np.searchsorted(measured[0][order], losses, side="right")])


def _limits_probability(problem: SearchProblem, forecast: Forecast) -> np.ndarray:
    """Compute the probability that each shape meets the service level, (n,)."""
    work, probability = problem.workload, np.ones(len(problem.losses))
    if work.max_ttft is not None:
        probability *= ndtr(np.log(work.max_ttft / forecast.ttft) / forecast.ttft_deviation)
    if work.max_tpot is not None:
        probability *= ndtr(np.log(work.max_tpot / forecast.tpot) / forecast.tpot_deviation)
    return probability


def opening_rows(problem: SearchProblem, count: int) -> list[int]:
    """Choose rows along the front of loss against the speed that the time model's prior predicts.

    A search may begin with them: they need no measurement.

    Parameters
    ----------
    count
        Largest number of rows.
    """
    table = problem.table
    model = TimeModel.fit(
        table.take(np.array([], dtype=int)), [], problem.workload, device=problem.device
    )
    allowed = np.flatnonzero(problem.allowed)
    speeds = model.forecast(table.take(allowed)).rate
    rows = allowed[front(problem.losses[allowed], speeds)]
    rows = rows[np.argsort(problem.losses[rows])]
    picked = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [int(row) for row in rows[np.unique(picked)]]


def broken_constraints(trial: FrozenTrial) -> Sequence[float]:
    """Return the constraint values that were recorded with a trial's measurement, for Optuna."""
    return list(trial.user_attrs.get("constraints", []))


def _gp(**options: Any) -> BaseSampler:
    if tuple(map(int, optuna.__version__.split(".")[:2])) < (4, 5):
        raise InputError(
            f"sampler gp needs `optuna >= 4.5`, but got {optuna.__version__}; upgrade optuna"
        )
    return optuna.samplers.GPSampler(deterministic_objective=False, **options)


def _random(seed: int, **options: Any) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


OPTUNA_SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": partial(optuna.samplers.TPESampler, multivariate=True),
    "nsga2": partial(optuna.samplers.NSGAIISampler, population_size=20),
    "gp": _gp,
    "random": _random,
}
SAMPLERS = (CALIBRATED, *OPTUNA_SAMPLERS)


def check_sampler(name: str) -> None:
    """Raise an InputError unless a sampler has that name."""
    if name not in SAMPLERS:
        raise InputError(f"`sampler` must be one of {', '.join(SAMPLERS)}, but got {name!r}")


def sampler_named(name: str, problem: SearchProblem, seed: int) -> BaseSampler:
    """Make a sampler by name.

    Raises
    ------
    InputError
        No sampler has that name, or the installed Optuna is too old for it.
    """
    check_sampler(name)
    if name == CALIBRATED:
        return CalibratedSampler(problem)
    options = {"constraints_func": broken_constraints} if problem.constrained else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental in Optuna 4, deprecated in Optuna 5
        return NearestShapeSampler(problem, OPTUNA_SAMPLERS[name](seed=seed, **options), seed)
