import numpy as np
import pytest

from shapelaw.scaling.accuracy.curves import (
    CURVES,
    FORMS,
    Curve,
    ExponentialError,
    Line,
    PowerCurve,
    Sigmoid,
    TwoStep,
    joint_covariance,
    solve,
)
from shapelaw.scaling.errors import InputError

LOSSES = np.linspace(2.8, 3.6, 16)
TRUTH = {
    "sigmoid": (Sigmoid(chance=0.25), (2.9, np.log(3.0), 0.85)),
    "sigmoid with a given ceiling": (Sigmoid(chance=0.2, ceiling=0.9), (2.7, np.log(5.0))),
    "exponential error": (ExponentialError(at=3.2), (0.8, np.log(0.2), np.log(1.3))),
    "line": (Line(at=3.2), (1.1, 0.7)),
    "power law": (PowerCurve(at=3.2), (np.log(1.2), 1.7)),
}
EVERY_CURVE = pytest.mark.parametrize(("curve", "theta"), TRUTH.values(), ids=TRUTH)


def differences(function, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Compute central differences of a vector function, one column per argument."""
    steps = step * np.eye(len(at))
    columns = [(function(at + move) - function(at - move)) / (2 * step) for move in steps]
    return np.stack(columns, axis=-1)


@EVERY_CURVE
def test_the_gradient_is_that_of_finite_differences(curve: Curve, theta: tuple) -> None:
    at = np.array(theta)
    numeric = differences(lambda moved: curve.value(moved, LOSSES)[0], at)
    np.testing.assert_allclose(curve.value(at, LOSSES)[1], numeric, rtol=1e-6, atol=1e-9)


@EVERY_CURVE
def test_the_slope_is_that_of_finite_differences(curve: Curve, theta: tuple) -> None:
    at, step = np.array(theta), 1e-6
    higher, lower = curve.value(at, LOSSES + step)[0], curve.value(at, LOSSES - step)[0]
    slope = curve.value(at, LOSSES)[2]
    np.testing.assert_allclose(slope, (higher - lower) / (2 * step), rtol=1e-6, atol=1e-9)


@EVERY_CURVE
def test_the_gradient_of_public_coefficients_is_that_of_finite_differences(
    curve: Curve, theta: tuple
) -> None:
    at = np.array(theta)
    numeric = differences(lambda moved: curve.public(moved)[1], at)
    np.testing.assert_allclose(curve.public(at)[2], numeric, rtol=1e-6, atol=1e-6)


@EVERY_CURVE
def test_a_synthetic_truth_without_noise_is_recovered(curve: Curve, theta: tuple) -> None:
    found = solve(curve, LOSSES, curve.value(np.array(theta), LOSSES)[0])
    assert found.converged
    np.testing.assert_allclose(found.theta, theta, rtol=1e-5)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-9)


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_every_curve_documents_its_equation_and_source(curve: type) -> None:
    documentation = curve.__doc__ or ""
    assert documentation.splitlines()[0].rstrip(".") == curve.equation.replace(
        "1 - accuracy", "error"
    )
    assert "arXiv" in documentation


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_documents_its_equation_and_source(form: object) -> None:
    documentation = type(form).__doc__ or ""
    assert "=" in documentation.splitlines()[0]
    assert "arXiv" in documentation


def test_public_coefficients_are_those_of_the_printed_equations() -> None:
    loss = np.array([3.0])

    _, (middle, slope, ceiling), _ = Sigmoid(chance=0.25).public(np.array([2.9, 1.1, 0.8]))
    by_hand = 0.25 + (ceiling - 0.25) / (1 + np.exp(-slope * (middle - loss)))
    assert Sigmoid(chance=0.25).value(np.array([2.9, 1.1, 0.8]), loss)[0] == pytest.approx(by_hand)

    curve, theta = ExponentialError(at=3.2), np.array([0.8, -1.5, 0.3])
    _, (epsilon, scale, rate), _ = curve.public(theta)
    error = epsilon - scale * np.exp(-rate * loss)
    assert curve.value(theta, loss)[0] == pytest.approx(1 - error)


def test_lower_loss_is_higher_accuracy_between_chance_and_ceiling() -> None:
    far = np.linspace(0.1, 12, 200)
    accuracy, _, slope = Sigmoid(chance=0.25).value(np.array([2.9, np.log(3.0), 0.85]), far)
    assert np.all(np.diff(accuracy) <= 0)
    assert np.all(slope <= 0)
    assert accuracy[0] == pytest.approx(0.85, abs=1e-3)
    assert accuracy[-1] == pytest.approx(0.25, abs=1e-3)


def test_the_optimum_agrees_with_a_dense_search_that_shares_no_code() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(LOSSES))
    curve = Sigmoid(chance=0.25)
    accuracy = curve.value(np.array([2.9, np.log(3.0), 0.85]), LOSSES)[0] + noise
    found = solve(curve, LOSSES, accuracy)

    # For each midpoint and slope the best ceiling is a linear least squares.
    middles, slopes = np.meshgrid(np.linspace(2.3, 3.3, 401), np.linspace(0.5, 12, 401))
    share = 1 / (1 + np.exp(-slopes[..., None] * (middles[..., None] - LOSSES)))
    height = (share * (accuracy - 0.25)).sum(-1) / (share**2).sum(-1)
    height = np.clip(height, 0.01, 0.75)
    cost = ((accuracy - 0.25 - height[..., None] * share) ** 2).sum(-1)
    assert (found.residuals**2).sum() <= cost.min()
    assert (found.residuals**2).sum() == pytest.approx(cost.min(), rel=1e-3)


def test_a_coefficient_at_its_bound_is_named_and_keeps_its_uncertainty() -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, len(LOSSES))
    beyond = 0.25 + 1.2 / (1 + np.exp(-3 * (2.6 - LOSSES)))  # would rise to 1.45
    found = solve(Sigmoid(chance=0.25), LOSSES, np.clip(beyond + noise, 0, 1))
    assert found.at_bound == ("ceiling",)
    assert np.sqrt(joint_covariance([found])[0][2, 2]) > 0.05


def test_the_covariance_is_that_of_refits_to_synthetic_noise() -> None:
    curve, theta, noise = Line(at=3.2), np.array([1.1, 0.7]), 0.02
    generator = np.random.default_rng(2)
    clean = curve.value(theta, LOSSES)[0]
    fits = [solve(curve, LOSSES, clean + generator.normal(0, noise, 16)) for _ in range(300)]
    spread = np.cov(np.array([fit.theta for fit in fits]).T)
    claimed = np.mean([joint_covariance([fit])[0] for fit in fits], axis=0)
    np.testing.assert_allclose(np.diag(claimed), np.diag(spread), rtol=0.2)


def test_curves_on_the_same_models_share_their_noise() -> None:
    generator = np.random.default_rng(3)
    shared = generator.normal(0, 0.02, len(LOSSES))
    curve = Line(at=3.2)
    one = solve(curve, LOSSES, 1.1 + 0.7 * (LOSSES - 3.2) + shared)
    two = solve(curve, LOSSES, 0.9 + 0.5 * (LOSSES - 3.2) + shared)
    covariance, noise = joint_covariance([one, two])
    assert noise[0, 1] == pytest.approx(noise[0, 0])
    np.testing.assert_allclose(covariance[:2, 2:], covariance[:2, :2])
    assert np.linalg.eigvalsh(covariance).min() > -1e-15


def test_a_coefficient_that_the_data_do_not_determine_has_a_large_variance() -> None:
    flat = solve(Sigmoid(chance=0.25), LOSSES, np.full(len(LOSSES), 0.25) + 1e-3 * (LOSSES > 3.2))
    at_chance = solve(Sigmoid(chance=0.25), LOSSES, np.full(len(LOSSES), 0.24))
    for found in (flat, at_chance):
        covariance = joint_covariance([found])[0]
        assert np.all(np.isfinite(covariance))
        assert covariance.max() > 1


@pytest.mark.parametrize("ceiling", [0.2, 0.25, 1.2])
def test_a_ceiling_outside_of_chance_to_one_is_refused(ceiling: float) -> None:
    with pytest.raises(InputError, match="`chance < ceiling <= 1` must hold"):
        Sigmoid(ceiling=ceiling).settled(LOSSES, 0.25)


def test_a_two_step_form_names_both_steps() -> None:
    assert TwoStep(first=Line()).name == "two-step (line, sigmoid)"


def test_an_exponential_error_far_outside_stays_finite() -> None:
    curve = ExponentialError(at=3.2)
    value, gradient, slope = curve.value(np.array([0.8, 0.0, 5.0]), np.array([0.01, 3.2, 50.0]))
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(gradient**2))
    assert np.all(np.isfinite(slope))
