import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import f as fisher
from scipy.stats import t as student

from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.laws.bases import Chinchilla, Kaplan
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.solver.multistart import solve_at
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.uncertainty.profiles import profile
from shapelaw.scaling.uncertainty.robust_covariance import bread, numeric_gradient, sandwich
from support.synthetic import synthetic_chinchilla, synthetic_runs

ROWS = 20


def solved(law, runs, kind="huber", delta: float | str = "auto"):
    problem = problem_of(law_named(law), as_run_table(runs), FitObjective(kind=kind), delta)
    return solve_at(problem, delta, 64, 0)


def parameter(problem, name):
    """Return the quantity that is one internal parameter."""
    place = problem.law.index[name]
    return lambda theta: theta[:, place]


@pytest.fixture(scope="module")
def straight():
    """Fit simulated runs with normal noise around a straight line in ln N by least squares."""
    generator = np.random.default_rng(0)
    size = np.exp(generator.uniform(np.log(1e5), np.log(1e8), ROWS))
    loss = 3 * (size / 1e6) ** -0.1 * np.exp(0.05 * generator.standard_normal(ROWS))
    return solved("kaplan", pd.DataFrame({N: size, "loss": loss}), "squares", 0.01)


@pytest.fixture(scope="module")
def shaped():
    runs = synthetic_runs(shapes=4, noise=0.01, tokens=(1e6, 3e7, 1e9))
    return solved(Chinchilla() * UShape("hidden_over_sqrt_n"), runs)


@pytest.mark.parametrize("level", [68.0, 95.0])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, -2.0)])
def test_the_profile_interval_of_a_straight_line_equals_students_interval(straight, level, weights):
    problem, best = straight
    logs = np.log(problem.columns[N])
    x = np.stack([np.ones(ROWS), logs.mean() - logs], axis=1)
    estimate, *_ = np.linalg.lstsq(x, problem.log_loss, rcond=None)
    inverse = np.linalg.inv(x.T @ x)
    left_out = (problem.log_loss - x @ estimate) / (1 - np.einsum("na,ab,nb->n", x, inverse, x))
    variance = inverse @ (x.T * left_out**2) @ x @ inverse  # HC3
    error = np.sqrt(np.array(weights) @ variance @ weights)
    half = student.ppf(0.5 + level / 200, ROWS - 2) * error
    interval = profile(problem, best, lambda theta: theta @ np.array(weights), level=level)
    assert interval.value == pytest.approx(estimate @ weights, rel=1e-6)
    assert interval.high - interval.value == pytest.approx(half, rel=2e-3)
    assert interval.value - interval.low == pytest.approx(half, rel=2e-3)
    assert (interval.method, interval.level) == ("profile", level)


def test_the_interval_of_a_monotone_function_equals_the_function_of_the_interval(straight):
    """Profiles are invariant under a change of parameters, unlike delta-method intervals."""
    problem, best = straight
    plain = profile(problem, best, lambda theta: theta[:, 1])
    inverse = profile(problem, best, lambda theta: 1 / theta[:, 1])
    assert (1 / inverse.high, 1 / inverse.low) == pytest.approx((plain.low, plain.high), rel=1e-3)
    assert inverse.high - inverse.value > 1.1 * (inverse.value - inverse.low)


def lowest_at(problem, best, name, value) -> float:
    """Minimise the objective with one parameter fixed, by SciPy alone."""
    place = problem.law.index[name]
    others = np.arange(len(best.theta)) != place

    def cost(point):
        theta = best.theta.copy()
        theta[place], theta[others] = value, point
        return np.nan_to_num(problem.cost(theta) / best.cost, nan=1e9)

    interval = best.theta[others]
    for _ in range(3):  # repeated, since a Powell search may end early
        interval = minimize(
            cost, interval, method="Powell", options={"xtol": 1e-6, "ftol": 1e-12, "maxfev": 4000}
        ).x
    return float(cost(interval) * best.cost)


