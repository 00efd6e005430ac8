"""Tests of budgets of a target loss: N, D and shape of the least cost of training and serving."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import shapelaw
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.lifetime import tokens_at_loss
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.units import format_count
from shapelaw.search.cli import app
from shapelaw.search.proposals.proposal import read_proposals
from support.quick_fits import known_runs
from support.usual_proposals import request_for

OPTIONS = ("--engine", "roofline:h100", "--workload", "1000/500@16")
LOSS = 2.08  # about that of the largest runs with the most tokens


@pytest.fixture(scope="module")
def law(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("law") / "fit.json"
    fit("conditional-steady", known_runs(120), starts=16, resamples=20).save(path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A law in which only N and D count."""
    path = tmp_path_factory.mktemp("plain") / "fit.json"
    fit("chinchilla", known_runs(120), starts=16, resamples=20).save(path)
    return path


def invoke(law: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["propose", *OPTIONS, "--law", str(law), *options])


def document(law: Path, *options: str) -> dict[str, Any]:
    result = invoke(law, "--json", "--target-loss", str(LOSS), *options)
    assert result.exit_code == 0, result.exception
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def found(law: Path) -> dict[str, dict[str, Any]]:
    return {served: document(law, "--serve-tokens", served) for served in ("0", "1e10", "1e11")}


def test_baseline_reaches_the_target_loss_and_better_shapes_come_below_it(
    found: dict[str, dict[str, Any]], law: Path
) -> None:
    """The equation reaches it: what the runs show beside the equation is in the prediction only."""
    fitted = Fit.load(law)
    for each in found.values():
        base, *others = each["proposals"]
        row = {name: np.array([float(base[name])]) for name in fitted.law.columns}
        assert fitted.central(row)[0] == pytest.approx(LOSS, rel=1e-6)
        assert base["predicted_loss"] == pytest.approx(fitted.expected(row)[0], rel=1e-6)
        assert base["tokens"] == each["tokens"]
        assert min(row["predicted_loss"] for row in others) < base["predicted_loss"]


def test_more_served_tokens_give_a_smaller_baseline_with_more_training_tokens(
    found: dict[str, dict[str, Any]],
) -> None:
    bases = [each["proposals"][0] for each in found.values()]
    assert np.all(np.diff([row["n_non_embedding"] for row in bases]) < 0)
    assert np.all(np.diff([row["tokens"] for row in bases]) > 0)


@pytest.mark.parametrize("served", ["0", "1e10", "1e12"])
def test_size_and_tokens_are_those_of_the_law(plain: Path, served: str) -> None:
    each = document(plain, "--serve-tokens", served)
    base = each["proposals"][0]
    best = shapelaw.lifetime_optimum(plain, LOSS, float(served))
    assert each["lifetime"]["n"] == best.n
    size, tokens = base["n_non_embedding"], base["tokens"]
    assert size == pytest.approx(best.n["value"], rel=0.1)
    assert tokens == pytest.approx(best.tokens["value"], rel=0.2)
    cost = 6 * size * tokens + 2 * size * float(served)
    assert best.total_flops * (1 - 1e-9) <= cost <= 1.01 * best.total_flops


def test_baseline_is_the_cheapest_of_the_models_proportions_near_the_optimum(
    found: dict[str, dict[str, Any]], law: Path
) -> None:
    fitted = Fit.load(law)
    base = found["1e10"]["proposals"][0]
    cost = base["n_non_embedding"] * (6 * base["tokens"] + 2 * 1e10)
    for factor in (0.5, 0.8, 1.25, 2.0):
        params = round(factor * base["n_non_embedding"])
        other = request_for(params=str(params), tokens="1B", layers=None, any_shape=False).baseline
        size = np.array([float(other.n_non_embedding)])
        ratios = {name: float(getattr(other, name)) for name in fitted.law.columns[2:]}
        (tokens,) = tokens_at_loss(fitted, fitted.theta, size, LOSS, ratios)
        assert cost < 1.02 * size[0] * (6 * tokens + 2 * 1e10)


def test_every_shape_has_its_counted_flops_of_training_and_serving(
    found: dict[str, dict[str, Any]],
) -> None:
    for row in found["1e11"]["proposals"]:
        matrices = 2 * (row["n_non_embedding"] + row["vocab_size"] * row["hidden_size"])
        width = row["num_attention_heads"] * row["head_dim"] * row["num_hidden_layers"]
        training = 3 * (matrices + 4 * width * 2048) * row["tokens"]
        serving = (matrices + 4 * width * (1000 + 500) / 2) * 1e11
        assert row["lifetime_flops"] == pytest.approx(training + serving, rel=1e-9)


