from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares, minimize, minimize_scalar
from scipy.stats import t as student

from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.laws.bases import Kaplan
from shapelaw.scaling.laws.factors import UShape
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.solver.multistart import (
    estimate_scale,
    finish,
    multi_start,
    new_run_scale,
    residual_scale,
    solve_at,
    warm_start,
)
from shapelaw.scaling.solver.objectives import KINDS, FitObjective
from shapelaw.scaling.solver.problem import Problem
from support.synthetic import RATIOS, TRUTH, synthetic_chinchilla, synthetic_runs, true_loss

DELTA = 0.01


def problem_on(law, runs, delta=DELTA, **objective) -> Problem:
    return problem_of(law_named(law), as_run_table(runs), FitObjective(**objective), delta)


def chinchilla_problem(**objective) -> Problem:
    runs = synthetic_runs(shapes=2, noise=0.01)
    importance = 0.5 + np.arange(len(runs)) % 3
    return problem_on("chinchilla", runs.assign(importance=importance), **objective)


# One problem.


def test_the_objective_is_the_sum_of_huber_losses_and_scipys_cost():
    problem = chinchilla_problem()
    result = problem.solve(problem.starts(4, 0)[0], steps=3)
    residuals = problem.residuals(result.x)
    plain = sum(
        r * r / 2 if abs(r) <= DELTA else DELTA * (abs(r) - DELTA / 2) for r in residuals.tolist()
    )
    assert problem.cost(result.x) == pytest.approx(plain, rel=1e-12)
    assert result.cost == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", ["log", "raw"])
