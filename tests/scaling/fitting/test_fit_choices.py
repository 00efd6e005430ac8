"""Options of a fit: law, objective, weights, size convention and starts."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import t as student

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting import fit_law
from shapelaw.scaling.fitting.law_problem import law_name, problem_of, reconstruct_problem
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.bases import Chinchilla, Kaplan
from shapelaw.scaling.laws.factors import GroupedQuery, UShape
from shapelaw.scaling.laws.registry import LAWS, law_named
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.solver.objectives import KINDS, FitObjective
from support.quick_fits import with_experts
from support.synthetic import TRUTH, synthetic_chinchilla, synthetic_runs, true_loss

COMPOSED = (
    "(Chinchilla() * UShape('hidden_over_sqrt_n') * UShape('mlp_to_attention') * "
    "GroupedQuery(form='share') + UShape('num_hidden_layers', bend=True))"
    ".tie('alpha', 'beta').pin('E', 1.8, low=1.75, high=1.85, source='made up for this test')"
)

fit = partial(fit_law.fit, prior="none")  # robust fits, which hold what a table cannot tell


def quick(law, runs, **settings):
    return fit(law, runs, **({"starts": 16, "resamples": 0} | settings))


def every_column(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a table with every column that a named law needs, without an effect."""
    generator = np.random.default_rng(5)
    width, depth = np.exp(generator.uniform([[4], [1]], [[7], [4]], (2, len(runs))))
    best = runs.groupby([N, D])["loss"].transform("min")
    heads = np.tile([32.0, 64.0], len(runs))[: len(runs)]
    ratios = {"aspect_ratio": width / depth, "best_loss": best, "head_dim": heads}
    return with_experts(runs.assign(hidden_size=width, num_hidden_layers=depth, **ratios))


@pytest.fixture(scope="module")
def table():
    return every_column(synthetic_runs(shapes=8))


# Laws.


@pytest.mark.parametrize("name", LAWS)
def test_every_named_law_fits_a_table_and_is_displayed(name, table, tmp_path):
    fitted = quick(name, table, resamples=20)
    assert fitted.law_name == name
    assert fitted.status.startswith("converged")
    assert fitted.draws.shape == (20, len(fitted.law.names))
    assert np.isfinite(fitted.draws).all()
    assert np.isfinite(fitted.covariance).all()
    fitted.save(tmp_path / "fit.json")
    same = Fit.load(tmp_path / "fit.json")
    pd.testing.assert_frame_equal(same.predict(table), fitted.predict(table), rtol=1e-12)
    assert json.loads(json.dumps(fitted.as_json(), allow_nan=False))["law"] == name
    assert fitted.equation() in fitted.summary()
    assert fitted.frame().index.tolist() == list(fitted.law.every_name)
    assert "<table" in fitted._repr_html_()


def test_composed_law_with_tie_and_pin_survives_saving_and_loading(table, tmp_path):
    fitted = quick(COMPOSED, table, resamples=40)
    assert fitted.law == law_named(COMPOSED)
    fitted.save(tmp_path / "fit.json")
    same = Fit.load(tmp_path / "fit.json")
    assert same.law == fitted.law
    pd.testing.assert_frame_equal(same.predict(table), fitted.predict(table), rtol=1e-12, atol=0)
    assert same.parameters() == fitted.parameters()
    found = fitted.parameters()
    assert found["alpha"] == found["beta"]
    assert found["E"]["value"] == pytest.approx(1.8)
    assert 1.75 <= found["E"]["low"] < found["E"]["high"] <= 1.85
    assert "E held at 1.8: pinned at 1.8 (made up for this test)" in fitted.notes
    assert fitted.frame().loc["E", "held"] == "pinned at 1.8 (made up for this test)"


def test_fit_is_named_by_its_law_or_by_its_expression(table):
    assert law_name(Chinchilla() * UShape("hidden_over_sqrt_n")) == "width"
    law = Chinchilla() * GroupedQuery()
    assert law_name(law) == repr(law)
    np.testing.assert_array_equal(quick(law, table).theta, quick(repr(law), table).theta)


