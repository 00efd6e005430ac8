import json
import os
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from shapelaw.scaling.design.candidates import Limits, costs, grid_candidates, inside
from shapelaw.scaling.design.goals import GoalRanking, Optimum, Prediction, Targets, parse_goal
from shapelaw.scaling.design.greedy import Selection
from shapelaw.scaling.design.linearised import (
    MAX_PLACES,
    Points,
    law_columns,
    merged,
    points_at,
    prior_deviations,
    scatter_of,
)
from shapelaw.scaling.design.next_batch import Design, next_runs
from shapelaw.scaling.design.noise import Scatter, estimate_scatter
from shapelaw.scaling.display.text import view_text
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.runs.catalog import load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.search.cli import app

TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 1000.0, "beta": 0.36}
FAR = pd.DataFrame([{N: 1e10, D: 2e11}])
QUIET = Scatter(noise=0.004, misfit=0.002, reference=1e8)


def runs_of_the_law(noise: float = 0.004, seed: int = 0) -> pd.DataFrame:
    """Compute losses of a known Chinchilla law with noise on a grid."""
    sizes, tokens = np.geomspace(2e7, 1e9, 5), np.geomspace(5e8, 2e10, 4)
    frame = pd.DataFrame(list(product(sizes, tokens)), columns=[N, D])
    law = TRUTH["E"] + TRUTH["A"] / frame[N] ** TRUTH["alpha"]
    law += TRUTH["B"] / frame[D] ** TRUTH["beta"]
    drawn = np.random.default_rng(seed).normal(0, noise, len(frame))
    return frame.assign(loss=law * np.exp(drawn), run_id=[f"run-{i}" for i in range(len(frame))])


def synthetic_shapes() -> pd.DataFrame:
    """Draw runs of a known conditional law at three sizes, whose best MLP ratio is 1.5."""
    generator = np.random.default_rng(1)
    places = list(product((2e7, 1e8, 5e8), (1e9, 4e9, 2e10), (0.05, 0.08, 0.13), (0.6, 1.6, 4.0)))
    frame = pd.DataFrame(places, columns=[N, D, "hidden_over_sqrt_n", "mlp_to_attention"])
    loss = 1.7 + 400 / frame[N] ** 0.34 + 1000 / frame[D] ** 0.36
    for name, best in (("hidden_over_sqrt_n", 0.08), ("mlp_to_attention", 1.5)):
        apart = np.log(frame[name] / best)
        loss *= 1 + 0.05 * (apart + np.exp(-apart) - 1)
    frame["gqa"] = generator.choice([1.0, 2.0, 4.0], len(frame))
    return frame.assign(loss=loss * np.exp(generator.normal(0, 0.002, len(frame))))


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return runs_of_the_law()


@pytest.fixture(scope="module")
def fitted(runs: pd.DataFrame) -> Fit:
    return fit("chinchilla", runs, starts=8, resamples=0)


@pytest.fixture(scope="module")
def shapes() -> pd.DataFrame:
    return synthetic_shapes()


@pytest.fixture(scope="module")
def shaped(shapes: pd.DataFrame) -> Fit:
    return fit("conditional-steady", shapes, starts=8, resamples=0)


def random_selection(seed: int) -> Selection:
    """Draw random points and targets: the algebra holds for any gradients, not only a law's."""
    generator = np.random.default_rng(seed)

    def points(count: int) -> Points:
        gradient, place = generator.normal(size=(count, 3)), generator.normal(size=(count, 2))
        size = np.exp(generator.normal(size=count))
        return Points(gradient=gradient, place=place, size=size, shares=np.ones(count))

    at, mixed = points(2), generator.normal(size=(2, 2))
    price = generator.uniform(1, 5, 7)
    wanted = Targets(points=at, combination=mixed, description="a target")
    scatter = Scatter(noise=0.3, misfit=0.4, noise_slope=0.5, reach=1.0)
    return Selection.of(points(6), wanted, points(7), price, scatter)


def direct_error(seed: int, added: list[int]) -> float:
    """Compute the criterion by dense matrices, from the draws of :func:`random_selection`."""
    generator = np.random.default_rng(seed)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        gradient, place = generator.normal(size=(count, 3)), generator.normal(size=(count, 2))
        return gradient, place, np.exp(generator.normal(size=count))

    at, mixed = draw(2), generator.normal(size=(2, 2))
    generator.uniform(1, 5, 7)
    trained, pool = draw(6), draw(7)
    gradient, place, size = (
        np.concatenate((a, b[added])) for a, b in zip(trained, pool, strict=True)
    )

    def shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return 0.16 * np.exp(-((one[:, None] - other) ** 2).sum(-1) / 2)

    covariance = shared(place, place) + np.diag(0.09 / size)
    weight = 1 / 0.25
    inverse = np.linalg.inv(np.eye(3) + weight * gradient.T @ gradient)
    by = mixed @ at[0] @ inverse
    pull = weight * by @ gradient.T  # what each run adds to each target
    error = pull @ covariance @ pull.T - 2 * pull @ shared(place, at[1]) @ mixed.T
    error += mixed @ shared(at[1], at[1]) @ mixed.T + by @ by.T
    return float(np.diag(error).mean())


