import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shapelaw.scaling.architectures.shape import Shape
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.runs.ratios import with_ratios
from shapelaw.scaling.runs.reader import read_table
from shapelaw.trainers.commands.plan_cli import mount
from shapelaw.trainers.commands.plan_texts import Texts, allocation_of, grid_of, read_numbers
from shapelaw.trainers.ladder import confounding_check
from shapelaw.trainers.ladder.confounding_check import confounding
from shapelaw.trainers.ladder.from_design import plan_proposed
from shapelaw.trainers.ladder.grid import ANCHOR, PROXY, LadderAllocation, LadderGrid, Rung
from shapelaw.trainers.ladder.plan import Ladder, Planned, points_of
from shapelaw.trainers.ladder.plan_file import read_plan
from shapelaw.trainers.ladder.planner import plan_ladder
from shapelaw.trainers.ladder.selection import factorial
from shapelaw.trainers.ladder.space_filling import Cube, choose_filling, choose_heavy
from shapelaw.trainers.optimizers.recipe import Recipe, parse_settings, read_pairs
from shapelaw.trainers.training.cost_model import (
    ASSUMED,
    Price,
    measure_price,
    step_work,
    time_step,
)
from shapelaw.trainers.training.execution import Execution, predicted_seconds
from shapelaw.trainers.training.spec import RunSpec

SETTINGS = {"context_length": 64, "sequences": 4}


@cache
def two_sizes() -> Ladder:
    """Plan a ladder of two sizes with anchors and further head dimensions, once."""
    rungs = [
        Rung(parameters=100_000, shapes=10),
        Rung(parameters=300_000, shapes=12, layers=(2, 10), gqa=(1, 8)),
    ]
    return plan_ladder(rungs, grid=LadderGrid(other_head_dims=(16, 64)), settings=SETTINGS)


def one_size(**changes: object) -> Ladder:
    """Plan a small ladder without anchors."""
    usual: dict[str, object] = {"parameters": 100_000, "shapes": 6}
    return plan_ladder(
        [Rung(**(usual | changes))],  # type: ignore[arg-type]
        allocation=LadderAllocation(anchors=0),
        settings=SETTINGS,
    )


# Choice of shapes


def test_every_shape_is_within_two_percent_of_its_size_and_inside_its_ranges() -> None:
    points = two_sizes().points()
    for label, size, layers, gqa in (("100K", 1e5, 6, 4), ("300K", 3e5, 10, 8)):
        part = points[points["size"] == label]
        assert np.all(np.abs(part["n_non_embedding"] / size - 1) <= 0.02)
        assert part["num_hidden_layers"].between(2, layers).all()
        main = part[part["head_dim"] == 32]
        assert main["gqa"].between(1, gqa).all()
        assert main["mlp_to_attention"].between(0.5, 6.0).all()
        assert (main["hidden_size"] % 8 == 0).all()


@settings(max_examples=6)
@given(
    size=st.integers(80_000, 300_000),
    shapes=st.integers(5, 8),
    most_layers=st.integers(3, 8),
    head_dim=st.sampled_from((16, 32)),
    qk_norm=st.booleans(),
    seed=st.integers(0, 3),
)
def test_any_ladder_respects_size_ranges_and_number_of_shapes(
    size: int, shapes: int, most_layers: int, head_dim: int, qk_norm: bool, seed: int
) -> None:
    ladder = plan_ladder(
        [Rung(parameters=size, shapes=shapes, layers=(2, most_layers))],
        grid=LadderGrid(head_dim=head_dim, qk_norm=qk_norm),
        allocation=LadderAllocation(anchors=0),
        seed=seed,
    )
    chosen = [run.shape for run in ladder.runs]
    assert len(set(chosen)) == shapes
    for shape in chosen:
        assert abs(shape.n_non_embedding / size - 1) <= 0.02
        assert 0.5 <= shape.mlp_to_attention <= 6.0
        assert 2 <= shape.num_hidden_layers <= most_layers
        assert (shape.head_dim, shape.qk_norm) == (head_dim, qk_norm)


