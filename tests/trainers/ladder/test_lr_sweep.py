import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS, Shape
from shapelaw.scaling.errors import InputError, WorkError
from shapelaw.trainers.commands.lr_check_cli import mount, read_settings
from shapelaw.trainers.ladder.lr_sweep import LRSweepSettings, extremes, lr_check, pick, trials
from shapelaw.trainers.ladder.lr_verdict import LRTrial, RateCheck, judge
from shapelaw.trainers.sweep.folder import Folder, existing_ledger
from shapelaw.trainers.training.spec import RunSpec
from support.small_runs import RECIPE, SHAPE, small_corpus, spec

NOISE = 0.002


def shape(hidden: int, layers: int) -> Shape:
    return replace(SHAPE, hidden_size=hidden, num_hidden_layers=layers)


CORNERS = [shape(16, 2), shape(16, 8), shape(64, 2), shape(64, 8)]


def tried_at(shapes: list[Shape], **changes: object) -> list[LRTrial]:
    specs = [spec(run_id=str(each).replace("/", "-"), shape=each) for each in shapes]
    usual: dict[str, object] = {"tokens": 256}
    return trials(specs, LRSweepSettings(**(usual | changes)))  # type: ignore[arg-type]


def known_runs(
    tried: list[LRTrial], *, width: float = 0.0, depth: float = 0.0, best: float = 1.0, bend=0.05
) -> pd.DataFrame:
    """Return losses on a known parabola in ln rate whose optimum depends on the shape."""
    rows = []
    for trial in tried:
        optimum = (
            math.log(best)
            + width * math.log(trial.shape.hidden_size / 32)
            + depth * math.log(trial.shape.num_hidden_layers / 4)
        )
        noise = NOISE * (-1) ** trial.spec.seed
        ln_loss = bend * (math.log(trial.factor) - optimum) ** 2 + noise
        rows.append({"run_id": trial.spec.run_id, "loss": 2.0 * math.exp(ln_loss)})
    return pd.DataFrame(rows)


# Runs of a check


def test_every_shape_is_trained_at_three_rates_with_every_seed() -> None:
    tried = tried_at(CORNERS, factor=3.0, seeds=2, tokens=512)
    assert len(tried) == 4 * 3 * 2
    assert len({trial.spec.run_id for trial in tried}) == len(tried)
    for trial in tried:
        recipe = trial.spec.recipe
        assert recipe.learning_rate == pytest.approx(RECIPE.learning_rate * trial.factor)
        assert recipe.matrix_learning_rate == pytest.approx(
            RECIPE.matrix_learning_rate * trial.factor
        )
        assert (trial.spec.tokens, trial.spec.role) == (512, "lr-check")
    assert {trial.factor for trial in tried} == {1 / 3, 1.0, 3.0}


def test_one_of_the_two_rates_can_be_checked_alone() -> None:
    tried = tried_at(CORNERS[:1], rates=("learning_rate",))
    both = tried_at(CORNERS[:1])
    assert {trial.spec.recipe.matrix_learning_rate for trial in tried} == {
        RECIPE.matrix_learning_rate
    }
    assert not {t.spec.run_id for t in tried} & {t.spec.run_id for t in both}


def test_branches_are_left_out_and_tokens_follow_the_size() -> None:
    recipe = replace(RECIPE, warmup_steps=1)
    long = spec(recipe=recipe, tokens=64 * 40, branches=(64 * 10,))
    (first, *_) = trials([long], LRSweepSettings(tokens_per_parameter=2.0))
    assert first.spec.branches == ()
    assert first.spec.tokens == 2 * SHAPE.n_non_embedding


def test_invalid_settings_of_a_check_are_refused() -> None:
    for changes, message in (
        ({"factor": 1.0}, "`factor > 1` must hold, but got 1.0"),
        ({"seeds": 0}, "`seeds >= 1` must hold"),
        ({"seeds": 1}, "`seeds >= 2` must hold to measure the noise .* or give --seed-sd"),
        ({"rates": ("momentum",)}, "`rates` must be one or more of matrix_learning_rate"),
        ({"seed_sd": 2.0}, "`0 < seed_sd < 1` must hold"),
        ({"tokens_per_parameter": 0.0}, "`tokens_per_parameter > 0` must hold"),
    ):
        with pytest.raises(InputError, match=message):
            LRSweepSettings(**changes)  # type: ignore[arg-type]
    assert LRSweepSettings(seeds=1, seed_sd=0.002).seeds == 1


