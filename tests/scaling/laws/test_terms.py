import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shapelaw.scaling.laws import terms
from shapelaw.scaling.laws.terms import (
    ABSENT,
    BOWL,
    EXPONENTIAL,
    JOINED_POWERS,
    LINEAR,
    Group,
    Program,
    Term,
    bowl,
    joined_powers,
)

ROWS = 5
THETA = np.array([0.3, -0.4, 0.2, 0.1])
Z = np.random.default_rng(0).uniform(0.1, 1.0, (3, ROWS))
POWER = Term(kind=EXPONENTIAL, index=(0, 1), features=Z[:2], constant=0.1 * Z[2])
LINE = Term(kind=LINEAR, index=(2, 3), features=Z[:2], constant=1 + Z[2])
FULL = Term(kind=BOWL, index=(0, 1, 2, 3), features=Z, constant=np.zeros(ROWS))
STEADY = Term(kind=BOWL, index=(2, 1, ABSENT, ABSENT), features=Z, constant=np.zeros(ROWS))
FIXED = Term(kind=EXPONENTIAL, index=(), features=np.empty((0, ROWS)), constant=Z[0])
JOINED = Term(
    kind=JOINED_POWERS,
    index=(0, 1, 2, 3, 1),
    features=np.vstack([Z, Z[:1]]),
    constant=np.zeros(ROWS),
)
REPEATED = Term(kind=EXPONENTIAL, index=(0, 0), features=Z[:2], constant=np.zeros(ROWS))


def program(*groups: tuple[float, tuple[Term, ...]]) -> Program:
    return Program(
        groups=tuple(Group(offset=offset, terms=terms) for offset, terms in groups),
        parameters=len(THETA),
        rows=ROWS,
    )


PROGRAMS = {
    "one sum": program((0.0, (POWER, FIXED, LINE))),
    "sum and factor": program((0.0, (POWER, FIXED)), (1.0, (FULL,))),
    "three groups": program((0.0, (POWER, LINE)), (1.0, (STEADY,)), (0.0, (LINE,))),
    "one parameter in every group": program((0.0, (POWER,)), (1.0, (FULL,)), (1.0, (REPEATED,))),
    "joined powers": program((0.0, (FIXED, JOINED))),
    "joined powers and factor": program((0.0, (JOINED, POWER)), (1.0, (FULL,))),
    "nothing fitted": program((0.0, (FIXED,))),
}
number = st.floats(-2.0, 2.0)


def differences(function, theta, step=1e-5):
    moves = step * np.eye(len(theta))
    return np.stack([(function(theta + m) - function(theta - m)) / (2 * step) for m in moves], -1)


def test_every_kind_of_term_evaluates_its_formula():
    np.testing.assert_allclose(
        POWER.value(THETA[None])[0], np.exp(0.1 * Z[2] + Z[0] * 0.3 - 0.4 * Z[1])
    )
    np.testing.assert_allclose(LINE.value(THETA[None])[0], 1 + Z[2] + 0.2 * Z[0] + 0.1 * Z[1])
    u = Z[0] + 0.4 - 0.2 * Z[1]
    np.testing.assert_allclose(
        FULL.value(THETA[None])[0], 0.3 * np.exp(0.1 * Z[2]) * (u + np.exp(-u) - 1)
    )
    u = Z[0] + 0.4
    np.testing.assert_allclose(STEADY.value(THETA[None])[0], 0.2 * (u + np.exp(-u) - 1))
    np.testing.assert_allclose(FIXED.value(THETA[None])[0], np.exp(Z[0]))
    kappa = np.exp(-0.4)
    a, b = np.exp(0.3 * Z[0] - 0.4 * Z[1]), np.exp(0.2 * Z[2] + 0.1 * Z[0])
    np.testing.assert_allclose(
        JOINED.value(THETA[None])[0], (a ** (1 / kappa) + b ** (1 / kappa)) ** kappa
    )


@given(first=number, other=number, kappa=st.floats(0.05, 3.0))
def test_joined_powers_lie_between_the_larger_and_its_double_exponent(first, other, kappa):
    """κ = 1 adds, and any κ lies between the maximum and 2^κ times the maximum."""
    joined, *shares = joined_powers(np.array(first), np.array(other), np.array(kappa))
    assert max(first, other) - 1e-9 <= joined <= max(first, other) + kappa * np.log(2) + 1e-9
    assert sum(shares) == pytest.approx(1.0)
    added = joined_powers(np.array(first), np.array(other), np.array(1.0))[0]
    assert added == pytest.approx(np.logaddexp(first, other), abs=1e-12)