@pytest.mark.parametrize("weights", [None, "importance"])
def test_scipy_and_batched_solver_agree_on_cost_and_optimum_for_every_objective(kind, on, weights):
    problem = chinchilla_problem(kind=kind, on=on, weights=weights)
    start = problem.starts(8, 0)[3]
    result = problem.solve(start, steps=5)
    assert result.cost == pytest.approx(problem.cost(result.x), rel=1e-9)
    best = multi_start(problem, problem.starts(16, 0))
    finished = finish(problem, best)
    assert finished.disagreement == ""
    assert problem.solve(best.theta).cost == pytest.approx(best.cost, rel=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", ["log", "raw"])
def test_the_jacobian_is_that_of_the_residuals(kind, on):
    problem = chinchilla_problem(kind=kind, on=on)
    at = problem.starts(4, 1)[2]
    moves = 1e-6 * np.eye(5)
    numeric = [(problem.residuals(at + m) - problem.residuals(at - m)) / 2e-6 for m in moves]
    np.testing.assert_allclose(problem.jacobian(at), np.stack(numeric, 1), rtol=1e-5, atol=1e-8)


def test_a_second_solver_finds_no_lower_optimum():
    problem = chinchilla_problem()
    best = multi_start(problem, problem.starts(8, 0))
    other = minimize(
        problem.cost,
        best.theta * 1.01,
        method="Nelder-Mead",
        options={"maxiter": 8000, "maxfev": 8000, "xatol": 1e-10, "fatol": 1e-16},
    )
    assert best.cost <= other.fun * (1 + 1e-9)
    assert other.fun == pytest.approx(best.cost, rel=1e-4)


@pytest.mark.parametrize("count", [1, 5, 16])
def test_starts_fill_their_ranges_and_depend_on_the_seed(count):
    problem = chinchilla_problem()
    starts = problem.starts(count, 3)
    assert starts.shape == (count, 5)
    low, high = np.array([parameter.starts for parameter in problem.parameters]).T
    assert (starts >= low).all()
    assert (starts <= high).all()
    np.testing.assert_array_equal(starts, problem.starts(count, 3))
    assert not np.array_equal(starts, problem.starts(count, 4))


def test_no_start_ends_below_the_reported_optimum():
    problem = chinchilla_problem()
    best = multi_start(problem, problem.starts(8, 0))
    lowest = min(problem.solve(start).cost for start in problem.starts(8, 0))
    assert best.cost <= lowest * (1 + 1e-9)


def test_held_parameters_are_set_in_every_start_and_stay():
    problem = problem_on("chinchilla", synthetic_chinchilla(0.01, sizes=(1e5, 4e5)))
    assert set(problem.held) == {"alpha"}
    assert (problem.starts(4, 0)[:, 2] == 0.35).all()
    best = multi_start(problem, problem.starts(16, 0))
    assert best.theta[2] == 0.35
    assert problem.solve(best.theta[problem.free]).x.shape == (4,)


def test_a_law_with_every_parameter_pinned_is_evaluated():
    law = Kaplan().pin("alpha", 0.1).pin("A", 10.0)
    problem = problem_on(law, synthetic_chinchilla(0.01), kind="squares")
    _, best = solve_at(problem, "auto", 8, 0)
    assert best.converged
    apart = np.log(10 / problem.columns[N] ** 0.1) - problem.log_loss
    assert best.cost == pytest.approx((apart**2).sum() / 2)
    assert best.basins == [{"objective": best.cost, "starts": 8}]


# Many starts.


@pytest.mark.parametrize(
    ("law", "kind"), [("chinchilla", "huber"), ("conditional", "huber"), ("width", "student")]
)
def test_staged_multi_start_ends_at_the_optimum_of_the_full_one(law, kind):
    problem = problem_on(law, synthetic_runs(shapes=3, noise=0.01), kind=kind)
    points = problem.starts(64, 0)
    staged, full = multi_start(problem, points), multi_start(problem, points, full=True)
    assert staged.cost == pytest.approx(full.cost, rel=1e-9)
    np.testing.assert_allclose(staged.theta, full.theta, rtol=1e-4, atol=1e-5)
    assert sum(basin["starts"] for basin in full.basins) <= 64
    assert staged.basins[0]["starts"] >= 0.5 * full.basins[0]["starts"]


def test_basins_are_listed_from_the_lowest_objective():
    problem = chinchilla_problem()
    best = multi_start(problem, problem.starts(32, 0), full=True)
    costs = [basin["objective"] for basin in best.basins]
    assert costs == sorted(costs)
    assert costs[0] == best.cost
    assert len(best.others) == len(costs) <= 5
    np.testing.assert_allclose(problem.data.cost(best.others), costs, rtol=1e-10)
    assert best.gradient_norm < 1e-8


def test_a_warm_start_at_another_delta_ends_where_a_cold_one_does():
    problem = chinchilla_problem()
    best = multi_start(problem, problem.starts(16, 0))
    moved = problem.but(objective=problem.objective.at(1e-3))
    warm, cold = warm_start(moved, best), multi_start(moved, problem.starts(16, 0))
    assert warm.cost == pytest.approx(cold.cost, rel=1e-9)
    assert [basin["objective"] for basin in warm.basins] == sorted(
        basin["objective"] for basin in warm.basins
    )


def test_a_disagreement_of_solvers_is_noted_and_the_lower_optimum_is_reported():
    problem = chinchilla_problem()
    best = multi_start(problem, problem.starts(8, 0))
    away = best.theta + 0.1 * np.eye(5)[0]
    stuck = replace(best, theta=away, cost=float(problem.data.cost(away[None])[0]))
    found = finish(problem, stuck)
    assert found.cost == pytest.approx(best.cost, rel=1e-9)
    assert found.disagreement.startswith("SciPy's least_squares ends ")
    assert "below the batched optimum; the lower optimum is reported" in found.disagreement
    assert found.basins[0]["objective"] == found.cost
    np.testing.assert_allclose(found.theta, best.theta, atol=1e-5)


# The scale of the residuals.


@pytest.mark.parametrize("fitted", [0, 5])
def test_the_residual_scale_is_robust_and_corrected_for_fitted_parameters(fitted):
    residuals = 0.02 * np.random.default_rng(0).standard_normal(4000)
    residuals[:200] *= 50
    expected = 0.02 * np.sqrt(4000 / (4000 - fitted))
    assert residual_scale(residuals, fitted) == pytest.approx(expected, rel=0.1)
    assert residual_scale(3 * residuals + 7, fitted) == pytest.approx(
        3 * residual_scale(residuals, fitted)
    )


def test_the_scale_of_student_is_the_maximum_likelihood_estimate():
    problem = chinchilla_problem(kind="student")
    theta = multi_start(problem, problem.starts(16, 0)).theta
    residuals = problem.log_residuals(theta)

    def negative_log_likelihood(log_scale: float) -> float:
        return -student.logpdf(residuals, 4.0, scale=np.exp(log_scale)).sum()

    best = minimize_scalar(
        negative_log_likelihood, bounds=(-12, 0), method="bounded", options={"xatol": 1e-10}
    )
    assert estimate_scale(problem, theta) == pytest.approx(np.exp(best.x), rel=1e-5)


def test_parameters_and_scale_of_student_maximise_the_joint_likelihood():
    problem, best = solve_at(chinchilla_problem(kind="student"), "auto", 32, 0)

    def negative_log_likelihood(point: np.ndarray) -> float:
        residuals = problem.log_residuals(point[:-1])
        return -student.logpdf(residuals, 4.0, scale=np.exp(point[-1])).sum()

    ours = np.append(best.theta, np.log(problem.objective.delta))
    found = minimize(
        negative_log_likelihood, ours + 1e-3, method="L-BFGS-B", options={"ftol": 1e-15}
    )
    assert negative_log_likelihood(ours) <= found.fun + 1e-7
    moves = 1e-4 * np.eye(len(ours))
    slopes = [
        (negative_log_likelihood(ours + m) - negative_log_likelihood(ours - m)) / 2e-4
        for m in moves
    ]
    np.testing.assert_allclose(slopes, 0, atol=2e-2)


# Difficult simulated tables, compared with an independent multi-start of SciPy.


def chinchilla_model(theta, table, at):
    base = np.exp(theta[0])
    for scale, power, name in ((1, 2, N), (3, 4, D)):
        base = base + np.exp(theta[scale]) * (table[name] / at[name]) ** -theta[power]
    return np.log(base)


def conditional_model(theta, table, at):
    """Evaluate a law of ten parameters: Chinchilla, two U-shapes and GQA."""
    logs = chinchilla_model(theta[:5], table, at)
    for place, name in ((5, "hidden_over_sqrt_n"), (7, "mlp_to_attention")):
        u = np.log(table[name]) - theta[place + 1]
        logs = logs + np.log(1 + theta[place] * (u + np.exp(-u) - 1))
    return logs + np.log(1 + theta[9] * np.log(table["gqa"]))


def bowl_model(theta, table, at):
    """Evaluate a power of N times a U-shape."""
    u = np.log(table["gqa"]) - theta[3]
    logs = theta[0] - theta[1] * np.log(table[N] / at[N])
    return logs + np.log(1 + theta[2] * (u + np.exp(-u) - 1))


def scipy_multi_start(model, table, problem, starts, seed=0) -> np.ndarray:
    """Minimise from random starts with SciPy derivatives and losses, and return the costs."""
    table = {str(name): table[name].to_numpy(dtype=float) for name in table if name != "run_id"}
    at = {name: np.exp(np.log(table[name]).mean()) for name in (N, D)}
    observed, objective = np.log(table["loss"]), problem.objective
    lower, upper = np.array([p.bounds for p in problem.parameters]).T
    low, high = np.array([p.starts for p in problem.parameters]).T

    def students(z):  # of squares over δ²; SciPy halves the sum and multiplies by δ²
        nu = objective.degrees
        one = (nu + 1) / (nu + z)
        return np.stack([(nu + 1) * np.log1p(z / nu), one, -one / (nu + z)])

    costs = []
    generator = np.random.default_rng(seed)
    for _ in range(starts):
        found = least_squares(
            lambda theta: model(theta, table, at) - observed,
            low + (high - low) * generator.uniform(size=len(low)),
            bounds=(lower, upper),
            loss=students if objective.kind == "student" else objective.kind,
            f_scale=objective.delta,
            x_scale="jac",
            ftol=1e-14,
            xtol=1e-12,
            gtol=1e-14,
            max_nfev=300,
        )
        costs.append(found.cost)
    return np.array(costs)


def check_no_worse(problem, best, costs) -> None:
    """Check that the solution is no worse than the best of the costs, which comes near it."""
    assert best.cost <= costs.min() * (1 + 1e-9) + 1e-15
    assert best.cost == pytest.approx(float(problem.data.cost(best.theta[None])[0]), rel=1e-12)
    assert costs.min() <= best.cost * 1.05


def two_wells(share: float, seed: int = 0) -> pd.DataFrame:
    """Simulate runs of which a share has the optimal ratio 2 and the rest 20."""
    generator = np.random.default_rng(seed)
    rows = 80
    frame = pd.DataFrame({N: np.exp(generator.uniform(np.log(1e5), np.log(1e7), rows)), D: 1e9})
    frame["gqa"] = np.exp(generator.uniform(0, np.log(64), rows))
    best = np.where(generator.random(rows) < share, 2.0, 20.0)
    u = np.log(frame["gqa"] / best)
    loss = 3 * (frame[N] / 1e6) ** -0.05 * (1 + 0.05 * (u + np.exp(-u) - 1))
    return frame.assign(loss=loss * np.exp(0.003 * generator.standard_normal(rows)))


# The smooth objective misses the lower basin in all cases but the first.
@pytest.mark.parametrize(("share", "seed"), [(0.45, 0), (0.45, 1), (0.5, 1), (0.55, 0), (0.6, 0)])
def test_the_lower_of_two_similar_basins_is_found(share, seed):
    table = two_wells(share, seed)
    law = Kaplan() * UShape("gqa")
    problem, best = solve_at(problem_on(law, table, 5e-3, kind="student"), 5e-3, 256, 0)
    costs = scipy_multi_start(bowl_model, table, problem, 12)
    check_no_worse(problem, best, costs)
    # The second basin is real: a solver that starts in the basin stays there.
    apart = [abs(other[3] - best.theta[3]) for other in best.others]
    other = int(np.argmax(np.array(apart) > 1.0))
    assert apart[other] > 1.0
    assert best.basins[other]["objective"] < 2 * best.cost
    stays = problem.solve(best.others[other][problem.free]).cost
    assert stays == pytest.approx(best.basins[other]["objective"], rel=1e-6)


@pytest.mark.parametrize(("kind", "delta"), [("huber", 1e-3), ("huber", 0.02), ("student", 0.01)])
def test_a_table_with_heavy_tails_is_solved_to_the_optimum(kind, delta):
    table = synthetic_chinchilla(0.0, shapes=5)
    noise = np.random.default_rng(2).standard_t(2, len(table))
    table = table.assign(loss=table["loss"] * np.exp(0.02 * noise))
    problem, best = solve_at(problem_on("chinchilla", table, delta, kind=kind), delta, 256, 0)
    assert np.abs(problem.log_residuals(best.theta)).max() > 10 * delta / (1 + 4 * (delta > 0.005))
    check_no_worse(problem, best, scipy_multi_start(chinchilla_model, table, problem, 8))


def sixteen_rows(seed: int, noise: float) -> pd.DataFrame:
    """Simulate random runs, as few as in a small search."""
    generator = np.random.default_rng(seed)
    ranges = {N: (1e5, 1.6e6), D: (1e6, 6.4e7)} | RATIOS
    frame = pd.DataFrame(
        {
            name: np.exp(generator.uniform(np.log(low), np.log(high), 16))
            for name, (low, high) in ranges.items()
        }
    )
    return frame.assign(
        loss=true_loss(frame, TRUTH) * np.exp(noise * generator.standard_normal(16))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "noise"), [(4, 0.003), (22, 0.05), (33, 0.05)])
def test_ten_parameters_on_sixteen_rows_are_solved_to_the_optimum(seed, noise):
    table = sixteen_rows(seed, noise)
    problem, best = solve_at(problem_on("conditional-steady", table, 1e-3), 1e-3, 1024, 0)
    assert problem.held == {}
    check_no_worse(problem, best, scipy_multi_start(conditional_model, table, problem, 6))


@pytest.mark.parametrize("degrees", [3.0, 200.0])
def test_the_scale_of_a_new_run_covers_heavy_tails(degrees):
    """Check that 95 % of residuals lie within 1.96 scales for any tails."""
    residuals = student.rvs(degrees, size=4000, random_state=0)
    scale = new_run_scale(residuals, 5)
    assert (np.abs(residuals) < 1.96 * scale).mean() == pytest.approx(0.95, abs=0.012)


def test_a_single_outlier_or_a_small_table_leaves_the_scale_of_a_new_run_robust():
    residuals = np.random.default_rng(1).normal(0, 0.01, 100)
    clean = new_run_scale(residuals, 5)
    assert new_run_scale(np.append(residuals, 3.0), 5) == pytest.approx(clean, rel=0.2)
    few = residuals[:20]
    assert new_run_scale(few, 5) == residual_scale(few, 5)