class TestCriterion:
    @given(st.integers(0, 200), st.lists(st.integers(0, 6), max_size=5))
    @settings(max_examples=25)
    def test_rank_one_updates_equal_direct_inversion(self, seed, added):
        selection = random_selection(seed)
        state = selection.begin
        for position in added:
            state = selection.add(state, position)
        assert selection.error(state) == pytest.approx(direct_error(seed, added), rel=1e-8)

    @given(st.integers(0, 200))
    @settings(max_examples=15)
    def test_error_predicted_for_each_candidate_equals_the_error_after_adding_it(self, seed):
        selection = random_selection(seed)
        state = selection.add(selection.begin, 2)
        ahead = selection.errors_with(state)
        added = [selection.error(selection.add(state, position)) for position in range(7)]
        np.testing.assert_allclose(ahead, added, rtol=1e-9)

    def test_criterion_equals_the_mean_squared_error_of_simulated_fits(self):
        generator = np.random.default_rng(3)
        gradient, place = generator.normal(size=(8, 2)), generator.normal(size=(9, 1))
        scatter = Scatter(noise=0.5, misfit=0.5, reach=1.0)
        runs, target = (
            Points(gradient=g, place=p, size=np.ones(len(g)), shares=np.ones(len(g)))
            for g, p in ((gradient, place[:8]), (np.array([[1.0, -2.0]]), place[8:]))
        )
        wanted = Targets(points=target, combination=np.eye(1), description="a target")
        expected = Selection.of(runs, wanted, runs, np.ones(8), scatter).squared_error
        draws = 20_000
        misfit = generator.multivariate_normal(np.zeros(9), scatter.shared(place, place), draws)
        theta = generator.normal(size=(draws, 2))
        seen = theta @ gradient.T + misfit[:, :8] + generator.normal(0, 0.5, (draws, 8))
        weight = 1 / scatter.residual_variance
        solve = np.linalg.inv(np.eye(2) + weight * gradient.T @ gradient) @ gradient.T * weight
        missed = seen @ solve.T @ [1.0, -2.0] - (theta @ [1.0, -2.0] + misfit[:, 8])
        assert expected == pytest.approx(float(np.mean(missed**2)), rel=0.05)

    def test_criterion_without_misfit_is_the_inverse_information(self):
        selection = random_selection(0)
        plain = replace(selection, scatter=Scatter(noise=0.5, misfit=0.0))
        begin = plain.begin
        weight = 1 / 0.25
        information = np.linalg.inv(begin.inverse) - np.eye(3)  # weight GᵀG, whatever the scatter
        scatterless = replace(
            begin, meat=information / weight**2, with_targets=0 * begin.with_targets
        )
        by = plain.gradient @ begin.inverse
        expected = np.mean(np.sum(by * plain.gradient, axis=1) + plain.variance)
        assert plain.error(scatterless) == pytest.approx(float(expected), rel=1e-9)

    def test_a_run_where_the_law_misfits_is_not_chosen(self):
        # Two runs fix a line through zero; the third would pull it by misfit that it shares.
        ones = np.ones(3)
        place = np.array([[0.0], [0.1], [9.0]])
        gradient = np.array([[1.0], [1.0], [30.0]])
        points = Points(gradient=gradient, place=place, size=ones, shares=ones)
        one = Points(gradient=gradient[:1], place=place[:1], size=np.ones(1), shares=np.ones(1))
        wanted = Targets(points=one, combination=np.eye(1), description="a target")
        scatter = Scatter(noise=0.01, misfit=1.0, reach=0.5, residual=0.01)
        selection = Selection.of(one, wanted, points, ones, scatter)
        errors = selection.errors_with(selection.begin)
        assert errors[2] > selection.squared_error > errors[0]