def test_a_ladder_of_real_sizes_is_unconfounded_and_spreads_over_its_ranges() -> None:
    ladder = two_sizes()
    ladder.require_unconfounded()
    assert ladder.worst <= 0.3
    assert all(value < 1.3 for part in ladder.confounding() for value in part.inflation.values())
    spread = points_of(ladder.runs).groupby("size")[
        ["hidden_over_sqrt_n", "mlp_to_attention", "num_hidden_layers"]
    ]
    assert ((spread.max() / spread.min()) > 2).all(axis=None)


def test_chosen_shapes_are_less_confounded_than_random_ones() -> None:
    grid, rung = LadderGrid(), Rung(parameters=300_000, shapes=12)
    table, generator = grid.shapes(rung, 32), np.random.default_rng(0)
    axes = ("hidden_over_sqrt_n", "mlp_to_attention", "gqa", "num_hidden_layers")
    random = [
        confounding(table.frame().loc[generator.choice(len(table), 12)], axes, part="").worst
        for _ in range(40)
    ]
    assert one_size(parameters=300_000, shapes=12).worst < np.quantile(random, 0.05)


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    frame = one_size().frame()
    pd.testing.assert_frame_equal(frame, one_size().frame(), check_exact=True)
    rung = Rung(parameters=100_000, shapes=6)
    other = plan_ladder([rung], allocation=LadderAllocation(anchors=0), settings=SETTINGS, seed=5)
    assert set(other.frame()["run_id"]) != set(frame["run_id"])


def test_shapes_with_another_head_dimension_are_twins_of_chosen_ones() -> None:
    points = two_sizes().points()
    for _, part in points.groupby("size"):
        main = part[part["head_dim"] == 32]
        for head_dim in (16, 64):
            twin = part[part["head_dim"] == head_dim].iloc[0]
            distance = sum(
                np.log(main[name] / twin[name]) ** 2
                for name in ("hidden_over_sqrt_n", "mlp_to_attention", "gqa", "num_hidden_layers")
            )
            assert distance.min() < 0.05


def test_a_factorial_has_shapes_at_every_combination_of_levels() -> None:
    ladder = plan_ladder(
        [Rung(parameters=1_000_000, shapes=16, gqa=(1, 4))],
        allocation=LadderAllocation(anchors=0),
        method="factorial",
    )
    points = ladder.points()
    high = points[["mlp_to_attention", "num_hidden_layers"]].rank(pct=True) > 0.5
    assert high.value_counts().min() >= 3
    with pytest.raises(InputError, match=r"levels\*\*axes for a factorial of 4 axes \(16, 81, 256"):
        factorial(Cube.alone(np.random.default_rng(0).random((50, 4)), 0.2), 12, (0,))


def test_too_few_shapes_and_empty_ranges_are_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match=r"`shapes` of 50K must be at most the .* is 5000; widen"):
        one_size(parameters=50_000, shapes=5000)
    with pytest.raises(InputError, match=r"lies inside .*gqa 31 to 31.*widen a range"):
        one_size(gqa=(31, 31))
    with pytest.raises(InputError, match="`0 < low <= high` must hold for gqa, but got 4:1"):
        Rung(parameters=1, shapes=1, gqa=(4, 1))
    with pytest.raises(InputError, match="`shapes >= 1` must hold, but got 0"):
        Rung(parameters=1, shapes=0)
    with pytest.raises(InputError, match="`method` must be one of latin-hypercube, factorial"):
        plan_ladder([Rung(parameters=100_000, shapes=4)], method="sobol")
    with pytest.raises(InputError, match=r"different sizes, but got \['100K', '100K'\]"):
        plan_ladder([Rung(parameters=100_000, shapes=n) for n in (4, 5)])


def test_chosen_filling_is_better_than_random_subsets_and_reproducible() -> None:
    points = np.random.default_rng(1).random((300, 3))
    cube = Cube.alone(points, 0.2)
    rows = choose_filling(cube, 12, seed=(0,))
    assert len(set(rows)) == 12
    assert (rows == choose_filling(cube, 12, seed=(0,))).all()
    kernel = cube.kernel(np.arange(300))

    def discrepancy(chosen: np.ndarray) -> float:
        return float(
            cube.discrepancy(cube.single[chosen].sum(), kernel[np.ix_(chosen, chosen)].sum(), 12)
        )

    generator = np.random.default_rng(2)
    random = [discrepancy(generator.choice(300, 12, replace=False)) for _ in range(50)]
    assert discrepancy(rows) < min(random)
    assert np.mean(random) == pytest.approx(1.0, abs=0.25)  # relative to random points


