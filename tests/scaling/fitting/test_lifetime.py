"""Tests of the size and tokens of the least cost of training and serving at a target loss."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

import shapelaw
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import allocation
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.lifetime import lifetime_optimum
from shapelaw.scaling.fitting.published_laws import printed_fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from support.quick_fits import known_runs
from support.synthetic import synthetic_chinchilla

SERVED = (0.0, 1e9, 1e11, 1e13)
# Hoffmann et al., arXiv 2203.15556, as arXiv 2401.00448 uses them.
HOFFMANN = {"E": 1.69, "A": 406.4, "alpha": 0.336, "B": 410.7, "beta": 0.283}


@pytest.fixture(scope="module")
def plain() -> Fit:
    return fit("chinchilla", known_runs(), starts=16, resamples=40, delta=1e-2)


def with_parameters(like: Fit, **public: float) -> Fit:
    """Return a fit of Chinchilla's law with given coefficients and no draws."""
    theta = like.law.internal(public, like.reference)
    return replace(like, theta=theta, draws=np.empty((0, len(theta))))


def cheapest_on_a_fine_grid(fitted: Fit, loss: float, served: float) -> tuple[float, float, float]:
    """Try sizes in steps of 0.1 %, each with the tokens that a root of the law gives."""
    law, at = fitted.law, fitted.reference
    ratios = {
        name: np.array([np.exp(fitted.theta[law.index[f"{name}_optimum"]])])
        for name in law.columns
        if name not in (N, D)
    }

    def excess(log_tokens: float, size: float) -> float:
        columns = ratios | {N: np.array([size]), D: np.exp([log_tokens])}
        return float(law.predict(fitted.theta, columns, at)[0]) - loss

    best = (np.inf, 0.0, 0.0)
    for size in np.geomspace(3e5, 3e9, 1 + round(np.log(1e4) / np.log(1.02))):
        if excess(60.0, size) < 0:
            tokens = float(np.exp(brentq(excess, 0.0, 60.0, args=(size,), xtol=1e-12)))
            best = min(best, (6 * size * tokens + 2 * size * served, size, tokens))
    return best


@pytest.mark.parametrize("law", ["chinchilla", "farseer", "outer-exponent", "shaped"])
@pytest.mark.parametrize("loss", [2.2, 2.5])
def test_optimum_costs_no_more_than_the_best_of_a_fine_grid(law: str, loss: float) -> None:
    named = {
        "chinchilla": "Chinchilla()",
        "farseer": "VaryingExponent()",
        "outer-exponent": "OuterExponent()",
        "shaped": "Chinchilla() * UShape('hidden_over_sqrt_n') * UShape('mlp_to_attention')",
    }[law]
    fitted = fit(named, known_runs(), starts=16, resamples=0, delta=1e-2)
    for served in SERVED:
        best = lifetime_optimum(fitted, loss, served)
        total, size, _ = cheapest_on_a_fine_grid(fitted, loss, served)
        assert best.total_flops <= total * (1 + 1e-9)
        assert best.total_flops == pytest.approx(total, rel=1e-3), "the grid has steps of 2 %"
        assert best.n["value"] == pytest.approx(size, rel=0.03)


def test_no_served_token_gives_the_least_training_compute_for_the_loss(plain: Fit) -> None:
    best = lifetime_optimum(plain, 2.3)
    compute = best.training_flops["value"]
    assert compute is not None
    assert best.serving_flops["value"] == 0
    optimal = allocation(plain, compute)
    assert best.n["value"] == pytest.approx(optimal.n["value"], rel=1e-4)
    assert best.tokens["value"] == pytest.approx(optimal.tokens["value"], rel=1e-4)


def test_more_served_tokens_give_a_smaller_model_and_more_training_tokens(plain: Fit) -> None:
    found = [lifetime_optimum(plain, 2.3, served) for served in (0.0, *np.geomspace(1e8, 1e16, 9))]
    sizes = np.array([each.n["value"] for each in found])
    tokens = np.array([each.tokens["value"] for each in found])
    assert (np.diff(sizes) < 0).all()
    assert (np.diff(tokens) > 0).all()
    frame = {N: sizes, D: tokens}
    np.testing.assert_allclose(plain.central(frame), 2.3, rtol=1e-9)