class TestGreedy:
    @given(st.integers(0, 500), st.floats(1.0, 12.0))
    @settings(max_examples=40)
    def test_greedy_choice_is_never_worse_than_the_best_single_run(self, seed, budget):
        selection = random_selection(seed)
        chosen, _, _ = selection.best(budget, Limits(smallest_gain=0.0))
        singles = selection.errors_with(selection.begin)[selection.price <= budget]
        best = min([selection.squared_error, *singles])
        reached = chosen[-1][1] if chosen else selection.squared_error
        assert reached <= best * (1 + 1e-9)
        assert sum(selection.price[position] for position, _ in chosen) <= budget * (1 + 1e-9)

    def test_every_choice_lowers_the_error(self):
        selection = random_selection(4)
        chosen, _, _ = selection.best(30.0, Limits())
        errors = [selection.squared_error, *(after for _, after in chosen)]
        assert len(chosen) > 1
        assert all(np.diff(errors) < 0)

    def test_a_known_design_reaches_its_error_with_fewer_flops_than_random(self, fitted, runs):
        """Compare with the median over random orders of the same candidates, on a known law."""
        deviations = prior_deviations(fitted, columns_of_runs(fitted, runs), runs["loss"])
        observed = points_at(fitted, columns_of_runs(fitted, runs), deviations)
        pool = grid_candidates(fitted, sizes=8, token_counts=8)
        points = points_at(fitted, law_columns(fitted, pool, "pool"), deviations)
        target = Prediction(at=FAR).targets(fitted, deviations)
        selection = Selection.of(observed, target, points, costs(pool), QUIET)
        chosen, _, _ = selection.best(3e20, Limits(most_runs=20))
        spent = sum(selection.price[position] for position, _ in chosen)
        needed = []
        for seed in range(40):
            state, flops = selection.begin, 0.0
            for position in np.random.default_rng(seed).permutation(len(pool)):
                state, flops = selection.add(state, position), flops + selection.price[position]
                if selection.error(state) <= chosen[-1][1]:
                    break
            needed.append(flops)
        assert spent < np.median(needed)


def columns_of_runs(fitted: Fit, runs: pd.DataFrame) -> dict[str, np.ndarray]:
    return law_columns(fitted, runs, "the runs")


