"""The whole comparison on a few tokens: rates, resume, files, and the command's answers."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.search.cli import app
from shapelaw.search.families.budget import parse_variants, variant_named
from shapelaw.search.families.rates import choose_rate
from shapelaw.search.families.run import parse_rates
from shapelaw.search.families.training import (
    ComparisonPlan,
    require_finished,
    train_families,
)
from shapelaw.trainers.ledger.entry import DONE, Entry
from shapelaw.trainers.optimizers.recipe import Recipe
from shapelaw.trainers.sweep.folder import Folder
from support.command import shapelaw
from support.small_runs import small_corpus

RECIPE = Recipe(context_length=16, sequences=4)
LLAMA = variant_named("llama")


def plan(**changes: object) -> ComparisonPlan:
    """Make a plan of two families and a few steps with changed fields."""
    usual: dict[str, object] = {
        "variants": tuple(parse_variants("gpt2", "llama")), "parameters": 20_000, "tokens": 640,
        "seeds": 2, "recipe": RECIPE, "rates": (0.005, 0.01, 0.02), "rate_parameters": 20_000,
        "rate_tokens": 320,
    }  # fmt: skip
    return ComparisonPlan(**(usual | changes))  # type: ignore[arg-type]


class Stopped(Exception):
    """End of a comparison while it trains."""


def test_stopped_comparison_keeps_finished_runs_and_goes_on(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)

    def stop(entries: list[Entry]) -> None:
        if sum(entry.state == DONE for entry in entries) >= 2:
            raise Stopped

    with pytest.raises(Stopped):
        train_families(plan(), corpus, Folder(tmp_path), workers=1, report=stop)
    before = pd.read_csv(tmp_path / "runs.csv").set_index("run_id")
    trained = train_families(plan(), corpus, Folder(tmp_path), workers=1)
    after = pd.read_csv(tmp_path / "runs.csv").set_index("run_id")
    assert len(before) >= 1
    pd.testing.assert_series_equal(after.loc[before.index, "seconds"], before["seconds"])
    assert len(after) == 2 * 3 + 2 * 2
    assert len(trained.rows) == 4
    assert set(trained.rows["role"]) == {"family"}
    assert list(trained.rows["seed"]) == [0, 0, 1, 1]
    rates = {choice.variant.name: choice.rate for choice in trained.choices}
    for row in trained.rows.itertuples():
        assert row.learning_rate == pytest.approx(rates[str(row.family)])
        assert row.learning_rate_rest == pytest.approx(0.6 * rates[str(row.family)])


def test_rate_moves_from_the_middle_only_for_a_gain_above_the_noise() -> None:
    same = choose_rate(LLAMA, {0.01: 2.0, 0.005: 1.995, 0.02: 2.1})
    better = choose_rate(LLAMA, {0.01: 2.0, 0.005: 1.98, 0.02: 2.1})
    assert (same.rate, same.at_edge) == (0.01, False)
    assert (better.rate, better.at_edge) == (0.005, True)
    assert choose_rate(LLAMA, {0.01: float("inf"), 0.005: 2.5, 0.02: float("inf")}).rate == 0.005


def test_rates_that_all_diverge_are_an_error_of_the_work() -> None:
    infinite = float("inf")
    with pytest.raises(WorkError, match="llama diverged at every learning rate"):
        choose_rate(LLAMA, {0.01: infinite, 0.005: infinite, 0.02: infinite})


def test_diffusion_variant_trains_its_objective_with_a_mask_token() -> None:
    variant = variant_named("llama+block:4")
    settings = plan(variants=(LLAMA, variant))
    models = settings.models(20_000, 256)
    spec = settings.run(variant, models[variant], 0.01, 0, check=False)
    assert (spec.recipe.objective, spec.run_id.partition("-")[0]) == ("block:4", "llama+block4")
    assert (models[variant].vocab_size, models[variant].embedding.mask_token) == (257, 256)
    assert models[variant].n_active_non_embedding == models[LLAMA].n_active_non_embedding


def test_baseline_that_diverged_is_an_error_of_the_work_that_keeps_the_folder() -> None:
    rows = pd.DataFrame({"run_id": ["a", "b", "c"], "loss": [float("nan"), 2.0, None]})
    require_finished(rows, LLAMA, ["a", "b"])
    for lost in (rows, rows[["run_id"]]):
        with pytest.raises(WorkError, match="every run of the baseline llama diverged"):
            require_finished(lost, LLAMA, ["a", "c"])


@pytest.mark.parametrize("rates", ["0.01", "0.02,0.01,0.005", "0.01,0.01,0.02", "0,0.1,0.2", "a"])
def test_learning_rates_must_be_three_ascending_numbers(rates: str) -> None:
    with pytest.raises(InputError, match="`--lr-values` must be three"):
        plan(rates=parse_rates(rates, RECIPE))


def test_learning_rates_by_default_are_half_once_and_twice_the_recipes() -> None:
    assert parse_rates(None, Recipe(matrix_learning_rate=0.03)) == (0.015, 0.03, 0.06)


def test_rates_under_adamw_are_those_of_all_weights() -> None:
    recipe = Recipe(optimizer="adamw", learning_rate=0.004, matrix_learning_rate=0.5)
    assert parse_rates(None, recipe) == (0.002, 0.004, 0.008)
    (model,) = plan(variants=(LLAMA,)).models(20_000, 256).values()
    spec = plan(recipe=recipe).run(LLAMA, model, 0.008, 1, check=False)
    assert spec.recipe.for_shape(model).matrix_learning_rate == pytest.approx(0.008)


def test_one_seed_is_refused() -> None:
    with pytest.raises(InputError, match="`--seeds` must be from 2, to measure"):
        plan(seeds=1)


def answer(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare-families", *map(str, arguments)])
    if isinstance(done.exception, InputError):
        return 2, str(done.exception)
    return done.exit_code, done.output


BUDGET = ("--params", "100K", "--tokens", "2K")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--families", "bert"), "`--families` must be of llama,"),
        (("--params", "5K"), "`--params` must be a budget that every family meets"),
        (("--corpus", "absent.txt"), "absent.txt"),
        (("--lr-values", "1,2"), "`--lr-values` must be three"),
        (("--engine", "abacus"), "`--engine` must be one of"),
        (("--set", "depth=3"), "a setting of the recipe must be one of"),
        (("--done", "absent.csv"), "absent.csv"),
    ],
)
def test_command_refuses_bad_input_and_leaves_nothing(
    options: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = answer(*BUDGET, *options, "--out", "new")
    assert code == 2
    assert message in text
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_compares_four_variants_and_writes_table_and_figure(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    arguments = (
        "compare-families", "--params", "20K", "--tokens", "1K", "--corpus",
        tmp_path / "small.txt", "--families", "gpt2,llama+canon-AC,llama+block:4", "--seeds", "2",
        "--set",
        "context_length=16", "--set", "sequences=4", "--workers", "1", "--out", tmp_path / "out",
        "--json",
    )  # fmt: skip
    done = shapelaw(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {
        *("schema_version", "baseline", "tokens", "seed_sd_percent", "degrees_of_freedom"),
        *("resolution_percent", "families", "learning_rates", "notes"),
    }
    assert found["degrees_of_freedom"] == 3
    names = {"llama", "gpt2", "llama+canon-AC", "llama+block:4"}
    objectives = {"llama+block:4": "block:4"}
    assert {row["family"] for row in found["families"]} == names
    for row in found["families"]:
        assert row["objective"] == objectives.get(row["family"], "next_token")
        assert (row["decode_tokens_per_second"] or 0) > 0 or row["decode_note"], row["family"]
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert set(table["family"]) == names
    assert (table["n_active_non_embedding"] / 20_000 - 1).abs().max() <= 0.01
    assert (tmp_path / "out" / "families.png").stat().st_size > 5000
    assert len(pd.read_csv(tmp_path / "out" / "rates.csv")) == 4
    assert len(pd.read_csv(tmp_path / "out" / "runs.csv")) == 4 * 3 + 4 * 2
    again = shapelaw(*arguments)
    assert json.loads(again.stdout)["families"] == found["families"]
