from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from shapelaw.scaling.errors import WorkError
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.laws.law import reference_of
from shapelaw.scaling.laws.registry import LAWS, law_named
from shapelaw.scaling.plots.law import POINTS, plot_law
from shapelaw.scaling.plots.style import COLOURS, LABELS, save_figure
from shapelaw.scaling.runs.columns import D, N, columns_of
from shapelaw.scaling.solver.identifiability import Held
from shapelaw.scaling.solver.objectives import FitObjective
from shapelaw.scaling.units import format_count
from support.quick_fits import with_experts

INNER = {
    "E": 0.6,
    "A": -0.5,
    "alpha": 0.34,
    "B": -0.2,
    "beta": 0.37,
    "hidden_over_sqrt_n_curvature": 0.1,
    "hidden_over_sqrt_n_optimum": np.log(0.15),
    "hidden_over_sqrt_n_drift": 0.0,
    "mlp_to_attention_curvature": 0.03,
    "mlp_to_attention_optimum": np.log(2.0),
    "mlp_to_attention_drift": 0.0,
    "gqa_slope": 0.01,
    "num_hidden_layers_curvature": 0.05,
    "num_hidden_layers_optimum": np.log(8.0),
    "num_hidden_layers_drift": 0.2,
}
RATIOS = {
    "hidden_over_sqrt_n": (0.05, 0.4),
    "mlp_to_attention": (0.5, 8.0),
    "gqa": (1.0, 8.0),
    "num_hidden_layers": (2.0, 32.0),
    "head_dim": (16.0, 128.0),
    "hidden_size": (64.0, 512.0),
    "aspect_ratio": (8.0, 64.0),
    "best_loss": (2.0, 3.0),
}
SHAPED = [name for name, make in LAWS.items() if make().shapes]
REFERENCE = {N: 4e5, D: 8e6}


def drifting_runs(sizes=(1e5, 4e5, 1.6e6), rows: int = 10) -> pd.DataFrame:
    """Draw shapes at several sizes, with losses of the law without noise."""
    generator = np.random.default_rng(4)
    frame = pd.DataFrame({N: np.repeat(sizes, rows), D: 8e6})
    for name, (low, high) in RATIOS.items():
        frame[name] = np.exp(generator.uniform(np.log(low), np.log(high), len(frame)))
    law = law_named("conditional+depth")
    theta = np.array(list(INNER.values()))
    loss = law.predict(theta, columns_of(frame, law.columns), REFERENCE)
    return frame.assign(loss=loss)


def some_fit(law_name: str, runs: pd.DataFrame, draws: int = 12, **changes: object) -> Fit:
    law = law_named(law_name)
    columns = columns_of(runs, law.columns)
    names = list(law.names)
    starts = {p.name: np.mean(p.starts) for p in law.parameters(columns, runs["loss"].to_numpy())}
    theta = np.array([(starts | INNER)[name] for name in names])
    noise = np.random.default_rng(0).standard_normal((draws, len(theta)))
    settings = {
        "law_name": law_name,
        "names": names,
        "theta": theta,
        "draws": theta + 0.02 * np.abs(theta) * noise,
        "covariance": np.zeros((len(theta), len(theta))),
        "reference": reference_of(columns) | REFERENCE,
        "held": {},
        "objective": 1e-4,
        "minimised": FitObjective(delta=0.004),
        "delta_rule": "as given",
        "status": "converged",
        "notes": [],
        "starts": 1,
        "basins": [],
        "gradient_norm": 0.0,
        "at_bounds": [],
        "dead_terms": [],
        "seconds": 0.0,
        "run_ids": [f"synthetic-{row}" for row in range(len(runs))],
        "left_out": {},
        "ranges": {name: (c.min(), c.max()) for name, c in columns.items()},
        "size_convention": "non-embedding",
        "noise": 0.003,
        "noise_degrees": 20,
        "replicate_noise": None,
        "replicate_degrees": 0,
        "effects": {f.of: {"size": 0.012, "low": 0.0, "high": 0.012} for f in law.shapes},
        "delta_sweep": [],
        "bootstrap": "",
        "data_sha256": "",
        "seed": 0,
    }
    return Fit(**(settings | changes))


@pytest.mark.parametrize("law_name", SHAPED)
def test_every_factor_of_a_law_has_a_panel_with_its_label(law_name):
    runs = with_experts(drifting_runs())
    figure = plot_law(some_fit(law_name, runs), runs)
    factors = law_named(law_name).shapes
    assert [axes.get_xlabel() for axes in figure.axes] == [LABELS.get(f.of, f.of) for f in factors]
    assert figure.axes[0].get_ylabel() == "loss above that of the best shape (%)"
    assert figure.get_suptitle() == f"What shape costs: the {law_name} law on 30 runs"
    assert all(axes.get_xscale() == "log" for axes in figure.axes)


