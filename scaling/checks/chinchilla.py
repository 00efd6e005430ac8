"""The three approaches of Chinchilla to the compute-optimal size (arXiv 2203.15556, section 3).

Approach 1 takes the size with the lowest loss at each compute budget, over training curves or, for
a table without curves, over the runs of equal compute. Approach 2 takes the vertex of a parabola of
loss in ln N at each compute budget (IsoFLOP). Approach 3 takes the optimum of the parametric law.
Each approach gives N* ∝ C^a. Approach 2 is biased if the curves are wide or asymmetric, approach 3
if the law is wrong. An optimum is credible if the approaches agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd

from shapelaw.scaling.display.tables import Result, View
from shapelaw.scaling.errors import InputError
from shapelaw.scaling.fitting.compute_optimal import allocation
from shapelaw.scaling.fitting.refits import FitSettings, fit_quickly
from shapelaw.scaling.fitting.result import Fit
from shapelaw.scaling.fitting.run_intervals import ENDS
from shapelaw.scaling.runs.columns import N
from shapelaw.scaling.runs.levels import count_levels
from shapelaw.scaling.runs.table import AUTO, RunTable, as_run_table

DEFAULT_RESAMPLES = 400
ENVELOPE_POINTS = 200  # compute budgets at which training curves are compared
MIN_MINIMA = 3  # minima at different compute budgets; a line through fewer has no error estimate
MIN_SIZES = 3  # distinct sizes for a minimum
MIN_PARABOLA_SIZES = 5  # distinct sizes at a level of compute for a parabola
FITTED = "fitted"
PARAMETRIC = "chinchilla"  # the law of approach 3
# Compute budgets and sizes of the lowest loss, both as natural logarithms, (m,) each.
Minima = tuple[np.ndarray, np.ndarray]
Finder = Callable[[pd.DataFrame], Minima]


@dataclass(frozen=True, kw_only=True, repr=False)
class Approaches(Result):
    """Exponent a and compute-optimal N at one compute budget, by approach.

    Parameters
    ----------
    compute
        Compute budget of N* and D/N in ``table``, in FLOPs.
    table
        One row per approach.
    minima
        Points (FLOPs, parameters) to which approaches 1 and 2 fit their lines.
    """

    compute: float
    table: pd.DataFrame
    minima: dict[str, pd.DataFrame]

    def frame(self) -> pd.DataFrame:
        """Return one row per approach."""
        return self.table

    def view(self) -> View:
        """Return the exponents and the table of approaches."""
        parts = [
            f"{row['approach'][0]}: "
            + ("not available" if pd.isna(row["a"]) else f"{row['a']:.3f}")
            for row in self.table.to_dict("records")
        ]
        title = f"Chinchilla's approaches: N* ∝ C^a, N* at {self.compute:.3g} FLOPs, 95 % intervals"
        return View(
            title=f"exponent a of N* ∝ C^a by Chinchilla's approaches {', '.join(parts)}",
            tables={title: self.table[self.table["a"].notna()].drop(columns="status")},
            notes=[
                f"Chinchilla's approach {row['approach']}: {row['status']}"
                for row in self.table.to_dict("records")
                if row["status"] != FITTED
            ],
        )

    def document(self) -> dict[str, Any]:
        """Return the table of approaches and the minima of approaches 1 and 2."""
        return {"compute": self.compute, "approaches": self.table, "minima": self.minima}


def approaches(
    runs: RunTable | pd.DataFrame,
    *,
    compute: float | None = None,
    curve: str = "curve",
    parametric: Fit | None = None,
    **settings: Unpack[FitSettings],
) -> Approaches:
    """Find the compute-optimal size of a run table by Chinchilla's approaches 1, 2 and 3.

    Parameters
    ----------
    runs
        Run table with N, tokens and loss.
    compute
        Compute budget of N* in FLOPs; by default the largest of the table.
    curve
        Column that identifies training curves. The rows of a curve are checkpoints of one run.
    parametric
        Fit of a law with the base of Chinchilla to these runs, whose shape factors then count in
        approach 3; by default the law of Chinchilla itself is fitted here.
    settings
        Settings of the fit of approach 3. ``resamples`` (400) and ``seed`` apply to the intervals
        of all approaches. Approaches 1 and 2 resample runs within each level of compute, or whole
        curves.

    Returns
    -------
    Approaches
        Exponent and optimum of every approach, or the reason that it is not available.

    Raises
    ------
    InputError
        The table lacks N, tokens or loss, or ``compute`` is not a positive number.

    Notes
    -----
    Source: arXiv 2203.15556, section 3.
    """
    given = as_run_table(runs, settings.pop("size", AUTO))
    table = pd.DataFrame({N: given.sizes, "loss": given.losses, "flops": given.compute})
    table["level"], table["size_level"] = given.compute_level, given.size_level
    if compute is None:
        compute = float(given.compute.max())
    if not 0 < compute < np.inf:
        raise InputError(f"`compute > 0` and finite must hold, but got {compute}; write 1e21")
    chosen: FitSettings = {"resamples": DEFAULT_RESAMPLES, "seed": 0, **settings}
    curves = curve in given and bool((given[curve].value_counts() >= MIN_MINIMA).any())
    table["group"] = given[curve].to_numpy() if curves else given.compute_level
    first = _envelope if curves else _lowest_of_levels
    lines, minima = [], {}
    for name, find, whole in (
        ("1 (minimum over curves)" if curves else "1 (frontier of runs)", first, curves),
        ("2 (IsoFLOP parabolas)", _vertices, False),
    ):
        rows = _levels(table) if find is _vertices else table
        line, points = _by_minima(rows, find, compute, chosen, whole=whole)
        lines.append({"approach": name, **line})
        minima[name[0]] = points
    lines.append(
        {"approach": "3 (parametric law)", **_parametric(given, compute, parametric, chosen)}
    )
    names = ["approach", "a", "a_low", "a_high", "n", "n_low", "n_high", "tokens_per_n", "points"]
    by_approach = pd.DataFrame(lines).reindex(columns=[*names, "status"])
    return Approaches(compute=compute, table=by_approach, minima=minima)


def _levels(runs: pd.DataFrame) -> pd.DataFrame:
    """Select the levels of compute with enough sizes for a parabola."""
    runs = runs.assign(group=runs["level"])
    return runs[runs.groupby("group")["size_level"].transform("nunique") >= MIN_PARABOLA_SIZES]


def _by_minima(
    runs: pd.DataFrame, find: Finder, compute: float, settings: FitSettings, *, whole: bool
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Fit ln N* as a line in ln C, with a bootstrap interval."""
    flops, sizes = find(runs)
    points = pd.DataFrame({"flops": np.exp(flops), N: np.exp(sizes)})
    if len(np.unique(flops)) < MIN_MINIMA:
        why = f"not available: {len(points)} levels of compute have a minimum between the sizes "
        why += f"tried, and a line needs {MIN_MINIMA}; train more sizes at equal compute"
        return {"points": len(points), "status": why}, points
    slope, best = _line(flops, sizes, compute)
    generator = np.random.default_rng(settings["seed"])
    groups = [np.asarray(part) for part in runs.groupby("group").indices.values()]
    drawn = []
    for _ in range(settings["resamples"]):
        resample = _resample(runs, groups, generator, whole=whole)
        resampled_flops, resampled_sizes = find(resample)
        if len(np.unique(resampled_flops)) >= MIN_MINIMA:
            drawn.append(_line(resampled_flops, resampled_sizes, compute))
    line: dict[str, Any] = {"a": slope, "n": best, "tokens_per_n": compute / 6 / best**2}
    status = FITTED
    if drawn:
        low, high = np.percentile(drawn, ENDS, axis=0)
        line |= {"a_low": low[0], "a_high": high[0], "n_low": low[1], "n_high": high[1]}
        if len(drawn) < settings["resamples"]:
            missing = settings["resamples"] - len(drawn)
            status = f"fitted; {missing} of {settings['resamples']} resamples give no line"
    return line | {"points": len(points), "status": status}, points