@pytest.mark.parametrize(("floor", "shown"), [(1.8, "1.8"), (0.5, "0.5")])
def test_pinned_value_is_noted_in_the_units_of_the_equation(floor, shown, table):
    fitted = quick(Chinchilla().pin("E", floor), table)
    assert f"E held at {shown}: pinned at {shown} (given)" in fitted.notes
    assert fitted.parameters()["E"]["value"] == pytest.approx(floor)


def test_given_law_is_tested_on_the_table():
    runs = synthetic_chinchilla(0.01, shapes=4)
    law = Chinchilla()
    for name in ("E", "alpha", "A", "beta", "B"):
        law = law.pin(name, TRUTH[name])
    fitted = quick(law, runs, resamples=10)
    np.testing.assert_allclose(fitted.central(runs), true_loss(runs, TRUTH | {
        "hidden_over_sqrt_n_curvature": 0, "mlp_to_attention_curvature": 0, "gqa_slope": 0,
    }), rtol=1e-12)  # fmt: skip
    assert fitted.noise == pytest.approx(0.01, rel=0.4)
    assert fitted.noise_degrees == len(runs)


def test_two_factors_of_one_ratio_are_tested_one_after_the_other():
    runs = synthetic_runs(gqa_slope=0.0, shapes=6)
    law = Chinchilla() * UShape("gqa") * GroupedQuery()
    fitted = quick(law, runs)  # noise hides both
    assert {"gqa_curvature", "gqa_optimum", "gqa_slope"} <= set(fitted.held)
    assert sum(note.startswith("gqa: effect of ") for note in fitted.notes) == 2


# Objectives.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", ["log", "raw"])
def test_every_objective_recovers_the_truth_within_the_noise(kind, on):
    runs = synthetic_chinchilla(0.002, shapes=8, tokens=(1e6, 3e7, 1e9), sizes=(1e5, 1e6, 1e7))
    fitted = quick("chinchilla", runs, objective=FitObjective(kind=kind, on=on, tilt=0.9))
    assert fitted.status.startswith("converged")
    found = {name: one["value"] for name, one in fitted.parameters().items()}
    assert found["beta"] == pytest.approx(TRUTH["beta"], rel=0.03)
    assert found["E"] == pytest.approx(TRUTH["E"], rel=0.02)
    assert fitted.minimised.describe() in fitted.summary()
    assert fitted.minimised.on == on
    assert bool(fitted.delta_sweep) == (kind in ("huber", "asymmetric") and on == "log")


def test_raw_objective_is_the_sum_over_losses_in_nats():
    runs = synthetic_chinchilla(0.01, shapes=3)
    fitted = quick("chinchilla", runs, objective=FitObjective(kind="squares", on="raw"))
    residuals = fitted.central(runs) - runs["loss"].to_numpy()
    assert fitted.objective == pytest.approx((residuals**2).sum() / 2, rel=1e-9)
    logs = quick("chinchilla", runs, objective="squares")
    residuals = np.log(logs.central(runs) / runs["loss"].to_numpy())
    assert logs.objective == pytest.approx((residuals**2).sum() / 2, rel=1e-9)


def test_student_scale_is_the_joint_maximum_likelihood_scale():
    runs = synthetic_chinchilla(0.0, shapes=6)
    noise = 0.01 * np.random.default_rng(0).standard_t(4, len(runs))
    runs = runs.assign(loss=runs["loss"] * np.exp(noise))
    fitted = quick("chinchilla", runs, objective="student", starts=64)
    assert fitted.delta == pytest.approx(0.01, rel=0.35)
    program = fitted.law.program(fitted.columns(runs), fitted.reference)
    observed = np.log(runs["loss"].to_numpy())

    def unlikely(point):
        residuals = program.log_loss(point[None, :-1])[0] - observed
        return -student.logpdf(residuals, 4.0, scale=np.exp(point[-1])).sum()

    ours = np.append(fitted.theta, np.log(fitted.delta))
    for seed in range(3):
        start = ours + 0.05 * np.random.default_rng(seed).standard_normal(len(ours))
        assert unlikely(ours) <= minimize(unlikely, start, method="L-BFGS-B").fun + 1e-6


