import json

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.checks.chinchilla import approaches
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import allocation, extrapolation, valley
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.runs.columns import D, N
from support.synthetic import TRUTH, synthetic_chinchilla, synthetic_runs

QUICK = {"starts": 4, "delta": 1e-2}
SHARE = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])


def true_size(compute: float) -> float:
    """N* of the synthetic truth, by equation 4 of arXiv 2203.15556."""
    scale = TRUTH["alpha"] * TRUTH["A"] / (TRUTH["beta"] * TRUTH["B"])
    return scale ** (1 / (TRUTH["alpha"] + TRUTH["beta"])) * (compute / 6) ** SHARE


def chinchilla_loss(size, tokens):
    return TRUTH["E"] + TRUTH["A"] / size ** TRUTH["alpha"] + TRUTH["B"] / tokens ** TRUTH["beta"]


@pytest.fixture(scope="module")
def plain():
    runs = synthetic_chinchilla(0.002, shapes=4)
    return fit("chinchilla", runs, resamples=40, **QUICK)


@pytest.fixture(scope="module")
def shaped():
    return fit("conditional-steady", synthetic_runs(shapes=8), resamples=20, **QUICK)


# The compute-optimal size.


def test_the_closed_form_finds_the_true_optimum():
    exact = fit("chinchilla", synthetic_chinchilla(0.0, shapes=1), resamples=0, starts=8, delta=0.1)
    for compute in (1e12, 1e15, 1e18):
        best = allocation(exact, compute)
        assert best.method == "closed form"
        assert best.n["value"] == pytest.approx(true_size(compute), rel=1e-3)
        assert best.exponent["value"] == pytest.approx(SHARE, rel=1e-4)
        assert best.n["value"] * best.tokens["value"] * 6 == pytest.approx(compute)
        assert best.n["low"] is best.n["high"] is None  # no resamples, no interval


def test_intervals_hold_the_truth(plain):
    best = allocation(plain, 1e13)
    assert best.headline().startswith("best at 1e+13 FLOPs (closed form): N ")
    assert json.loads(json.dumps(best.as_json()))["n"] == best.n
    assert best.n["low"] < true_size(1e13) < best.n["high"]
    assert best.exponent["low"] < SHARE < best.exponent["high"]
    assert best.tokens_per_n["low"] < best.tokens_per_n["value"] < best.tokens_per_n["high"]


def test_the_search_over_sizes_agrees_with_the_closed_form(shaped):
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
def test_a_compute_that_is_no_number_is_refused(plain, compute):
    with pytest.raises(InputError, match="`compute > 0` and finite must hold"):
        allocation(plain, compute)


def test_a_ratio_that_the_law_lacks_is_refused(shaped):
    with pytest.raises(InputError, match="`shape` must give positive ratios of the law"):
        allocation(shaped, 1e13, shape={"depth": 3})


def test_without_a_data_term_there_is_no_best_size():
    runs = synthetic_chinchilla(0.002, shapes=8, tokens=(1e6,))
    best = allocation(fit("chinchilla", runs, resamples=0, **QUICK), 1e13)
    assert best.n["value"] is None
    assert best.why == "the law has B held at no effect: nothing to trade"


# The flat valley.


def test_both_ends_of_the_valley_cost_a_thousandth(plain):
    found = valley(plain, 1e13)
    line = found.frame().iloc[0]
    assert line["low"] < line["best"] < line["high"]

    def loss(size):
        return plain.central({N: np.array([size]), D: np.array([1e13 / (6 * size)])})[0]

    best = loss(line["best"])
    for end in ("low", "high"):
        assert loss(line[end]) / best == pytest.approx(1.001, abs=1e-6)
    assert line["factor"] == pytest.approx(line["high"] / line["low"])


def test_a_wider_tolerance_has_a_wider_valley(plain):
    widths = [
        valley(plain, 1e13, tolerance=t).frame()["factor"].iloc[0] for t in (1e-4, 1e-3, 1e-2)
    ]
    assert widths == sorted(widths)
    # The valley is a parabola in ln N: its width grows with the root of the tolerance.
    assert np.log(widths[1]) / np.log(widths[0]) == pytest.approx(10**0.5, rel=0.05)


def test_every_ratio_has_a_valley_around_its_optimum(shaped):
    table = valley(shaped, 1e13).frame().set_index("quantity")
    for name in ("hidden_over_sqrt_n", "mlp_to_attention"):
        best = shaped.optima()[name]["value"]
        assert table.loc[name, "best"] == pytest.approx(best, rel=1e-3)
        assert table.loc[name, "low"] < best < table.loc[name, "high"]
    # g(x) = k (ln x + 1/x - 1) is k (ln x)²/2 near 1.
    curvature = shaped.parameters()["hidden_over_sqrt_n_curvature"]["value"]
    factor = np.exp(2 * np.sqrt(2 * 0.001 / curvature))
    assert table.loc["hidden_over_sqrt_n", "factor"] == pytest.approx(factor, rel=0.05)