def _resample(
    runs: pd.DataFrame, groups: list[np.ndarray], generator: np.random.Generator, *, whole: bool
) -> pd.DataFrame:
    """Resample whole groups (curves), or rows within each group, with replacement."""
    if whole:
        chosen = generator.integers(len(groups), size=len(groups))
        label = np.repeat(np.arange(len(groups)), [len(groups[i]) for i in chosen])
        return runs.iloc[np.concatenate([groups[i] for i in chosen])].assign(group=label)
    rows = np.concatenate([group[generator.integers(len(group), size=len(group))]
                           for group in groups])  # fmt: skip
    return runs.iloc[rows]


def _line(flops: np.ndarray, sizes: np.ndarray, compute: float) -> tuple[float, float]:
    """Fit ln N* as a line in ln C; return its slope a and N* at ``compute``."""
    slope, _ = np.polyfit(flops, sizes, 1)
    middle = flops.mean()
    return float(slope), float(np.exp(sizes.mean() + slope * (np.log(compute) - middle)))


def _lowest_of_levels(runs: pd.DataFrame) -> Minima:
    """Find the lowest loss of each level of compute that is not at an end of the sizes tried."""
    minima = []
    for _, level in runs.groupby("group"):
        sizes = level[N].to_numpy(dtype=float)
        best = int(np.argmin(level["loss"].to_numpy()))
        enough = level["size_level"].nunique() >= MIN_SIZES
        if enough and sizes.min() < sizes[best] < sizes.max():
            minima.append((np.log(level["flops"].iloc[best]), np.log(sizes[best])))
    return _arrays(minima)


