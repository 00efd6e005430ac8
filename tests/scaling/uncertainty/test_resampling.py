import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import least_squares

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.fit_law import fit
from shapelaw.scaling.fitting.law_problem import problem_of
from shapelaw.scaling.laws.bases import Chinchilla, Kaplan
from shapelaw.scaling.laws.registry import law_named
from shapelaw.scaling.runs.catalog import MIRROR, load_runs
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import as_run_table
from shapelaw.scaling.solver.multistart import multi_start, solve_at
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.uncertainty.intervals import bca, jackknife, normal_interval, percentile
from shapelaw.scaling.uncertainty.resampling import (
    METHODS,
    ROWS_PER_PARAMETER,
    bootstrap,
    method_for,
)
from shapelaw.scaling.uncertainty.robust_covariance import (
    leverage,
    numeric_gradient,
    pseudo_variance,
    sandwich,
)
from support.paths import SHARED
from support.synthetic import synthetic_chinchilla

ROWS, NOISE = 48, 0.05
GROUPS = np.repeat(np.arange(ROWS // 4), 4)


def line(seed: int = 0, between: float = 0.0) -> pd.DataFrame:
    """Simulate ln losses on a straight line in ln N, for which textbooks give all answers."""
    generator = np.random.default_rng(seed)
    size = np.exp(generator.uniform(np.log(1e5), np.log(1e8), ROWS))
    noise = NOISE * generator.standard_normal(ROWS)
    noise += between * generator.standard_normal(ROWS // 4)[GROUPS]
    return pd.DataFrame({N: size, "loss": 3 * (size / 1e6) ** -0.1 * np.exp(noise)})


def solved(law, runs, kind="squares", delta: float | str = 0.01, **objective):
    problem = problem_of(
        law_named(law), as_run_table(runs), FitObjective(kind=kind, **objective), delta
    )
    return solve_at(problem, delta, 32, 0)


@pytest.fixture(scope="module")
def straight():
    return solved("kaplan", line())


@pytest.fixture(scope="module")
def grouped():
    return solved("kaplan", line(between=0.1))


def design(problem) -> np.ndarray:
    """Return the design matrix of the straight line, (n, 2)."""
    logs = np.log(problem.columns[N])
    return np.stack([np.ones(len(logs)), -(logs - logs.mean())], axis=1)


def spread(problem, best, method, resamples=1500, clusters=None, seed=0) -> np.ndarray:
    draws = bootstrap(
        problem, best, method=method, resamples=resamples, seed=seed, clusters=clusters
    )
    return draws.std(axis=0)


# Choice of the method.


@pytest.mark.parametrize(
    ("rows", "clusters", "method"),
    [
        (ROWS_PER_PARAMETER * 5, None, "rows"),
        (ROWS_PER_PARAMETER * 5 - 1, None, "residuals"),
        (400, np.arange(400), "rows"),  # every row is a cluster
        (400, np.arange(400) // 4, "cluster"),
        (400, np.arange(400) // 20, "cluster"),
    ],
)
def test_the_bootstrap_method_depends_on_rows_and_clusters(rows, clusters, method):
    assert method_for(rows, 5, clusters) == method


def test_an_unknown_method_or_missing_clusters_raise(straight):
    with pytest.raises(
        InputError, match=r"`method` must be one of rows, cluster, .*, but got 'bag'"
    ):
        bootstrap(*straight, method="bag", resamples=3, seed=0)
    for method in ("cluster", "wild-cluster"):
        with pytest.raises(InputError, match=f"the {method} bootstrap needs `clusters`; name the"):
            bootstrap(*straight, method=method, resamples=3, seed=0)


# Resamples.


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_draws_the_same_resamples_and_another_does_not(straight, method):
    first, again, other = (
        bootstrap(*straight, method=method, resamples=5, seed=seed, clusters=GROUPS)
        for seed in (1, 1, 2)
    )
    assert first.shape == (5, 2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    none = bootstrap(*straight, method=method, resamples=0, seed=0, clusters=GROUPS)
    assert none.shape == (0, 2)


def test_a_held_parameter_is_drawn_from_its_range_and_a_fixed_one_is_not():
    runs = synthetic_chinchilla(0.01, sizes=(1e5, 4e5), tokens=(1e6, 8e6, 6.4e7))
    problem, best = solved(Chinchilla().pin("E", 1.8), runs, kind="huber")
    draws = bootstrap(problem, best, method="rows", resamples=200, seed=1)
    floor, exponent = draws[:, 0], draws[:, 2]
    assert set(floor) == {np.log(1.8)}
    assert len(set(exponent)) == 200
    assert 0.2 <= exponent.min() < 0.22
    assert 0.58 < exponent.max() <= 0.6
    scale = np.corrcoef(draws[:, 1], exponent)[0, 1]
    assert abs(scale) > 0.05  # the scale is refitted with every exponent


@pytest.mark.parametrize("method", ["rows", "residuals", "wild"])
def test_bootstrap_errors_of_a_straight_line_equal_textbook_errors(straight, method):
    problem, best = straight
    x = design(problem)
    residuals = problem.log_residuals(best.theta)
    inverse = np.linalg.inv(x.T @ x)
    if method == "residuals":
        covariance = inverse * (residuals**2).sum() / (ROWS - 2)
    else:  # heteroscedasticity allowed: HC0 to HC2 differ by a few per cent here
        covariance = inverse @ (x.T * residuals**2) @ x @ inverse
    np.testing.assert_allclose(
        spread(problem, best, method), np.sqrt(np.diag(covariance)), rtol=0.12
    )


@pytest.mark.parametrize("method", ["cluster", "wild-cluster"])
def test_cluster_bootstraps_have_clustered_sandwich_errors(grouped, method):
    problem, best = grouped
    found = spread(problem, best, method, clusters=GROUPS)
    expected = np.sqrt(np.diag(sandwich(problem, best.theta, GROUPS)))
    np.testing.assert_allclose(found, expected, rtol=0.2)
    plain = spread(problem, best, "rows")
    assert found[0] > 1.3 * plain[0]  # the intercept has only twelve independent clusters
    alone = spread(problem, best, method, clusters=np.arange(ROWS))
    np.testing.assert_allclose(alone, plain, rtol=0.15)
    assert not np.allclose(alone, found, rtol=0.15)


def test_each_resample_ends_at_the_optimum_of_scipy():
    """Compare with the plain formula and SciPy from several starts, for resamples of rows."""
    runs = synthetic_chinchilla(0.02, shapes=4)
    problem, best = solved("chinchilla", runs, kind="huber", delta=5e-3)
    draws = bootstrap(problem, best, method="rows", resamples=12, seed=3)
    rows = len(runs)
    counts = np.random.default_rng(3).multinomial(rows, np.full(rows, 1 / rows), size=12)
    n, d = (np.log(runs[name] / np.exp(np.log(runs[name]).mean())) for name in (N, D))

    def residuals(theta):
        terms = np.exp(theta[0]), np.exp(theta[1] - theta[2] * n), np.exp(theta[3] - theta[4] * d)
        return (np.log(sum(terms)) - np.log(runs["loss"])).to_numpy()

    def cost(theta, count):
        r = np.abs(residuals(theta))
        huber = np.where(r <= 5e-3, r**2 / 2, 5e-3 * (r - 2.5e-3))
        return float((count * huber).sum())

    generator = np.random.default_rng(0)
    for draw, count in zip(draws, counts, strict=True):
        rows_drawn = np.repeat(np.arange(rows), count)
        found = [
            least_squares(
                lambda theta, chosen=rows_drawn: residuals(theta)[chosen],
                start,
                bounds=(-10, 5),
                loss="huber",
                f_scale=5e-3,
                x_scale="jac",
                ftol=1e-14,
                xtol=1e-12,
                gtol=1e-14,
            ).cost
            for start in (best.theta, best.theta + 0.05 * generator.standard_normal(5))
        ]
        assert cost(draw, count) <= min(found) + 1e-8 * cost(draw, count)


def test_the_residuals_of_a_perfectly_fitted_table_are_resampled_without_a_warning():
    size = np.array([1e6, 1e7, 1e8])
    problem, best = solved("power", pd.DataFrame({N: size, "loss": 2 + (size / 1e7) ** -0.3}))
    assert problem.free.all()
    draws = bootstrap(problem, best, method="residuals", resamples=3, seed=0)
    np.testing.assert_allclose(draws, np.tile(best.theta, (3, 1)), atol=1e-5)


# Sandwich errors.


def test_the_sandwich_of_a_straight_line_equals_the_textbook_formula(straight):
    problem, best = straight
    x, r = design(problem), problem.log_residuals(best.theta)
    inverse = np.linalg.inv(x.T @ x)
    left_out = r / (1 - np.einsum("na,ab,nb->n", x, inverse, x))
    hc3 = inverse @ (x.T * left_out**2) @ x @ inverse
    np.testing.assert_allclose(sandwich(problem, best.theta), hc3, rtol=1e-9)
    groups = GROUPS.max() + 1
    sums = (x * r[:, None]).reshape(groups, 4, 2).sum(axis=1)
    cr1 = inverse @ sums.T @ sums @ inverse * groups / (groups - 1) * (ROWS - 1) / (ROWS - 2)
    np.testing.assert_allclose(sandwich(problem, best.theta, GROUPS), cr1, rtol=1e-9)
    assert pseudo_variance(problem, best.theta) == pytest.approx((r**2).sum() / (ROWS - 2))


@pytest.mark.parametrize("kind", ["huber", "student", "asymmetric"])
def test_sandwich_errors_agree_with_the_bootstrap(kind):
    wide = {"sizes": (1e5, 1e6, 1e7), "tokens": (1e6, 3e7, 1e9)}
    problem, best = solved(
        "chinchilla", synthetic_chinchilla(0.01, shapes=16, **wide), kind=kind, delta=0.01
    )
    errors = np.sqrt(np.diag(sandwich(problem, best.theta)))
    draws = bootstrap(problem, best, method="rows", resamples=600, seed=0)
    low, high = np.percentile(draws, stats.norm.cdf([-1, 1]) * 100, axis=0)  # E has a long tail
    np.testing.assert_allclose((high - low) / 2, errors, rtol=0.25)


@pytest.mark.parametrize("delta", [0.001, 0.02])
def test_sandwich_errors_follow_heteroscedastic_noise(delta):
    """Simulate noisier large models, with few residuals inside a narrow threshold."""
    generator = np.random.default_rng(1)
    size = np.exp(generator.uniform(np.log(1e5), np.log(1e8), 300))
    noise = 0.01 * (size / 1e6) ** 0.5 * generator.standard_normal(300)
    runs = pd.DataFrame({N: size, "loss": 3 * (size / 1e6) ** -0.1 * np.exp(noise)})
    problem, best = solved("kaplan", runs, kind="huber", delta=delta)
    errors = np.sqrt(np.diag(sandwich(problem, best.theta)))
    np.testing.assert_allclose(spread(problem, best, "rows"), errors, rtol=0.25)


def test_held_parameters_have_zero_sandwich_error():
    runs = synthetic_chinchilla(0.01, sizes=(1e5, 4e5))
    problem, best = solved("chinchilla", runs, kind="huber")
    covariance = sandwich(problem, best.theta)
    assert (covariance[2] == 0).all()
    assert (covariance[:, 2] == 0).all()
    assert (np.diag(covariance)[problem.free] > 0).all()


@pytest.mark.parametrize("kind", ["squares", "huber", "student"])
def test_equal_weights_change_no_error(kind):
    runs = line().assign(importance=7.0)
    plain, best = solved("kaplan", runs, kind=kind)
    weighted, same = solved("kaplan", runs, kind=kind, weights="importance")
    np.testing.assert_allclose(same.theta, best.theta, rtol=1e-6)
    np.testing.assert_allclose(
        sandwich(weighted, best.theta), sandwich(plain, best.theta), rtol=1e-9
    )
    assert pseudo_variance(weighted, best.theta) == pytest.approx(
        7 * pseudo_variance(plain, best.theta)  # like differences of the objective
    )
    np.testing.assert_allclose(leverage(weighted, best.theta), leverage(plain, best.theta))
    counts = bootstrap(weighted, same, method="rows", resamples=4, seed=0)
    np.testing.assert_allclose(
        counts, bootstrap(plain, best, method="rows", resamples=4, seed=0), rtol=1e-5
    )


def test_weights_give_the_weighted_sandwich_of_textbooks():
    weights = np.random.default_rng(1).uniform(0.2, 3.0, ROWS)
    problem, best = solved("kaplan", line().assign(importance=weights), weights="importance")
    x, y = design(problem), problem.log_loss
    inverse = np.linalg.inv((x.T * weights) @ x)
    np.testing.assert_allclose(best.theta, inverse @ (x.T * weights) @ y, rtol=1e-6)
    r = (y - x @ best.theta) / (1 - weights * np.einsum("na,ab,nb->n", x, inverse, x))
    expected = inverse @ (x.T * (weights * r) ** 2) @ x @ inverse  # HC3
    np.testing.assert_allclose(sandwich(problem, best.theta), expected, rtol=1e-6)


def test_the_leverage_of_a_straight_line_equals_the_textbook_formula(straight):
    problem, best = straight
    x = design(problem)
    hat = x @ np.linalg.inv(x.T @ x) @ x.T
    np.testing.assert_allclose(leverage(problem, best.theta), np.diag(hat), rtol=1e-9)


# Intervals.


def slope(theta: np.ndarray) -> np.ndarray:
    return theta[:, 1]


def test_the_normal_interval_is_the_estimate_plus_minus_students_quantile_times_its_error(straight):
    problem, best = straight
    error = np.sqrt(sandwich(problem, best.theta)[1, 1])
    found = normal_interval(problem, best, slope, level=90.0)
    half = stats.t.ppf(0.95, ROWS - 2) * error
    assert (found.low, found.value, found.high) == pytest.approx(
        (best.theta[1] - half, best.theta[1], best.theta[1] + half)
    )
    assert (found.level, found.method) == (90.0, "sandwich")
    clustered = normal_interval(problem, best, slope, clusters=GROUPS)
    error = np.sqrt(sandwich(problem, best.theta, GROUPS)[1, 1])
    half = stats.t.ppf(0.975, GROUPS.max()) * error
    assert clustered.high - clustered.value == pytest.approx(half)


def test_the_error_of_a_derived_quantity_follows_the_delta_method(straight):
    problem, best = straight

    def halving(theta):  # of the loss: how much larger N must be, in logarithms
        return np.log(2) / theta[:, 1]

    gradient = numeric_gradient(halving, best.theta)
    assert gradient == pytest.approx([0.0, -np.log(2) / best.theta[1] ** 2], rel=1e-6)
    found = normal_interval(problem, best, halving)
    plain = normal_interval(problem, best, slope)
    ratio = np.log(2) / best.theta[1] ** 2
    assert found.high - found.low == pytest.approx(ratio * (plain.high - plain.low), rel=1e-6)


def test_the_percentile_interval_equals_the_quantiles_of_the_draws(straight):
    _, best = straight
    draws = np.stack([np.zeros(1001), np.arange(1001.0)], axis=1)
    found = percentile(slope, best, draws, 80.0)
    assert (found.low, found.high, found.value) == (100.0, 900.0, best.theta[1])


@pytest.mark.parametrize("level", [80.0, 95.0])
def test_bca_of_a_mean_equals_scipys_interval(level):
    """Fix the exponent: the scale of the law is then a mean, and its exponential is skewed."""
    generator = np.random.default_rng(4)
    values = generator.exponential(0.4, 30)
    size = np.geomspace(1e5, 1e8, 30)
    loss = np.exp(values - 0.1 * (np.log(size) - np.log(size).mean()))
    law = Kaplan().pin("alpha", 0.1)
    problem, best = solved(law, pd.DataFrame({N: size, "loss": loss}))
    draws = bootstrap(problem, best, method="rows", resamples=8000, seed=0)

    def scale(theta):
        return np.exp(theta[:, 0])

    assert best.theta[0] == pytest.approx(values.mean())
    found = bca(problem, best, scale, draws, level=level)
    other = stats.bootstrap(
        (values,), lambda v, axis: np.exp(v.mean(axis=axis)), n_resamples=8000,
        confidence_level=level / 100, method="BCa", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = other.high - other.low
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.07 * width)
    plain = percentile(scale, best, draws, level)
    assert found.low > plain.low  # moved towards the long tail
    assert found.high > plain.high


def test_bca_of_a_symmetric_quantity_equals_the_percentile_interval(straight):
    problem, best = straight
    draws = bootstrap(problem, best, method="residuals", resamples=4000, seed=0)
    found, plain = bca(problem, best, slope, draws), percentile(slope, best, draws, 95.0)
    width = plain.high - plain.low
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.1 * width)
    wider = bca(problem, best, slope, draws, level=99.0)
    assert wider.low < found.low < found.value < found.high < wider.high


def test_bca_of_draws_that_all_lie_on_one_side_is_finite(straight):
    problem, best = straight
    draws = best.theta + np.abs(np.random.default_rng(0).standard_normal((50, 2)))
    found = bca(problem, best, slope, draws)
    assert np.isfinite([found.low, found.high]).all()


@pytest.mark.parametrize("clusters", [None, GROUPS])
def test_the_jackknife_refits_without_each_row_or_cluster(straight, clusters):
    problem, best = straight
    x, y = design(problem), problem.log_loss
    found = jackknife(problem, best, clusters)
    number = np.arange(ROWS) if clusters is None else clusters
    assert len(found) == number.max() + 1
    for place, theta in enumerate(found):
        keep = number != place
        expected, *_ = np.linalg.lstsq(x[keep], y[keep], rcond=None)
        np.testing.assert_allclose(theta, expected, rtol=1e-7)


# Two basins of nearly the same objective.


def test_a_resample_may_prefer_the_other_basin():
    """Simulate two halves of runs with different scales; a resample follows its majority."""
    generator = np.random.default_rng(0)
    size = np.geomspace(1e5, 1e8, 60)
    offset = np.where(np.arange(60) % 2 == 0, 0.0, 0.4)
    loss = np.exp(1 + offset + 0.01 * generator.standard_normal(60)) * (size / 1e6) ** -0.1
    law = Kaplan().pin("alpha", 0.1)
    problem, best = solved(
        law, pd.DataFrame({N: size, "loss": loss}), kind="student", delta=0.01, degrees=1.0
    )
    assert len(best.basins) > 1
    draws = bootstrap(problem, best, method="rows", resamples=200, seed=0)
    far = np.abs(draws[:, 0] - best.theta[0]) > 0.2
    assert 0.2 < far.mean() < 0.8
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=200)
    weighted = problem.but(weights=counts.astype(float))
    anew = [multi_start(problem.but(weights=row.astype(float)), best.others) for row in counts[:20]]
    np.testing.assert_allclose(
        weighted.data.cost(draws)[:20], [one.cost for one in anew], rtol=1e-8
    )


# Published results.


def test_intervals_of_the_chinchilla_data_equal_the_published_ones(monkeypatch):
    folder = Path(os.environ.get(MIRROR, SHARED / "datasets"))
    if not folder.is_dir():
        pytest.skip(f"the public tables are not here: set {MIRROR} to a folder that holds them")
    monkeypatch.setenv(MIRROR, str(folder))
    table = load_runs("chinchilla").frame
    fitted = fit("chinchilla", table[~table["outlier"]], delta=1e-3, starts=8, resamples=1000)
    assert fitted.bootstrap == "1000 resamples by rows (iid)"
    golden = {  # 95 % of 4000 resamples: arXiv 2404.10102
        "E": (1.769, 1.871, 0.02565),
        "alpha": (0.317, 0.373, 0.01540),
        "beta": (0.331, 0.415, 0.02059),
    }
    public = fitted.law.public(fitted.draws, fitted.reference)
    for name, (low, high, error) in golden.items():
        ends = np.percentile(public[name], [2.5, 97.5])
        assert ends == pytest.approx((low, high), abs=0.4 * error), name
        assert public[name].std() == pytest.approx(error, rel=0.1), name
    # Printed ends are those of profiles, whose scale is the sandwich error. The resamples of beta
    # spread 1.25 times as far and have a longer upper tail, so only its upper end differs more.
    printed = fitted.parameters()
    for name, (low, high, error) in golden.items():
        assert printed[name]["low"] == pytest.approx(low, abs=0.28 * error), name
        limit = 0.62 if name == "beta" else 0.38
        assert printed[name]["high"] == pytest.approx(high, abs=limit * error), name
    low, high = np.percentile(public["beta"] / (public["alpha"] + public["beta"]), [2.5, 97.5])
    assert (low, high) == pytest.approx((0.480, 0.556), abs=0.008)
    ratio = fitted.draws.std(axis=0) / np.sqrt(np.diag(fitted.covariance))
    np.testing.assert_allclose(ratio, 1, atol=0.35)  # the sandwich errors agree
    # By model size (read from a figure, within one per cent): E 0.0276, alpha 0.0180, beta 0.0184.
    runs = table[~table["outlier"]]
    logs = np.log(runs["n_total"].to_numpy())
    order = np.argsort(logs)
    sizes = np.empty(len(runs), dtype=int)
    sizes[order] = np.cumsum(np.diff(logs[order], prepend=logs.min()) > 0.01)
    problem = problem_of(law_named("chinchilla"), as_run_table(runs), delta=1e-3)
    best = multi_start(problem, problem.starts(8, 0))
    draws = bootstrap(problem, best, method="cluster", resamples=1000, seed=0, clusters=sizes)
    by_size = fitted.law.public(draws, fitted.reference)
    for name, error in (("E", 0.0276), ("alpha", 0.0180), ("beta", 0.0184)):
        assert by_size[name].std() == pytest.approx(error, rel=0.1), name