@pytest.mark.parametrize(("tilt", "below"), [(0.2, True), (1.0, None), (3.0, False)])
def test_asymmetric_objective_moves_the_law_to_the_better_or_worse_runs(tilt, below):
    runs = synthetic_chinchilla(0.02, shapes=10)
    objective = FitObjective(kind="asymmetric", tilt=tilt)
    fitted = quick("chinchilla", runs, objective=objective, delta=0.005)
    under = (fitted.central(runs) < runs["loss"]).mean()  # runs worse than the law says
    assert under == pytest.approx(0.5, abs=0.1) if below is None else (under > 0.6) == below
    if below is False:
        assert under < 0.4


def test_weights_count_only_when_a_column_is_chosen():
    runs = synthetic_chinchilla(0.02, shapes=4)
    weights = np.where(np.arange(len(runs)) % 2 == 0, 1.0, 0.0)
    weighted = runs.assign(importance=weights, weight=weights, loss_se=0.01)
    plain = quick("chinchilla", runs, delta=0.01)
    np.testing.assert_array_equal(quick("chinchilla", weighted, delta=0.01).theta, plain.theta)
    asked = quick("chinchilla", weighted, objective=FitObjective(weights="importance"), delta=0.01)
    half = quick("chinchilla", runs[weights > 0], delta=0.01)
    assert asked.objective == pytest.approx(half.objective, rel=1e-9)
    at = np.array([1e6, 1e7])
    rows = {N: at, D: 20 * at}
    np.testing.assert_allclose(asked.central(rows), half.central(rows), rtol=1e-5)
    assert asked.minimised.weights == "importance"


@pytest.mark.parametrize("values", [-1.0, np.nan, np.inf])
def test_fit_raises_on_invalid_weights(values):
    runs = synthetic_chinchilla(0.02, shapes=2).assign(importance=values)
    with pytest.raises(InputError, match="`importance` must be a finite weight >= 0 for every run"):
        quick("chinchilla", runs, objective=FitObjective(weights="importance"))
    with pytest.raises(InputError, match="the run table lacks the column `absent`"):
        quick("chinchilla", runs, objective=FitObjective(weights="absent"))


def test_unknown_objective_raises_with_its_name():
    with pytest.raises(InputError, match="`objective` must be one of huber, squares, student"):
        quick("chinchilla", synthetic_chinchilla(0.02, shapes=2), objective="absolute")


# Conventions of N.


@pytest.fixture(scope="module")
def counted():
    """Return synthetic runs whose loss depends on total parameters; the other counts are lower."""
    runs = synthetic_chinchilla(0.001, shapes=6)
    generator = np.random.default_rng(2)
    share = generator.uniform(0.3, 0.9, len(runs))
    return runs.assign(n_total=runs[N], n_active=runs[N] * 0.5, **{N: runs[N] * share})


@pytest.mark.parametrize(
    ("size", "column"),
    [("auto", N), ("non-embedding", N), ("total", "n_total"), ("active", "n_active")],
)
def test_size_convention_is_recorded_and_used_by_predictions(counted, size, column, tmp_path):
    fitted = quick("chinchilla", counted, size=size)
    assert fitted.size_convention == ("non-embedding" if size == "auto" else size)
    assert fitted.ranges[N] == (counted[column].min(), counted[column].max())
    fitted.save(tmp_path / "fit.json")
    for one in (fitted, Fit.load(tmp_path / "fit.json")):
        plain = counted[[D]].assign(**{N: counted[column]})
        values = one.law.public(one.theta, one.reference)
        expected = values["E"] + values["A"] / plain[N] ** values["alpha"]
        expected = expected + values["B"] / plain[D] ** values["beta"]
        np.testing.assert_allclose(one.central(counted), expected, rtol=1e-10)
        np.testing.assert_allclose(one.predict(counted)["predicted_loss"], expected, rtol=1e-10)
    if size == "total":
        assert fitted.noise == pytest.approx(0.001, rel=0.5)
        assert "N is total parameters" in fitted.notes