def test_discrepancy_equals_that_of_scipy() -> None:
    qmc = pytest.importorskip("scipy.stats").qmc
    points = np.random.default_rng(3).random((9, 3))
    cube = Cube.alone(points, 0.2)
    expected = ((5 / 4) ** 3 - (13 / 12) ** 3) / 9
    found = cube.discrepancy(cube.single.sum(), cube.kernel(np.arange(9)).sum(), 9)
    assert found * expected == pytest.approx(qmc.discrepancy(points, method="CD"))


def test_heavy_points_are_spread_and_leave_all_points_unconfounded() -> None:
    points = np.random.default_rng(4).random((16, 3))
    rows = choose_heavy(points, 4, extra=2.0, allowed=0.2)
    assert len(set(rows)) == 4
    assert np.ptp(points[rows], axis=0).min() > 0.4
    assert choose_heavy(points, 16, extra=2.0, allowed=0.2).tolist() == list(range(16))
    assert choose_heavy(points, 0, extra=2.0, allowed=0.2).tolist() == []
    many = np.random.default_rng(5).random((40, 3))  # more subsets than are compared
    assert len(choose_heavy(many, 8, extra=2.0, allowed=0.2)) == 8


# Roles, tokens and seeds


def test_anchors_have_seeds_and_branches_and_only_some_seeds_have_long_ones() -> None:
    frame = two_sizes().frame()
    for label, size in (("100K", 100_000), ("300K", 300_000)):
        part = frame[frame["size"] == label]
        anchors = part[part["role"] == ANCHOR]
        shapes = anchors.groupby(["hidden_size", "num_hidden_layers", "intermediate_size"])
        assert len(shapes) == 4
        for _, runs in shapes:
            found = runs.sort_values("seed")[["seed", "tokens", "branches"]].to_numpy().tolist()
            quarter, once, long = (str(round(20 * size * f)) for f in (0.25, 1, 4))
            assert found == [
                [0, int(long), f"{quarter};{once}"],
                [1, int(once), quarter],
                [2, int(once), quarter],
            ]
        proxies = part[part["role"] == PROXY]
        assert (proxies["tokens"] == 20 * size).all()
        assert (proxies["branches"] == "").all()
        assert (part["data_seed"] == 0).all()


def test_a_plan_with_branches_gets_a_warm_up_in_steps() -> None:
    recipe = two_sizes().runs[0].spec.recipe
    assert recipe.warmup_steps == round(0.05 * 20 * 100_000 / recipe.batch_tokens)
    assert "warmup_steps" in two_sizes().settings
    assert one_size().runs[0].spec.recipe.warmup_steps == 0


def test_points_count_each_token_count_once_for_all_seeds() -> None:
    ladder = two_sizes()
    counted = {(run.shape, tokens) for run in ladder.runs for tokens in run.counts}
    assert len(ladder.points()) == len(counted) == 2 * 4 * 2 + 10 + 12 + 4


def test_invalid_allocations_are_refused() -> None:
    for changes, message in (
        ({"tokens_per_parameter": 0.0}, "`tokens_per_parameter > 0` must hold"),
        ({"seeds": 0}, "`seeds >= 1` must hold, but got 0"),
        ({"anchors": -1}, "`anchors >= 0` must hold"),
        ({"branches": (0.0,)}, "`branches` must be positive factors"),
    ):
        with pytest.raises(InputError, match=message):
            LadderAllocation(**changes)  # type: ignore[arg-type]


