import json

import numpy as np
import pytest

from shapelaw.scaling.checks.chinchilla import approaches
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import D, N
from support.synthetic import SHARE, isoflop_runs, synthetic_chinchilla, true_size

QUICK = {"starts": 4, "delta": 1e-2}


def test_all_three_approaches_find_the_true_exponent_without_noise():
    table = approaches(isoflop_runs(), resamples=20, starts=8, delta=0.1).frame()
    assert table["status"].tolist() == ["fitted"] * 3
    assert table["points"].tolist() == [7, 7, 63]
    np.testing.assert_allclose(table["a"], SHARE, atol=0.01)
    np.testing.assert_allclose(table["n"], true_size(1e16), rtol=0.15)
    assert table["a"].iloc[2] == pytest.approx(SHARE, rel=1e-3)


def test_intervals_of_noisy_runs_contain_the_true_exponent():
    table = approaches(isoflop_runs(0.002), resamples=60, **QUICK).frame()
    assert ((table["a_low"] < SHARE) & (table["a_high"] > SHARE)).iloc[1:].all()
    assert (table["a_high"] - table["a_low"]).iloc[2] < (table["a_high"] - table["a_low"]).iloc[1]


def test_first_approach_uses_the_lower_envelope_when_table_has_curves():
    result = approaches(isoflop_runs(curves=True), resamples=10, compute=1e14, **QUICK)
    first = result.frame().iloc[0]
    assert first["approach"] == "1 (minimum over curves)"
    assert first["a"] == pytest.approx(SHARE, abs=0.02)
    assert first["n"] == pytest.approx(true_size(1e14), rel=0.1)
    assert result.minima["1"]["flops"].between(1e10, 1e22).all()


def test_approaches_give_the_reason_when_table_does_not_allow_them():
    runs = synthetic_chinchilla(0.002, shapes=8, tokens=(1e6,))
    result = approaches(runs, resamples=0, **QUICK)
    table = result.frame()
    assert table["a"].isna().all()
    assert table["status"].str.startswith("not available: ").all()
    assert "a line needs 3; train more sizes at equal compute" in table["status"].iloc[1]
    assert "B held at no effect" in table["status"].iloc[2]
    assert result.view().title.count("not available") == 3
    assert json.dumps(result.as_json(), allow_nan=False)


def test_minimum_at_the_edge_of_the_sizes_tried_is_ignored():
    runs = isoflop_runs()
    compute = 6 * runs[N] * runs[D]
    lopsided = runs[runs[N] > 1.2 * true_size(1) * compute**SHARE]
    table = approaches(lopsided, resamples=0, **QUICK).frame()
    assert table["points"].tolist()[:2] == [0, 0]


def test_approaches_raise_when_compute_is_not_positive():
    with pytest.raises(InputError, match="`compute > 0` and finite must hold"):
        approaches(isoflop_runs(), compute=-1.0)


def test_sizes_within_ten_per_cent_are_one_size_of_a_minimum():
    # The control has the same number of sizes per budget, farther apart.
    for spread, points in ((0.03, 0), (0.6, 7)):
        table = approaches(isoflop_runs(steps=(-spread, spread)), resamples=0, **QUICK).frame()
        assert table["points"].tolist()[:2] == [points, points]
