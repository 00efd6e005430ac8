"""Tests of where predictions stop: tables whose N and D move together, and targets far away."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.reach import beyond_reach
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.search.cli import app

SIZES = 2e7 * 2.0 ** np.arange(8)
QUICK = {"starts": 64, "resamples": 200}


def true_loss(sizes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the losses of a known law, nats per token."""
    return np.asarray(1.82 + 482 / sizes**0.348 + 2085 / tokens**0.366)


def ladder(ratio: float, power: float = 1.0) -> pd.DataFrame:
    """Return runs at D = ratio · N^power, with the losses of the known law and a little noise."""
    tokens = ratio * SIZES**power
    noise = 1 + 0.002 * np.random.default_rng(1).standard_normal(len(SIZES))
    return pd.DataFrame({N: SIZES, D: tokens, "loss": true_loss(SIZES, tokens) * noise})


@pytest.fixture(scope="module")
def on_a_ray() -> Fit:
    """Fit of a table with D = 20 N."""
    return fit("chinchilla", ladder(20), **QUICK)


@pytest.mark.parametrize(("ratio", "power"), [(20, 1.0), (100, 1.0), (5e4, 0.6)])
def test_interval_off_a_collinear_ray_spans_every_split_and_has_the_truth(ratio, power):
    fitted = fit("chinchilla", ladder(ratio, power), **QUICK)
    assert any(note.startswith("N and D cannot be told apart") for note in fitted.notes)
    on = pd.DataFrame({N: [3.2e8], D: [ratio * 3.2e8**power]})
    for factor in (0.1, 10, 30):
        away = on.assign(tokens=factor * on[D])
        truth = float(true_loss(away[N], away[D])[0])
        near, far = fitted.predict(on).iloc[0], fitted.predict(away).iloc[0]
        assert far["loss_low"] < truth < far["loss_high"]
        assert far["loss_high"] - far["loss_low"] > 3 * (near["loss_high"] - near["loss_low"])


def test_note_on_a_ray_is_absent_where_tokens_vary_apart_from_size():
    apart = pd.concat([ladder(10), ladder(100)], ignore_index=True)
    notes = fit("chinchilla", apart, starts=16, resamples=0).notes
    assert not any("told apart" in note for note in notes)


def test_rows_beyond_a_decade_and_a_half_are_named_with_their_factor(on_a_ray):
    largest = SIZES[-1]
    sizes = [largest * 31, largest * 3200, SIZES[0] / 40]
    columns = {N: sizes, D: [20 * size for size in sizes]}
    beyond = beyond_reach(on_a_ray, columns)
    assert list(beyond) == [1, 2]
    assert beyond[1].startswith("N is 3,200 times the largest run (2.56B)")
    assert beyond[2].startswith("N is 1/40 of the smallest run (20M)")
    assert beyond_reach(on_a_ray, {N: sizes[0], D: 2e13}, {N: (1e7, 1e12), D: (1e9, 1e14)}) == {}


def test_held_term_of_a_fit_without_a_prior_limits_it_to_its_ray_or_level():
    ray = fit("chinchilla", ladder(20), prior="none", starts=16, resamples=0)
    beyond = beyond_reach(ray, {N: [1e8, 1e8], D: [2e9, 2e10]})
    assert beyond == {1: "all runs have D = 20 N, and D is 20B"}
    level = fit("chinchilla", ladder(1e9, 0.0), prior="none", starts=16, resamples=0)
    beyond = beyond_reach(level, {N: [1e8, 1e8], D: [1.05e9, 3e9]})
    assert beyond == {1: "all runs have one token count (1B), and D is 3B"}


@pytest.mark.parametrize("command", ["predict", "decide"])
def test_command_refuses_far_rows_unless_told_and_keeps_run_ids(on_a_ray, tmp_path, command):
    on_a_ray.save(tmp_path / "fit.json")
    rows = pd.DataFrame({"run_id": ["near", "far"], N: [1e8, 1e12], D: [2e9, 2e13]})
    rows.to_csv(tmp_path / "shapes.csv", index=False)
    arguments = [command, str(tmp_path / "fit.json"), str(tmp_path / "shapes.csv"), "--json"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code != 0
    assert "line 3: N is 391 times the largest run (2.56B)" in str(refused.exception)
    answered = CliRunner().invoke(app, [*arguments, "--extrapolate"])
    assert answered.exit_code == 0
    document = json.loads(answered.stdout)
    table = document["predictions" if command == "predict" else "rows"]
    assert [row["run_id"] for row in table] == ["near", "far"]
    assert "line 3: N is 391 times the largest run" in answered.stderr