def test_published_saving_of_a_7b_model_over_a_13b_model_is_reproduced(plain: Fit) -> None:
    # arXiv 2401.00448, figure 1: a 13B model that serves 2 trillion tokens is replaced by a 7B
    # model of the same loss, which saves 17 % or 1.7e22 FLOPs of training and serving.
    law = with_parameters(replace(plain, ranges={N: (1e8, 1e10), D: (1e9, 1e12)}), **HOFFMANN)
    # Compute-optimal D of 13B: alpha·A/N^alpha = beta·B/D^beta.
    tokens = (0.283 * 410.7 / (0.336 * 406.4) * 13e9**0.336) ** (1 / 0.283)
    loss = 1.69 + 406.4 / 13e9**0.336 + 410.7 / tokens**0.283
    assert allocation(law, 6 * 13e9 * tokens).n["value"] == pytest.approx(13e9, rel=1e-3)
    best = lifetime_optimum(law, loss, 2e12)
    usual = 6 * 13e9 * tokens + 2 * 13e9 * 2e12
    assert best.n["value"] == pytest.approx(7e9, rel=0.1)
    assert 1 - best.total_flops / usual == pytest.approx(0.17, abs=0.01)
    assert usual - best.total_flops == pytest.approx(1.7e22, rel=0.05)


def test_interval_comes_from_the_draws_and_contains_the_optimum(plain: Fit) -> None:
    best = lifetime_optimum(plain, 2.3, 1e11)
    for quantity in (best.n, best.tokens, best.tokens_per_n, best.training_flops):
        assert quantity["low"] < quantity["value"] < quantity["high"]  # type: ignore[operator]
    assert json.loads(json.dumps(best.as_json()))["n"] == best.n
    assert best.view().title.startswith("loss 2.3 nats/token at the least cost with 100B served")
    assert len(best.frame()) == 5


def test_held_ratio_off_its_optimum_needs_a_larger_cost() -> None:
    law = "Chinchilla() * UShape('hidden_over_sqrt_n')"
    fitted = fit(law, known_runs(), starts=16, resamples=0, delta=1e-2)
    best = lifetime_optimum(fitted, 2.4, 1e11)
    held = lifetime_optimum(fitted, 2.4, 1e11, shape={"hidden_over_sqrt_n": 0.5})
    assert held.total_flops > 1.1 * best.total_flops


@pytest.mark.parametrize("loss", [1.0, 1.6])
def test_loss_below_the_irreducible_one_is_refused_with_the_lowest_that_is_reached(
    plain: Fit, loss: float
) -> None:
    law = with_parameters(plain, **HOFFMANN)
    with pytest.raises(InputError, match=r"`target loss > 1\.\d+` must hold: .* E is 1\.69\), but"):
        lifetime_optimum(law, loss, 1e12)


REFUSED = {
    "far loss": ((60.0, 0.0), "no size from"),
    "negative loss": ((-1.0, 0.0), "`target loss > 0` and `served tokens >= 0`"),
    "no number": ((float("nan"), 0.0), "but got nan"),
    "negative service": ((2.3, -1.0), "but got 2.3 and -1"),
    "endless service": ((2.3, float("inf")), "but got 2.3 and inf"),
}


@pytest.mark.parametrize(("numbers", "message"), REFUSED.values(), ids=REFUSED)
def test_invalid_target_is_refused(plain: Fit, numbers: tuple[float, float], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        lifetime_optimum(plain, *numbers)
    assert len(str(error.value)) <= 300


def test_law_without_a_trade_off_of_size_and_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="N and D trade off, but the law has no N and D"):
        lifetime_optimum(printed_fit("paper-2510.18245"), 2.5, 1e12)


def test_size_is_counted_as_the_fit_counts_it() -> None:
    runs = known_runs()
    fitted = fit("chinchilla", runs, starts=16, resamples=0, delta=1e-2)
    twice = shapelaw.fit(
        "chinchilla",
        shapelaw.RunTable(frame=runs.assign(n_total=2 * runs[N]), size="total"),
        starts=16, resamples=0, delta=1e-2,
    )  # fmt: skip
    # With N' = 2N the cost of 6N'D + 2N'S is twice that of N: the same model is the best.
    first, second = (lifetime_optimum(each, 2.3, 1e11) for each in (fitted, twice))
    assert second.n["value"] == pytest.approx(2 * first.n["value"], rel=0.02)
    assert second.tokens["value"] == pytest.approx(first.tokens["value"], rel=0.02)


def test_runs_of_synthetic_chinchilla_give_the_optimum_of_their_law() -> None:
    exact = fit("chinchilla", synthetic_chinchilla(0.0, shapes=1), resamples=0, starts=8, delta=0.1)
    best = lifetime_optimum(exact, 2.9, 1e8)
    # First-order condition in ln N: 6D (1 − αA N^−α / (βB D^−β)) + 2S = 0.
    size, tokens = best.n["value"], best.tokens["value"]
    assert size is not None
    assert tokens is not None
    ratio = 0.34 * 40 / size**0.34 / (0.37 * 300 / tokens**0.37)
    assert 6 * tokens * (ratio - 1) == pytest.approx(2 * 1e8, rel=1e-2)