def test_the_four_corners_of_a_plan_are_its_extremes() -> None:
    inside = [shape(32, 4), shape(40, 4), shape(24, 3)]
    results = extremes([*inside, *CORNERS])
    narrow = min(results, key=lambda one: (one.hidden_over_sqrt_n, one.num_hidden_layers))
    assert len(results) == 4
    assert narrow.hidden_size == 16
    assert {one.num_hidden_layers for one in results} == {2, 8}
    assert extremes(CORNERS[:1]) == CORNERS[:1]


def test_runs_are_selected_by_name_or_by_size() -> None:
    specs = [spec(run_id=f"r{i}", shape=one) for i, one in enumerate(CORNERS)]
    assert [run.run_id for run in pick(specs, names=["r2", "r0"])] == ["r2", "r0"]
    size = CORNERS[0].n_non_embedding
    assert [run.shape for run in pick(specs, size=size)] == [CORNERS[0]]
    assert len(pick(specs)) == 4
    with pytest.raises(InputError, match="`run_id` must be in the plan, but 'r9' is not"):
        pick(specs, names=["r9"])
    with pytest.raises(InputError, match="`--size` must be a size of the plan, but is 7"):
        pick(specs, size=7)


# The verdict


def test_a_rule_at_the_optimum_passes_everywhere() -> None:
    tried = tried_at(CORNERS)
    check = judge(known_runs(tried), tried)
    assert check.passed
    check.require()
    assert check.seed_sd == pytest.approx(NOISE * math.sqrt(2))
    assert check.seed_sd_from.endswith("4 degrees of freedom")
    assert check.summary().startswith("pass: ")
    assert check.frame()["optimum"].to_numpy() == pytest.approx(1.0)


def test_a_rule_away_from_the_optimum_fails_and_the_better_rate_is_named() -> None:
    tried = tried_at(CORNERS)
    check = judge(known_runs(tried, best=1.8), tried)
    assert not check.passed
    with pytest.raises(WorkError, match=r"not at 4 of 4: .*x2 is better by .* SD; change the"):
        check.require()
    assert check.frame()["best"].tolist() == [2.0] * 4
    assert check.frame()["optimum"].to_numpy() == pytest.approx(1.8)


def test_a_small_excess_passes_only_if_the_noise_is_larger() -> None:
    tried = tried_at(CORNERS)
    runs = known_runs(tried, best=math.sqrt(2.2))  # x2 is a little better than x1
    excess = judge(runs, tried).shapes[0].excess
    assert 0 < excess < 0.01
    assert judge(runs, tried, seed_sd=excess * 1.01).passed
    assert not judge(runs, tried, seed_sd=excess * 0.99).passed
    assert judge(runs, tried, seed_sd=0.005).seed_sd_from == "given"


@settings(max_examples=40)
@given(
    width=st.floats(-0.4, 0.4),
    depth=st.floats(-0.4, 0.4),
    bend=st.floats(0.02, 0.5),
    factor=st.floats(1.5, 4.0),
)
def test_the_powers_that_a_rule_lacks_are_recovered(
    width: float, depth: float, bend: float, factor: float
) -> None:
    assume((abs(width) + abs(depth)) * math.log(2) < 0.95 * math.log(factor))
    tried = tried_at(CORNERS, factor=factor)
    check = judge(known_runs(tried, width=width, depth=depth, bend=bend), tried)
    assert check.exponents["hidden_size"][0] == pytest.approx(width, abs=1e-6)
    assert check.exponents["num_hidden_layers"][0] == pytest.approx(depth, abs=1e-6)
    assert all(error > 0 for _, error in check.exponents.values())


def test_error_of_an_optimum_equals_its_spread_over_noisy_losses() -> None:
    tried = tried_at(CORNERS[:1])
    runs, generator = known_runs(tried), np.random.default_rng(0)
    error = judge(runs, tried, seed_sd=NOISE).shapes[0].optimum_se
    results = []
    for _ in range(400):
        noisy = runs.assign(
            loss=runs["loss"] * np.exp(NOISE * generator.standard_normal(len(runs)))
        )
        results.append(math.log(judge(noisy, tried, seed_sd=NOISE).shapes[0].optimum))
    assert np.std(results) == pytest.approx(error, rel=0.15)