@pytest.mark.parametrize("law_name", [name for name in LAWS if name not in SHAPED])
def test_a_law_without_factors_shows_measured_against_predicted(law_name):
    runs = with_experts(drifting_runs())
    fitted = some_fit(law_name, runs)
    figure = plot_law(fitted, runs)
    assert len(figure.axes) == 1
    axes = figure.axes[0]
    assert axes.get_xlabel() == "predicted loss (nats/token)"
    assert axes.get_ylabel() == "measured loss (nats/token)"
    shown = np.concatenate([points.get_offsets() for points in axes.collections])
    expected = np.column_stack([fitted.central(runs), runs["loss"]])
    np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(expected, axis=0))


@pytest.mark.parametrize("law_name", ["chinchilla", "conditional"])
def test_fit_on_total_parameters_is_drawn_from_a_table_without_non_embedding_ones(law_name):
    runs = drifting_runs()
    fitted = some_fit(law_name, runs, size_convention="total")
    total = runs.rename(columns={N: "n_total"})
    axes = plot_law(fitted, total).axes[0]
    shown = np.concatenate([points.get_offsets() for points in axes.collections])
    assert np.isfinite(shown).all()


def test_the_legend_names_the_sizes_the_law_and_its_band():
    runs = drifting_runs()
    figure = plot_law(some_fit("conditional", runs), runs)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == {"N ≈ 100K", "N ≈ 400K", "N ≈ 1.6M", "law", "95 % band"}
    assert len(labels) == len(set(labels))


def test_band_of_one_wild_resample_does_not_flatten_the_panels():
    runs = drifting_runs()
    fitted = some_fit("conditional", runs)
    wild = fitted.draws.copy()
    wild[:, fitted.law.names.index("hidden_over_sqrt_n_curvature")] *= 1000
    spans = []
    for fit in (fitted, replace(fitted, draws=wild)):
        figure = plot_law(fit, runs)
        spans.append(np.ptp(figure.axes[0].get_ylim()))
        low, high = figure.axes[0].get_ylim()
        shown = [points.get_offsets()[:, 1] for axes in figure.axes for points in axes.collections]
        runs_shown = np.concatenate([values for values in shown if len(values) > 1])
        assert low < runs_shown.min() < runs_shown.max() < high
    assert spans[1] < 4 * spans[0]


def test_panels_below_each_other_have_one_axis_and_a_label_each():
    runs = drifting_runs()
    figure = plot_law(some_fit("conditional", runs), runs, across=1)
    assert len({axes.get_position().x0 for axes in figure.axes}) == 1
    assert {axes.get_ylabel() for axes in figure.axes} == {"loss above that of the best shape (%)"}


def test_each_panel_shows_every_run_and_the_curve_through_its_optimum():
    runs = drifting_runs()
    figure = plot_law(some_fit("conditional+depth", runs), runs)
    for axes, best in zip(figure.axes[:2], (0.15, 2.0), strict=True):
        (curve,) = axes.get_lines()
        x, y = curve.get_data()
        assert len(x) == POINTS
        assert y.min() == pytest.approx(0.0, abs=1e-2)
        assert x[np.argmin(y)] == pytest.approx(best, rel=0.03)
        dots = [points.get_offsets() for points in axes.collections if len(points.get_offsets())]
        assert sum(len(group) for group in dots) >= len(runs)


def test_an_optimum_that_moves_has_a_curve_for_each_size_in_its_colour():
    sizes = (1e5, 4e5, 1.6e6)
    runs = drifting_runs(sizes)
    axes = plot_law(some_fit("conditional+depth", runs), runs).axes[3]
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) == POINTS]
    for curve, size, colour in zip(curves, sizes, COLOURS, strict=False):
        x, y = curve.get_data()
        assert x[np.argmin(y)] == pytest.approx(8.0 * (size / REFERENCE[N]) ** 0.2, rel=0.03)
        assert curve.get_color() == colour
    assert len(curves) == len(sizes)
    assert "best at 8" in axes.get_title()
    assert "at N = 400K,\nmoves as $N^{0.20}$ [" in axes.get_title()


def test_moving_optimum_over_many_sizes_has_curves_at_the_named_sizes():
    sizes = np.geomspace(1e5, 1e8, 12)
    runs = drifting_runs(sizes=tuple(sizes), rows=3)
    figure = plot_law(some_fit("conditional+depth", runs), runs)
    axes = figure.axes[3]
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) == POINTS]
    expected = (sizes[0], np.sqrt(sizes[0] * sizes[-1]), sizes[-1])
    assert len({line.get_color() for line in curves}) == len(curves) == 3
    for curve, size in zip(curves, expected, strict=True):
        x, y = curve.get_data()
        best = min(8.0 * (size / REFERENCE[N]) ** 0.2, x[-1])
        assert x[np.argmin(y)] == pytest.approx(best, rel=0.03)
        assert curve.get_label() == f"law at N = {format_count(size)}"
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"law", *(curve.get_label() for curve in curves)} <= set(labels)


