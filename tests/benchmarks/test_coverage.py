"""The benchmark of coverage: its truths, and its statements about fitted tables."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import coverage

SETTINGS = ("--case", "balanced", "--resamples", "40", "--starts", "4")


@pytest.mark.parametrize("case", coverage.CASES)
def test_lowest_loss_is_the_one_that_the_prior_refers_to(case: str) -> None:
    truth = coverage.draw_truth(coverage.CASES[case], table=0)
    assert np.log(truth.runs["loss"].min()) == pytest.approx(np.log(3.0), abs=0.02)


@pytest.mark.parametrize("deviations", [0, 1, 2])
def test_fixed_truth_lies_at_its_distance_from_the_prior_mean(deviations: int) -> None:
    truth = coverage.draw_truth(coverage.Case(deviations=deviations), table=3)
    assert abs(truth.parameters["gqa_slope"]) == pytest.approx(0.008 * deviations)
    curvature = truth.parameters["mlp_to_attention_curvature"]
    assert abs(np.log(curvature / 0.03)) == pytest.approx(1.2 * deviations)


def test_interaction_is_its_share_of_the_loss_at_a_corner_of_the_ranges() -> None:
    case = coverage.CASES["interaction of 3 %"]
    columns = {name: np.array(ends) for name, ends in coverage.RANGES.items()}
    columns |= {"n_non_embedding": np.full(2, 1e8), "tokens": np.full(2, 2e9)}
    misfit = coverage.Misfit.of(columns)
    deviations = coverage.misfit_of(case, misfit, columns, np.random.default_rng(0))
    np.testing.assert_allclose(deviations, 0.03)


def test_statement_about_another_truth_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = coverage.draw_truth(coverage.CASES["balanced"], table=0)
    fitted = coverage.fit(coverage.LAW, truth.runs, starts=4, resamples=40, prior="weak")
    monkeypatch.setattr(coverage, "fit", lambda *args, **settings: fitted)
    wrong = replace(
        truth,
        log_losses=tuple(losses + np.eye(5)[1] for losses in truth.log_losses),
        new_runs=2 * truth.new_runs,
        parameters={name: 9 * value + 9 for name, value in truth.parameters.items()},
    )
    held = coverage.measure(wrong, "weak", starts=4, resamples=40, seed=0)["cells"]
    assert not any(held.values())


def test_tables_run_in_two_parts_are_summarised_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lines = tmp_path / "lines.jsonl"
    monkeypatch.setattr(sys.modules["record"], "RESULTS", tmp_path)

    def run(tables: int) -> dict:
        arguments = ["coverage.py", *SETTINGS, "--tables", str(tables), "--lines", str(lines)]
        monkeypatch.setattr(sys, "argv", arguments)
        coverage.main()
        return json.loads((tmp_path / "coverage.json").read_text())["priors"]["weak"]["balanced"]

    assert run(1)["tables"] == 1
    first = lines.read_text()
    both = run(2)
    assert both["tables"] == 2
    assert lines.read_text().startswith(first)
    assert "| balanced | weak | 2 |" in capsys.readouterr().out
    held = [cell["share"] for cell in both["cells"].values()]
    assert np.mean(held) >= 0.5  # of 12 intervals at 95 %: by chance once in 10 million