def test_an_optimum_outside_the_three_rates_is_missing() -> None:
    tried = tried_at(CORNERS)
    check = judge(known_runs(tried, best=5.0), tried)
    assert check.frame()["optimum"].isna().all()
    assert check.exponents == {}
    assert "no optimum between the three rates at 4 of 4 shapes, best at x2" in check.summary()


def test_a_diverged_rate_is_never_best_and_a_diverged_rule_fails() -> None:
    tried = tried_at(CORNERS[:1])
    runs = known_runs(tried)

    def diverged(factor: float) -> RateCheck:
        gone = {trial.spec.run_id for trial in tried if trial.factor == factor}
        return judge(
            runs.assign(loss=runs["loss"].mask(runs["run_id"].isin(gone))), tried, seed_sd=NOISE
        )

    assert diverged(2.0).passed
    assert math.isinf(diverged(2.0).shapes[0].losses[2.0])
    failed = diverged(1.0)
    assert not failed.passed
    document = json.loads(json.dumps(failed.as_json(), allow_nan=False))
    assert document["shapes"][0]["loss_x1"] is None
    with pytest.raises(InputError, match="runs did not diverge, to measure the noise"):
        judge(runs.assign(loss=np.nan), tried)


def test_a_trend_is_empty_if_the_shapes_do_not_vary() -> None:
    tried = tried_at([shape(16, 2), shape(64, 2)])
    check = judge(known_runs(tried, width=0.2), tried)
    assert list(check.exponents) == ["hidden_size"]
    assert judge(known_runs(tried[:6]), tried[:6]).exponents == {}


# The whole check, trained for real


@pytest.mark.slow
def test_a_check_resumes_from_its_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(tmp_path / "check")
    corpus = small_corpus(folder.path)
    asked = LRSweepSettings(tokens=128, seeds=2, factor=4.0)
    specs = [spec(run_id="one", shape=SHAPE)]
    check = lr_check(specs, corpus, folder, asked, workers=1)
    entries = existing_ledger(folder.path).entries()
    assert [entry.state for entry in entries] == ["done"] * 6
    means = check.shapes[0].losses
    rows = pd.DataFrame([row for entry in entries for row in entry.rows])
    at_rule = rows[np.isclose(rows["learning_rate"], RECIPE.matrix_learning_rate)]
    assert means[1.0] == pytest.approx(at_rule["loss"].mean())
    assert len(set(means.values())) == 3

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished run would be trained again")

    monkeypatch.setattr("shapelaw.trainers.sweep.sweep.supervise", never)
    again = lr_check(specs, corpus, folder, asked, workers=1)
    assert again.as_json() == check.as_json()


def test_command_prints_the_table_and_fails_if_the_check_fails(tmp_path: Path) -> None:
    named = {name: getattr(SHAPE, name) for name in INTEGER_FIELDS}
    row = named | {"qk_norm": True, "tokens": 256, "context_length": 16, "sequences": 4}
    pd.DataFrame([row]).to_csv(tmp_path / "plan.csv", index=False)
    text = tmp_path / "text.txt"
    text.write_text("\n<|endoftext|>\n".join(f"{n} times {n}" * 40 for n in range(60)))
    app = typer.Typer()
    mount(app)
    app.callback()(lambda: None)
    usual = ["lr-check", str(tmp_path / "plan.csv"), "--corpus", str(text), "--workers", "1"]
    done = CliRunner().invoke(
        app,
        [*usual, "--tokens", "256", "--seeds", "1", "--seed-sd", "1e-6", "--factor", "8",
         "--set", "learning_rate=1e-5", "--set", "matrix_learning_rate=1e-5",
         "--out", str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert document["passed"] is False
    assert document["shapes"][0]["best"] == 8.0
    assert isinstance(done.exception, WorkError)  # exit code 1


def test_options_of_a_check_are_parsed() -> None:
    results = read_settings(2.0, 2, "both", "20x", None)
    assert (results.tokens, results.tokens_per_parameter, len(results.rates)) == (None, 20.0, 2)
    assert read_settings(2.0, 1, "learning_rate", "2M", 0.002).tokens == 2_000_000
    with pytest.raises(InputError, match="`--tokens` must be 2M, or 20x"):
        read_settings(2.0, 2, "both", "manyx", None)


def test_specs_of_a_check_survive_a_round_trip_through_the_ledger() -> None:
    for trial in tried_at(CORNERS[:1]):
        assert RunSpec.from_json(trial.spec.as_json()) == trial.spec
