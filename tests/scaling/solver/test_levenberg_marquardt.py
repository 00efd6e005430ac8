import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapelaw.scaling.laws.bases import Chinchilla, Kaplan
from shapelaw.scaling.laws.law import Law, reference_of
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.laws.terms import LINEAR, Group, Program, Term
from shapelaw.scaling.runs.columns import columns_of
from shapelaw.scaling.solver import levenberg_marquardt as batched
from shapelaw.scaling.solver.levenberg_marquardt import Bounds, Data, damped_step, minimise
from shapelaw.scaling.solver.objectives import KINDS, FitObjective
from support.synthetic import synthetic_chinchilla, synthetic_runs

DELTA = 0.02


def data_of(law: Law, runs, **settings) -> tuple[Data, Bounds, np.ndarray]:
    """Return the data of a law on a synthetic table, its bounds, and starts."""
    columns = columns_of(runs, law.columns)
    loss = runs["loss"].to_numpy()
    parameters = law.parameters(columns, loss)
    given = {"observed": np.log(loss), "objective": FitObjective(delta=DELTA)} | settings
    data = Data(program=law.program(columns, reference_of(columns)), **given)
    lower, upper = np.array([p.bounds for p in parameters]).T
    low, high = np.array([p.starts for p in parameters]).T
    points = np.random.default_rng(0).uniform(size=(12, len(low)))
    bounds = Bounds(lower=lower, upper=upper, free=np.ones(len(low), dtype=bool))
    return data, bounds, low + (high - low) * points


@pytest.fixture
def chinchilla():
    return data_of(Law(Chinchilla()), synthetic_chinchilla(0.01, shapes=3))


# The step.


