import json

import numpy as np
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import allocation, best_sizes, shape_held, valley
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.columns import D, N
from support.synthetic import SHARE, synthetic_chinchilla, synthetic_runs, true_size

QUICK = {"starts": 4, "delta": 1e-2}


@pytest.fixture(scope="module")
def plain():
    runs = synthetic_chinchilla(0.002, shapes=4)
    return fit("chinchilla", runs, resamples=40, **QUICK)


@pytest.fixture(scope="module")
def shaped():
    return fit("conditional-steady", synthetic_runs(shapes=8), resamples=20, **QUICK)


# The compute-optimal size.


def test_closed_form_finds_the_true_optimum():
    exact = fit("chinchilla", synthetic_chinchilla(0.0, shapes=1), resamples=0, starts=8, delta=0.1)
    for compute in (1e12, 1e15, 1e18):
        best = allocation(exact, compute)
        assert best.method == "closed form"
        assert best.n["value"] == pytest.approx(true_size(compute), rel=1e-3)
        assert best.exponent["value"] == pytest.approx(SHARE, rel=1e-4)
        assert best.n["value"] * best.tokens["value"] * 6 == pytest.approx(compute)
        assert best.n["low"] is best.n["high"] is None  # no resamples, no interval


def test_intervals_contain_the_true_optimum(plain):
    best = allocation(plain, 1e13)
    assert best.view().title.startswith("best at 1e+13 FLOPs (closed form): N ")
    assert json.loads(json.dumps(best.as_json()))["n"] == best.n
    assert best.n["low"] < true_size(1e13) < best.n["high"]
    assert best.exponent["low"] < SHARE < best.exponent["high"]
    assert best.tokens_per_n["low"] < best.tokens_per_n["value"] < best.tokens_per_n["high"]


def test_optimum_equals_brute_force_and_closed_form(plain, shaped):
    sizes = np.geomspace(1e3, 1e9, 600_001)  # 23 parts in a million apart
    for fitted in (plain, shaped):
        held = shape_held(fitted, None)
        columns = {name: np.full(len(sizes), value) for name, value in held.items()}
        columns |= {N: sizes, D: 1e13 / (6 * sizes)}
        theta = fitted.draws[:3]
        lowest = [fitted.law.predict(one, columns, fitted.reference).argmin() for one in theta]
        searched = best_sizes(fitted, theta, 1e13, held)
        closed = best_sizes(fitted, theta, 1e13)
        assert closed.method == "closed form"
        np.testing.assert_allclose(searched.n, sizes[lowest], rtol=2e-4)
        np.testing.assert_allclose(closed.n, searched.n, rtol=1e-4)
        np.testing.assert_allclose(closed.exponent, searched.exponent, rtol=1e-3)


def test_drifting_optimum_of_a_held_ratio_moves_the_best_size():
    runs = synthetic_runs(shapes=8, sizes=(1e5, 4e5, 1.6e6, 6.4e6))
    fitted = fit("conditional", runs, resamples=0, **QUICK)
    held = shape_held(fitted, None)
    theta = fitted.theta.copy()
    theta[fitted.names.index("hidden_over_sqrt_n_drift")] = 0.2
    best = best_sizes(fitted, theta[None], 1e13, held).n[0]
    assert abs(np.log(best / best_sizes(fitted, theta[None], 1e13).n[0])) > 0.01

    def loss(size):
        columns = {name: np.array([value]) for name, value in held.items()}
        columns |= {N: np.array([size]), D: np.array([1e13 / (6 * size)])}
        return fitted.law.predict(theta, columns, fitted.reference)[0]

    assert loss(best) < min(loss(best * 1.01), loss(best / 1.01))