def test_settings_of_the_recipe_are_parsed_by_type() -> None:
    assert parse_settings({"sequences": "2", "dtype": "bfloat16"}) == {
        "sequences": 2, "dtype": "bfloat16",
    }  # fmt: skip
    assert Recipe(**parse_settings({"dtype": "bf16"})) == Recipe(dtype="bfloat16")
    assert Recipe(dtype="fp32") == Recipe(dtype="float32")
    with pytest.raises(InputError, match=r"must be one of context_length, .*but got 'sequence'"):
        parse_settings({"sequence": 1})
    with pytest.raises(InputError, match="`sequences` must be of kind int, but got 'two'"):
        parse_settings({"sequences": "two"})


# Gates


def hand_made(ratios: list[tuple[int, int]]) -> Ladder:
    """Return a ladder of given (hidden size, layers), all at one token count."""
    runs = []
    for hidden, layers in ratios:
        shape = Shape(
            hidden_size=hidden, intermediate_size=64, num_hidden_layers=layers,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=256,
        )  # fmt: skip
        spec = RunSpec(
            run_id=str(shape).replace("/", "-"), shape=shape, tokens=10**6, recipe=Recipe()
        )
        runs.append(Planned(spec=spec, size="one"))
    return Ladder(runs=tuple(runs), method="by hand", candidates={"one": 9})


def test_a_confounded_plan_is_refused_and_every_pair_named() -> None:
    ladder = hand_made([(16, 6), (32, 4), (64, 3), (128, 2)])
    message = (
        r"`\|correlation\| <= 0.3` must hold .* shapes of one: ln hidden_over_sqrt_n and "
        r"ln num_hidden_layers correlate by -.*the whole plan.*or give --force"
    )
    with pytest.raises(InputError, match=message):
        ladder.require_unconfounded()
    ladder.require_unconfounded(most=1.0)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), count=st.integers(5, 30), axes=st.integers(2, 5))
def test_variance_inflation_equals_that_of_a_regression_on_the_other_axes(
    seed: int, count: int, axes: int
) -> None:
    logs = np.random.default_rng(seed).normal(size=(count + axes, axes))
    names = [f"x{i}" for i in range(axes)]
    found = confounding(pd.DataFrame(np.exp(logs), columns=names), names, part="p")
    for i, name in enumerate(names):
        others = np.column_stack([np.ones(len(logs)), np.delete(logs, i, axis=1)])
        residual = logs[:, i] - others @ np.linalg.lstsq(others, logs[:, i], rcond=None)[0]
        shares = (residual**2).sum() / ((logs[:, i] - logs[:, i].mean()) ** 2).sum()
        assert found.inflation[name] == pytest.approx(1 / shares, rel=1e-6)
    assert found.worst == pytest.approx(
        np.abs(np.corrcoef(logs.T)[np.triu_indices(axes, 1)]).max(), rel=1e-9
    )


def test_variance_inflation_of_a_combination_of_other_axes_is_infinite() -> None:
    x = np.exp(np.random.default_rng(0).normal(size=10))
    table = pd.DataFrame({"a": x, "b": x**2, "c": 7.0})
    found = confounding(table, ["a", "b", "c"], part="p")
    assert list(found.inflation) == ["a", "b"]
    assert found.inflation["a"] == np.inf
    assert found.as_json()["variance_inflation"] == {"a": None, "b": None}
    assert "no two axes vary" in confounding(table, ["c"], part="p").summary()
    assert confounding_check.correlation_matrix(np.zeros((3, 0))).shape == (0, 0)


# Costs


def test_a_plan_above_its_budget_is_refused_with_the_affordable_shapes() -> None:
    ladder = two_sizes()
    total = ladder.flops.sum()
    ladder.require_affordable(total)
    message = (
        "the plan costs .* and the budget is .*, 50% of it; by size: 100K .*, 300K .*; with one "
        "seed each it costs .*; the budget buys about 6 shapes of 100K, 7 shapes of 300K"
    )
    with pytest.raises(InputError, match=message):
        ladder.require_affordable(total / 2)


def test_flops_count_branches_and_sum_over_sizes() -> None:
    ladder = two_sizes()
    by_size = ladder.flops_by("size")
    assert sum(by_size.values()) == pytest.approx(ladder.flops.sum())
    long = next(run for run in ladder.runs if len(run.spec.branches) == 2).spec
    alone = replace(long, branches=())
    assert alone.flops < long.flops < alone.flops * 1.2