def matrices(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw symmetric matrices with normal entries, mostly indefinite, and right sides."""
    generator = np.random.default_rng(seed)
    square = generator.standard_normal((count, size, size))
    return (square + square.transpose(0, 2, 1)) / 2, generator.standard_normal((count, size))


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 9), scale=st.floats(-4.0, 4.0))
def test_a_step_at_a_positive_hessian_is_that_of_a_linear_solver(seed, size, scale):
    root, gradient = matrices(4, size, seed)
    scales = np.exp(scale * np.linspace(-1, 1, size))
    hessian = (np.matmul(root, root) + np.eye(size)) * scales[:, None] * scales
    gradient = gradient * scales
    none = np.zeros((4, size), dtype=bool)
    step, promised = damped_step(hessian, gradient, np.full(4, 1e-14), none)
    expected = np.linalg.solve(hessian, -gradient[..., None])[..., 0]
    np.testing.assert_allclose(step, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())
    decrease = -0.5 * np.einsum("sp,sp->s", gradient, expected)
    np.testing.assert_allclose(promised, decrease, rtol=1e-8)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 9), damping=st.floats(1e-14, 1e6))
def test_a_step_is_a_descent_direction_for_any_hessian(seed, size, damping):
    hessian, gradient = matrices(8, size, seed)
    none = np.zeros((8, size), dtype=bool)
    with np.errstate(all="ignore"):  # pivots near zero; the solver rejects such a step
        step, promised = damped_step(hessian, gradient, np.full(8, damping), none)
    usable = np.isfinite(step).all(axis=1) & np.isfinite(promised)
    assert (promised[usable] > 0).all()
    assert (np.einsum("sp,sp->s", gradient, step)[usable] < 0).all()


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 9))
def test_frozen_parameters_stay_and_the_others_step_as_without_them(seed, size):
    root, gradient = matrices(4, size, seed)
    hessian = np.matmul(root, root) + np.eye(size)
    frozen = np.random.default_rng(seed).random((4, size)) < 0.5
    step, _ = damped_step(hessian, gradient, np.full(4, 1e-14), frozen)
    assert (step[frozen] == 0).all()
    for place in range(4):
        free = ~frozen[place]
        expected = np.linalg.solve(hessian[place][np.ix_(free, free)], -gradient[place][free])
        np.testing.assert_allclose(step[place][free], expected, rtol=1e-6, atol=1e-8)


def test_large_damping_gives_a_short_step_against_each_slope():
    hessian, gradient = matrices(4, 3, 1)
    hessian = np.matmul(hessian, hessian) + np.eye(3)
    step, _ = damped_step(hessian, gradient, np.full(4, 1e8), np.zeros((4, 3), dtype=bool))
    expected = -gradient / (1e8 * np.einsum("sjj->sj", hessian))
    np.testing.assert_allclose(step, expected, rtol=1e-6)


# The minimiser.


def test_every_start_ends_at_the_one_optimum(chinchilla):
    data, bounds, starts = chinchilla
    minima = minimise(data, starts, bounds)
    assert minima.converged.all()
    assert minima.cost == pytest.approx(np.full(len(starts), minima.cost.min()), rel=1e-10)
    assert (minima.gradient_norm < 1e-7).all()
    np.testing.assert_allclose(minima.theta, np.tile(minima.theta[0], (len(starts), 1)), atol=1e-4)
    np.testing.assert_allclose(data.cost(minima.theta), minima.cost, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", ["log", "raw"])
def test_no_small_move_from_an_optimum_lowers_the_objective(kind, on):
    data, bounds, starts = data_of(
        Law(Chinchilla()),
        synthetic_chinchilla(0.01, shapes=3),
        objective=FitObjective(kind=kind, on=on, delta=DELTA),
    )
    minima = minimise(data, starts, bounds)
    assert minima.converged.any()
    best = minima.theta[np.argmin(minima.cost)]
    moves = 1e-3 * np.random.default_rng(1).standard_normal((200, len(best)))
    assert (data.cost(bounds.clip(best + moves)) >= minima.cost.min()).all()


def test_a_parameter_whose_optimum_is_out_of_bounds_ends_at_its_bound(chinchilla):
    data, bounds, starts = chinchilla
    best = minimise(data, starts, bounds).theta[0]
    upper = bounds.upper.copy()
    upper[2] = best[2] - 0.05  # alpha may not reach its optimum
    tight = Bounds(lower=bounds.lower, upper=upper, free=bounds.free)
    minima = minimise(data, starts, tight)
    assert (minima.theta >= tight.lower).all()
    assert (minima.theta <= tight.upper).all()
    assert minima.converged.all()
    np.testing.assert_allclose(minima.theta[:, 2], upper[2])
    held = Bounds(lower=bounds.lower, upper=bounds.upper, free=np.arange(5) != 2)
    fixed = starts.copy()
    fixed[:, 2] = upper[2]
    np.testing.assert_allclose(minimise(data, fixed, held).cost, minima.cost, rtol=1e-9)


def test_held_parameters_keep_the_values_of_their_starts(chinchilla):
    data, bounds, starts = chinchilla
    free = np.array([True, True, False, True, False])
    starts[:, 4] = 9.0  # held also outside its bounds
    minima = minimise(data, starts, Bounds(lower=bounds.lower, upper=bounds.upper, free=free))
    np.testing.assert_array_equal(minima.theta[:, ~free], starts[:, ~free])
    assert minima.converged.all()


def test_minimum_without_free_parameters_is_the_start(chinchilla):
    data, bounds, starts = chinchilla
    held = Bounds(lower=bounds.lower, upper=bounds.upper, free=np.zeros(5, dtype=bool))
    minima = minimise(data, starts, held)
    np.testing.assert_array_equal(minima.theta, starts)
    np.testing.assert_allclose(minima.cost, data.cost(starts))


def test_a_start_that_did_not_converge_is_improved_and_marked(chinchilla):
    data, bounds, starts = chinchilla
    minima = minimise(data, starts, bounds, steps=4, reweighted=3)
    assert not minima.converged.any()
    assert np.isfinite(minima.theta).all()
    assert (minima.cost < data.cost(starts)).all()
    np.testing.assert_allclose(data.cost(minima.theta), minima.cost, rtol=1e-12)


def test_no_start_ends_with_a_higher_objective(chinchilla):
    data, bounds, starts = chinchilla
    for steps in (1, 2, 5, 20):
        assert (minimise(data, starts, bounds, steps=steps).cost <= data.cost(starts)).all()


def test_a_batch_of_different_tables_ends_as_each_table_alone(chinchilla):
    data, bounds, starts = chinchilla
    generator = np.random.default_rng(2)
    rows = data.program.rows
    observed = data.observed + 0.02 * generator.standard_normal((4, rows))
    weights = generator.integers(0, 3, (4, rows)).astype(float)
    both = Data(program=data.program, observed=observed, objective=data.objective, weights=weights)
    together = minimise(both, starts[:4], bounds)
    for place in range(4):
        alone = Data(
            program=data.program,
            observed=observed[place],
            objective=data.objective,
            weights=weights[place],
        )
        minima = minimise(alone, starts[place : place + 1], bounds)
        assert together.cost[place] == pytest.approx(minima.cost[0], rel=1e-11)
        np.testing.assert_allclose(together.theta[place], minima.theta[0], atol=1e-5)


def test_integer_weights_equal_repeated_rows():
    runs = synthetic_chinchilla(0.01, shapes=2)
    counts = np.random.default_rng(3).integers(0, 3, len(runs)).astype(float)
    data, _bounds, starts = data_of(Law(Chinchilla()), runs, weights=counts)
    program = data.program.take(np.repeat(np.arange(len(runs)), counts.astype(int)))
    repeated = Data(
        program=program,
        observed=np.repeat(data.observed, counts.astype(int)),
        objective=data.objective,
    )
    np.testing.assert_allclose(data.cost(starts), repeated.cost(starts), rtol=1e-12)
    for newton in (True, False):
        one, other = (d.moments(starts, newton=newton) for d in (data, repeated))
        for part, same in zip(one, other, strict=True):
            np.testing.assert_allclose(part, same, rtol=1e-9, atol=1e-12)


def test_the_chunk_size_does_not_change_the_minima(chinchilla, monkeypatch):
    data, bounds, starts = chinchilla
    whole = minimise(data, starts, bounds)
    monkeypatch.setattr(batched, "CHUNK_SIZE", 2 * data.program.rows)
    pieces = minimise(data, starts, bounds)
    np.testing.assert_allclose(pieces.cost, whole.cost, rtol=1e-12)
    np.testing.assert_allclose(pieces.theta, whole.theta, rtol=1e-7)


def test_a_table_without_noise_converges_to_zero_objective():
    data, bounds, starts = data_of(law_named("conditional"), synthetic_runs(noise=0.0, shapes=4))
    minima = minimise(data, starts, bounds)
    assert minima.converged[np.argmin(minima.cost)]
    assert minima.cost.min() < 1e-25


def test_a_start_with_nan_loss_neither_warns_nor_affects_the_others():
    line = Term(kind=LINEAR, index=(0,), features=np.ones((1, 3)), constant=np.zeros(3))
    data = Data(
        program=Program(groups=(Group(offset=0.0, terms=(line,)),), parameters=1, rows=3),
        observed=np.log([2.0, 3.0, 4.0]),
        objective=FitObjective(kind="squares"),
    )
    bounds = Bounds(lower=np.array([-9.0]), upper=np.array([9.0]), free=np.array([True]))
    minima = minimise(data, np.array([[-1.0], [1.0]]), bounds)
    assert minima.converged.tolist() == [False, True]
    assert minima.cost[0] == np.inf
    assert minima.theta[1, 0] == pytest.approx(24 ** (1 / 3))  # the mean of the logarithms


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_straight_line_fit_equals_least_squares(seed):
    generator = np.random.default_rng(seed)
    runs = synthetic_chinchilla(0.3, shapes=2, seed=seed)
    runs["loss"] = (
        3
        * (runs["n_non_embedding"] / 1e6) ** -0.1
        * np.exp(0.3 * generator.standard_normal(len(runs)))
    )
    data, bounds, starts = data_of(Law(Kaplan()), runs, objective=FitObjective(kind="squares"))
    minima = minimise(data, starts, bounds)
    features = np.stack([term.features for term in data.program.groups[0].terms])[0]
    expected, *_ = np.linalg.lstsq(features.T, data.observed, rcond=None)
    if 0 < expected[1] < 3:
        np.testing.assert_allclose(minima.theta, np.tile(expected, (12, 1)), atol=1e-6)
