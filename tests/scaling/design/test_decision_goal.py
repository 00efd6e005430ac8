"""Runs chosen for a decision: expected regret against closed forms, and the command."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

import shapelaw
from shapelaw.scaling.design.candidates import Limits
from shapelaw.scaling.design.goals import Decision, parse_goal
from shapelaw.scaling.design.greedy import GreedyChoice
from shapelaw.scaling.design.next_batch import next_runs
from shapelaw.scaling.design.regret import DecisionSelection
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.columns import D, N
from shapelaw.search.cli import app

RATIO = "mlp_to_attention"
MEAN, DEVIATION, NOISE = 0.003, 0.01, 0.006  # of the difference of two shapes, and of a run


def normal_draws(count: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw two shapes, a candidate that is their difference, an unrelated one, and noise."""
    generator = np.random.default_rng(0)
    difference = generator.normal(MEAN, DEVIATION, count)
    other = generator.normal(0, 0.02, count)
    shapes = np.stack([np.zeros(count), difference], axis=1)
    return shapes, np.stack([difference, other], axis=1), generator.normal(0, NOISE, count)


def unit_loss(u: float) -> float:
    """Compute the expected positive part of a standard normal variable minus u."""
    return float(norm.pdf(u) - u * norm.sf(u))


def explained(runs: int) -> float:
    """Standard deviation of the expected difference after k measurements of the difference."""
    return float(DEVIATION**2 / np.sqrt(DEVIATION**2 + NOISE**2 / runs))


@pytest.fixture(scope="module")
def selection() -> DecisionSelection:
    return DecisionSelection.of(*normal_draws(), np.array([1.0, 1.0]))


def regret_after(runs: int) -> float:
    before = DEVIATION * unit_loss(MEAN / DEVIATION)
    return before - explained(runs) * unit_loss(MEAN / explained(runs)) if runs else before


def test_expected_regret_of_two_shapes_equals_closed_form(selection):
    """Raiffa and Schlaifer's value of information for normal distributions."""
    assert selection.first_error == pytest.approx(regret_after(0), rel=0.03)
    state = selection.begin
    for runs in (1, 2, 3):
        offered = selection.errors_with(state)
        state = selection.add(state, 0)
        assert offered[0] == pytest.approx(selection.error(state), rel=1e-9)
        assert offered[0] == pytest.approx(regret_after(runs), abs=4e-5)  # Monte Carlo
        assert offered[1] > 1.2 * offered[0]  # an unrelated run tells nothing


def test_probability_of_being_right_equals_closed_form(selection):
    state = selection.begin
    assert selection.probability_right(state) == pytest.approx(norm.cdf(MEAN / DEVIATION), abs=0.05)
    state = selection.add(state, 0)
    expected = np.random.default_rng(1).normal(MEAN, explained(1), 200_000)
    left = np.sqrt(DEVIATION**2 - explained(1) ** 2)
    assert selection.probability_right(state) == pytest.approx(
        norm.cdf(np.abs(expected) / left).mean(), abs=0.02
    )


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    generator = np.random.default_rng(2)
    frame = pd.DataFrame(
        list(product((2e7, 6e7, 2e8), (1e9, 4e9), (0.6, 1.2, 2.4, 4.8))), columns=[N, D, RATIO]
    )
    loss = 1.7 + 400 / frame[N] ** 0.34 + 1000 / frame[D] ** 0.36
    apart = np.log(frame[RATIO] / 1.6)
    loss *= 1 + 0.04 * (apart + np.exp(-apart) - 1)
    names = [f"run-{i}" for i in range(len(frame))]
    return frame.assign(loss=loss * np.exp(generator.normal(0, 0.003, len(frame))), run_id=names)


@pytest.fixture(scope="module")
def fitted(runs) -> Fit:
    law = shapelaw.Chinchilla() * shapelaw.UShape(RATIO)
    return shapelaw.fit(law, runs, starts=8, resamples=1000)


@pytest.fixture(scope="module")
def shapes() -> pd.DataFrame:
    return pd.DataFrame({N: 4e8, D: 8e9, RATIO: [1.4, 1.8]})


def test_next_runs_for_a_decision_reduces_regret_and_raises_certainty(fitted, runs, shapes):
    design = next_runs(fitted, None, 3e20, goal=Decision(among=shapes), runs=runs)
    assert len(design.picks) > 0
    assert design.spent_flops <= 3e20
    regrets = [design.deviation_before, *(pick.deviation_after for pick in design.picks)]
    assert (np.diff(regrets) < 0).all()
    before, after = design.p_right
    assert 1 / len(shapes) <= before < after <= 1
    assert f"{before:.2f} -> {after:.2f}" in design.summary()
    shares = 1 - np.divide(regrets[1:], regrets[:-1])
    assert design.frame()["share_removed"].to_numpy() == pytest.approx(shares)