class TestNextRuns:
    def test_runs_of_a_design_are_numbered_in_every_part_of_a_split_table(self, fitted, runs):
        design = next_runs(fitted, None, 1e21, goal=Prediction(at=FAR), runs=runs)
        lines = view_text(design.view(), 60).splitlines()
        heads = [line.split()[0] for line in lines if "kind" in line or "why" in line.split()]
        assert len(heads) > 1
        assert set(heads) == {"order"}

    def test_a_design_has_its_runs_as_table_text_html_and_json(self, fitted, runs):
        goal = Prediction(at=FAR)
        limits = Limits(most_runs=3, smallest_gain=0.0)
        design = next_runs(fitted, None, 1e21, goal=goal, runs=runs, limits=limits)
        frame = design.frame()
        assert list(frame["order"]) == list(range(1, len(frame) + 1))
        assert {"kind", "cost_flops", "deviation_after", "share_per_exaflop", N, D} <= set(frame)
        np.testing.assert_allclose(frame["cost_flops"], 6 * frame[N] * frame[D])
        assert frame.attrs["units"]["cost_flops"] == "FLOP"
        assert "N = 10B, D = 200B" in design.summary()
        assert "<table" in design._repr_html_()
        again = json.loads(json.dumps(design.as_json(), allow_nan=False))
        assert again["deviation_after"] == design.deviation_after < design.deviation_before
        assert len(again["runs"]) == len(design.picks) == 3
        assert again["runs"][-1]["deviation_after"] == design.deviation_after

    def test_shares_removed_multiply_to_the_whole(self, fitted, runs):
        design = next_runs(fitted, None, 1e21, goal=Prediction(at=FAR), runs=runs)
        left = np.prod([1 - pick.share_removed for pick in design.picks])
        ratio = design.deviation_after / design.deviation_before
        assert left == pytest.approx(ratio**2, rel=1e-9)

    def test_the_budget_holds_and_costs_count_what_the_table_counts(self, fitted, runs):
        pool = grid_candidates(fitted)
        pool["flops_counted"] = 1e18
        design = next_runs(fitted, pool, 4.5e18, goal=Prediction(at=FAR), runs=runs)
        assert 0 < len(design.picks) <= 4
        assert design.spent_flops == 1e18 * len(design.picks)

    @pytest.mark.parametrize(
        ("objective", "context", "per_token"),
        [("next_token", 256, 6), ("masked_diffusion", 256, 6), ("block:16", 256, 12),
         ("block:256/llada2", 256, 6), ("block:16/llada2", None, 12)],
    )  # fmt: skip
    def test_grid_of_block_diffusion_costs_two_passes_of_each_token(
        self, fitted, runs, objective, context, per_token
    ):
        trained = runs.assign(objective=objective, loss_kind="bound")
        if context is not None:
            trained["context_length"] = context
        design = next_runs(fitted, None, 1e21, goal=Prediction(at=FAR), runs=trained)
        wanted = (per_token * design.rows[N] * design.rows[D]).sum()
        assert design.spent_flops == pytest.approx(wanted, rel=1e-12)
        assert costs(trained) == pytest.approx(per_token * (runs[N] * runs[D]).to_numpy())

    @pytest.mark.parametrize("misfit", [0.0, 0.005])
    def test_limits_on_d_and_d_over_n_hold(self, fitted, runs, misfit):
        within = {D: (1e9, 8e9), "tokens_per_parameter": (5.0, 50.0)}
        scatter = replace(QUIET, misfit=misfit)
        design = next_runs(
            fitted,
            grid_candidates(fitted, sizes=12, token_counts=12),
            1e21,
            goal=Prediction(at=FAR),
            runs=runs,
            limits=Limits(within=within),
            scatter=scatter,
        )
        assert len(design.rows)
        assert design.rows[D].between(1e9, 8e9).all()
        assert (design.rows[D] / design.rows[N]).between(5, 50).all()
        assert design.outside_box > 0

    def test_nothing_lies_far_outside_the_observed_ranges_by_default(self, fitted, runs):
        sizes, tokens = np.geomspace(1e6, 1e11, 15), np.geomspace(1e8, 1e13, 15)
        pool = pd.DataFrame(list(product(sizes, tokens)), columns=[N, D])
        goal = Prediction(at=FAR)
        design = next_runs(fitted, pool, 1e22, goal=goal, runs=runs, scatter=QUIET)
        for name, (low, high) in fitted.ranges.items():
            assert design.rows[name].between(low / 2, high * 2).all()
        wild = next_runs(
            fitted, pool, 1e22, goal=goal, runs=runs, limits=Limits(stretch=1e9), scatter=QUIET
        )
        assert (wild.rows[D] / wild.rows[N]).max() > 10 * (runs[D] / runs[N]).max()

    def test_replicates_are_worth_it_without_misfit_and_not_with_much(self, fitted, runs):
        corner = pd.DataFrame([{N: 2e7, D: 5e8}, {N: 2.3e7, D: 5e8}, {N: 2e7, D: 5.8e8}])
        goal = Prediction(at=pd.DataFrame([{N: 1.6e7, D: 4e8}]))

        def kinds(scatter: Scatter) -> list[str]:
            design = next_runs(
                fitted, corner, 1e21, goal=goal, runs=runs,
                limits=Limits(most_runs=3), scatter=scatter,
            )  # fmt: skip
            return [pick.kind for pick in design.picks]

        assert kinds(Scatter(noise=0.02, misfit=0.0, reference=1e8)) == ["replicate"] * 3
        assert "new" in kinds(Scatter(noise=0.001, misfit=0.02, reference=1e8, reach=0.1))

    def test_a_repeated_choice_is_called_a_replicate_of_it(self, fitted, runs):
        pool = pd.DataFrame([{N: 3e7, D: 7e8}])
        goal = Prediction(at=pd.DataFrame([{N: 3e7, D: 7e8}]))
        limits = Limits(smallest_gain=0.0)
        design = next_runs(fitted, pool, 1e20, goal=goal, runs=runs, limits=limits, scatter=QUIET)
        assert [pick.kind for pick in design.picks] == ["new", "replicate", "replicate"]
        assert design.picks[1].repeats == "choice 1"
        assert design.stopped == "no candidate is left"

    def test_equal_rows_of_a_prediction_give_the_design_of_one_row(self, fitted, runs):
        both = pd.concat((FAR, FAR), ignore_index=True)
        pool = grid_candidates(fitted)
        one, two = (
            next_runs(fitted, pool, 1e20, goal=Prediction(at=at), runs=runs, scatter=QUIET)
            for at in (FAR, both)
        )
        assert one.deviation_after == pytest.approx(two.deviation_after, rel=1e-9)
        assert list(one.rows.index) == list(two.rows.index)

    def test_design_for_an_optimum_has_runs_far_from_the_optimum(self, shaped, shapes):
        design = next_runs(
            shaped, None, 1e20, goal=Optimum(of="mlp_to_attention"), runs=shapes,
            limits=Limits(most_runs=4),
        )  # fmt: skip
        best = shaped.parameters()["mlp_to_attention_optimum"]["value"]
        assert best == pytest.approx(1.5, rel=0.3)
        apart = np.abs(np.log(design.rows["mlp_to_attention"] / best))
        assert apart.max() > 0.5
        assert design.deviation_after < design.deviation_before

    def test_a_difference_of_two_shapes_is_less_uncertain_than_a_prediction(self, shaped, shapes):
        first = {N: 1e9, D: 4e10, "hidden_over_sqrt_n": 0.08, "mlp_to_attention": 1, "gqa": 2}
        second = first | {"mlp_to_attention": 4}
        both = GoalRanking(first=first, second=pd.DataFrame([second]))
        alone = Prediction(at=pd.DataFrame([first]))
        deviations = [
            next_runs(shaped, None, 1e20, goal=goal, runs=shapes).deviation_before
            for goal in (both, alone)
        ]
        assert deviations[0] < deviations[1]

    def test_rows_with_the_fields_of_shapes_are_candidates(self, shaped, shapes):
        fields = {
            "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 64, "tokens": 4e9,
        }  # fmt: skip
        pool = pd.DataFrame([fields | {"num_hidden_layers": layers} for layers in (12, 16, 20)])
        goal = Optimum(of="mlp_to_attention")
        limits = Limits(stretch=4, smallest_gain=0.0)
        design = next_runs(shaped, pool, 1e20, goal=goal, runs=shapes, limits=limits)
        assert design.candidates == 3
        assert len(design.picks) > 0
        assert design.picks[0].cost_flops > 6 * 4e9 * 1e7