@given(x=number, s=number, r=number, x0=number, gamma=number, eta=number)
def test_a_bowl_has_its_minimum_at_its_optimum_and_correct_derivatives(x, s, r, x0, gamma, eta):
    depth, slope, curve = bowl(x, s, r, x0, gamma, eta)
    assert depth >= 0
    assert curve > 0
    best = x0 + gamma * s
    assert bowl(best, s, r, x0, gamma, eta)[:2] == pytest.approx((0.0, 0.0), abs=1e-12)
    above, below = (bowl(x + step, s, r, x0, gamma, eta) for step in (1e-5, -1e-5))
    assert slope == pytest.approx((above[0] - below[0]) / 2e-5, rel=1e-4, abs=1e-5)
    assert curve == pytest.approx((above[1] - below[1]) / 2e-5, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_moments_equal_sums_over_rows_for_any_objective(name):
    """Compare with Σ c' g and Σ c'' g gᵀ + c' H for a cost c(ln L)."""
    law = PROGRAMS[name]
    generator = np.random.default_rng(1)
    thetas = THETA + 0.1 * generator.standard_normal((3, len(THETA)))
    slope, curve = generator.standard_normal((2, 3, ROWS))

    def rows(logs):
        return slope * logs, slope, curve

    cost, gradient, gauss = law.moments(thetas, rows, newton=False)
    _, same, hessian = law.moments(thetas, rows, newton=True)
    np.testing.assert_array_equal(gradient, same)
    for place, theta in enumerate(thetas):
        logs = law.log_loss(theta[None])[0]
        by = differences(lambda moved: law.log_loss(moved[None])[0], theta)
        twice = differences(lambda moved: law.gradient(moved[None])[0].T, theta)
        assert cost[place] == pytest.approx(slope[place] @ logs, rel=1e-12)
        np.testing.assert_allclose(gradient[place], slope[place] @ by, atol=1e-8)
        expected = np.einsum("n,na,nb->ab", curve[place], by, by)
        np.testing.assert_allclose(gauss[place], expected, atol=1e-7)
        expected = expected + np.einsum("n,nab->ab", slope[place], twice)
        np.testing.assert_allclose(hessian[place], expected, atol=1e-6)
        np.testing.assert_allclose(law.hessian(theta), twice, atol=1e-6)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_restricted_to_rows_gives_the_same_values_on_those_rows(name):
    law, rows = PROGRAMS[name], np.array([3, 0, 3])
    part = law.take(rows)
    assert part.rows == 3
    np.testing.assert_array_equal(part.log_loss(THETA[None]), law.log_loss(THETA[None])[:, rows])
    np.testing.assert_array_equal(part.gradient(THETA[None]), law.gradient(THETA[None])[..., rows])


def test_a_batch_of_parameter_vectors_gives_the_same_losses_as_each_vector_alone():
    law = PROGRAMS["three groups"]
    thetas = THETA + 0.1 * np.random.default_rng(2).standard_normal((4, len(THETA)))
    together = law.log_loss(thetas)
    for place, theta in enumerate(thetas):
        np.testing.assert_allclose(together[place], law.log_loss(theta[None])[0], rtol=1e-14)


def test_a_factor_that_is_not_positive_gives_nan_loss_without_a_warning():
    negative = Term(kind=LINEAR, index=(2,), features=np.ones((1, ROWS)), constant=np.zeros(ROWS))
    law = program((0.0, (FIXED,)), (1.0, (negative,)))
    theta = THETA.copy()
    theta[2] = -2.0
    assert np.isnan(law.log_loss(theta[None])).all()
    theta[2] = -0.5
    np.testing.assert_allclose(law.log_loss(theta[None])[0], Z[0] + np.log(0.5))


def test_a_bowl_without_drift_ignores_size_and_tokens():
    others = Term(
        kind=BOWL, index=STEADY.index, features=np.stack([Z[0], 9 * Z[1], 9 * Z[2]]),
        constant=np.zeros(ROWS),
    )  # fmt: skip
    np.testing.assert_array_equal(STEADY.value(THETA[None]), others.value(THETA[None]))
    assert STEADY.present == (0, 1)
    assert STEADY.places == [2, 1]


def test_value_and_gradient_evaluate_a_bowl_once(monkeypatch):
    one = program((1.0, (FULL,)))
    expected, calls = one.log_loss(THETA[None]), []
    monkeypatch.setattr(terms, "bowl", lambda *given: calls.append(given) or bowl(*given))
    value, gradient = one.value_and_gradient(THETA[None])
    assert len(calls) == 1
    np.testing.assert_array_equal(value, expected)
    numeric = differences(lambda theta: one.log_loss(theta[None])[0], THETA)
    np.testing.assert_allclose(gradient[0].T, numeric, atol=1e-7)
