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
from support.synthetic import RATIOS, TRUTH, synthetic_runs
from support.synthetic import true_loss as synthetic_loss

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


@pytest.fixture(scope="module")
def shaped() -> Fit:
    """Fit with ratios of 0.05 to 0.4 (√8 beyond either end), and GQA of 1 to 2 (factor 2)."""
    ranges = RATIOS | {"hidden_over_sqrt_n": (0.05, 0.4), "gqa": (1.0, 2.0)}
    runs = synthetic_runs(shapes=6, ranges=ranges)
    ends = {"hidden_over_sqrt_n": [0.05, 0.4], "gqa": [1.0, 2.0]}
    for name, values in ends.items():
        runs.loc[runs.index[:2], name] = values
    runs["loss"] = synthetic_loss(runs, TRUTH) * np.exp(
        0.003 * np.random.default_rng(2).standard_normal(len(runs))
    )
    return fit("conditional", runs, starts=16, resamples=400)


def test_ratio_is_in_reach_by_the_root_of_its_range_and_a_factor_of_two_at_least(shaped):
    columns = {N: 4e5, D: 8e6, "mlp_to_attention": 2.0}
    assert beyond_reach(shaped, columns | {"hidden_over_sqrt_n": 0.4 * 2.8, "gqa": 3.9}) == {}
    beyond = beyond_reach(shaped, columns | {"hidden_over_sqrt_n": [0.05 / 2.9, 0.1], "gqa": 64.0})
    assert beyond[0] == (
        "hidden_over_sqrt_n = 0.0172 is 1/2.9 of the smallest of the runs (0.05), "
        "gqa = 64 is 32 times the largest of the runs (2)"
    )
    others = {"gqa": (1.0, 32.0)}
    assert beyond_reach(shaped, columns | {"hidden_over_sqrt_n": 0.1, "gqa": 64.0}, others) == {}


def test_interval_beyond_a_ratio_widens_and_has_the_truth(shaped):
    rows = pd.DataFrame(
        {N: 4e5, D: 8e6, "hidden_over_sqrt_n": 0.15, "mlp_to_attention": 2.0,
         "gqa": [1.4, 4.0, 8.0, 16.0]}
    )  # fmt: skip
    predicted, truth = shaped.predict(rows), synthetic_loss(rows, TRUTH)
    assert (predicted["mean_low"].to_numpy() < truth).all()
    assert (predicted["mean_high"].to_numpy() > truth).all()
    widths = (predicted["mean_high"] - predicted["mean_low"]).to_numpy()
    assert (np.diff(widths) > 0).all()
    assert widths[-1] > 2 * widths[0]


def test_ratio_that_a_fit_without_a_prior_holds_is_in_reach_at_its_value_only():
    runs = synthetic_runs(shapes=6, ranges=RATIOS | {"gqa": (4.0, 4.0)})
    columns = {N: 4e5, D: 8e6, "hidden_over_sqrt_n": 0.1, "mlp_to_attention": 2.0}
    held = fit("conditional", runs, prior="none", starts=8, resamples=0)
    assert list(beyond_reach(held, columns | {"gqa": [4.0, 6.0]})) == [1]
    free = fit("conditional", runs, starts=8, resamples=0)
    assert list(beyond_reach(free, columns | {"gqa": [4.0, 6.0, 9.0]})) == [2]


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


@pytest.mark.parametrize("command", ["predict", "decide"])
def test_command_keeps_chosen_rows_with_their_lines_and_refuses_far_ratios(
    shaped, tmp_path, command
):
    shaped.save(tmp_path / "fit.json")
    rows = pd.DataFrame(
        {"run_id": ["left", "far", "near"], "params": 4e5, "seen": "8M", "gqa": [1.0, 32.0, 2.0],
         "hidden_over_sqrt_n": 0.1, "mlp_to_attention": 2.0}
    )  # fmt: skip
    rows.to_csv(tmp_path / "shapes.csv", index=False)
    arguments = [command, str(tmp_path / "fit.json"), str(tmp_path / "shapes.csv")]
    refused = CliRunner().invoke(app, arguments)
    assert "type --columns params=n_non_embedding" in str(refused.exception)
    arguments += ["--columns", "params=n_non_embedding,seen=tokens", "--exclude", "left"]
    refused = CliRunner().invoke(app, arguments)
    assert "line 3: gqa = 32 is 16 times the largest of the runs" in str(refused.exception)
    answered = CliRunner().invoke(app, [*arguments, "--where", "gqa < 4"])
    assert answered.exit_code == 0, answered.output
    assert "near" in answered.stdout
    assert "far" not in answered.stdout
    assert answered.stdout.rstrip().endswith(" 4")  # its line in the file
    empty = CliRunner().invoke(app, [*arguments, "--where", "gqa > 99"])
    assert "has no row left to use; loosen --where or --exclude" in str(empty.exception)
