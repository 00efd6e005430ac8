"""The back-test of the autopilot: its synthetic truth, its table and its summary."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import autopilot

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.search.autopilot.autopilot_plan import AutopilotSettings
from shapelaw.search.autopilot.stopping import StoppingRule
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.training.spec import RunSpec

SHAPE = Shape(
    hidden_size=96, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, vocab_size=256,
)  # fmt: skip
SPEC = RunSpec(
    run_id="one", shape=SHAPE, tokens=2_000_000, recipe=Recipe(warmup_steps=20),
    branches=(500_000,),
)  # fmt: skip
SETTINGS = AutopilotSettings(params=200_000, tokens=2_000_000, budget_hours=1.0)


def test_truth_gives_every_branch_the_law_plus_noise_of_its_seed() -> None:
    truth = autopilot.Truth.drawn(1)
    rows, again = truth.train([SPEC]), truth.train([SPEC])
    exact = replace(truth, noise=0.0).train([SPEC])
    pd.testing.assert_frame_equal(rows, again)
    assert rows["tokens"].tolist() == [500_000, 2_000_000]
    np.testing.assert_allclose(np.log(exact["loss"]), truth.log_loss(exact))
    assert (abs(np.log(rows["loss"] / exact["loss"])) > 0).all()
    other = truth.train([replace(SPEC, run_id="other", seed=1)])
    assert (other["loss"] != rows["loss"]).all()


def test_truth_has_its_lowest_loss_at_its_optimum() -> None:
    truth = autopilot.Truth({})
    ratios = np.geomspace(0.05, 0.6, 400)
    frame = pd.DataFrame(
        {"hidden_over_sqrt_n": ratios, "n_non_embedding": autopilot.ANCHOR_SIZE, "tokens": 1e6,
         "mlp_to_attention": 2.0, "gqa": 1.0}
    )  # fmt: skip
    best = ratios[truth.log_loss(frame).argmin()]
    assert np.log(best) == pytest.approx(autopilot.DRAWN["hidden_over_sqrt_n_optimum"][0], abs=0.01)


def test_summary_counts_only_sure_stops_as_promised_ones() -> None:
    usual = {"right_by_chance": 0.1, "rounds": 2, "flops": 1.0, "grid_flops": 10.0}
    results = [
        usual | {"certainty": 0.95, "certain": True, "regret": 0.001},
        usual | {"certainty": 0.93, "certain": True, "regret": 0.006},
        usual | {"certainty": 0.50, "certain": False, "regret": 0.001},
    ]
    found = autopilot.summary(results, SETTINGS)
    assert (found["sure"], found["sure_and_right"], found["right_of_unsure"]) == (2, 1, "1 of 1")
    assert found["flops_over_grid"] == pytest.approx(0.1)
    low, high = found["wilson_90"]
    assert low < 0.5 < high


@pytest.mark.usefixtures("mirror")
def test_table_is_looked_up_and_no_run_is_charged_twice() -> None:
    target = autopilot.TARGETS[0]
    found = autopilot.look_up(target, StoppingRule(certainty=0.999, budget_hours=1e9, patience=1))
    assert found["shapes"] == 4
    assert 0 <= found["regret"] <= found["largest_regret"] < 0.05
    assert 0 < found["flops_over_grid"] < 5
    problem = autopilot.LookedUp.of(target)
    first = problem.first_runs()
    left = problem.candidates(problem.choices_frame, first)
    assert not set(left["run_id"]) & {run["run_id"] for run in first}
    assert problem.runs_of(left.iloc[[0, 0, 1]], first) == [
        {"run_id": name} for name in left["run_id"].iloc[:2]
    ]
