"""Figures of the quality of a fit: residuals, their distribution, and profile curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta, norm
from scipy.stats import t as student

from shapelaw.scaling.display.tables import counted
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.derived import Quantity, parameter
from shapelaw.scaling.fitting.law_problem import reconstruct_problem
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import LEVEL
from shapelaw.scaling.plots.style import (
    BAND,
    BLUE,
    CURVE,
    VERMILLION,
    add_colour_scale,
    add_legend,
    axis_label,
    column_format,
    fit_title,
    format_number,
    log_axis,
    panels,
    runs_for_fit,
    scatter_runs,
    styled,
)
from shapelaw.scaling.runs.columns import D, N
from shapelaw.scaling.runs.levels import level_of
from shapelaw.scaling.runs.table import RunTable
from shapelaw.scaling.solver.problem import Problem, Solution
from shapelaw.scaling.uncertainty.profiles import ProfileCurve, profile_curve
from shapelaw.scaling.units import short_unit

MAX_GROUPS, MIN_GROUP_RUNS = 8, 3  # of the means in a residual plot
SHAPE = ("hidden_over_sqrt_n", "mlp_to_attention", "gqa", "num_hidden_layers", "aspect_ratio")
PREDICTED = "predicted loss"
MIN_LOG_RATIO = 3.0  # ratio of an axis's ends above which it is logarithmic


def log_residuals(fit: Fit, runs: RunTable | pd.DataFrame) -> np.ndarray:
    """Compute ln(measured loss / predicted loss) of every run, positive for worse runs.

    Parameters
    ----------
    fit
        The fitted law.
    runs
        n runs with the columns of the law.

    Returns
    -------
    Residuals in ln units, (n,).

    Raises
    ------
    InputError
        The table lacks a column of the law.
    """
    runs = runs_for_fit(fit, runs)
    return np.asarray(np.log(runs.losses) - np.log(fit.central(runs)))


@styled
def plot_residuals(fit: Fit, runs: RunTable | pd.DataFrame) -> Figure:
    """Draw residuals against predicted loss, N, D and every shape ratio that varies in the table.

    The panels include columns that the law lacks: a trend there indicates a missing term. The grey
    band contains 95 % of new runs if the noise equals the fitted one. Dark marks are means of
    groups of runs with 95 % intervals, for independent runs. Residuals are ln(measured / predicted)
    in per cent of the loss.

    Parameters
    ----------
    fit
        The fitted law.
    runs
        The runs to draw.

    Raises
    ------
    InputError
        The table lacks a column of the law.
    """
    runs = runs_for_fit(fit, runs)
    residuals = 100 * log_residuals(fit, runs)
    chosen = {PREDICTED: fit.central(runs), **_varied(fit, runs)}
    figure, drawn = panels(len(chosen), share=True)
    half = 100 * fit.noise * float(student.ppf(0.5 + LEVEL / 200, max(fit.noise_degrees, 1)))
    points = None
    for axes, (name, values) in zip(drawn, chosen.items(), strict=True):
        axes.axhspan(-half, half, color=BAND, alpha=0.35, lw=0, label="95 % of new runs")
        axes.axhline(0, color=CURVE, lw=1)
        points = scatter_runs(axes, values, residuals, runs)
        _draw_means(axes, values, residuals)
        log_axis(axes, "x", *_padded(values), form=column_format(name), most=5)
        unit = short_unit(fit.loss_unit)
        axes.set_xlabel(
            f"predicted {fit.loss_name} ({unit})" if name == PREDICTED else axis_label(fit, name)
        )
    span = np.array([min(residuals.min(), -half), max(residuals.max(), half)])
    drawn[0].set_ylim(*(span + np.array([-0.06, 0.06]) * max(np.ptp(span), 1e-6)))
    for axes in drawn[::3]:
        axes.set_ylabel(f"residual (% of the {fit.loss_name})")
    add_legend(figure, drawn)
    add_colour_scale(figure, drawn, points, runs)
    figure.suptitle(f"Residuals: {fit_title(fit)}")
    return figure


def _varied(fit: Fit, runs: RunTable) -> dict[str, np.ndarray]:
    """Select N, D, the columns of the law and the shape ratios that vary in the table."""
    kept = {}
    for name in dict.fromkeys((N, D, *fit.law.columns, *SHAPE)):
        column = runs.size_column if name == N else name
        if column in runs:
            values = pd.to_numeric(runs[column], errors="coerce").to_numpy(dtype=float)
            if (values > 0).all() and np.isfinite(values).all() and np.ptp(np.log(values)) > 1e-9:
                kept[name] = values
    return kept


def _padded(values: np.ndarray) -> tuple[float, float]:
    """Compute the ends of an axis, a twentieth of the log range beyond the values."""
    low, high = float(np.log(values.min())), float(np.log(values.max()))
    pad = 0.05 * max(high - low, 0.1)
    return float(np.exp(low - pad)), float(np.exp(high + pad))


def _draw_means(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draw the mean of each level with its 95 % interval, or of neighbours for many levels."""
    groups = level_of(x)
    if groups.max() >= MAX_GROUPS:
        bins = max(min(MAX_GROUPS, len(x) // 5), 1)
        edges = np.quantile(np.log(x), np.linspace(0, 1, bins + 1)[1:-1])
        groups = np.searchsorted(edges, np.log(x), side="right")
    means = []
    for group in np.unique(groups):
        members = y[groups == group]
        count = len(members)
        if count >= MIN_GROUP_RUNS:
            error = student.ppf(0.5 + LEVEL / 200, count - 1) * members.std(ddof=1) / count**0.5
            means.append((np.exp(np.log(x[groups == group]).mean()), members.mean(), error))
    if means:
        place, mean, error = np.array(means).T
        axes.errorbar(
            place, mean, error, fmt="o-", color="black", ms=4, lw=1.2, capsize=2, zorder=4,
            label="mean of a group, 95 %",
        )  # fmt: skip


@styled
def plot_qq(fit: Fit, runs: RunTable | pd.DataFrame) -> Figure:
    """Draw a quantile-quantile plot of the residuals over the noise.

    The reference is the normal distribution, or Student's t where the fit used it. The band
    contains each point with 95 % probability if the residuals are independent and follow the
    reference. A few runs outside are expected; bent ends indicate heavy tails.

    Parameters
    ----------
    fit
        The fitted law.
    runs
        The runs to draw.

    Raises
    ------
    InputError
        The table lacks a column of the law, or the noise is zero.
    """
    runs = runs_for_fit(fit, runs)
    heavy = fit.minimised.kind == "student" and fit.minimised.on == "log"
    scale = fit.delta if heavy else fit.noise
    if not scale > 0:
        raise InputError(
            f"`noise > 0` must hold for a Q-Q plot, but got {scale:g}; fit a law with fewer "
            "parameters than runs"
        )
    reference = student(fit.minimised.degrees) if heavy else norm()
    residuals = log_residuals(fit, runs) / scale
    order = np.argsort(residuals, kind="stable")
    rank, count = np.arange(1, len(order) + 1), len(order)
    expected = np.asarray(reference.ppf(beta.ppf(0.5, rank, count + 1 - rank)))
    ends = [0.5 - LEVEL / 200, 0.5 + LEVEL / 200]
    low, high = (reference.ppf(beta.ppf(end, rank, count + 1 - rank)) for end in ends)
    sorted_runs, observed = runs.take(order), residuals[order]
    outside = int(((observed < low) | (observed > high)).sum())
    figure = Figure(figsize=(6.0, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(expected, low, high, color=BAND, alpha=0.5, lw=0, label="95 %, pointwise")
    axes.plot(expected, expected, color=CURVE, lw=1, label="as expected")
    points = scatter_runs(axes, expected, observed, sorted_runs)
    name = f"Student's t with {fit.minimised.degrees:g} degrees of freedom" if heavy else "normal"
    axes.set_xlabel(f"quantile of the {name} distribution" if not heavy else f"quantile of {name}")
    axes.set_ylabel(f"residual / {'scale' if heavy else 'noise'} ({100 * scale:.2g} % of the loss)")
    axes.set_title(f"{outside} of {counted(count, 'run')} outside the band")
    axes.legend(loc="upper left")
    add_colour_scale(figure, [axes], points, sorted_runs)
    figure.suptitle(f"Q-Q: {fit_title(fit)}")
    return figure


@styled
def plot_profiles(
    fit: Fit,
    runs: RunTable | pd.DataFrame,
    quantities: Sequence[Quantity] | None = None,
    *,
    level: float = LEVEL,
) -> Figure:
    """Draw profile curves: the rise of the objective as a quantity leaves its best value.

    The interval ends where the curve crosses 1. Where the curve differs from its dashed parabola,
    standard errors are misleading. Where the curve stays below 1, the data do not bound that end.
    Rows of one run are one cluster where the table has ``run_group``.

    Parameters
    ----------
    fit
        The fitted law.
    runs
        The table of the fit.
    quantities
        Quantities such as those of :func:`shapelaw.scaling.fitting.derived.optimal`; by default all
        free parameters.
    level
        The confidence level of the intervals, per cent.

    Raises
    ------
    InputError
        The runs are not those of the fit, or nothing is free.
    """
    runs = fit.count_as_fitted(runs)
    problem, best = reconstruct_problem(fit, runs)
    if quantities is None:
        names = [name for name in fit.law.names if name not in fit.held]
        quantities = [parameter(fit, name) for name in names]
    if not quantities:
        raise InputError(
            f"a profile needs a free parameter, but `{fit.law_name}` has none; give quantities"
        )
    figure, drawn = panels(len(quantities), across=4 if len(quantities) > 6 else 3, share=True)
    for axes, quantity in zip(drawn, quantities, strict=True):
        _draw_profile(axes, problem, best, quantity, runs.run_groups, level)
        first = axes.get_subplotspec()
        if first is not None and first.is_first_col():
            axes.set_ylabel("rise of the objective\n(1: what chance allows)")
    drawn[0].set_ylim(0, 2)
    add_legend(figure, drawn)
    figure.suptitle(f"Profiles, {level:g} % intervals: {fit_title(fit)}")
    return figure


def _draw_profile(
    axes: Axes,
    problem: Problem,
    best: Solution,
    quantity: Quantity,
    groups: np.ndarray | None,
    level: float,
) -> None:
    curve = profile_curve(problem, best, quantity.inner, level=level, clusters=groups)
    values = _outer(quantity, curve.places)
    low, value, high = _outer(quantity, np.array(_ends(curve))).tolist()
    axes.axvspan(
        max(low, values[0]), min(high, values[-1]), color=BAND, alpha=0.35, lw=0, label="interval"
    )
    axes.axhline(1, color=CURVE, lw=1)
    axes.plot(values, curve.parabola, color=VERMILLION, ls="--", lw=1.2, label="parabola")
    axes.plot(values, curve.rise, color=BLUE, lw=1.8, label="profile")
    axes.plot([value], [0], marker="o", color="black", ms=5, lw=0, clip_on=False, label="best")
    ends = ", ".join(
        f"{_outer(quantity, np.array(end)):.4g}" if np.isfinite(end) else "open"
        for end in (curve.interval.low, curve.interval.high)
    )
    axes.set_title(f"{value:.4g} [{ends}]")
    axes.set_xlabel(f"{quantity.name} ({quantity.unit})" if quantity.unit else quantity.name)
    if quantity.logarithmic and values[-1] > MIN_LOG_RATIO * values[0]:
        log_axis(axes, "x", values[0], values[-1], form=format_number, most=5)
    else:
        axes.set_xlim(values[0], values[-1])
        axes.locator_params(axis="x", nbins=5)


def _outer(quantity: Quantity, inner: np.ndarray) -> np.ndarray:
    """Convert values of a quantity from the scale on which its interval is computed."""
    return np.asarray(np.exp(inner) if quantity.logarithmic else inner)


def _ends(curve: ProfileCurve) -> tuple[float, float, float]:
    return curve.interval.low, curve.interval.value, curve.interval.high