def test_seconds_are_predicted_from_known_coefficients() -> None:
    spec = one_size().runs[0].spec
    engine = Execution(attention="matmul", compilation="none")
    eager = replace(spec, engine=engine)
    price = Price(coefficients=(0.5, 0, 0, 0), rate="half a second a step")
    assert price.seconds(eager) == pytest.approx(0.5 * spec.steps)
    compiled = replace(spec, engine=Execution(attention="matmul", compilation="whole"))
    assert price.seconds(compiled) > price.seconds(eager)  # compilation takes its time
    passes = predicted_seconds(spec.shape, spec.recipe, engine, steps=spec.steps)
    assert ASSUMED.seconds(eager) == pytest.approx(1.1 * passes)


def test_calibration_recovers_the_cost_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = np.array([2e-3, 1e-4, 1e-9, 1.7])

    def timed(spec: RunSpec) -> float:
        return float(step_work(spec, spec.engine or Execution()) @ truth)

    monkeypatch.setattr("shapelaw.trainers.training.cost_model.time_step", timed)
    specs = [run.spec for run in two_sizes().runs]
    price = measure_price(specs)
    assert price.rate.startswith("measured on 12 shapes here")
    assert price.coefficients == pytest.approx(truth, rel=1e-3)
    assert "measured on 1 shape here" in measure_price(specs, seconds=0.0).rate


def test_a_step_of_a_real_model_is_timed() -> None:
    assert 0 < time_step(one_size().runs[0].spec) < 5


# Files and commands


def test_a_written_plan_is_read_back_by_the_trainer(tmp_path: Path) -> None:
    ladder = two_sizes()
    ladder.frame().to_csv(tmp_path / "plan.csv", index=False)
    corpus = SimpleNamespace(vocab_size=256, tokens_train=10**8)
    specs = read_plan(tmp_path / "plan.csv", corpus, Recipe())  # type: ignore[arg-type]
    assert [asdict(spec) for spec in specs] == [asdict(run.spec) for run in ladder.runs]


def test_summary_and_document_of_a_plan_agree() -> None:
    ladder = two_sizes()
    text, document = ladder.summary(), json.loads(json.dumps(ladder.as_json(), allow_nan=False))
    assert f"{len(document['runs'])} runs of 2 sizes" in text
    assert document["refusals"] == []
    assert "of the core that engines were measured on" in text
    for part in document["confounding"]:
        assert f"{part['part']}: {part['points']} points" in text
        assert f"largest |correlation| {part['worst']:.2f}" in text