@pytest.mark.parametrize("name", ["E", "beta", "hidden_over_sqrt_n_optimum"])
def test_the_minimised_objective_at_the_ends_equals_the_threshold(shaped, name):
    problem, best = shaped
    quantity = parameter(problem, name)
    interval = profile(problem, best, quantity)
    assert interval.low < interval.value < interval.high < np.inf
    free = int(problem.free.sum())
    limit = fisher.ppf(0.95, 1, len(problem.log_loss) - free)
    gradient = numeric_gradient(quantity, best.theta)
    variance = gradient @ sandwich(problem, best.theta) @ gradient
    rise = limit * variance / (gradient @ bread(problem, best.theta) @ gradient) / 2
    if name == "E":  # without E the objective stays below the threshold
        assert lowest_at(problem, best, name, -20.0) < best.cost + rise
        assert interval.low == -np.inf
    for end in (interval.low, interval.high)[name == "E" :]:
        lowest = lowest_at(problem, best, name, end)
        assert lowest - best.cost == pytest.approx(rise, rel=0.02)
        nearer = interval.value + 0.9 * (end - interval.value)
        assert lowest_at(problem, best, name, nearer) < best.cost + rise


def test_the_interval_of_a_predicted_loss_contains_the_truth_and_is_narrower_near_the_data(shaped):
    problem, best = shaped

    def predicted(size, tokens):
        columns = {N: np.array([size]), D: np.array([tokens])}
        columns["hidden_over_sqrt_n"] = np.array([0.15])
        program = problem.law.program(columns, problem.reference)
        return lambda theta: program.log_loss(np.atleast_2d(theta))[:, 0]

    near = profile(problem, best, predicted(4e5, 3e7))
    far = profile(problem, best, predicted(4e7, 3e10))
    assert near.high - near.low < 0.2 * (far.high - far.low)
    base = 1.8 + 40 / 4e7**0.34 + 300 / 3e10**0.37
    # All ratios but one are random: their mean effect is part of every loss.
    assert far.low - 0.05 < np.log(base) < far.high + 0.05


def test_the_interval_of_a_difference_of_two_shapes_contains_the_truth(shaped):
    problem, best = shaped
    size = {N: np.full(2, 4e5), D: np.full(2, 3e7)}
    columns = size | {"hidden_over_sqrt_n": np.array([0.1, 0.3])}
    program = problem.law.program(columns, problem.reference)

    def difference(theta):
        return np.diff(program.log_loss(theta), axis=1)[:, 0]

    interval = profile(problem, best, difference)
    u = np.log(np.array([0.1, 0.3]) / 0.15)
    truth = np.diff(np.log(1 + 0.1 * (u + np.exp(-u) - 1)))[0]
    assert interval.low < truth < interval.high
    alone = profile(problem, best, lambda theta: program.log_loss(theta)[:, 0])
    assert interval.high - interval.low < 3 * (alone.high - alone.low)


@pytest.mark.parametrize("reach", [1.5, 20.0])
def test_an_end_limited_only_by_a_bound_lies_at_the_bound(reach):
    """Simulate a loss that only falls with the ratio, so that its optimum has no upper end."""
    generator = np.random.default_rng(0)
    ratio = np.exp(generator.uniform(0, np.log(2), 60))
    size = np.exp(generator.uniform(np.log(1e5), np.log(1e7), 60))
    u = np.log(ratio / 8.0)
    loss = 3 * (size / 1e6) ** -0.1 * (1 + 0.1 * (u + np.exp(-u) - 1))
    runs = pd.DataFrame({N: size, "gqa": ratio, "loss": loss})
    runs["loss"] *= np.exp(0.01 * generator.standard_normal(60))
    problem, best = solved(Kaplan() * UShape("gqa", reach=reach), runs)
    interval = profile(problem, best, parameter(problem, "gqa_optimum"))
    assert interval.high == pytest.approx(problem.bounds.upper[3], rel=1e-3)
    assert 0 < interval.low < interval.value


def test_a_quantity_of_held_parameters_has_an_interval_without_width():
    runs = synthetic_chinchilla(0.01, sizes=(1e5, 4e5))
    problem, best = solved("chinchilla", runs)
    interval = profile(problem, best, parameter(problem, "alpha"))
    assert interval.low == interval.value == interval.high == 0.35
    scale = profile(problem, best, parameter(problem, "A"))
    assert scale.low < scale.value < scale.high
