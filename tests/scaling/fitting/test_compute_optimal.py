import json
from dataclasses import replace

import numpy as np
import pytest

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting import compute_optimal
from shapelaw.scaling.fitting.compute_optimal import allocation, best_ratios, best_sizes
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.flat_valley import valley
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


@pytest.fixture(scope="module")
def drifting():
    runs = synthetic_runs(shapes=8, sizes=(1e5, 4e5, 1.6e6, 6.4e6))
    fitted = fit("conditional", runs, resamples=0, **QUICK)
    theta = fitted.theta.copy()
    theta[fitted.names.index("hidden_over_sqrt_n_drift")] = -0.3
    return replace(fitted, theta=theta)


def brute_force(fitted, theta, compute, held):
    """Minimise the law over N, and over every ratio that is not held, without the code under test.

    The grid of N has steps of 1 %, that of the ratios of 2 %.
    """
    sizes = np.geomspace(1e3, 1e9, 1401)
    columns = {name: np.full(len(sizes), value) for name, value in held.items()}
    columns |= {N: sizes, D: compute / (6 * sizes)}
    free = [name for name in fitted.law.columns if name not in columns]
    columns |= {name: np.ones(len(sizes)) for name in free}
    for name in free:  # the factors of a law are separate: one ratio after the other
        values = np.geomspace(1e-3, 1e3, 701)
        losses = [
            fitted.law.predict(theta, columns | {name: np.full(len(sizes), value)},
                               fitted.reference) for value in values
        ]  # fmt: skip
        columns[name] = values[np.argmin(losses, axis=0)]
    return sizes[fitted.law.predict(theta, columns, fitted.reference).argmin()]


@pytest.mark.parametrize("compute", [1e11, 1e13, 1e15])
def test_optimum_is_that_of_the_best_shape_at_every_size(plain, shaped, drifting, compute):
    for fitted in (plain, shaped, drifting):
        held = {"gqa": 1.0} if "gqa" in fitted.law.columns else {}
        best = best_sizes(fitted, fitted.theta[None], compute, held)
        assert best.method == "closed form"
        wanted = brute_force(fitted, fitted.theta, compute, held)
        assert best.n[0] == pytest.approx(wanted, rel=0.011)


@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_optimum_with_a_drifting_ratio_held_is_that_of_this_shape(drifting, ratio):
    held = {"hidden_over_sqrt_n": ratio, "gqa": 1.0}
    best = best_sizes(drifting, drifting.theta[None], 1e13, held)
    assert best.method == "grid over N"
    assert best.n[0] == pytest.approx(brute_force(drifting, drifting.theta, 1e13, held), rel=0.011)
    free = best_sizes(drifting, drifting.theta[None], 1e13).n[0]
    assert abs(np.log(best.n[0] / free)) > 0.05


def test_search_over_sizes_finds_the_closed_form(shaped, drifting, monkeypatch):
    for fitted in (shaped, drifting):
        theta = np.vstack([fitted.theta, *fitted.draws[:3]])
        closed = best_sizes(fitted, theta, 1e13)
        with monkeypatch.context() as patched:
            patched.setattr(compute_optimal, "has_closed_form", lambda *given: False)
            searched = best_sizes(fitted, theta, 1e13)
        assert (closed.method, searched.method) == ("closed form", "grid over N")
        np.testing.assert_allclose(searched.n, closed.n, rtol=1e-4)
        np.testing.assert_allclose(searched.exponent, closed.exponent, rtol=1e-3)


def test_allocation_and_valley_follow_the_drift_of_the_best_ratio(drifting):
    wanted = best_sizes(drifting, drifting.theta[None], 1e16).n[0]
    found = valley(drifting, 1e16)
    assert allocation(drifting, 1e16).n["value"] == found.allocation.n["value"] == wanted
    table = found.frame().set_index("quantity")
    assert table.loc[N, "best"] == wanted
    drift = (wanted / drifting.reference[N]) ** -0.3
    at_reference = drifting.parameters()["hidden_over_sqrt_n_optimum"]["value"]
    assert table.loc["hidden_over_sqrt_n", "best"] == pytest.approx(drift * at_reference, rel=1e-3)

    def loss(size):
        columns = best_ratios(drifting, np.array([size]))
        return drifting.central(columns | {N: np.array([size]), D: np.array([1e16 / (6 * size)])})

    for end in ("low", "high"):
        assert loss(table.loc[N, end]) / loss(wanted) == pytest.approx(1.001, abs=1e-6)


def test_best_ratios_move_with_size_and_held_ones_do_not(drifting):
    sizes = drifting.reference[N] * np.array([0.1, 1.0, 10.0])
    found = best_ratios(drifting, sizes, {"gqa": 4.0})
    best = {name: optimum["value"] for name, optimum in drifting.optima().items()}
    expected = best["hidden_over_sqrt_n"] * np.array([10.0, 1.0, 0.1]) ** 0.3
    np.testing.assert_allclose(found["hidden_over_sqrt_n"], expected)
    assert list(found["gqa"]) == [4.0] * 3
    held = best_ratios(drifting, sizes, {"hidden_over_sqrt_n": 0.1})
    assert list(held["hidden_over_sqrt_n"]) == [0.1] * 3
    assert held["gqa"] == pytest.approx(np.sqrt(np.prod(drifting.ranges["gqa"])))


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
