"""Figures of iso-loss contours, drift, held-out errors and comparisons."""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.checks.comparison import compare
from shapelaw.scaling.checks.holdout import leave_largest_out
from shapelaw.scaling.checks.report import check
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import allocation, best_ratios, best_sizes
from shapelaw.scaling.laws.registry import LAWS, law_named
from shapelaw.scaling.plots.contours import loss_map, plot_contours
from shapelaw.scaling.plots.holdout import (
    largest_value,
    plot_comparison,
    plot_drift,
    plot_held_out,
    select_hold_out,
)
from shapelaw.scaling.plots.style import save_figure
from shapelaw.scaling.runs.catalog import MIRROR, load_runs
from shapelaw.scaling.runs.columns import D, N
from support.quick_fits import known_runs, labels, quick_fit, with_experts
from support.synthetic import synthetic_runs

BOTH = [name for name in LAWS if {N, D} <= set(law_named(name).columns)]
SETTINGS = {"starts": 8, "delta": 0.01}


@pytest.fixture(scope="module")
def runs():
    return known_runs()


@pytest.fixture(scope="module")
def fitted(runs):
    return quick_fit("chinchilla", runs)


@pytest.fixture(scope="module")
def hold_out(runs):
    return leave_largest_out("chinchilla", runs, by="tokens", resamples=10, **SETTINGS)


@pytest.fixture(scope="module")
def chinchilla():
    """Load the 240 Chinchilla points, or skip the test."""
    if not os.environ.get(MIRROR):
        pytest.skip(f"the public tables are not here: set {MIRROR} to a folder that holds them")
    table = load_runs("chinchilla").frame
    return table[~table["outlier"]].drop(columns="outlier").reset_index(drop=True)


def test_loss_map_encloses_the_runs_and_equals_the_prediction_of_the_law(fitted, runs):
    found = loss_map(fitted, runs, points=7)
    assert found.loss.shape == (7, 7)
    assert found.sizes[0] < runs[N].min() < runs[N].max() < found.sizes[-1]
    assert found.tokens[0] < runs[D].min() < runs[D].max() < found.tokens[-1]
    row = pd.DataFrame({N: [found.sizes[2]], D: [found.tokens[5]]})
    assert found.loss[5, 2] == pytest.approx(fitted.central(row)[0])
    assert (np.diff(found.loss, axis=0) < 0).all()
    assert (np.diff(found.loss, axis=1) < 0).all()


def test_the_compute_optimal_line_is_the_allocation_at_each_budget(fitted, runs):
    found = loss_map(fitted, runs, points=7)
    assert len(found.frontier) > 4
    assert not found.why
    for optimum in found.frontier:
        assert optimum.n == allocation(fitted, optimum.compute).n
    axes = plot_contours(fitted, runs).axes[0]
    (line,) = (line for line in axes.get_lines() if line.get_label() == "best N of a budget")
    size, tokens = line.get_data()
    np.testing.assert_allclose(6 * size * tokens, [optimum.compute for optimum in found.frontier])


def test_lines_of_equal_compute_are_one_per_decade_and_labelled(fitted, runs):
    axes = plot_contours(fitted, runs).axes[0]
    dotted = [line for line in axes.get_lines() if line.get_linestyle() == ":"]
    found = sorted(np.log10(6 * np.prod(line.get_data(), axis=0)).mean() for line in dotted)
    np.testing.assert_allclose(found, np.round(found), atol=1e-9)
    texts = {text.get_text() for text in axes.texts if text.get_text().startswith("1e")}
    assert texts <= {f"1e{power:.0f}" for power in found}
    assert len(texts) >= len(found) - 1


def test_runs_are_coloured_by_their_loss_on_the_scale_of_the_contours(fitted, runs):
    axes = plot_contours(fitted, runs).axes[0]
    (dots,) = (
        artist for artist in axes.collections if artist.get_label() == "runs, by measured loss"
    )
    np.testing.assert_allclose(np.asarray(dots.get_array()), runs["loss"])
    (lines,) = (artist for artist in axes.collections if hasattr(artist, "levels"))
    assert lines.norm is dots.norm
    assert (np.diff(lines.levels) > 0).all()