def test_next_size_convention_is_used_when_table_lacks_non_embedding_counts(counted):
    only = counted.drop(columns=N)
    assert quick("chinchilla", only).size_convention == "total"
    assert quick("chinchilla", only.drop(columns="n_total")).size_convention == "active"


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            "all",
            "`size` must be auto, non-embedding, total, active, active-non-embedding, but",
        ),
        ("total", "the run table lacks the column `n_total`"),
    ],
)
def test_fit_raises_on_unknown_or_missing_size_convention(size, message):
    with pytest.raises(InputError, match=message):
        quick("chinchilla", synthetic_chinchilla(0.01, shapes=2), size=size)


# What is said.


def test_vanishing_term_and_parameter_at_its_bound_are_named():
    """The loss of the synthetic runs does not depend on N."""
    runs = synthetic_chinchilla(0.0, shapes=6, A=1e-9)
    fitted = quick("chinchilla", runs)
    assert "A" in fitted.dead_terms
    assert "the term of A has died out (below 1e-6 of the loss)" in fitted.notes
    assert fitted.at_bounds
    for name in fitted.at_bounds:
        assert f"{name} ended at its bound" in fitted.notes
    np.testing.assert_allclose(fitted.central(runs), runs["loss"], rtol=0.01)


def test_sound_fit_has_no_vanishing_term_and_no_parameter_at_a_bound():
    fitted = quick("chinchilla", synthetic_chinchilla(0.002, shapes=6))
    assert fitted.at_bounds == []
    assert fitted.dead_terms == []


def test_rows_of_one_run_form_one_cluster_and_few_clusters_are_noted():
    runs = synthetic_chinchilla(0.01, shapes=4)
    grouped = runs.assign(run_group=np.arange(len(runs)) // 4)
    fitted = quick("chinchilla", grouped, resamples=30)
    assert fitted.bootstrap == "30 resamples by clusters of rows of one run"
    note = "only 9 clusters of rows: the cluster bootstrap keeps its level, profile and "
    assert any(one.startswith(note) for one in fitted.notes)
    assert not np.allclose(fitted.covariance, quick("chinchilla", runs).covariance, rtol=1e-3)


def test_fit_accepts_given_starts():
    runs = synthetic_chinchilla(0.01, shapes=4)
    problem = problem_of(law_named("chinchilla"), as_run_table(runs))
    points = problem.starts(5, 9)
    fitted = quick("chinchilla", runs, starts=points)
    assert fitted.starts == 5
    assert fitted.objective == pytest.approx(quick("chinchilla", runs).objective, rel=1e-6)


def test_problem_of_a_fit_is_reconstructed_with_its_optimum():
    runs = synthetic_runs(shapes=6, gqa_slope=0.0, seed=4)
    fitted = quick("conditional", runs)
    problem, best = reconstruct_problem(fitted, runs)
    assert problem.held == fitted.held
    assert problem.objective == fitted.minimised
    assert best.cost == pytest.approx(fitted.objective, rel=1e-12)
    again = problem.minimise(fitted.theta[None])
    assert again.cost[0] == pytest.approx(best.cost, rel=1e-9)
    other = runs.assign(loss=runs["loss"] * 1.01)
    with pytest.raises(InputError, match="`fit` and `runs` must belong together, but the fit has"):
        reconstruct_problem(fitted, other)


def test_power_law_without_a_floor_equals_a_line_fitted_by_numpy():
    runs = synthetic_chinchilla(0.3, shapes=6)
    runs["loss"] = (
        3
        * (runs[N] / 1e6) ** -0.1
        * np.exp(0.02 * np.random.default_rng(1).standard_normal(len(runs)))
    )
    fitted = quick(Kaplan(), runs, objective="squares").parameters()
    slope, height = np.polyfit(np.log(runs[N]), np.log(runs["loss"]), 1)
    assert fitted["alpha"]["value"] == pytest.approx(-slope, rel=1e-6)
    assert fitted["A"]["value"] == pytest.approx(np.exp(height), rel=1e-6)