class TestHeld:
    def test_a_held_range_widens_the_target_and_a_held_value_does_not(self, fitted, runs):
        def deviation(held: Held | None) -> float:
            changed = replace(fitted, held={} if held is None else {"beta": held})
            goal = Prediction(at=FAR)
            return next_runs(
                changed, None, 1e20, goal=goal, runs=runs, scatter=QUIET
            ).deviation_before

        fixed = deviation(Held.at(0.36, "given"))
        ranged = deviation(Held(value=0.36, low=0.3, high=0.45, why="a range"))
        assert fixed < ranged <= deviation(None) * (1 + 1e-9)

    def test_a_factor_held_at_no_effect_keeps_its_prior_uncertainty(self, shaped, shapes):
        columns = law_columns(shaped, shapes, "the runs")
        held = {"gqa_slope": Held.at(0.0, "hidden by noise")}
        deviations = prior_deviations(replace(shaped, held=held), columns, shapes["loss"])
        assert deviations[shaped.names.index("gqa_slope")] > 0
        given_value = {"gqa_slope": Held.at(0.01, "given")}
        deviations = prior_deviations(replace(shaped, held=given_value), columns, shapes["loss"])
        assert deviations[shaped.names.index("gqa_slope")] == 0

    def test_the_optimum_of_a_held_factor_is_refused_with_a_way_out(self, shaped, shapes):
        held = {"mlp_to_attention_optimum": Held.at(0.3, "noise hides it")}
        with pytest.raises(InputError, match="is held: noise hides it; first train runs"):
            next_runs(
                replace(shaped, held=held),
                None,
                1e20,
                goal=Optimum(of="mlp_to_attention"),
                runs=shapes,
            )

    def test_an_optimum_that_drifts_is_more_uncertain_far_from_the_runs(self, shapes):
        drifting = fit("conditional", shapes, starts=8, resamples=0)
        varied = Held(value=0.0, low=-0.25, high=0.25, why="two sizes")
        held = {**drifting.held, "mlp_to_attention_drift": varied}
        goals = [Optimum(of="mlp_to_attention"), Optimum(of="mlp_to_attention", size=1e12)]
        here, far = (
            next_runs(replace(drifting, held=held), None, 1e20, goal=goal, runs=shapes)
            for goal in goals
        )
        assert far.deviation_before > 1.5 * here.deviation_before
        assert "at N = 1T" in far.goal