def run_command(*arguments: object) -> "tuple[int, str, Exception | None]":
    app = typer.Typer()
    mount(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    return done.exit_code, done.stdout, done.exception  # type: ignore[return-value]


def test_the_command_writes_a_plan(tmp_path: Path) -> None:
    out = tmp_path / "plan.csv"
    code, text, _ = run_command(
        *("--sizes", "100K,200K", "--shapes", "5,6", "--layers", "2:6,2:8", "--anchors", "2"),
        *("--set", "context_length=64", "--no-calibrate", "--json", "--out", out),
    )
    assert code == 0
    document, table = json.loads(text), read_table(out)
    assert [row["run_id"] for row in document["runs"]] == table["run_id"].tolist()
    assert (table["context_length"] == 64).all()
    assert table["predicted_seconds"].gt(0).all()
    assert table.groupby("size").size().to_dict() == {"100K": 9, "200K": 10}


def test_the_command_refuses_a_confounded_or_costly_plan_and_writes_nothing(
    tmp_path: Path,
) -> None:
    out = tmp_path / "plan.csv"
    every = len(
        LadderGrid().shapes(Rung(parameters=50_000, shapes=1), 32)
    )  # wide ones are all shallow
    usual = ("--sizes", "50K", "--shapes", every, "--anchors", "0", "--no-calibrate", "--out", out)
    _, _, refused = run_command(*usual)
    assert isinstance(refused, InputError)
    assert "give --force" in str(refused)
    _, _, refused = run_command(*usual, "--budget-flops", "1e9", "--force")
    assert "must hold, but the plan costs" in str(refused)
    assert not out.exists()
    assert run_command(*usual, "--force")[0] == 0
    assert len(read_table(out)) == every


def test_options_are_parsed_by_size() -> None:
    texts = Texts(
        sizes="50K,.3M", shapes="8,16", layers="2:6,2:10", mlp_ratio="0.5:6", gqa="1:4,1:8",
        hidden="0.1:0.4",
    )  # fmt: skip
    small, large = texts.rungs()
    assert (small.label, small.shapes, small.layers, small.gqa) == ("50K", 8, (2, 6), (1, 4))
    assert (large.label, large.shapes, large.layers, large.gqa) == ("300K", 16, (2, 10), (1, 8))
    assert small.mlp_to_attention == large.mlp_to_attention == (0.5, 6)
    assert large.hidden_over_sqrt_n == (0.1, 0.4)
    assert texts.depths() == tuple(range(2, 11))
    grid = grid_of("32,16,64", 2, "4,2", vocab_size=256, qk_norm=True)
    assert (grid.head_dim, grid.other_head_dims, grid.other_shapes) == (32, (16, 64), 2)
    assert (grid.hidden_step, grid.mlp_step) == (4, 2)
    assert allocation_of(20, 1, "3", "0.25,4").anchor_seeds == 3
    assert allocation_of(20, 1, "3:5:2", "").long_seeds == 2


@pytest.mark.parametrize(
    ("layers", "depths"),
    [
        ("4", [(4,), (4,)]),
        ("2:4", [(2, 3, 4), (2, 3, 4)]),
        ("2:8:3", [(2, 5, 8), (2, 5, 8)]),
        ("8,2,4", [(2, 4, 8), (2, 4, 8)]),
        ("2,6", [(2, 6), (2, 6)]),
        ("2:4,6", [(2, 3, 4), (6,)]),
        ("2:6:2,4:8:4", [(2, 4, 6), (4, 8)]),
    ],
)
def test_depths_are_a_list_or_range_for_all_sizes_or_a_range_by_size(
    layers: str, depths: list[tuple[int, ...]]
) -> None:
    texts = Texts(sizes="50K,100K", shapes="8", layers=layers, mlp_ratio="1:2", gqa="1:2")
    assert [rung.depths for rung in texts.rungs()] == depths
    assert texts.depths() == tuple(sorted({*depths[0], *depths[1]}))


def test_plan_has_no_other_depths_than_the_listed_ones(tmp_path: Path) -> None:
    out = tmp_path / "plan.csv"
    usual = ("--sizes", "100K", "--shapes", "8", "--anchors", "0", "--no-calibrate", "--force")
    for layers, allowed in (("2,6", {2, 6}), ("2:6", {2, 3, 4, 5, 6})):
        assert run_command(*usual, "--layers", layers, "--out", out)[0] == 0
        found = set(read_table(out)["num_hidden_layers"])
        assert found <= allowed
        assert len(found) > 1


def test_invalid_options_are_refused_by_name() -> None:
    usual = {"sizes": "50K,100K", "shapes": "8", "layers": "2", "mlp_ratio": "1:2", "gqa": "1"}
    for changes, message in (
        ({"shapes": "1,2,3"}, "`--shapes` must have one value, or one for each of 2 sizes"),
        ({"gqa": "a:b"}, "a range must be LOW:HIGH such as 0.5:6, but got 'a:b'"),
    ):
        with pytest.raises(InputError, match=message):
            Texts(**usual | changes).rungs()
    with pytest.raises(InputError, match="`--anchors` must be COUNT"):
        allocation_of(20, 1, "four", "")
    with pytest.raises(InputError, match="`--steps` must have two values such as 8,4, but got '8'"):
        grid_of("32", 1, "8")
    with pytest.raises(InputError, match="`--head-dim` must be whole numbers"):
        grid_of("", 1, "8,4")
    with pytest.raises(InputError, match="`--branches` must be numbers"):
        read_numbers("a", "--branches")
    with pytest.raises(InputError, match="`--set` must be NAME=VALUE"):
        read_pairs(["sequences"])
    _, _, refused = run_command("--shapes", "3")
    assert "`--sizes`, or both `--next-runs` and `--runs`" in str(refused)


# Proposals of next_runs


def proposals() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": ["new", "new", "replicate"],
            "n_non_embedding": [1e5, 3e5, 3e5],
            "tokens": [2e6, 6e6, 6e6],
            "mlp_to_attention": [1.0, 3.0, 3.0],
            "hidden_over_sqrt_n": [0.2, 0.15, 0.15],
        }
    )


