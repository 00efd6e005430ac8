"""Figures of residuals, quantiles and profiles, and the style of all figures."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.style import context

from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.derived import optimal, parameter
from shapelaw.scaling.fitting.law_problem import reconstruct_problem
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.registry import LAWS
from shapelaw.scaling.plots.law import plot_law
from shapelaw.scaling.plots.residuals import log_residuals, plot_profiles, plot_qq, plot_residuals
from shapelaw.scaling.plots.style import BLUE, COLOURS, log_ticks, save_figure
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.uncertainty.profiles import profile, profile_curve
from support.quick_fits import known_runs, labels, quick_fit, with_experts

BITS = "bits per byte"


@pytest.fixture(scope="module")
def runs():
    return known_runs()


@pytest.fixture(scope="module")
def steady(runs):
    return quick_fit("conditional-steady", runs)


@pytest.mark.parametrize("law_name", LAWS)
def test_every_law_has_its_figures(law_name):
    runs = with_experts(known_runs(rows=120))
    fitted = quick_fit(law_name, runs, starts=8, resamples=4)
    assert len(plot_law(fitted, runs).axes) == max(len(fitted.law.shapes), 1)
    for draw in (plot_law, plot_residuals, plot_qq):
        figure = draw(fitted, runs)
        assert "on 120 runs" in (figure.get_suptitle() or figure.axes[0].get_title())
        figure.draw_without_rendering()


def test_residuals_are_shown_against_prediction_size_tokens_and_every_ratio(steady, runs):
    figure = plot_residuals(steady, runs)
    assert labels(figure) == [
        "predicted loss (nats/token)",
        "N (non-embedding parameters)",
        "D (training tokens)",
        "hidden size / √N",
        "MLP / attention parameters",
        "query heads per KV head",
        "layers",
        "hidden size / layers",
    ]
    shown = np.concatenate(
        [dots.get_offsets() for dots in figure.axes[1].collections if dots.get_offsets().size]
    )
    expected = 100 * np.log(runs["loss"] / steady.central(runs))
    residuals = shown[np.isin(shown[:, 0], runs[N])][: len(runs), 1]
    np.testing.assert_allclose(np.sort(residuals), np.sort(expected))


def test_axes_of_losses_have_the_unit_of_the_fit(runs):
    fitted = quick_fit("paper-joint", runs)
    for fit, unit in ((fitted, "nats/token"), (replace(fitted, loss_unit=BITS), "bits/byte")):
        shown = labels(plot_residuals(fit, replace(RunTable(frame=runs), loss_unit=fit.loss_unit)))
        assert f"predicted loss ({unit})" in shown
        assert f"best loss at N and D ({unit})" in shown


def test_residuals_are_shown_against_columns_that_the_law_lacks_unless_constant(runs):
    table = runs.assign(gqa=2.0)
    figure = plot_residuals(quick_fit("chinchilla", table), table)
    assert "hidden size / √N" in labels(figure)
    assert "query heads per KV head" not in labels(figure)


def test_group_means_show_the_term_that_a_law_misses(runs, steady):
    def means(fitted: Fit) -> np.ndarray:
        axes = next(
            axes
            for axes in plot_residuals(fitted, runs).axes
            if axes.get_xlabel() == "hidden size / √N"
        )
        (bars,) = axes.containers
        return bars.lines[0].get_ydata()

    assert np.ptp(means(quick_fit("chinchilla", runs))) > 3 * np.ptp(means(steady))


def test_residuals_are_positive_where_a_run_is_worse_than_predicted(steady, runs):
    worse = runs.assign(loss=1.1 * steady.central(runs))
    np.testing.assert_allclose(log_residuals(steady, worse), np.log(1.1))


def outside(figure: Figure) -> int:
    return int(re.match(r"(\d+) of", figure.axes[0].get_title())[1])


def test_normal_noise_lies_in_the_band_of_the_qq_plot_and_heavy_tails_do_not():
    normal, heavy = known_runs(rows=150), known_runs(rows=150, heavy=True)
    inside = outside(plot_qq(quick_fit("conditional-steady", normal), normal))
    beyond = outside(plot_qq(quick_fit("conditional-steady", heavy), heavy))
    assert inside <= 15
    assert beyond > 2 * max(inside, 5)


def test_qq_plot_of_a_student_fit_has_quantiles_of_students_t():
    heavy = known_runs(rows=100, heavy=True)
    objective = FitObjective(kind="student", degrees=3.0)
    fitted = quick_fit("chinchilla", heavy, objective=objective, delta="auto")
    figure = plot_qq(fitted, heavy)
    assert figure.axes[0].get_xlabel() == "quantile of Student's t with 3 degrees of freedom"
    assert f"{100 * fitted.delta:.2g} % of the loss" in figure.axes[0].get_ylabel()


def test_qq_plot_of_a_fit_without_noise_is_refused():
    table = known_runs(rows=5).assign(loss=[4.0, 3.0, 2.5, 2.4, 2.3])
    exact = quick_fit("chinchilla", table, resamples=0)
    object.__setattr__(exact, "noise", 0.0)
    with pytest.raises(InputError, match="`noise > 0` must hold for a Q-Q plot"):
        plot_qq(exact, table)


def test_a_profile_crosses_its_limit_at_the_ends_of_the_interval(steady, runs):
    problem, best = reconstruct_problem(steady, runs)
    quantity = parameter(steady, "alpha").inner
    curve = profile_curve(problem, best, quantity, points=61)
    assert curve.interval == profile(problem, best, quantity)
    for end in (curve.interval.low, curve.interval.high):
        assert np.interp(end, curve.places, curve.rise) == pytest.approx(1.0, abs=0.02)
    assert curve.rise.min() >= -1e-9
    assert curve.places[np.argmin(curve.rise)] == pytest.approx(curve.interval.value, abs=0.01)


@pytest.mark.parametrize("name", ["alpha", "beta", "gqa_slope", "mlp_to_attention_curvature"])
def test_a_profile_is_the_objective_of_many_starts_with_the_parameter_held(name, steady, runs):
    problem, best = reconstruct_problem(steady, runs)
    curve = profile_curve(problem, best, parameter(steady, name).inner, points=7)
    again = []
    for place in curve.places:
        held = problem.but(held={**problem.held, name: Held.at(float(place), "profile")})
        again.append(held.minimise(held.starts(32, 0)).cost.min() - best.cost)
    finite = curve.rise < 1e6  # beyond a bound there is nothing to compare
    ratio = np.array(again)[finite] / curve.rise[finite]
    far = curve.rise[finite] > 0.05
    np.testing.assert_allclose(ratio[far], np.median(ratio[far]), rtol=1e-3)


def test_a_profile_ends_at_a_bound_that_stops_it(runs):
    # The loss hardly falls with N: the exponent of a law without a floor cannot be told from 0.
    errors = 0.02 * np.sin(7.0 * np.arange(len(runs)))
    table = runs.assign(loss=2 * runs[N] ** -0.0005 * np.exp(errors))
    fitted = quick_fit("kaplan", table, delta=1.0)
    problem, best = reconstruct_problem(fitted, table)
    assert problem.bounds.lower[problem.law.index["alpha"]] == 0
    found = profile(problem, best, parameter(fitted, "alpha").inner)
    assert 0 < found.value < found.high < 0.01
    assert found.low == pytest.approx(0, abs=1e-3 * found.high)
    curve = profile_curve(problem, best, parameter(fitted, "alpha").inner)
    assert (curve.rise[curve.places < -1e-6] > 1e6).all()


def test_profile_interval_of_a_held_parameter_has_no_width(runs):
    fitted = quick_fit("Chinchilla().pin('alpha', 0.34)", runs)
    problem, best = reconstruct_problem(fitted, runs)
    found = profile(problem, best, parameter(fitted, "alpha").inner)
    assert found.low == found.value == found.high == pytest.approx(0.34)


def test_every_free_parameter_has_a_profile_with_its_interval_in_the_title(runs):
    fitted = quick_fit("power", runs)
    figure = plot_profiles(fitted, runs)
    assert [label.split(" (")[0] for label in labels(figure)] == ["E", "A", "alpha"]
    problem, best = reconstruct_problem(fitted, runs)
    found = profile(problem, best, parameter(fitted, "alpha").inner)
    ends = ["open" if np.isinf(end) else f"{end:.4g}" for end in (found.low, found.high)]
    assert figure.axes[2].get_title() == f"{found.value:.4g} [{', '.join(ends)}]"


def test_given_quantities_are_profiled_in_their_units(runs):
    fitted = quick_fit("chinchilla", runs)
    size, *_, share = optimal(fitted, 1e18)
    figure = plot_profiles(fitted, runs, [size, share])
    assert labels(figure) == ["N* (parameters)", "a_opt (exponent of C in N*)"]


def test_profiles_of_other_runs_than_the_fitted_ones_are_refused(steady, runs):
    with pytest.raises(InputError, match="`fit` and `runs` must belong together"):
        plot_profiles(steady, runs.iloc[:-1])


@pytest.mark.parametrize("draw", [plot_law, plot_residuals, plot_qq])
def test_figure_of_a_table_without_a_column_or_rows_is_refused(draw, steady, runs):
    with pytest.raises(InputError, match="lacks the column `gqa`"):
        draw(steady, runs.drop(columns="gqa"))
    with pytest.raises(InputError, match="needs at least one run"):
        draw(steady, runs.iloc[:0])


def test_a_table_without_sizes_is_drawn_in_one_colour(runs):
    table = runs.drop(columns=[N, D])  # as a table of best losses may come
    figure = plot_law(quick_fit("paper-multiplicative", table), table)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["runs", "95 % band", "law"]


def test_axis_of_a_fit_on_total_parameters_names_the_convention(runs):
    table = runs.drop(columns=N).assign(n_total=runs[N])
    figure = plot_residuals(quick_fit("chinchilla", table), table)
    assert labels(figure)[1] == "N (total parameters)"


def test_style_ignores_a_notebooks_settings_and_leaves_them_unchanged(steady, runs):
    with context({"axes.facecolor": "black", "font.size": 30}):
        figure = plot_qq(steady, runs)
        assert rcParams["font.size"] == 30
    assert figure.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert figure.axes[0].xaxis.label.get_fontsize() == 10


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def test_the_first_two_colours_differ_in_lightness_too():
    assert COLOURS[0] == BLUE
    assert luminance(COLOURS[1]) / luminance(COLOURS[0]) > 1.2
    assert len(set(COLOURS)) == len(COLOURS)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_figure_is_the_same_to_the_byte_without_dates(ending, steady, runs, tmp_path):
    paths = [tmp_path / f"{name}.{ending}" for name in ("first", "second")]
    for path in paths:
        save_figure(plot_residuals(steady, runs), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    assert b"dc:date" not in first
    assert b"matplotlib.org" not in first


@pytest.mark.parametrize("name", ["law.pdf", "law", "law.png.txt"])
def test_unknown_file_ending_is_refused_and_nothing_is_written(name, tmp_path):
    with pytest.raises(InputError, match=r"must end in \.png or \.svg"):
        save_figure(Figure(), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("low", "high"), [(0.05, 0.4), (1, 4), (2.05, 2.2), (1e5, 1e8), (1e17, 1e26), (3.0, 3.0004)]
)
def test_ticks_are_few_round_and_inside(low, high):
    ticks = log_ticks(low, high, 6)
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(set(ticks))