def test_search_over_sizes_agrees_with_the_closed_form(shaped):
    # Shape factors multiply the loss: at fixed ratios the best N is that of the base.
    public = shaped.law.public(shaped.theta, shaped.reference)
    total = public["alpha"] + public["beta"]
    scale = (public["alpha"] * public["A"] / (public["beta"] * public["B"])) ** (1 / total)
    best = allocation(shaped, 1e13)
    assert best.method == "grid over N"
    size = scale * (1e13 / 6) ** (public["beta"] / total)
    assert best.n["value"] == pytest.approx(size, rel=1e-4)
    assert best.exponent["value"] == pytest.approx(public["beta"] / total, rel=1e-2)
    assert best.n["low"] < size < best.n["high"]


@pytest.mark.parametrize("compute", [0, -1.0, np.nan, np.inf])
def test_allocation_raises_when_compute_is_not_positive(plain, compute):
    with pytest.raises(InputError, match="`compute > 0` and finite must hold"):
        allocation(plain, compute)


def test_allocation_raises_when_the_law_lacks_a_ratio(shaped):
    with pytest.raises(InputError, match="`shape` must give positive ratios of the law"):
        allocation(shaped, 1e13, shape={"depth": 3})


def test_allocation_has_no_optimum_when_the_data_term_is_held():
    runs = synthetic_chinchilla(0.002, shapes=8, tokens=(1e6,))
    best = allocation(fit("chinchilla", runs, resamples=0, **QUICK), 1e13)
    assert best.n["value"] is None
    assert best.why == "the law has B held at no effect: N and D have no trade-off"


# The flat valley.


def test_loss_at_both_ends_of_the_valley_is_a_thousandth_above_the_best(plain):
    flat_range = valley(plain, 1e13)
    line = flat_range.frame().iloc[0]
    assert line["low"] < line["best"] < line["high"]

    def loss(size):
        return plain.central({N: np.array([size]), D: np.array([1e13 / (6 * size)])})[0]

    assert line["best"] == allocation(plain, 1e13).n["value"]
    best = loss(line["best"])
    for end in ("low", "high"):
        assert loss(line[end]) / best == pytest.approx(1.001, abs=1e-6)
    assert line["factor"] == pytest.approx(line["high"] / line["low"])


def test_valley_widens_with_the_tolerance(plain):
    widths = [
        valley(plain, 1e13, tolerance=t).frame()["factor"].iloc[0] for t in (1e-4, 1e-3, 1e-2)
    ]
    assert widths == sorted(widths)
    # The valley is a parabola in ln N: its width grows with the root of the tolerance.
    assert np.log(widths[1]) / np.log(widths[0]) == pytest.approx(10**0.5, rel=0.05)


def test_valley_of_every_ratio_surrounds_its_optimum(shaped):
    table = valley(shaped, 1e13).frame().set_index("quantity")
    for name in ("hidden_over_sqrt_n", "mlp_to_attention"):
        best = shaped.optima()[name]["value"]
        assert table.loc[name, "best"] == pytest.approx(best, rel=1e-3)
        assert table.loc[name, "low"] < best < table.loc[name, "high"]
    # g(x) = k (ln x + 1/x - 1) is k (ln x)²/2 near 1.
    curvature = shaped.parameters()["hidden_over_sqrt_n_curvature"]["value"]
    factor = np.exp(2 * np.sqrt(2 * 0.001 / curvature))
    assert table.loc["hidden_over_sqrt_n", "factor"] == pytest.approx(factor, rel=0.05)


def test_valley_of_a_monotonic_ratio_is_open_at_one_end(shaped):
    line = valley(shaped, 1e13).frame().set_index("quantity").loc["gqa"]
    assert np.isnan(line["low"])  # the slope is positive: lowest at the smallest ratio searched
    assert json.dumps(valley(shaped, 1e13).as_json(), allow_nan=False)


@pytest.mark.parametrize("tolerance", [0, 1, -0.1, np.nan])
def test_valley_raises_when_tolerance_is_not_a_fraction(plain, tolerance):
    with pytest.raises(InputError, match="`0 < tolerance < 1` must hold"):
        valley(plain, 1e13, tolerance=tolerance)