def _envelope(runs: pd.DataFrame) -> Minima:
    """Find the size of the curve with the lowest loss at each of many compute budgets."""
    curves = [
        (
            np.log(curve["flops"].to_numpy()),
            curve["loss"].to_numpy(),
            float(np.log(curve[N].iloc[0])),
            int(curve["size_level"].iloc[0]),
        )
        for _, curve in runs.sort_values("flops").groupby("group")
        if len(curve) >= 2
    ]
    if not curves:
        return _arrays([])
    ends = [end for flops, *_ in curves for end in (flops[0], flops[-1])]
    grid = np.linspace(min(ends), max(ends), ENVELOPE_POINTS)
    losses = np.stack(
        [np.interp(grid, flops, loss, left=np.inf, right=np.inf) for flops, loss, *_ in curves]
    )
    sizes, levels = (np.array([curve[place] for curve in curves]) for place in (2, 3))
    minima = []
    for column, compute in zip(losses.T, grid, strict=True):
        present, best = sizes[np.isfinite(column)], sizes[int(np.argmin(column))]
        enough = count_levels(levels[np.isfinite(column)]) >= MIN_SIZES
        if enough and present.min() < best < present.max():
            minima.append((compute, best))
    return _arrays(minima)


def _vertices(runs: pd.DataFrame) -> Minima:
    """Find the vertex of a parabola of loss in ln N at each level, if inside the sizes tried."""
    minima = []
    for _, level in runs.groupby("group"):
        sizes = np.log(level[N].to_numpy(dtype=float))
        if level["size_level"].nunique() < MIN_SIZES:
            continue
        middle = sizes.mean()
        bend, slope, _ = np.polyfit(sizes - middle, level["loss"].to_numpy(dtype=float), 2)
        vertex = middle - slope / (2 * bend) if bend > 0 else np.nan
        if sizes.min() < vertex < sizes.max():
            minima.append((np.log(level["flops"]).mean(), vertex))
    return _arrays(minima)


def _arrays(minima: list[tuple[float, float]]) -> Minima:
    pairs = np.array(minima, dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _parametric(
    runs: RunTable, compute: float, given: Fit | None, settings: FitSettings
) -> dict[str, Any]:
    """Return the compute-optimal size of the Chinchilla law as a row of the table."""
    try:
        fitted = given or fit_quickly(PARAMETRIC, runs, **settings)
    except InputError as error:
        return {"points": len(runs), "status": f"not available: {error}"}
    held = sorted({"alpha", "beta"} & set(fitted.held))
    best = allocation(fitted, compute)
    if held or best.why:
        why = best.why or f"{' and '.join(held)} held: {fitted.held[held[0]].why}"
        return {"points": len(runs), "status": f"not available: {why}"}
    a, n = best.exponent, best.n
    return {
        "a": a["value"],
        "a_low": a["low"],
        "a_high": a["high"],
        "n": n["value"],
        "n_low": n["low"],
        "n_high": n["high"],
        "tokens_per_n": best.tokens_per_n["value"],
        "points": len(runs),
        "status": FITTED,
    }