@pytest.mark.parametrize("law_name", LAWS)
def test_every_law_of_n_and_d_has_contours_and_any_other_is_refused(law_name):
    runs = with_experts(known_runs(rows=120))
    fitted = quick_fit(law_name, runs, starts=8, resamples=0)
    if law_name in BOTH:
        assert plot_contours(fitted, runs).axes[0].get_ylabel() == "D (training tokens)"
        return
    with pytest.raises(InputError, match=rf"need `N and D` in the law, but `{law_name}` has no"):
        plot_contours(fitted, runs)


def test_contours_at_a_given_shape_name_the_shape_in_the_title(runs):
    fitted = quick_fit("conditional-steady", runs, resamples=0)
    figure = plot_contours(fitted, runs, shape={"gqa": 4.0})
    assert "query heads per KV head 4" in figure.axes[0].get_title()
    with pytest.raises(InputError, match="`shape` must give positive ratios of the law"):
        plot_contours(fitted, runs, shape={"depth": 4.0})


@pytest.fixture(scope="module")
def drifting():
    table = synthetic_runs(shapes=8, sizes=(1e5, 4e5, 1.6e6, 6.4e6))
    fit = quick_fit("conditional", table, resamples=0)
    theta = fit.theta.copy()
    theta[fit.names.index("hidden_over_sqrt_n_drift")] = -0.3
    return replace(fit, theta=theta), table


def test_map_of_a_drifting_law_has_the_best_shape_of_each_size(drifting):
    fit, table = drifting
    found = loss_map(fit, table, points=7)
    assert found.drifting[:1] == ("hidden_over_sqrt_n",)
    base = {name: np.full(49, value) for name, value in found.shape.items()}
    for name in found.drifting:
        base[name] = np.tile(best_ratios(fit, found.sizes)[name], 7)
    base |= {N: np.tile(found.sizes, 7), D: np.repeat(found.tokens, 7)}
    np.testing.assert_allclose(found.loss.ravel(), fit.central(base))
    held = loss_map(fit, table, points=7, shape={"hidden_over_sqrt_n": 0.1})
    assert held.shape["hidden_over_sqrt_n"] == 0.1
    assert (found.loss <= held.loss + 1e-12).all()
    for optimum in found.frontier:
        assert optimum.n["value"] == best_sizes(fit, fit.theta[None], optimum.compute).n[0]
    title = plot_contours(fit, table).axes[0].get_title()
    assert "\neach N at its best hidden size / √N" in title


def test_contours_of_a_law_with_a_held_term_have_no_compute_optimal_line(runs):
    steady = runs[runs[D] == runs[D].min()].reset_index(drop=True)
    fitted = quick_fit("chinchilla", steady, resamples=0)
    axes = plot_contours(fitted, steady).axes[0]
    assert axes.get_title().startswith("no compute-optimal line: the law has B held")
    assert "best N of a budget" not in axes.get_legend_handles_labels()[1]


def test_contours_have_the_given_levels_and_levels_that_fall_are_refused(fitted, runs):
    axes = plot_contours(fitted, runs, levels=[2.2, 2.6]).axes[0]
    (lines,) = (artist for artist in axes.collections if hasattr(artist, "levels"))
    assert list(lines.levels) == [2.2, 2.6]
    with pytest.raises(InputError, match="`levels` must rise"):
        plot_contours(fitted, runs, levels=[2.6, 2.2])


def test_contours_of_a_fit_without_resamples_have_no_band(fitted, runs):
    without = replace(fitted, draws=fitted.draws[:0])
    for fit, expected in ((fitted, True), (without, False)):
        names = plot_contours(fit, runs).axes[0].get_legend_handles_labels()[1]
        assert ("95 % band" in names) is expected


def test_drift_has_a_panel_for_every_parameter_that_moves_and_one_for_the_error(hold_out):
    figure = plot_drift(hold_out)
    titles = [axes.get_title().split(" (")[0] for axes in figure.axes]
    assert titles == ["E", "A", "alpha", "B", "beta", "a_opt", "error on the runs left out"]
    assert set(labels(figure)) == {"largest fitted D (training tokens)"}
    drift = hold_out.drift()
    shown = figure.axes[4].get_lines()
    values = next(line.get_ydata() for line in shown if len(line.get_xdata()) == len(drift))
    np.testing.assert_allclose(values, drift["beta"])