def test_regret_before_equals_that_of_the_decision(fitted, runs, shapes):
    design = next_runs(fitted, None, 3e20, goal=Decision(among=shapes), runs=runs)
    draws = fitted.log_loss_draws(shapes)
    expected = draws.mean(axis=0).min() - draws.min(axis=1).mean()
    assert design.deviation_before == pytest.approx(expected, rel=0.2)


def test_command_prints_probability_of_a_decision(fitted, runs, shapes, tmp_path):
    paths = [tmp_path / name for name in ("fit.json", "runs.csv", "shapes.csv")]
    fitted.save(paths[0])
    runs.to_csv(paths[1], index=False)
    shapes.to_csv(paths[2], index=False)
    given = ["next-runs", *map(str, paths[:2]), "--budget-flops", "3e20", "--json"]
    result = CliRunner().invoke(app, [*given, "--goal", f"decision:{paths[2]}"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["p_right_after"] > document["p_right_before"]
    assert document["goal"] == "the choice of the best of 2 shapes"
    assert isinstance(parse_goal(f"decision:{paths[2]}", fitted), Decision)


def test_tables_of_candidates_and_goals_take_the_names_of_the_run_table(
    fitted, runs, shapes, tmp_path
):
    names = {N: "N", D: "D"}
    paths = [tmp_path / name for name in ("fit.json", "runs.csv", "shapes.csv", "pool.csv")]
    fitted.save(paths[0])
    runs.rename(columns=names).to_csv(paths[1], index=False)
    shapes.rename(columns=names).assign(N="400M").to_csv(paths[2], index=False)
    pool = runs.drop(columns="loss").head(20)
    pool.to_csv(paths[3], index=False)  # as `next-runs` itself writes it
    given = ["next-runs", *map(str, paths[:2]), "--budget-flops", "3e20", "--json"]
    given += ["--goal", f"decision:{paths[2]}", "--candidates", str(paths[3])]
    refused = CliRunner().invoke(app, given)
    assert "type --columns D=tokens,N=n_non_embedding" in str(refused.exception)
    chosen = CliRunner().invoke(app, [*given, "--columns", "D=tokens,N=n_non_embedding"])
    assert chosen.exit_code == 0, chosen.output
    assert json.loads(chosen.stdout)["candidates"] == len(pool)
    runs.to_csv(paths[1], index=False)
    refused = CliRunner().invoke(app, given)
    assert str(refused.exception).startswith("the decision lacks")
    assert "type --columns N=n_non_embedding,D=tokens" in str(refused.exception)


def test_certain_decision_needs_no_runs(fitted, runs):
    clear = pd.DataFrame({N: 1e8, D: 4e9, RATIO: [1.6, 20.0]})
    design = next_runs(fitted, None, 3e20, goal=Decision(among=clear), runs=runs)
    assert not design.picks
    assert design.p_right == (1.0, 1.0)


def test_choice_by_variance_is_kept_where_no_single_run_changes_the_decision():
    """Several runs of one candidate turn a decision that one of them leaves as it is."""
    generator = np.random.default_rng(3)
    difference = generator.normal(0.02, 0.01, 4000)
    shapes = np.stack([np.zeros(4000), difference], axis=1)
    noise = generator.normal(0, 0.03, 4000)
    selection = DecisionSelection.of(shapes, difference[:, None], noise, np.ones(1))
    limits = Limits(most_runs=12, most_repeats=12, smallest_gain=0.01)
    myopic, *_ = GreedyChoice.best(selection, 100.0, limits)
    chosen, rule, _ = selection.best(100.0, limits)
    assert not myopic
    assert len(chosen) == 12
    assert "variance of differences" in rule
    assert chosen[-1][1] < 0.95 * selection.first_error


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0], "a decision must be among two or more rows, but got 1"),
        ([0, 0], "the shapes of a decision must differ in a column of the law"),
    ],
)
def test_decision_without_alternatives_is_refused(fitted, runs, shapes, rows, message):
    with pytest.raises(InputError, match=message):
        next_runs(fitted, None, 3e20, goal=Decision(among=shapes.iloc[rows]), runs=runs)