def test_curvature_that_bends_with_size_has_a_curve_for_each_size():
    runs = drifting_runs()
    law = "Chinchilla() * UShape('mlp_to_attention', bend=True)"
    fitted = some_fit(law, runs)
    theta = fitted.theta.copy()
    theta[fitted.names.index("mlp_to_attention_bend")] = 0.3
    axes = plot_law(replace(fitted, theta=theta), runs).axes[0]
    curves = [line.get_ydata() for line in axes.get_lines() if len(line.get_xdata()) == POINTS]
    assert len(curves) == 3
    assert curves[0].max() > 1.3 * curves[1].max() > 1.3**2 * curves[2].max()


def test_runs_on_the_law_lie_on_the_curves_of_their_sizes():
    runs = drifting_runs()
    axes = plot_law(some_fit("conditional+depth", runs, draws=0), runs).axes[3]
    curves = [line.get_data() for line in axes.get_lines() if len(line.get_xdata()) == POINTS]
    for points, (x, y) in zip(axes.collections, curves, strict=True):
        shown = points.get_offsets()
        expected = np.interp(np.log(shown[:, 0]), np.log(x), y)
        np.testing.assert_allclose(shown[:, 1], expected, atol=0.02)


def test_runs_on_the_law_lie_on_its_curve():
    runs = drifting_runs(sizes=(4e5,))
    figure = plot_law(some_fit("conditional+depth", runs, draws=0), runs)
    for axes in figure.axes:
        curve = axes.get_lines()[-1]
        x, y = curve.get_data()
        (points,) = axes.collections
        shown = points.get_offsets()
        expected = np.interp(np.log(shown[:, 0]), np.log(x), y)
        np.testing.assert_allclose(shown[:, 1], expected, atol=0.02)


def test_the_band_encloses_the_curve_and_is_absent_without_resamples():
    runs = drifting_runs()
    figure = plot_law(some_fit("conditional", runs), runs)
    with_band = [text.get_text() for text in figure.legends[0].get_texts()]
    figure = plot_law(some_fit("conditional", runs, draws=0), runs)
    without = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(with_band) - set(without) == {"95 % band"}


def test_titles_have_the_optimum_with_its_interval_and_the_cost_of_a_doubling():
    runs = drifting_runs()
    fitted = some_fit("conditional", runs)
    titles = [axes.get_title() for axes in plot_law(fitted, runs).axes]
    optimum = fitted.optima()["mlp_to_attention"]
    assert titles[1] == f"best at 2 [{optimum['low']:.3g}, {optimum['high']:.3g}]"
    assert titles[2].startswith("+0.69 % per doubling [+0.")


@pytest.mark.parametrize("law", ["morph", "Chinchilla() * GroupedQuery(form='share')"])
def test_titles_of_other_factors_have_their_effect_on_the_loss(law):
    runs = drifting_runs()
    figure = plot_law(some_fit(law, runs), runs)
    assert figure.axes[0].get_title() == "moves the loss by 1.20 % over the runs"


def test_title_of_a_pinned_factor_has_the_pinned_value():
    runs = drifting_runs()
    pinned = {"aspect_ratio_epsilon": Held.at(-4.0, "pinned at 0.018 (a paper)")}
    figure = plot_law(some_fit("morph", runs, held=pinned), runs)
    assert figure.axes[0].get_title() == "pinned at 0.018 (a paper)"


def test_title_of_a_held_factor_says_that_it_is_not_resolved():
    runs = drifting_runs()
    held = {
        "mlp_to_attention_curvature": Held.at(0.0, "short reason"),
        "mlp_to_attention_optimum": Held.at(np.log(2.0), "short reason"),
        "gqa_slope": Held.at(0.0, "effect of 0.10 % over the 30 runs is not resolved (p = 0.61)"),
    }
    titles = [
        axes.get_title() for axes in plot_law(some_fit("conditional", runs, held=held), runs).axes
    ]
    assert titles[1] == "not resolved: short reason"
    assert titles[2] == "not resolved"


def test_figure_of_a_law_is_the_same_to_the_byte(tmp_path):
    runs = drifting_runs()
    for name in ("first.png", "second.png"):
        save_figure(plot_law(some_fit("conditional", runs), runs), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.png", "second.png"))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"matplotlib" not in first.lower()


def test_figure_is_saved_into_a_new_folder_or_fails_with_the_path(tmp_path):
    runs = drifting_runs()
    figure = plot_law(some_fit("chinchilla", runs), runs)
    save_figure(figure, tmp_path / "new" / "law.png")
    assert (tmp_path / "new" / "law.png").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match=r"law\.png could not be written"):
        save_figure(figure, tmp_path / "file" / "law.png")


def test_many_sizes_have_a_colour_scale_instead_of_a_long_legend():
    runs = drifting_runs(sizes=tuple(np.geomspace(1e5, 1e8, 12)), rows=3)
    figure = plot_law(some_fit("conditional", runs), runs)
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert labels == ["95 % band", "law"]
    assert any(axes.get_ylabel() == "N (parameters)" for axes in figure.axes)