class TestScatter:
    def test_noise_and_misfit_of_a_known_truth_are_told_apart(self):
        generator = np.random.default_rng(0)
        place = np.repeat(generator.uniform(0, 12, (60, 1)), 3, axis=0)
        truth = Scatter(noise=0.004, misfit=0.012)
        misfit = generator.multivariate_normal(np.zeros(60), truth.shared(place[::3], place[::3]))
        residuals = np.repeat(misfit, 3) + generator.normal(0, 0.004, 180)
        found = estimate_scatter(residuals, np.ones((180, 1)), place, np.exp(place[:, 0]))
        assert found.noise == pytest.approx(0.004, rel=0.25)
        assert found.misfit == pytest.approx(0.012, rel=0.6)

    def test_noise_slope_is_zero_unless_the_noise_depends_on_size(self):
        generator = np.random.default_rng(0)
        size = np.geomspace(1e6, 1e10, 120)
        place = np.stack((np.log(size), generator.normal(0, 3, 120)), axis=1)
        level, slopes = np.ones((120, 1)), []
        for slope in (0.0, 0.4):
            deviation = 0.01 * (size / 1e8) ** -slope
            residuals = generator.normal(0, 1, 120) * deviation
            slopes.append(estimate_scatter(residuals, level, place, size).noise_slope)
        assert slopes[0] == 0
        assert slopes[1] == pytest.approx(0.4, abs=0.12)

    def test_summary_tells_the_misfit_at_the_runs_from_that_far_away(self):
        found = Scatter(noise=0.003, misfit=0.0218, residual=0.0055)
        assert found.misfit_at_runs**2 + found.noise**2 == pytest.approx(found.residual**2)
        expected = (
            "misfit of the law 0.46 % at the runs, which lie 0.55 % around it, and 2.18 % far"
        )
        assert expected in found.summary()
        unknown = Scatter(noise=0.003, misfit=0.002)
        assert unknown.misfit_at_runs == unknown.misfit
        assert "misfit of the law 0.20 % at the runs, shared" in unknown.summary()

    def test_misfit_at_the_runs_is_no_more_than_their_residuals(self, fitted, runs):
        at = pd.DataFrame({N: [1e11], D: [2e12]})
        design = next_runs(fitted, None, 1e20, goal=Prediction(at=at), runs=runs)
        residuals = np.log(runs["loss"] / fitted.central(runs))
        document = design.as_json()
        assert document["misfit_at_runs"] <= residuals.std() * 1.05
        assert document["misfit_at_runs"] <= document["misfit"]

    def test_few_rows_count_half_as_misfit(self):
        residuals = np.array([0.01, -0.01, 0.01])
        found = estimate_scatter(residuals, np.ones((3, 2)), np.zeros((3, 1)), np.full(3, 1e8))
        assert found.noise == found.misfit == pytest.approx(0.01 / np.sqrt(2))

    def test_one_outlier_does_not_dominate_the_estimated_noise(self, fitted, runs):
        columns, loss = columns_of_runs(fitted, runs), runs["loss"].to_numpy().copy()
        before = scatter_of(fitted, columns, loss)
        loss[7] *= 2
        assert scatter_of(fitted, columns, loss).noise < 4 * before.noise

    @pytest.mark.parametrize(
        ("values", "rule"),
        [
            ({"noise": 0.0}, "noise > 0"),
            ({"misfit": -1.0}, "misfit >= 0"),
            ({"reach": 0.0}, "reach > 0"),
        ],
    )
    def test_impossible_scatter_is_refused(self, values, rule):
        with pytest.raises(InputError, match=rule):
            Scatter(**{"noise": 0.01, "misfit": 0.0} | values)

    def test_runs_of_a_long_table_are_merged_into_places_with_counts(self):
        rows = 5 * MAX_PLACES
        generator = np.random.default_rng(0)
        points = Points(
            gradient=generator.normal(size=(rows, 2)),
            place=generator.uniform(0, 3, size=(rows, 2)),
            size=np.ones(rows),
            shares=np.ones(rows),
        )
        means, counts = merged(points)
        assert len(means) <= MAX_PLACES
        assert counts.sum() == rows
        total = (means.gradient * counts[:, None]).sum(axis=0)
        np.testing.assert_allclose(total, points.gradient.sum(axis=0), atol=1e-9)


class TestCandidates:
    def test_the_grid_stays_inside_the_observed_ranges(self, shaped):
        grid = grid_candidates(shaped, sizes=4, token_counts=3)
        assert set(grid) == set(shaped.law.columns)
        for name, (low, high) in shaped.ranges.items():
            assert grid[name].between(low * (1 - 1e-9), high * (1 + 1e-9)).all()
        assert set(grid["gqa"]) == {1.0, 2.0, 4.0}

    def test_grid_stays_inside_the_given_limits(self, fitted):
        grid = grid_candidates(fitted, within={D: (1e11, 2e11), "tokens_per_parameter": (100, 900)})
        assert grid[D].between(0.99e11, 2.01e11).all()
        assert (grid[D] / grid[N]).between(100, 900).all()

    def test_ends_of_a_box_are_inside(self):
        columns = {N: np.array([1e7, 1e8]), D: np.array([1e9, 1e9])}
        assert inside(columns, {N: (1e7, 1e8)}).all()

    @pytest.mark.parametrize("value", [-1.0, np.nan])
    def test_a_cost_must_be_a_positive_number(self, value):
        frame = pd.DataFrame({N: [1e8], D: [1e9], "flops_counted": [value]})
        with pytest.raises(InputError, match="flops_counted > 0"):
            costs(frame)


