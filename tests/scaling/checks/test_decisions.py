"""Back-tests of decisions on synthetic tables, whose true law and noise are known."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.checks import decisions
from shapelaw.scaling.checks.decision_cases import MIN_SIZE_STEP, decision_cases
from shapelaw.scaling.checks.decisions import backtest_decisions
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from support.synthetic import TRUTH, synthetic_runs, true_loss

NOISE = 0.01
QUICK = {"starts": 4, "resamples": 100, "delta": 1e-2}


def table_of(**changes) -> RunTable:
    """Make a run table of synthetic runs at three sizes."""
    return RunTable(frame=synthetic_runs(**({"shapes": 6, "noise": NOISE} | changes)))


def true_statement(fitted, pair: pd.DataFrame, runs: list[int]) -> pd.DataFrame:
    """Decide with the true law: the normal probability of the known difference and noise."""
    loss = np.log(true_loss(pair.reset_index(drop=True), TRUTH))
    noise = fitted.noise * np.sqrt(np.sum(1 / np.array(runs)))
    run = norm.cdf((loss[1] - loss[0]) / noise)
    best = float(loss[0] < loss[1])
    return pd.DataFrame(
        {
            "p_best": [best, 1 - best],
            "p_best_run": [run, 1 - run],
            "difference_nats": [0.0, np.exp(loss[1]) - np.exp(loss[0])],
            "difference_nats_low": [0.0, 0.0],
            "difference_nats_high": [0.0, 0.0],
        }
    )


@pytest.fixture
def known_law(monkeypatch):
    """Replace fits and decisions with statements of the true law, distorted by a function."""

    def install(distort):
        def stated(fitted, pair, runs):
            table = true_statement(fitted, pair, runs)
            return table.assign(p_best_run=distort(table["p_best_run"].to_numpy()))

        fitted = replace(decisions.fit_quickly("chinchilla", table_of(), **QUICK), noise=NOISE)
        monkeypatch.setattr(decisions, "fit_quickly", lambda law, runs, **chosen: fitted)
        monkeypatch.setattr(decisions, "decide", stated)

    return install


# Cases.


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 9))
def test_decision_cases_of_synthetic_tables_are_disjoint_near_and_larger_than_their_fit(
    seed, shapes
):
    runs = table_of(seed=seed, shapes=shapes)
    used: list[int] = []
    for case in decision_cases(runs, "synthetic"):
        pair = [case.first[0], case.second[0]]
        used += [*case.first, *case.second]
        assert runs.sizes[pair].max() / runs.sizes[pair].min() <= 1.1 + 1e-9
        assert runs.tokens[pair].max() / runs.tokens[pair].min() <= 1.1 + 1e-9
        assert case.cut * MIN_SIZE_STEP <= runs.sizes[pair].min()
        assert runs.sizes[case.fitted].max() == case.cut
        assert case.distance > 0
    assert len(used) == len(set(used))


def test_decision_cases_do_not_depend_on_the_losses():
    runs = table_of(shapes=5)
    others = runs.assign(loss=runs.losses[::-1])
    for one, other in zip(decision_cases(runs), decision_cases(others), strict=True):
        assert one.first.tolist() == other.first.tolist()
        assert one.second.tolist() == other.second.tolist()


def test_decision_cases_pair_the_most_different_shapes_first():
    ratio = [0.1, 0.11, 0.4, 0.2, 0.1, 0.1]
    frame = pd.DataFrame(
        {
            "run_id": list("abcdef"),
            N: [1e6, 1e6, 1e6, 1e6, 1e5, 2e5],
            D: 1e7,
            "loss": 2.0,
            "hidden_over_sqrt_n": ratio,
        }
    )
    cases = decision_cases(RunTable(frame=frame))
    pairs = [(*frame["run_id"][case.first], *frame["run_id"][case.second]) for case in cases]
    assert pairs == [("a", "c"), ("b", "d")]
    assert cases[0].distance == pytest.approx(np.log(4))
    assert cases[0].sizes == 2


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 1),
        ({N: [1e6, 1.3e6, 1e5]}, 0),
        ({D: [1e7, 2e7, 1e7]}, 0),
        ({N: [1e6, 1e6, 9e5]}, 0),
        ({"hidden_over_sqrt_n": [0.1, 0.11, 0.1]}, 0),
        ({"learning_rate": [0.1, 0.2, 0.1]}, 0),
        ({"batch_sequences": [16, 64, 16]}, 0),
        ({"run_group": ["one", "one", "other"]}, 1),
    ],
)
def test_decision_needs_equal_n_d_and_recipe_another_shape_and_smaller_runs(change, count):
    frame = pd.DataFrame({"run_id": list("abc"), N: [1e6, 1.05e6, 1e5], D: 1e7, "loss": 2.0})
    frame = frame.assign(**({"hidden_over_sqrt_n": [0.1, 0.2, 0.1]} | change))
    assert len(decision_cases(RunTable(frame=frame))) == count


def test_checkpoints_of_one_run_are_used_in_one_decision_at_the_most_tokens():
    rows = [
        {"run_group": name, N: size, D: tokens, "hidden_over_sqrt_n": ratio}
        for name, size, ratio in (("a", 1e6, 0.1), ("b", 1e6, 0.3), ("small", 1e5, 0.1))
        for tokens in (1e7, 2e7, 4e7)
    ]
    frame = pd.DataFrame(rows).assign(loss=2.0)
    frame["run_id"] = [f"row-{row}" for row in range(len(frame))]
    runs = RunTable(frame=frame)
    (case,) = decision_cases(runs)
    assert runs.tokens[case.first].tolist() == runs.tokens[case.second].tolist() == [4e7]
    assert set(frame["run_group"].iloc[case.fitted]) == {"small"}


def test_table_without_columns_of_shapes_is_refused():
    frame = pd.DataFrame({"run_id": ["a"], N: [1e6], D: [1e7], "loss": [2.0]})
    with pytest.raises(InputError, match="decisions need a column that describes shapes"):
        decision_cases(RunTable(frame=frame))


# Back-tests against a known truth.


@pytest.mark.parametrize(
    ("distort", "right"),
    [
        (lambda p: p, True),
        (lambda p: np.where(p > 0.5, 0.97, 0.03), False),  # surer than the noise allows
    ],
    ids=["true probabilities", "overstated probabilities"],
)
def test_back_test_with_synthetic_truth_accepts_true_and_rejects_overstated_probabilities(
    known_law, distort, right
):
    known_law(distort)
    tables = {f"synthetic-{seed}": table_of(seed=seed, shapes=8) for seed in range(12)}
    report = backtest_decisions("conditional", tables)
    scored = report.scores()
    assert scored["decisions"] == len(report.decisions) > 200
    assert scored["sure"] > 30
    assert (scored["sure_low"] <= scored["sure_mean_stated"] <= scored["sure_high"]) == right
    # The expected Brier score of true probabilities is the mean of p (1 - p).
    p = report.decisions["p_best_run"]
    assert (abs(scored["brier"] - (p * (1 - p)).mean()) < 0.02) == right
    assert (scored["sharpness_of_oracle"] < 1) == right


def test_outcome_of_replicates_is_their_mean_with_less_noise(known_law):
    known_law(lambda p: p)
    frame = synthetic_runs(shapes=4, noise=NOISE, tokens=(1e6,))
    shape = dict.fromkeys(set(INTEGER_FIELDS) - {"vocab_size"}, 1)
    shape["hidden_size"] = 1 + np.arange(len(frame))
    frame = frame.assign(**shape)
    twice = frame.assign(run_id=frame["run_id"] + "-again", loss=frame["loss"] * 1.001)
    single = backtest_decisions("conditional", {"t": RunTable(frame=frame)}).decisions
    both = RunTable(frame=pd.concat([frame, twice], ignore_index=True))
    means = backtest_decisions("conditional", {"t": both}).decisions
    assert means["first"].str.count(",").eq(1).all()
    assert means["measured_nats"].to_numpy() == pytest.approx(1.0005 * single["measured_nats"])
    z = {name: norm.ppf(rows["p_best_run"]) for name, rows in (("1", single), ("2", means))}
    assert z["2"] == pytest.approx(np.sqrt(2) * z["1"])
    between = both.noise[0] * np.sqrt(2 / 2)
    losses = frame.set_index("run_id")["loss"]
    mean = [1.0005 * losses[[a, b]].mean() for a, b in single[["first", "second"]].to_numpy()]
    assert means["noise_nats"].to_numpy() == pytest.approx(between * np.array(mean))
    assert set(means["noise_from"]) == {"replicates"}


@pytest.fixture(scope="module")
def report():
    return backtest_decisions("conditional-steady", {"synthetic": table_of(shapes=9)}, **QUICK)


def test_fit_of_synthetic_runs_decides_with_the_differences_that_the_law_predicts(report):
    rows = report.decisions
    assert len(rows) > 12
    assert report.unavailable == {}
    assert (
        rows["predicted_nats"].between(rows["predicted_low"], rows["predicted_high"]).mean() > 0.8
    )
    favours_first = rows["predicted_nats"] > 0
    assert ((rows["p_best"] > 0.5) == favours_first).mean() > 0.9
    assert np.corrcoef(rows["predicted_nats"], rows["measured_nats"])[0, 1] > 0.5
    assert (rows["first_lower"] == (rows["measured_nats"] > 0)).all()
    assert report.scores()["brier"] < 0.25


def test_report_shows_reliability_oracle_and_decisions_as_text_json_and_markdown(report):
    text = report.summary()
    assert "reliability of stated probabilities" in text
    assert "the oracle takes the measured difference for the true one" in text
    document = json.loads(json.dumps(report.as_json()))
    assert document["scores"]["decisions"] == len(document["decisions"]) == len(report.frame())
    assert sum(row["n"] for row in document["reliability"]) == len(report.frame())
    header, _, *lines = report.markdown().split("By table\n\n")[1].strip().splitlines()
    assert header.startswith("| table | cuts | decisions |")
    assert len(lines) == 1


def test_tables_and_cuts_without_a_decision_are_listed_with_the_reason():
    few = table_of(sizes=(1e5, 1e6), tokens=(1e6,), shapes=2)
    alone = table_of(sizes=(1e5, 1e6), tokens=(1e6,), shapes=1)
    report = backtest_decisions("conditional", {"few": few, "alone": alone}, **QUICK)
    assert report.unavailable["alone"] == "no two larger shapes have nearly equal N and D"
    assert "needs at least" in report.unavailable["few up to 1e+05 parameters"]
    assert report.scores() == {"decisions": 0}
    assert "no decision could be tested" in report.summary()
