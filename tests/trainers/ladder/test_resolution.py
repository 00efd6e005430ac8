"""`sweep plan --resolve`: the written plan carries the seeds that a resolution needs."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from scipy import stats
from typer.testing import CliRunner

from shapelaw.scaling.architectures.shape import INTEGER_FIELDS
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.reader import read_table
from shapelaw.scaling.runs.table import write_runs
from shapelaw.trainers.commands.plan_cli import mount
from shapelaw.trainers.commands.resolve_options import Wish, parse_noise, parse_percent
from shapelaw.trainers.gpu.stack import stackable
from shapelaw.trainers.ladder.grid import LadderAllocation, Rung
from shapelaw.trainers.ladder.planner import plan_ladder
from shapelaw.trainers.training.cost_model import Price

USUAL = ("--sizes", "50K", "--shapes", "6", "--no-calibrate", "--force")


def run_plan(*options: object) -> tuple[str, Exception | None]:
    """Run the command here; return its output and its error."""
    app = typer.Typer()
    mount(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["plan", *USUAL, *map(str, options)])
    return done.stdout, done.exception  # type: ignore[return-value]


def resolved(out: Path, *options: object) -> dict[str, object]:
    """Run the command and return its JSON document."""
    text, error = run_plan("--json", "--out", out, *options)
    assert error is None
    return json.loads(text)


def refused(tmp_path: Path, *options: object) -> str:
    """Run the command, check that it wrote no plan, and return its error."""
    out = tmp_path / "plan.csv"
    _, error = run_plan("--out", out, *options)
    assert isinstance(error, InputError)
    assert not out.exists()
    return str(error)


def seeds_of(path: Path) -> set[int]:
    """Return the numbers of seeds of the shapes of a plan."""
    shape = [name for name in INTEGER_FIELDS if name != "vocab_size"]
    return set(read_table(path).groupby(shape)["seed"].nunique())


def test_plan_has_the_seeds_of_the_cheapest_alternative_by_the_noise_of_the_ladder(
    tmp_path: Path,
) -> None:
    out = tmp_path / "plan.csv"
    document = resolved(out, "--resolve", "0.8%", "--anchors", "0")
    short, long = document["resolution"]["alternatives"]
    quantile = stats.t.ppf(0.975, 24)
    for row, tokens, deviation in ((short, 5, 0.0064837), (long, 20, 0.0047774)):
        assert row["tokens_per_parameter"] == tokens
        assert row["noise"] == pytest.approx(deviation, rel=1e-3)
        assert row["seeds"] == np.ceil(2 * (quantile * row["noise"] / 0.008) ** 2)
        assert row["half_width"] <= 0.008
    assert short["flops"] < long["flops"]
    assert document["flops"] == pytest.approx(short["flops"])
    assert seeds_of(out) == {short["seeds"]}
    plan = read_table(out)
    assert set(plan["tokens"]) == {5 * 50_000}
    assert len(plan) == 6 * short["seeds"] == short["runs"]


def test_stated_tokens_and_noise_leave_one_alternative(tmp_path: Path) -> None:
    out = tmp_path / "plan.csv"
    options = ("--resolve", "0.5%", "--noise", "0.4%:10", "--tokens-per-param", "8")
    (row,) = resolved(out, *options, "--anchors", "0")["resolution"]["alternatives"]
    wanted = np.ceil(2 * (stats.t.ppf(0.975, 10) * 0.4 / 0.5) ** 2)
    assert (row["tokens_per_parameter"], row["noise_degrees"], row["seeds"]) == (8, 10, wanted)
    assert set(read_table(out)["tokens"]) == {400_000}


def test_more_seeds_than_the_resolution_needs_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "plan.csv"
    options = ("--resolve", "5%", "--noise", "0.4%", "--anchors", "0")
    assert resolved(out, *options)["resolution"]["alternatives"][0]["seeds"] == 1
    resolved(out, *options, "--seeds", "2")
    assert seeds_of(out) == {2}


def test_noise_of_a_given_table_replaces_that_of_the_ladder(tmp_path: Path) -> None:
    runs, out = tmp_path / "runs.csv", tmp_path / "plan.csv"
    frame = load_runs("proxies").frame
    near = (frame["tokens"] / frame["n_non_embedding"]).between(15, 25)
    write_runs(runs, frame[near & (frame["n_non_embedding"] < 70_000)])
    document = resolved(out, "--resolve", "1%", "--runs", runs, "--anchors", "0")
    (row,) = document["resolution"]["alternatives"]
    assert (row["noise_degrees"], row["tokens_per_parameter"]) == (8, 20)
    assert row["noise"] == pytest.approx(0.004325, rel=1e-3)


def test_law_reading_needs_more_than_its_misfit_and_says_so(tmp_path: Path) -> None:
    options = ("--resolve", "0.3%", "--resolve-by", "law", "--shapes", "10")
    error = refused(tmp_path, *options)
    assert "more seeds cannot help beyond it" in error
    assert "deviate from the law by 0.44 %" in error
    assert "--resolve-by runs" in error


def test_text_says_what_the_resolution_is_and_what_short_runs_are_worth(tmp_path: Path) -> None:
    output, _ = run_plan("--resolve", "1%", "--out", tmp_path / "plan.csv")
    text = " ".join(output.split())
    assert "half width of the 95 % interval of the difference in loss of two shapes" in text
    assert "2.2 times the shape information per FLOP of seeds at 20" in text
    assert "alternatives that resolve ±1 % (this plan: 4 seeds)" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resolve", "0.3"), "`--resolve` must be a percentage of the loss"),
        (("--resolve", "0.001%"), "`seeds <= 1000` must hold"),
        (("--resolve", "1%", "--resolve-by", "both"), "`--resolve-by` must be runs or law"),
        (("--noise", "1%"), "must come with --resolve"),
        (("--resolve", "1%", "--noise", "1%", "--runs", "x.csv"), "must not come together"),
        (("--resolve", "1%", "--next-runs", "x.csv"), "`--resolve` must come with --sizes"),
    ],
)
def test_impossible_or_unclear_wish_is_refused_without_a_plan(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in refused(tmp_path, *options)


def test_percentages_and_degrees_are_parsed_or_refused_by_option() -> None:
    assert parse_percent(" 0.3 %", "--resolve") == pytest.approx(0.003)
    noise = parse_noise("0.4%:24")
    assert (noise.deviation, noise.degrees) == (pytest.approx(0.004), 24)
    assert np.isinf(parse_noise("0.4%").degrees)
    for text, message in (
        ("0.4", "`--noise` must be a percentage"),
        ("-1%", "`--noise` must be a percentage"),
        ("0.4%:few", "`--noise` must be PERCENT or PERCENT:DEGREES"),
        ("0.4%:0", "`degrees of freedom >= 1`"),
    ):
        with pytest.raises(InputError, match=message):
            parse_noise(text)


def test_price_of_a_resolved_plan_changes_with_its_alternatives() -> None:
    def build(tokens: float, seeds: int) -> object:
        allocation = LadderAllocation(tokens_per_parameter=tokens, seeds=seeds, anchors=0)
        return plan_ladder([Rung(parameters=50_000, shapes=5)], allocation=allocation)

    wish = Wish.of("1%", "runs", "0.5%", None, None)
    assert wish is not None
    ladder = wish.plan(build, 10.0, 1)
    dearer = ladder.priced(Price(coefficients=(0.0, 0.0, 0.0, 10.0), rate="ten times"))
    (before,), (after,) = ladder.alternatives, dearer.alternatives
    assert after.ladder.seconds.sum() == pytest.approx(dearer.seconds.sum())
    assert after.ladder.seconds.sum() > 5 * before.ladder.seconds.sum()


def test_seeds_of_one_shape_that_can_be_stacked_follow_each_other() -> None:
    ladder = plan_ladder([Rung(parameters=50_000, shapes=6), Rung(parameters=100_000, shapes=6)],
                         allocation=LadderAllocation(seeds=4, anchors=2))  # fmt: skip
    groups = [stackable(run.spec) for run in ladder.runs]
    changes = 1 + sum(first != second for first, second in pairwise(groups))
    assert changes == len(set(groups)) < len(groups)