def design_with(fitted: Fit, runs: pd.DataFrame, **changes: object) -> Design:
    given = {"candidates": None, "budget_flops": 1e20, "goal": Prediction(at=FAR), "runs": runs}
    return next_runs(fitted, **(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_flops": 1e3}, r"`budget_flops >= .*` must hold, the cost of the cheapest of 100"),
        ({"budget_flops": -1.0}, "`budget_flops > 0` must hold, but got -1"),
        ({"budget_flops": np.nan}, "`budget_flops > 0` must hold, but got nan"),
        ({"goal": "sharpen"}, "`goal` must be a Prediction, an Optimum, a GoalRanking or"),
        ({"goal": Optimum(of="gqa")}, "must be of one of none in this law"),
        ({"candidates": FAR}, r"n_non_embedding <= .* must hold for a candidate, but the 1 "),
        ({"candidates": FAR.iloc[:0]}, r"`len\(candidates\) >= 1` must hold"),
        ({"candidates": pd.DataFrame({N: [1e8]})}, "lacks the column `tokens`"),
        ({"candidates": pd.DataFrame({N: [1e8], D: [-1]})}, "`tokens > 0` and finite must hold"),
        ({"goal": Prediction(at=pd.DataFrame({N: [1e8]}))}, "lacks the column `tokens`"),
        ({"goal": GoalRanking(first=FAR, second=FAR)}, "two shapes of a choice must differ"),
        (
            {"goal": GoalRanking(first=pd.concat((FAR, FAR)), second=FAR)},
            "must be one row, but got 2",
        ),
        ({"limits": Limits(within={"depth": (1, 2)})}, "`within` must name one of"),
        ({"limits": Limits(within={D: (1, 2)}), "candidates": FAR}, "widen the box with `within`"),
    ],
)  # fmt: skip
def test_unusable_arguments_are_refused_with_a_way_out(fitted, runs, changes, message):
    with pytest.raises(InputError, match=message):
        design_with(fitted, runs, **changes)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"within": {D: (2.0, 1.0)}}, "`0 < low <= high` must hold for tokens"),
        ({"stretch": 0.5}, "`stretch >= 1`"),
        ({"most_runs": 0}, "`most_runs >= 1`"),
        ({"most_repeats": 0}, "`most_repeats >= 1`"),
    ],
)
def test_limits_out_of_range_are_refused(limits, message):
    with pytest.raises(InputError, match=message):
        Limits(**limits)


class TestTypedGoals:
    def test_a_prediction_takes_counts_and_fills_ratios_with_the_best(self, shaped):
        goal = parse_goal("predict:n=1B,tokens=20B,gqa=4", shaped)
        assert isinstance(goal, Prediction)
        row = goal.at.iloc[0]
        assert (row[N], row[D], row["gqa"]) == (1e9, 2e10, 4)
        best = shaped.parameters()["mlp_to_attention_optimum"]["value"]
        assert row["mlp_to_attention"] == pytest.approx(best)

    def test_rows_are_separated_by_semicolons(self, fitted):
        goal = parse_goal("predict:n=1e9,tokens=2e10;n=2e9,d=2e10", fitted)
        assert list(goal.targets(fitted, np.ones(5)).points.size) == [1e9, 2e9]

    def test_an_optimum_may_name_a_size(self, shaped):
        assert parse_goal("optimum:mlp_to_attention", shaped) == Optimum(of="mlp_to_attention")
        assert parse_goal("optimum:gqa@2B", shaped) == Optimum(of="gqa", size=2e9)

    def test_files_hold_predictions_and_choices(self, fitted, tmp_path):
        path = tmp_path / "two.csv"
        pd.DataFrame({N: [1e8, 2e8], D: [1e9, 1e9]}).to_csv(path, index=False)
        assert len(parse_goal(f"predict:{path}", fitted).at) == 2
        assert isinstance(parse_goal(f"choice:{path}", fitted), GoalRanking)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("sharpen", '`--goal` must be "predict:n=1e9,tokens=2e10"'),
            ("predict:", "but got 'predict:'"),
            ("predict:n=1e9", "must give n and tokens"),
            ("predict:n=1e9,tokens=1e9,depth=3", "must name n, tokens"),
            ("predict:n=1e9,tokens=many", "a count must be a number"),
            ("choice:nowhere.csv", "cannot be read"),
        ],
    )
    def test_text_that_is_no_goal_is_refused_with_the_syntax(self, fitted, text, message):
        with pytest.raises(InputError, match=message):
            parse_goal(text, fitted)

    def test_a_choice_needs_two_rows(self, fitted, tmp_path):
        path = tmp_path / "one.csv"
        pd.DataFrame({N: [1e8], D: [1e9]}).to_csv(path, index=False)
        with pytest.raises(InputError, match=r"between two rows, but .* has 1"):
            parse_goal(f"choice:{path}", fitted)

    def test_a_ratio_must_be_positive(self, shaped):
        with pytest.raises(InputError, match="`gqa > 0` must hold"):
            parse_goal("predict:n=1e9,tokens=2e10,gqa=none", shaped)