def test_a_ratio_that_only_falls_has_an_open_valley(shaped):
    line = valley(shaped, 1e13).frame().set_index("quantity").loc["gqa"]
    assert np.isnan(line["low"])  # the slope is positive: lowest at the smallest ratio looked at
    assert json.dumps(valley(shaped, 1e13).as_json(), allow_nan=False)


@pytest.mark.parametrize("tolerance", [0, 1, -0.1, np.nan])
def test_a_tolerance_that_is_no_fraction_is_refused(plain, tolerance):
    with pytest.raises(InputError, match="`0 < tolerance < 1` must hold"):
        valley(plain, 1e13, tolerance=tolerance)


# Extrapolation.


def test_distances_are_in_decades_with_a_sign(plain):
    low, high = plain.ranges[N]
    found = extrapolation(plain, {N: 10 * high, D: plain.ranges[D][0] / 100})
    distance = found.frame().set_index("column")["decades"]
    assert distance[N] == pytest.approx(1)
    assert distance[D] == pytest.approx(-2)
    assert found.farthest == pytest.approx(2)
    assert found.headline() == "tokens lies 2.00 decades below the fitted runs"
    inside = extrapolation(plain, {N: np.sqrt(low * high), D: plain.ranges[D][1]})
    assert inside.farthest == 0
    assert inside.headline() == "inside the fitted range of every column"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({N: 1e6}, "the row must give `tokens`, but gives n_non"),
        ({N: -1, D: 1e6}, "> 0` and finite"),
    ],
)
def test_a_row_without_a_place_is_refused(plain, row, words):
    with pytest.raises(InputError, match=words):
        extrapolation(plain, row)


# Chinchilla's three approaches.


def isoflop(noise: float = 0.0, curves: bool = False) -> pd.DataFrame:
    """Runs of the true law: seven budgets, nine sizes of which the best is not the middle one."""
    rows = []
    for budget, compute in enumerate(np.geomspace(1e13, 1e16, 7)):
        for step in np.linspace(-0.5, 1.0, 9):
            size = true_size(compute) * np.exp(step)
            rows.append({"curve": budget, N: size, D: compute / (6 * size)})
    if curves:
        rows = [
            {"curve": run, N: size, D: tokens}
            for run, size in enumerate(np.geomspace(1e5, 1e9, 60))
            for tokens in np.geomspace(size, 1000 * size, 60)
        ]
    runs = pd.DataFrame(rows)
    runs = runs if curves else runs.drop(columns="curve")
    generator = np.random.default_rng(0)
    factor = np.exp(noise * generator.standard_normal(len(runs)))
    return runs.assign(loss=chinchilla_loss(runs[N], runs[D]) * factor)


def test_all_three_approaches_find_the_true_exponent_where_there_is_no_noise():
    table = approaches(isoflop(), resamples=20, starts=8, delta=0.1).frame()
    assert table["status"].tolist() == ["fitted"] * 3
    assert table["points"].tolist() == [7, 7, 63]
    np.testing.assert_allclose(table["a"], SHARE, atol=0.01)
    np.testing.assert_allclose(table["n"], true_size(1e16), rtol=0.15)
    assert table["a"].iloc[2] == pytest.approx(SHARE, rel=1e-3)


def test_noise_widens_the_intervals_and_they_hold_the_truth():
    table = approaches(isoflop(0.002), resamples=60, **QUICK).frame()
    assert ((table["a_low"] < SHARE) & (table["a_high"] > SHARE)).iloc[1:].all()
    assert (table["a_high"] - table["a_low"]).iloc[2] < (table["a_high"] - table["a_low"]).iloc[1]


def test_the_lower_envelope_of_training_curves_is_the_first_approach():
    found = approaches(isoflop(curves=True), resamples=10, compute=1e14, **QUICK)
    first = found.frame().iloc[0]
    assert first["approach"] == "1 (minimum over curves)"
    assert first["a"] == pytest.approx(SHARE, abs=0.02)
    assert first["n"] == pytest.approx(true_size(1e14), rel=0.1)
    assert found.minima["1"]["flops"].between(1e10, 1e22).all()


def test_tables_that_cannot_do_it_say_why():
    runs = synthetic_chinchilla(0.002, shapes=8, tokens=(1e6,))
    found = approaches(runs, resamples=0, **QUICK)
    table = found.frame()
    assert table["a"].isna().all()
    assert table["status"].str.startswith("not available: ").all()
    assert "a line needs 3; train more sizes at equal compute" in table["status"].iloc[1]
    assert "B held at no effect" in table["status"].iloc[2]
    assert found.headline().count("not available") == 3
    assert json.dumps(found.as_json(), allow_nan=False)


def test_a_minimum_at_the_edge_of_the_sizes_tried_is_none():
    runs = isoflop()
    compute = 6 * runs[N] * runs[D]
    lopsided = runs[runs[N] > 1.2 * true_size(1) * compute**SHARE]
    table = approaches(lopsided, resamples=0, **QUICK).frame()
    assert table["points"].tolist()[:2] == [0, 0]


def test_a_budget_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="`compute > 0` and finite must hold"):
        approaches(isoflop(), compute=-1.0)