def test_note_says_size_tokens_and_the_cost_of_the_model_of_least_training(
    found: dict[str, dict[str, Any]],
) -> None:
    lifetime = found["1e11"]["lifetime"]
    place = next(n for n, t in enumerate(found["1e11"]["notes"]) if "at the least cost" in t)
    note, optimum = found["1e11"]["notes"][place : place + 2]
    assert "training and serving 100B tokens (6ND + 2N for each served token" in note
    base = found["1e11"]["proposals"][0]
    cost = base["n_non_embedding"] * (6 * base["tokens"] + 2 * 1e11)
    assert f"N {format_count(base['n_non_embedding'])} and D {format_count(base['tokens'])}" in note
    assert note.endswith(f", {cost:.3g} FLOPs")
    trained = lifetime["without_serving"]
    totals = [
        6 * each["n"]["value"] * each["tokens"]["value"] + 2 * each["n"]["value"] * 1e11
        for each in (trained, lifetime)
    ]
    assert f"costs {totals[0] / totals[1]:.3g} times as much" in optimum
    assert len(note) <= 280
    assert len(optimum) <= 280
    assert totals[0] > totals[1]
    (alone,) = (text for text in found["0"]["notes"] if "at the least cost" in text)
    assert "serv" not in alone
    assert found["0"]["lifetime"]["without_serving"] is None


def test_wide_table_and_page_show_the_total_cost(law: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--target-loss", str(LOSS), "--serve-tokens", "1e12", "--wide", "--out", str(out))
    result = invoke(law, *options)
    assert "lifetime FLOPs" in result.stdout
    rows, about = read_proposals(out / "proposals.json", for_page=True)
    assert about["lifetime"]["served_tokens"] == 1e12
    assert all(row["lifetime_flops"] > 0 for row in rows)
    assert "FLOPs of training and serving" in (out / "report.html").read_text(encoding="utf-8")


TARGET = ("--target-loss", str(LOSS))
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "below the floor": (("--target-loss", "1.2"), r"`target loss > 1\.\d+` must hold: .* E is 1\."),
    "zero": (("--target-loss", "0"), "`target loss > 0`"),
    "no number": (("--target-loss", "nan"), "but got nan"),
    "with size": ((*TARGET, "--params", "1B"), "only one of `--target-loss`, `--params`"),
    "with tokens": ((*TARGET, "--tokens", "1B"), "only one of `--target-loss`, `--tokens`"),
    "with hours": (
        (*TARGET, "--train-hours", "8", "--hardware", "h100"),
        "only one of `--target-loss`, `--train-hours`",
    ),
    "nothing": ((), "`--params` or `--target-loss` must be given"),
    "served alone": (
        ("--params", "1B", "--tokens", "1B", "--serve-tokens", "1T"),
        "`--serve-tokens` belongs to --target-loss",
    ),
    "served as a word": ((*TARGET, "--serve-tokens", "many"), "a count must be a number"),
    "law without D": (
        (*TARGET, "--law", "paper-2510.18245"), "N and D trade off, but the law has no N and D"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_invalid_target_is_a_one_line_error(
    law: Path, options: tuple[str, ...], message: str
) -> None:
    error = invoke(law, *options).exception
    assert isinstance(error, InputError)
    assert re.search(message, str(error))
    assert "\n" not in str(error)
    assert len(str(error)) <= 300


def test_law_with_a_width_of_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    fit("width-depth", known_runs(), starts=16, resamples=20, delta=0.01).save(path)
    assert "hidden_size" in Fit.load(path).law.columns
    error = invoke(path, *TARGET).exception
    assert re.search("needs a law of N, D and shape ratios .* has hidden_size", str(error))


def test_target_that_needs_tokens_beyond_the_reach_of_the_law_is_refused(plain: Path) -> None:
    options = (*TARGET, "--serve-tokens", "1e17")
    error = invoke(plain, *options).exception
    assert isinstance(error, InputError)
    assert re.search("`--extrapolate` must be given .* D is .* times the largest run", str(error))
    assert invoke(plain, *options, "--extrapolate", "--json").exit_code == 0