class TestCommand:
    @pytest.fixture
    def files(self, fitted, runs, tmp_path) -> tuple[str, str]:
        fitted.save(tmp_path / "fit.json")
        runs.to_csv(tmp_path / "runs.csv", index=False)
        return str(tmp_path / "fit.json"), str(tmp_path / "runs.csv")

    @pytest.fixture
    def backtest_files(self, tmp_path) -> tuple[str, str]:
        runs = pd.concat([runs_of_the_law(), runs_of_the_law(seed=1)], ignore_index=True)
        runs = runs.assign(run_id=[f"run-{row}" for row in range(len(runs))]).iloc[:32]
        fit("chinchilla", runs, starts=4, resamples=0).save(tmp_path / "fit.json")
        runs.to_csv(tmp_path / "runs.csv", index=False)
        return str(tmp_path / "fit.json"), str(tmp_path / "runs.csv")

    def run(self, *arguments: str) -> str:
        done = CliRunner().invoke(app, ["next-runs", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    def test_command_prints_and_writes_the_runs(self, files, tmp_path):
        out = str(tmp_path / "next.csv")
        options = ("--budget-flops", "1e21", "--goal", "predict:n=10B,tokens=200B")
        text = self.run(*files, *options, "--out", out, "--within", "tokens=1e9:10B")
        written = pd.read_csv(out)
        assert "N = 10B, D = 200B" in text
        assert written[D].between(1e9, 1e10).all()
        document = json.loads(self.run(*files, *options, "--within", "tokens=1e9:10B", "--json"))
        assert [run["cost_flops"] for run in document["runs"]] == list(written["cost_flops"])

    def test_back_test_compares_the_choice_with_simple_strategies(self, backtest_files, tmp_path):
        options = (
            *backtest_files,
            "--backtest",
            "--seeds",
            "2",
            "--out",
            str(tmp_path / "all.csv"),
        )
        document = json.loads(self.run(*options, "--json"))
        assert [row["compared_with"] for row in document["comparison"]] == [
            "random choice",
            "cheapest first",
        ]
        assert document["seeds"] == 2
        course = pd.read_csv(tmp_path / "all.csv")
        assert set(course["strategy"]) == {"design", "random", "cheapest"}
        text = self.run(*options)
        assert text.startswith("error of next-runs on 5 larger runs at equal FLOPs: ")
        assert "random choice" in text
        assert "2 seeds, each from another third of the pool" in text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--backtest", "--goal", "predict:n=1e9,tokens=1e9"), "`--goal` must be left out"),
            (("--backtest", "--within", "tokens=1e9:1e10"), "`--within` must be left out"),
            (("--backtest", "--where", "tokens > 1e10"), r"needs `len\(runs\) >= 24`, but got"),
            (("--budget-flops", "1e21"), "`--budget-flops` and `--goal` must be given, or"),
        ],
    )
    def test_impossible_back_test_is_refused(self, backtest_files, options, message):
        with pytest.raises(InputError, match=message):
            self.run(*backtest_files, *options)

    def test_command_chooses_among_given_candidates(self, files, tmp_path):
        pool = tmp_path / "pool.csv"
        pd.DataFrame({N: [3e7, 1e9], D: [1e9, 2e10]}).to_csv(pool, index=False)
        options = ("--budget-flops", "1e21", "--goal", "predict:n=10B,tokens=200B", "--json")
        document = json.loads(self.run(*files, *options, "--candidates", str(pool)))
        assert document["candidates"] == 2

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--budget-flops", "lots"), "`--budget-flops > 0` must hold, but got 'lots'"),
            (("--within", "tokens"), "COLUMN=LOW:HIGH"),
            (("--within", "tokens=1"), "COLUMN=LOW:HIGH"),
        ],
    )
    def test_mistyped_option_is_refused_by_name(self, files, options, message):
        usual = ("--budget-flops", "1e21", "--goal", "predict:n=1e9,tokens=1e9")
        with pytest.raises(InputError, match=message):
            self.run(*files, *usual, *options)


@pytest.mark.skipif("SHAPELAW_MIRROR" not in os.environ, reason="needs SHAPELAW_MIRROR")
def test_design_on_the_chinchilla_points_has_plausible_noise_error_and_cost():
    runs = load_runs("chinchilla", where="not outlier")
    fitted = fit("chinchilla", runs, delta=1e-3, starts=8, resamples=0)
    goal = Prediction(at=pd.DataFrame([{N: 7e10, D: 1.4e12}]))
    design = next_runs(fitted, None, 1e22, goal=goal, runs=runs)
    assert 0.001 < design.scatter.noise < 0.01
    assert 0.005 < design.deviation_before < 0.2
    assert design.spent_flops <= 1e22
