"""Reproduction of published numbers and of numbers computed before this library."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from shapelaw.scaling.checks.metrics import scores
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.law_problem import problem_of, reconstruct_problem
from shapelaw.scaling.fitting.refits import public_parameters
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.best_loss import with_best_loss
from shapelaw.scaling.runs.catalog import MIRROR, load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import level_of
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.uncertainty.resampling import bootstrap, minimise_resamples
from support.paths import SHARED

SQUARES = FitObjective(kind="squares", on="raw")
X, R = "hidden_over_sqrt_n", "mlp_to_attention"


@pytest.fixture(scope="module")
def tables():
    """Return a loader of published tables; skip the test if they are missing."""
    folder = Path(os.environ.get(MIRROR) or SHARED / "datasets")
    if not folder.is_dir():
        pytest.skip(f"the public tables are not here: set {MIRROR} to a folder that holds them")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MIRROR, str(folder))
        yield lambda name: load_runs(name).frame


@pytest.fixture(scope="module")
def points(tables):
    runs = tables("chinchilla")
    return runs[~runs["outlier"]].drop(columns="outlier").reset_index(drop=True)


@pytest.fixture(scope="module")
def solved(points):
    """Return the fit to the Chinchilla points, its problem and its optimum."""
    fitted = fit("chinchilla", points, delta=1e-3, starts=64, resamples=0)
    return fitted, *reconstruct_problem(fitted, points)


@pytest.fixture(scope="module")
def gemstones(tables):
    return tables("gemstones")


def spread(fitted, draws) -> dict[str, np.ndarray]:
    found = fitted.law.public(draws, fitted.reference)
    return found | {"a_opt": found["beta"] / (found["alpha"] + found["beta"])}


# The Chinchilla points (arXiv 2404.10102).


def test_4000_resamples_have_the_published_standard_errors_and_intervals(solved):
    """The resamples equal those of the reference: NumPy's legacy generator at seed 42."""
    fitted, problem, best = solved
    old = np.random.RandomState(42)
    rows = len(problem.log_loss)
    counts = [np.bincount(old.choice(rows, rows), minlength=rows) for _ in range(4000)]
    weights = np.array(counts, dtype=float)
    drawn = spread(
        fitted,
        minimise_resamples(problem.but(weights=weights), np.tile(best.theta, (4000, 1)), best),
    )
    errors = {"E": 0.02565, "alpha": 0.01540, "beta": 0.02059}
    for name, error in errors.items():
        assert drawn[name].std() == pytest.approx(error, abs=6e-6), name
    known = {"E": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
    for name, ends in (known | {"a_opt": (0.480, 0.556)}).items():
        assert np.percentile(drawn[name], (2.5, 97.5)) == pytest.approx(ends, abs=6e-4), name


def test_resamples_of_the_42_sizes_are_wider_in_alpha_and_narrower_in_beta(solved, points):
    fitted, problem, best = solved
    sizes = level_of(
        points["n_total"].to_numpy(), 0.005
    )  # read off a drawing: sizes within 0.5 % are equal
    assert len(np.unique(sizes)) == 42
    draws = bootstrap(problem, best, method="cluster", resamples=4000, seed=0, clusters=sizes)
    drawn = spread(fitted, draws)
    for name, error in {"E": 0.0276, "alpha": 0.0180, "beta": 0.0184}.items():
        assert drawn[name].std() == pytest.approx(error, rel=0.04), name
    assert np.percentile(drawn["a_opt"], (2.5, 97.5)) == pytest.approx((0.478, 0.559), abs=0.003)


def test_least_squares_on_ln_loss_equals_the_last_row_of_the_sweep(points):
    parameters = public_parameters(
        fit("chinchilla", points, objective="squares", starts=32, resamples=0)
    )
    assert parameters["beta"] == pytest.approx(0.4059, abs=6e-5)
    assert parameters["E"] == pytest.approx(1.8646, abs=6e-5)
    assert parameters["a_opt"] == pytest.approx(0.5298, abs=6e-5)


def test_printed_parameters_are_not_the_optimum_of_the_sum(solved):
    _, problem, best = solved
    printed = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
    theta = problem.law.internal(printed, problem.reference)
    cost = problem.data.cost(theta[None])[0]
    assert 1.001 < cost / best.cost < 1.01


def test_mean_of_huber_losses_stops_at_its_start_and_the_sum_converges(solved, points):
    fitted, _, best = solved
    n, d, loss = (np.log(points[name].to_numpy()) for name in ("n_total", D, "loss"))

    def total(p: np.ndarray) -> float:
        logs = np.logaddexp(np.logaddexp(p[0] - p[3] * n, p[1] - p[4] * d), p[2])
        size = np.abs(logs - loss)
        return float(np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum())

    hoffmann = [np.log(406.4), np.log(410.7), np.log(1.69), 0.34, 0.28]
    stopped = minimize(lambda p: total(p) / len(loss), hoffmann, method="L-BFGS-B")
    a, b, e, alpha, beta = stopped.x
    assert (a, e, alpha, beta) == pytest.approx((6.007, 0.529, 0.3387, 0.2850), abs=1e-3)
    assert b == pytest.approx(6.012, abs=0.01)
    assert stopped.success
    assert total(stopped.x) > 1.1 * best.cost
    went_on = minimize(total, hoffmann, method="BFGS", options={"gtol": 1e-6})
    assert went_on.x[4] == pytest.approx(public_parameters(fitted)["beta"], abs=1e-3)


def test_condition_number_without_centring_is_220(solved, points):
    parameters = public_parameters(solved[0])
    n, d = np.log(points["n_total"]), np.log(points[D])
    size, data = (
        parameters["A"] * np.exp(-parameters["alpha"] * n),
        parameters["B"] * np.exp(-parameters["beta"] * d),
    )
    shares = np.stack([np.full(len(n), parameters["E"]), size, data])
    shares /= shares.sum(axis=0)
    jacobian = np.stack([*shares, -shares[1] * n, -shares[2] * d], axis=1)
    condition = np.linalg.cond(jacobian / np.linalg.norm(jacobian, axis=0))
    assert condition == pytest.approx(220, abs=1)


# The conditional law (arXiv 2510.18245).

ONE_B = {"a0": 2.319, "a1": 0.238, "a2": 0.0176, "b0": 0.5104, "b1": 0.0051, "b2": 0.0062}
SMALL = {"a0": 2.697, "a1": 0.0974, "a2": 0.0078, "b0": 0.3870, "b1": 0.0063, "b2": 0.0065}


@pytest.mark.parametrize(
    ("coefficients", "worse", "better", "by_the_law", "measured"),
    [
        (ONE_B, "llama-3.2-1b", "panda-1b", 1.0063, 1.0075),
        (ONE_B, "llama-3.2-3b", "panda-3b-circ", 1.0070, 1.0073),
        (SMALL, "llama-3.2-1b", "panda-1b", 1.0129, 1.0075),
        (ONE_B, "llama-3.2-1b", "surefire-1b", 1.0022, 0.9996),  # missed: GQA is not in the law
    ],
)
def test_printed_coefficients_give_the_ratios_of_published_models(
    coefficients, worse, better, by_the_law, measured
):
    models = load_runs("paper-2510.18245").frame.set_index("run_id").loc[[worse, better]]
    law = law_named("paper-multiplicative")
    columns = {X: models[X].to_numpy(), R: models[R].to_numpy(), "best_loss": np.ones(2)}
    first, second = law.predict(law.internal(coefficients, {}), columns, {})
    assert first / second == pytest.approx(by_the_law, abs=1.1e-4)
    assert models["loss"].iloc[0] / models["loss"].iloc[1] == pytest.approx(measured, abs=6e-5)


@pytest.mark.parametrize(("coefficients", "x", "r"), [(ONE_B, 0.074, 1.229), (SMALL, 0.080, 1.032)])
def test_printed_coefficients_have_the_printed_optima(coefficients, x, r):
    assert coefficients["a2"] / coefficients["a1"] == pytest.approx(x, abs=6e-4)
    # 0.0062 / 0.0051: the printed coefficients have two digits, and so has the optimum.
    assert coefficients["b2"] / coefficients["b1"] == pytest.approx(r, rel=0.02)


def simulated_shapes() -> pd.DataFrame:
    """Return 24 shapes simulated in each of four cells of N and D, without noise."""
    generator = np.random.default_rng(4)
    shapes = np.exp(generator.uniform(np.log((0.03, 0.5)), np.log((0.3, 5.0)), (24, 2)))
    cells = [(n, k * n) for n in (8e7, 3e8) for k in (20, 100)]
    rows = [(n, d, *shape) for n, d in cells for shape in shapes]
    frame = pd.DataFrame(rows, columns=[N, D, X, R])
    return frame.assign(floor=1.8 + 30 / frame[N] ** 0.2 + 400 / frame[D] ** 0.35)


def bracket(x: pd.Series, c0: float, c1: float, c2: float) -> pd.Series:
    return c0 + c1 * np.log(x) + c2 / x


FORMS = {  # the truth, and the loss that it gives
    "paper-multiplicative": (
        SMALL,
        lambda t: bracket(t[X], 2.697, 0.0974, 0.0078) * bracket(t[R], 0.387, 0.0063, 0.0065),
    ),
    "paper-additive": (
        {"a0": 0.4, "a1": 0.12, "a2": 0.01, "b1": 0.05, "b2": 0.06},
        lambda t: 1 + (bracket(t[X], 0.4, 0.12, 0.01) + bracket(t[R], 0, 0.05, 0.06)) / t["floor"],
    ),
    "paper-joint": (
        {"a0": 1.1, "a1": 0.05, "a2": 0.004},
        lambda t: bracket(t[X] * t[R], 1.1, 0.05, 0.004),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_are_recovered_when_the_best_loss_is_given(form):
    truth, factor = FORMS[form]
    table = simulated_shapes()
    table = table.assign(loss=table["floor"] * factor(table), best_loss=table["floor"])
    parameters = public_parameters(fit(form, table, objective=SQUARES, starts=16, resamples=0))
    assert parameters == pytest.approx(truth, rel=1e-5)


@pytest.mark.parametrize("form", ["paper-multiplicative", "paper-joint"])
def test_empirical_best_loss_changes_the_scale_and_not_the_optima(form):
    truth, factor = FORMS[form]
    table = simulated_shapes()
    table = with_best_loss(table.assign(loss=table["floor"] * factor(table)))
    parameters = public_parameters(fit(form, table, objective=SQUARES, starts=16, resamples=0))
    assert parameters["a2"] / parameters["a1"] == pytest.approx(truth["a2"] / truth["a1"], rel=1e-5)
    lowest = float(factor(table).min())  # the best shape that was tried is not the best there is
    assert parameters["a1"] == pytest.approx(truth["a1"] / lowest, rel=1e-5)


def held_out_scores(form: str, small: pd.DataFrame, large: pd.DataFrame):
    fitted = fit(form, small, objective=SQUARES, starts=16, resamples=0)
    return scores(large["loss"], fitted.central(large))


def test_published_score_is_better_for_the_true_form():
    """The score is the squared error and rank correlation on a held-out size of simulated runs."""
    table = simulated_shapes()
    noise = np.exp(0.002 * np.random.default_rng(2).standard_normal(len(table)))
    loss = table["floor"] * FORMS["paper-multiplicative"][1](table) * noise
    table = with_best_loss(table.assign(loss=loss)).frame
    large = table[N] > 1e8
    right = held_out_scores("paper-multiplicative", table[~large], table[large])
    wrong = held_out_scores("paper-joint", table[~large], table[large])
    assert right.mse < wrong.mse
    assert right.spearman > 0.9
    assert right.spearman > wrong.spearman


def test_separable_forms_do_not_beat_the_best_loss_alone_on_tiny_models():
    """The best hidden size of the tiny models depends on N (LOG.md), unlike in the law."""
    runs = with_best_loss(load_runs("quickstart")).frame
    small, large = runs[runs["role"] == "proxy"], runs[runs["role"] != "proxy"]
    alone = float(((large["loss"] - large["best_loss"]) ** 2).mean())
    for form in ("paper-multiplicative", "paper-additive"):
        assert held_out_scores(form, small, large).mse > alone


# Hidden size over √N (the tables of arXiv 2502.06857 and arXiv 2403.08540).


def mse(law: str, runs: pd.DataFrame, size: str) -> tuple[float, dict[str, float]]:
    fitted = fit(law, runs, objective=SQUARES, size=size, starts=64, resamples=0)
    return scores(runs["loss"], fitted.central(runs)).mse, public_parameters(fitted)


@pytest.mark.parametrize(
    ("size", "inside", "alone", "shaped", "optimum"),
    [
        ("total", N, 2.28e-3, 4.9e-4, 0.0439),
        ("total", "n_total", 2.28e-3, 8.3e-4, 0.0346),
        ("non-embedding", N, 1.12e-3, 8.7e-4, 0.065),
    ],
)
def test_width_factor_on_gemstones_depends_on_the_size_convention(
    gemstones, size, inside, alone, shaped, optimum
):
    runs = gemstones.assign(**{X: gemstones["hidden_size"] / np.sqrt(gemstones[inside])})
    assert mse("chinchilla", runs, size)[0] == pytest.approx(alone, rel=6e-3)
    error, found = mse("width", runs, size)
    assert error == pytest.approx(shaped, rel=8e-3)
    assert found[f"{X}_optimum"] == pytest.approx(optimum, rel=2e-3)
    free, found = mse(f"(Chinchilla() * Bracket('{X}')).pin('a0', 1.0)", runs, size)
    assert free == pytest.approx(error, rel=1e-6)
    assert found["a2"] / found["a1"] == pytest.approx(optimum, rel=2e-3)


def test_chinchilla_has_the_published_error_with_a_key_and_value_for_every_head(gemstones):
    count = 16 * gemstones["num_hidden_layers"] * gemstones["hidden_size"] ** 2
    runs = gemstones.assign(**{N: count})
    assert mse("chinchilla", runs, "non-embedding")[0] == pytest.approx(1.11e-3, abs=5e-6)


def test_width_factor_on_open_lm_grid_has_an_optimum_on_total_size_only(tables):
    runs = tables("mlfoundations")
    runs = runs[runs["n_total"] > 50e6].reset_index(drop=True)
    assert len(runs) == 91
    law = f"PowerLaw() * UShape('{X}')"
    assert mse("power", runs, "total")[0] == pytest.approx(4.01e-3, rel=2e-3)
    error, found = mse(law, runs, "total")
    assert error == pytest.approx(4.7e-4, abs=5e-6)
    assert found[f"{X}_optimum"] == pytest.approx(0.063, abs=5e-4)
    _, found = mse(law, runs, "non-embedding")
    assert found[f"{X}_optimum"] > runs[X].max()


# The width-depth law (arXiv 2502.06857, parameters of its repository).

EXPONENTS, SCALES = ("alpha", "beta", "gamma", "zeta"), ("A", "B", "C", "G")
PUBLISHED = {
    1e-4: (
        *(9.00742e-5, 0.4195179541),
        (0.30146699, 0.3655461733, 0.5055007692, 0.4670177667),
        (1.6375654653, -0.0254911443, 7.8653383939, 9.9838221358),
    ),
    1e-3: (
        *(8.107426e-4, 0.5874913187),
        (0.3540096969, 0.464087269, 0.3941362557, 0.5364845902),
        (1.5262220266, -0.1780173948, 6.3319550722, 11.5393125864),
    ),
}


@pytest.mark.parametrize(("delta", "gap"), [(1e-4, 8.9e-3), (1e-3, 1.0e-4)])
def test_published_width_depth_law_has_its_objective_and_the_fit_a_lower_one(gemstones, delta, gap):
    cost, floor, exponents, scales = PUBLISHED[delta]
    public = {"E": np.exp(floor), **dict(zip(EXPONENTS, exponents, strict=True))}
    public |= {name: np.exp(scale) for name, scale in zip(SCALES, scales, strict=True)}
    law, objective = law_named("width-depth"), FitObjective(delta=delta)
    problem = problem_of(law, as_run_table(gemstones, "total"), objective, delta)
    theta = problem.law.internal(public, problem.reference)
    assert problem.data.cost(theta[None])[0] == pytest.approx(cost, abs=1e-10)
    fitted = fit("width-depth", gemstones, size="total", delta=delta, starts=256, resamples=0)
    assert cost / fitted.objective - 1 == pytest.approx(gap, rel=0.1)


# The aspect-ratio law (arXiv 2501.18107): its runs are not published, these are simulated.


def morph_runs(seed: int, noise: float) -> pd.DataFrame:
    """Return 24 simulated runs at D = 20 N and three of 80M at 160 N, as in the paper."""
    cells = [(n, 20 * n, shape) for n in (8e7, 1.5e8, 3e8) for shape in np.geomspace(12, 250, 8)]
    cells += [(8e7, 160 * 8e7, shape) for shape in (20, 60, 180)]
    table = pd.DataFrame(cells, columns=["n_total", D, "aspect_ratio"])
    loss = (1.6 + 120 / table["n_total"] ** 0.3 + 400 / table[D] ** 0.3) * (
        1 + 0.01 * table["aspect_ratio"] ** 0.3
    )
    return table.assign(loss=loss * np.exp(noise * np.random.default_rng(seed).standard_normal(27)))


MORPH = {"E": 1.6, "A": 120, "alpha": 0.3, "B": 400, "beta": 0.3} | {
    "aspect_ratio_epsilon": 0.01,
    "aspect_ratio_exponent": 0.3,
}


def test_aspect_ratio_law_is_recovered_exactly_without_noise():
    fitted = fit("morph", morph_runs(0, 0.0), objective=SQUARES, starts=64, resamples=0)
    found = {name: one["value"] for name, one in fitted.parameters().items()}
    assert found == pytest.approx(MORPH, rel=1e-4)
    assert len(fitted.theta) == 5  # one exponent for all


def test_true_parameters_of_the_aspect_ratio_law_lie_in_its_intervals():
    fitted = fit("morph", morph_runs(1, 0.003), objective=SQUARES, starts=64, resamples=200)
    assert fitted.held == {}
    for name, found in fitted.parameters().items():
        assert found["low"] < MORPH[name] < found["high"], name


def test_law_without_shape_misses_the_effect_of_the_aspect_ratio():
    small, large = morph_runs(1, 0.003), morph_runs(2, 0.003)
    shaped = fit("morph", small, objective=SQUARES, starts=32, resamples=0)
    plain = fit(
        "Chinchilla().tie('alpha', 'beta')", small, objective=SQUARES, starts=32, resamples=0
    )
    errors = [scores(large["loss"], one.central(large)).mse for one in (shaped, plain)]
    assert 5 * errors[0] < errors[1]


# Regressions of the fit that the reproduction revealed.


def test_bracket_below_one_allows_a_floor_above_the_lowest_loss():
    table = simulated_shapes()
    factor = bracket(table[X], 1.0, 0.15, 0.009)  # 0.73 at its lowest
    loss = (3.0 + 30 / table[N] ** 0.2) * factor
    assert loss.min() < 3.0
    law = f"(PowerLaw() * Bracket('{X}')).pin('a0', 1.0)"
    fitted = fit(law, table.assign(loss=loss), objective=SQUARES, starts=64, resamples=0)
    parameters = public_parameters(fitted)
    assert fitted.at_bounds == []
    assert (parameters["a1"], parameters["a2"]) == pytest.approx((0.15, 0.009), rel=1e-3)


def test_basins_that_merge_at_the_final_threshold_are_counted_as_one(tables):
    runs = tables("mlfoundations")
    runs = runs[runs["n_total"] > 50e6]
    fitted = fit(f"PowerLaw() * UShape('{X}')", runs, size="total", starts=256, resamples=0)
    objectives = [basin["objective"] for basin in fitted.basins]
    assert fitted.basins[0]["starts"] > 128
    assert (np.diff(objectives) > 1e-7 * objectives[0]).all()
