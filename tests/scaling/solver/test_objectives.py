import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.solver.objectives import KINDS, FitObjective

OBJECTIVES = [FitObjective(kind=kind, on=on, delta=0.02) for kind in KINDS for on in ("log", "raw")]
OBSERVED = np.log([2.0, 2.5, 3.0, 4.0])
logs_apart = st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4).map(np.array)


def plain(objective: FitObjective, residual: float) -> float:
    """Evaluate the cost of one residual with an independent implementation."""
    delta = objective.delta
    if objective.kind == "squares":
        return residual**2 / 2
    if objective.kind == "student":
        nu = objective.degrees
        return delta**2 * (nu + 1) / 2 * np.log(1 + residual**2 / (nu * delta**2))
    if objective.kind == "asymmetric" and residual < 0:
        residual = objective.tilt * residual
    if abs(residual) <= delta:
        return residual**2 / 2
    return delta * (abs(residual) - delta / 2)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.kind} {o.on}")
@given(apart=logs_apart)
def test_the_cost_of_a_row_equals_the_plain_formula(objective, apart):
    cost, _, _ = objective.rows(OBSERVED, None, newton=True)((OBSERVED + apart)[None])
    predicted, observed = OBSERVED + apart, OBSERVED
    if objective.on == "raw":
        predicted, observed = np.exp(predicted), np.exp(observed)
    expected = [plain(objective, r) for r in predicted - observed]
    np.testing.assert_allclose(cost[0], expected, rtol=1e-10, atol=1e-18)
    residuals = objective.residuals(OBSERVED + apart, OBSERVED)
    np.testing.assert_allclose(objective.rho(residuals)[0], expected, rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.kind} {o.on}")
@given(apart=logs_apart)
def test_slope_and_curvature_are_the_derivatives_by_the_predicted_ln_loss(objective, apart):
    rows = objective.rows(OBSERVED, None, newton=True)
    # Away from the kinks, where a Huber loss has no second derivative.
    residuals = objective.residuals(OBSERVED + apart, OBSERVED)
    smooth = np.abs(np.abs(residuals) - objective.delta) > 1e-3
    smooth &= np.abs(residuals) > 1e-3
    step = 5e-5

    def numeric(part):  # central differences of the fourth order
        at = [rows((OBSERVED + apart + k * step)[None])[part][0] for k in (-2, -1, 1, 2)]
        return (8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * step)

    _, slope, curve = rows((OBSERVED + apart)[None])
    np.testing.assert_allclose(slope[0][smooth], numeric(0)[smooth], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(curve[0][smooth], numeric(1)[smooth], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.kind} {o.on}")
@given(apart=logs_apart)
def test_the_reweighted_curvature_is_never_negative_and_gives_the_slope(objective, apart):
    """Least squares with weights ψ/r has the same gradient, also at r = 0."""
    logs = OBSERVED + apart
    cost, slope, curve = (
        part[0] for part in objective.rows(OBSERVED, None, newton=False)(logs[None])
    )
    assert (curve >= 0).all()
    assert np.isfinite(curve).all()
    if objective.on == "log":
        np.testing.assert_allclose(curve * apart, slope, rtol=1e-9, atol=1e-15)
    exact = objective.rows(OBSERVED, None, newton=True)(logs[None])
    np.testing.assert_array_equal(cost, exact[0][0])
    np.testing.assert_array_equal(slope, exact[1][0])


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.kind} {o.on}")
def test_weights_multiply_cost_slope_and_curvature(objective):
    logs, weights = OBSERVED[None] + 0.01, np.array([1.0, 2.0, 0.5, 0.0])
    for newton in (False, True):
        without = objective.rows(OBSERVED, None, newton=newton)(logs)
        weighted = objective.rows(OBSERVED, weights, newton=newton)(logs)
        for value, other in zip(without, weighted, strict=True):
            np.testing.assert_allclose(other, value * weights)


def test_student_cost_equals_the_negative_log_likelihood_of_students_t():
    objective, residual = (
        FitObjective(kind="student", delta=0.05, degrees=3.0),
        np.linspace(-1, 1, 9),
    )
    likelihood = -student.logpdf(residual / 0.05, 3.0)
    cost = objective.rho(residual)[0] / 0.05**2
    np.testing.assert_allclose(cost - cost[4], likelihood - likelihood[4], rtol=1e-12)


def test_asymmetric_weights_a_run_worse_than_predicted_less():
    objective = FitObjective(kind="asymmetric", delta=10.0, tilt=0.5)
    worse, better = (
        objective.rows(np.array([1.0]), None, newton=True)(np.array([[1.0 + apart]]))[0][0, 0]
        for apart in (-0.1, 0.1)
    )
    assert worse == pytest.approx(better * 0.25)  # half the residual


def test_a_wide_huber_equals_least_squares_and_a_tilt_of_one_equals_huber():
    residual = np.linspace(-1, 1, 21)
    squares = FitObjective(kind="squares").rho(residual)
    for value, other in zip(FitObjective(delta=10).rho(residual), squares, strict=True):
        np.testing.assert_allclose(value, other)
    upright = FitObjective(kind="asymmetric", tilt=1.0, delta=0.1)
    np.testing.assert_allclose(
        upright.residuals(residual, np.zeros(21)),
        FitObjective(delta=0.1).residuals(residual, np.zeros(21)),
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"kind": "absolute"},
            "`objective` must be one of huber, squares, student, asymmetric, bu",
        ),
        ({"on": "bits"}, "`on` must be log or raw, but got 'bits'"),
        (
            {"delta": 0.0},
            "`delta` must be positive and finite, but got 0.0; give a positive number",
        ),
        ({"delta": float("nan")}, "`delta` must be positive and finite"),
        ({"degrees": -1.0}, "`degrees` must be positive"),
        ({"tilt": float("inf")}, "`tilt` must be positive"),
    ],
)
def test_an_objective_with_an_invalid_setting_raises(settings, text):
    with pytest.raises(InputError, match=text):
        FitObjective(**settings)


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (FitObjective(), "sum of Huber on ln loss, delta 0.001"),
        (FitObjective(kind="squares", on="raw"), "sum of squares / 2 on loss"),
        (FitObjective(kind="student"), "Student-t likelihood on ln loss, 4 degrees, scale 0.001"),
        (
            FitObjective(kind="asymmetric", tilt=0.25),
            "sum of Huber on ln loss, delta 0.001, residuals below zero times 0.25",
        ),
    ],
)
def test_an_objective_describes_itself_exactly(objective, text):
    assert objective.describe() == text
    assert objective.robust == (objective.kind != "squares")
    assert objective.at(0.5).delta == 0.5