def test_proposals_become_valid_shapes_near_their_ratios() -> None:
    ladder = plan_proposed(proposals(), two_sizes().points(), layers=(2, 8), settings=SETTINGS)
    for run, asked in zip(ladder.runs, proposals().to_dict("records"), strict=True):
        assert abs(run.shape.n_non_embedding / asked["n_non_embedding"] - 1) <= 0.02
        assert abs(np.log(run.shape.mlp_to_attention / asked["mlp_to_attention"])) < np.log(1.2)
        assert abs(np.log(run.shape.hidden_over_sqrt_n / asked["hidden_over_sqrt_n"])) < np.log(1.2)
        assert run.spec.tokens == asked["tokens"]
    assert [run.spec.seed for run in ladder.runs] == [0, 0, 1]
    assert len({run.spec.run_id for run in ladder.runs}) == 3


def test_confounding_of_proposals_includes_the_runs_that_they_extend() -> None:
    points = two_sizes().points()
    ladder = plan_proposed(proposals(), points, settings=SETTINGS)
    (part,) = ladder.confounding()
    assert part.points == len(points) + 2  # the replicate is no further point
    ladder.require_unconfounded()
    alone = replace(ladder, joins=None)
    assert alone.worst > 0.9


def test_proposals_of_shapes_are_kept(tmp_path: Path) -> None:
    frame = two_sizes().frame().iloc[:3]
    ladder = plan_proposed(frame, two_sizes().points(), settings=SETTINGS)
    assert [run.shape for run in ladder.runs] == [run.shape for run in two_sizes().runs[:3]]
    frame.to_csv(tmp_path / "next.csv", index=False)
    runs = with_ratios(two_sizes().frame()).assign(loss=1.0)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    code, _, _ = run_command(
        *("--next-runs", tmp_path / "next.csv", "--runs", tmp_path / "runs.csv"),
        *("--no-calibrate", "--out", tmp_path / "plan.csv"),
    )
    assert code == 0
    assert len(read_table(tmp_path / "plan.csv")) == 3


def test_run_table_of_another_tool_is_joined_with_the_options_of_run_tables(tmp_path: Path) -> None:
    two_sizes().frame().iloc[:3].to_csv(tmp_path / "next.csv", index=False)
    runs = with_ratios(two_sizes().frame()).assign(loss=1.0)
    runs.loc[0, "loss"] = np.inf
    runs.rename(columns={"tokens": "D"}).to_csv(tmp_path / "runs.csv", index=False)
    given = ("--next-runs", tmp_path / "next.csv", "--runs", tmp_path / "runs.csv")
    given = (*given, "--no-calibrate", "--out", tmp_path / "plan.csv")
    _, _, error = run_command(*given)
    assert "--drop-failed" in str(error)
    _, _, error = run_command(*given, "--drop-failed")
    assert "--columns D=tokens" in str(error)
    code, _, _ = run_command(*given, "--drop-failed", "--columns", "D=tokens")
    assert code == 0
    assert len(read_table(tmp_path / "plan.csv")) == 3
    _, _, error = run_command("--sizes", "100K", "--where", "tokens > 1", "--no-calibrate")
    assert "`--where` must come with --runs" in str(error)


def test_proposals_without_a_near_shape_are_refused_by_row() -> None:
    far = proposals().assign(hidden_over_sqrt_n=3.0)
    with pytest.raises(InputError, match=r"proposal 1: no valid shape of 100K is near .*nearest"):
        plan_proposed(far, two_sizes().points(), layers=(2, 8))
    with pytest.raises(
        InputError, match="proposal 1 must have the fields of a shape or `n_non_emb"
    ):
        plan_proposed(pd.DataFrame({"tokens": [1e6]}), two_sizes().points())