def test_drift_of_a_fit_in_bits_per_byte_has_that_unit_on_its_scales(hold_out):
    bits = replace(hold_out, complete=replace(hold_out.complete, loss_unit="bits per byte"))
    for result, unit in ((hold_out, "nats/token"), (bits, "bits/byte")):
        titles = [axes.get_title() for axes in plot_drift(result).axes]
        assert titles[:2] == [f"E ({unit})", f"A ({unit})"]


def test_last_mark_of_a_drift_is_at_the_largest_run(hold_out, runs):
    assert largest_value(hold_out) == pytest.approx(runs[D].max())
    shares = [line.get_xdata()[-1] for line in plot_drift(hold_out).axes[0].get_lines()]
    assert max(shares) == pytest.approx(runs[D].max())


def test_drift_has_intervals_only_with_resamples(runs, hold_out):
    bare = leave_largest_out("chinchilla", runs, by="tokens", resamples=0, **SETTINGS)
    names = plot_drift(bare).axes[0].get_legend_handles_labels()[1]
    assert "its 95 % interval" not in names
    assert "its 95 % interval" in plot_drift(hold_out).axes[0].get_legend_handles_labels()[1]


def test_drift_of_a_check_is_drawn_and_a_missing_column_is_refused_with_the_reason(runs):
    found = check("chinchilla", runs, resamples=0, **SETTINGS)
    assert "by compute" in plot_drift(found, by="compute").get_suptitle()
    assert select_hold_out(found, "size") is found.hold_outs["size"]
    with pytest.raises(InputError, match="no leave-largest-out by 'tokens'"):
        plot_drift(found, by="tokens")
    lacking = replace(found, hold_outs={}, unavailable={"size": "one size only"})
    with pytest.raises(InputError, match="by 'size': one size only"):
        plot_held_out(lacking)


def test_every_held_out_run_is_drawn_with_its_error(hold_out):
    figure = plot_held_out(hold_out)
    shown = sum(len(dots.get_offsets()) for dots in figure.axes[0].collections)
    assert shown == sum(len(cutoff.held_out) for cutoff in hold_out.fitted)
    first = hold_out.fitted[0].held_out
    expected = 100 * np.log(first["loss"] / first["predicted_loss"])
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets()[:, 1], expected)


def test_comparison_lists_laws_from_the_best_down_and_names_those_that_failed(runs):
    found = compare(["chinchilla", "kaplan", "UShape('nothing') * 3"][:2], runs, **SETTINGS)
    lost = pd.DataFrame([{"law": "width", "verdict": "not available: no column"}])
    table = pd.concat([found.table, lost], ignore_index=True)
    figure = plot_comparison(replace(found, table=table))
    left = figure.axes[0]
    names = [text.get_text() for text in left.get_yticklabels()]
    places = left.get_yticks()
    assert names == [*found.table["law"], "width"]
    assert list(places) == sorted(places, reverse=True)
    assert len(figure.axes[1].get_lines()[-1].get_xdata()) == 2


def test_figures_of_maps_and_drifts_are_the_same_to_the_byte(fitted, runs, hold_out, tmp_path):
    for draw, given in ((plot_contours, (fitted, runs)), (plot_drift, (hold_out,))):
        paths = [tmp_path / f"{draw.__name__}{turn}.svg" for turn in (1, 2)]
        for path in paths:
            save_figure(draw(*given), path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_compute_optimal_line_of_chinchilla_has_the_published_slope(chinchilla):
    fitted = quick_fit("chinchilla", chinchilla, delta=1e-3, resamples=0)
    found = loss_map(fitted, chinchilla, points=5)
    slope = np.polyfit(
        np.log([optimum.compute for optimum in found.frontier]),
        np.log([optimum.n["value"] for optimum in found.frontier]),
        1,
    )[0]
    assert slope == pytest.approx(0.5139, abs=1e-4)  # a_opt of arXiv 2404.10102's data
